"""The prior: a causal Transformer over the codes of one image, opened by its class.

Shapes: labels (B,) int64, where `num_classes` stands for no class; codes (B, T) int64 in [0, K), in raster order, the Q
codes of a place side by side; logits (B, T, V), where V is K, or where a code is predicted in parts the sum of their sizes.

The input is [class, c_0, ..., c_{T-2}], the output a distribution over c_0, ..., c_{T-1}: log p(codes | class) is the
sum of their log-probabilities, the rate term of the lecture's ELBO. Depths of a place have embeddings and heads of their own.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import folder
from common.digits import to_digits
from prior.cache import KVCache
from prior.config import PriorConfig
from prior.head import CodeHead
from prior.layers import Block, RMSNorm, grid_angles


class Prior(nn.Module):
    def __init__(self, config: PriorConfig):
        super().__init__()
        self.config, a = config, config.architecture
        self.class_embedding = nn.Embedding(config.num_classes + 1, a.dim)  # the last row is no class
        self.vocabularies = config.vocabularies
        self.code_embedding = nn.Embedding(config.code_depth * sum(self.vocabularies), a.dim)
        self.place_embedding = nn.Parameter(torch.zeros(config.length, a.dim))  # of the code to predict
        self.dropout = nn.Dropout(a.dropout)
        self.blocks = nn.ModuleList(Block(a) for _ in range(a.depth))
        self.norm = RMSNorm(a.dim)
        self.head = CodeHead(config)
        angles = grid_angles(config)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        self.register_buffer("first_rows", embedding_rows(config), persistent=False)  # (T, G)
        self._initialize()

    def _initialize(self) -> None:
        """
        embeddings             N(0, 0.2²): large enough that the first steps of the blocks see them
        matrices of a block    N(0, 0.02²), those that add to the stream smaller by √(2 · depth)
        head                   zeros: the first NLL is ln K
        """
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.2 if "embedding" in name else 0.02)
            if name.endswith(("attention.out.weight", "mlp.down.weight")):
                parameter.data /= (2 * self.config.architecture.depth) ** 0.5
        nn.init.zeros_(self.head.weight)

    def forward(self, labels: Tensor, codes: Tensor) -> Tensor:
        """logits (B, T, V) fp32; logits[:, t] has seen the label and codes[:, :t], and of codes[:, t] the parts before."""
        x = torch.cat([self.class_embedding(labels)[:, None], self.embed(codes[:, :-1], 0)], dim=1)
        x = self.dropout(x + self.place_embedding)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return self.head(self.norm(x), to_digits(codes, self.vocabularies)).float()

    def embed(self, codes: Tensor, t: int) -> Tensor:
        """codes (B, n) of places t, ..., t + n − 1 -> (B, n, C): the sum of the embeddings of their parts."""
        rows = to_digits(codes, self.vocabularies) + self.first_rows[t : t + codes.shape[1]]  # (B, n, G)
        return self.code_embedding(rows).sum(2)

    def step(self, x: Tensor, t: int, cache: KVCache) -> Tensor:
        """One place: the embedding x (B, 1, C) of the input at place t, remembered in `cache` -> what the head reads (B, C)."""
        x = x + self.place_embedding[t]
        cos, sin = self.cos[t : t + 1], self.sin[t : t + 1]
        for layer, block in enumerate(self.blocks):
            x = block.step(x, cos, sin, cache, layer, t)
        return self.norm(x)[:, 0]

    @torch.no_grad()
    def log_prob(self, codes: Tensor, labels: Tensor) -> Tensor:
        """codes (B, T), labels (B,) -> log p(codes | labels) of each image (B,), in nats.

        Raises:
            ValueError: codes not of the length, or codes or labels not of the range, this prior was trained for.
        """
        T, K = self.config.length, self.config.codebook_size
        if codes.ndim != 2 or codes.shape[1] != T:
            raise ValueError(f"codes must be (B, {T}), got {tuple(codes.shape)}")
        if codes.numel() and not (codes.min() >= 0 and codes.max() < K):
            raise ValueError(f"codes must lie in [0, {K}), got {codes.min().item()} to {codes.max().item()}")
        if labels.shape != codes.shape[:1]:
            raise ValueError(f"one label an image: got {len(codes)} images and labels {tuple(labels.shape)}")
        if labels.numel() and not (labels.min() >= 0 and labels.max() <= self.config.num_classes):
            raise ValueError(f"labels must lie in [0, {self.config.num_classes}], got {labels.min()} to {labels.max()}")
        return -nll_each(self(labels, codes), codes, self.vocabularies).sum(1)

    def save_pretrained(self, path: str | Path) -> None:
        """Write `config.json` and `model.safetensors` into a folder."""
        folder.save_model(Path(path), self, self.config)

    @classmethod
    def from_pretrained(cls, path: str | Path) -> "Prior":
        """Read a folder, or a Hub repository, that `save_pretrained` wrote."""
        return folder.load_model(path, cls, PriorConfig)


def nll_each(logits: Tensor, codes: Tensor, vocabularies: Sequence[int]) -> Tensor:
    """−log p of each code (B, T), in nats, the sum over its parts: logits (B, T, V), codes (B, T)."""
    digits = to_digits(codes, vocabularies).unbind(-1)
    parts = logits.float().transpose(1, 2).split(list(vocabularies), dim=1)
    each = [F.cross_entropy(part, digit, reduction="none") for part, digit in zip(parts, digits, strict=True)]
    return torch.stack(each).sum(0)


def embedding_rows(config: PriorConfig) -> Tensor:
    """(T, G): the row of the embedding table where part g of the codes at place t begins."""
    sizes = torch.tensor(config.vocabularies)
    depth = torch.arange(config.length)[:, None] % config.code_depth
    return depth * sizes.sum() + sizes.cumsum(0) - sizes

"""The prior: a causal Transformer over the codes of one image, opened by its class.

Shapes: labels (B,) int64, where `num_classes` stands for no class; codes (B, T) int64 in [0, K); logits (B, T, K).

The input is [class, c_0, ..., c_{T-2}], the output a distribution over c_0, ..., c_{T-1}: log p(codes | class) is the
sum of their log-probabilities, the rate term of the lecture's ELBO.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import folder
from prior.cache import KVCache
from prior.config import PriorConfig
from prior.layers import Block, RMSNorm, grid_angles


class Prior(nn.Module):
    def __init__(self, config: PriorConfig):
        super().__init__()
        self.config, a = config, config.architecture
        self.class_embedding = nn.Embedding(config.num_classes + 1, a.dim)  # the last row is no class
        self.code_embedding = nn.Embedding(config.codebook_size, a.dim)
        self.place_embedding = nn.Parameter(torch.zeros(config.length, a.dim))  # of the code to predict
        self.dropout = nn.Dropout(a.dropout)
        self.blocks = nn.ModuleList(Block(a) for _ in range(a.depth))
        self.norm = RMSNorm(a.dim)
        self.head = nn.Linear(a.dim, config.codebook_size, bias=False)
        angles = grid_angles(config)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
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
        """logits (B, T, K) fp32, where logits[:, t] has seen the label and codes[:, :t]."""
        x = torch.cat([self.class_embedding(labels)[:, None], self.code_embedding(codes[:, :-1])], dim=1)
        x = self.dropout(x + self.place_embedding)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return self.head(self.norm(x)).float()

    def step(self, x: Tensor, t: int, cache: KVCache) -> Tensor:
        """One place: the embedding x (B, 1, C) of the input at place t -> logits (B, K) fp32, remembered in `cache`."""
        x = x + self.place_embedding[t]
        cos, sin = self.cos[t : t + 1], self.sin[t : t + 1]
        for layer, block in enumerate(self.blocks):
            x = block.step(x, cos, sin, cache, layer, t)
        return self.head(self.norm(x))[:, 0].float()

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
        return -nll_each(self(labels, codes), codes).sum(1)

    def save_pretrained(self, path: str | Path) -> None:
        """Write `config.json` and `model.safetensors` into a folder."""
        folder.save_model(Path(path), self, self.config)

    @classmethod
    def from_pretrained(cls, path: str | Path) -> "Prior":
        """Read a folder, or a Hub repository, that `save_pretrained` wrote."""
        return folder.load_model(path, cls, PriorConfig)


def nll_each(logits: Tensor, codes: Tensor) -> Tensor:
    """−log p of each code (B, T), in nats: logits (B, T, K), codes (B, T)."""
    return F.cross_entropy(logits.float().transpose(1, 2), codes, reduction="none")

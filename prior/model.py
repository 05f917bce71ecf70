"""The prior: a causal Transformer over the codes of one image, opened by its class.

Shapes: labels (B,) int64, where `num_classes` stands for no class; codes (B, T) int64 in [0, K), in raster order, the Q
codes of a place side by side; logits (B, T, V), where V is K, or where a code is predicted in parts the sum of their sizes;
order (B, T), the place of the sequence that each step predicts.

The input is [class, c_0, ..., c_{T-2}], the output a distribution over c_0, ..., c_{T-1}: log p(codes | class) is the
sum of their log-probabilities, the rate term of the lecture's ELBO. Depths of a place have embeddings and heads of their own.

Added to an input is an embedding of the place to predict, its queries are turned by that place and its keys by the one where
its own code stands; so the same weights can predict the places in any order, and the input is then [class, c_{o_0}, c_{o_1},
...]. (Target-aware positions: Yu et al. 2024, RAR, sec. 3.2.)
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from smalti.common import folder
from smalti.common.digits import to_digits
from smalti.common.hub import Pretrained
from smalti.prior.config import PriorConfig
from smalti.prior.head import CodeHead
from smalti.prior.layers import Block, RMSNorm, Turn, grid_angles
from smalti.prior.order import code_order, known_first, raster


class Prior(nn.Module, Pretrained):
    files = folder.MODEL_FILES
    cos: Tensor  # (1 + T, head_dim / 2), of the angles by which places are turned
    sin: Tensor
    first_rows: Tensor  # (T, G)

    def __init__(self, config: PriorConfig):
        super().__init__()
        self.config, a = config, config.architecture
        self.class_embedding = nn.Embedding(config.num_classes + 1, a.dim)  # the last row is no class
        self.vocabularies = config.vocabularies
        self.code_embedding = nn.Embedding(config.code_depth * sum(self.vocabularies), a.dim)
        self.target_embedding = nn.Parameter(torch.zeros(config.length, a.dim))  # of the place to predict
        self.dropout = nn.Dropout(a.dropout)
        self.blocks = nn.ModuleList(Block(a) for _ in range(a.depth))
        self.norm = RMSNorm(a.dim)
        self.head = CodeHead(config)
        angles = grid_angles(config)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        self.register_buffer("first_rows", embedding_rows(config), persistent=False)
        self.recompute = False  # set in training: blocks compute their activations again in the backward pass
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

    def forward(self, labels: Tensor, codes: Tensor, order: Tensor | None = None) -> Tensor:
        """logits (B, T, V) fp32 of the codes in the order given, raster order where none is.

        logits[:, n] has seen the label, the n codes before it in the order, and of its own code the parts before.
        """
        ordered = codes if order is None else codes.gather(1, order)
        x = self.dropout(self.inputs(labels, ordered[:, :-1], order))
        target, own = self.turns(order)
        for block in self.blocks:
            again = self.recompute and self.training
            x = checkpoint(block, x, target, own, use_reentrant=False) if again else block(x, target, own)
        return self.head(self.norm(x), to_digits(ordered, self.vocabularies))

    def inputs(self, labels: Tensor, ordered: Tensor, order: Tensor | None) -> Tensor:
        """labels (B,) and the first n codes in the order (B, n) -> what the first n + 1 steps read (B, n + 1, C)."""
        rows = to_digits(ordered, self.vocabularies) + self.first_rows[: ordered.shape[1]]  # (B, n, G)
        x = torch.cat([self.class_embedding(labels)[:, None], self.code_embedding(rows).sum(2)], dim=1)
        wanted = self.target_embedding if order is None else self.target_embedding[order]
        return x + wanted[..., : x.shape[1], :]

    def turns(self, order: Tensor | None) -> tuple[Turn, Turn]:
        """How far the queries of all steps are turned, by the place to predict, and the keys, by the input's own."""
        if order is None:
            return Turn(self.cos[1:], self.sin[1:]), Turn(self.cos[:-1], self.sin[:-1])
        target, own = 1 + order, own_rows(order)
        return Turn(self.cos[target][:, None], self.sin[target][:, None]), Turn(self.cos[own][:, None], self.sin[own][:, None])

    @torch.no_grad()
    def log_prob(self, codes: Tensor, labels: Tensor, known: Tensor | None = None, *, order: Tensor | None = None) -> Tensor:
        """log p(codes | labels) of each image, or of its unknown codes given the known ones, in nats.

        Args:
            codes: (B, T).
            labels: (B,) in [0, num_classes]; num_classes stands for no class.
            known: (B, P) bool, the places whose codes are given. A prior trained in every order then reads the known ones
                first. One trained in raster order reads them where they stand: each code is given the known and unknown
                ones before it alone, which is the same where all known places come first.
            order: (B, P), a permutation of the places for each image, in which they are predicted instead.
        Returns:
            (B,).
        Raises:
            ValueError: codes not of the length, or codes or labels not of the range, this prior was trained for; an order
                for a prior of raster order; an order and known places at once.
        """
        self.check(codes, labels, known)
        if order is not None and (known is not None or not self.config.any_order):
            raise ValueError("an order is for a prior trained with order: any, and without known places, which give their own")
        if order is not None and not torch.equal(order.sort(1).values, raster(len(codes), self.config.places, order.device)):
            raise ValueError(f"an order must be ({len(codes)}, {self.config.places}), a permutation of each image's places")
        if known is not None and self.config.any_order:
            order = known_first(known)
        nll = self.nll(codes, labels, order=order)
        if known is not None:
            nll = nll.masked_fill(known.repeat_interleave(self.config.code_depth, 1), 0)
        return -nll.sum(1)

    @torch.no_grad()
    def nll(self, codes: Tensor, labels: Tensor, *, order: Tensor | None = None) -> Tensor:
        """−log p of each code given those before it in the order, (B, T) where the codes stand, in nats. Takes what `log_prob`
        takes, and checks nothing."""
        if order is None:
            return nll_each(self(labels, codes), codes, self.vocabularies)
        steps = code_order(order, self.config.code_depth)
        nll = nll_each(self(labels, codes, steps), codes.gather(1, steps), self.vocabularies)
        return torch.empty_like(nll).scatter_(1, steps, nll)

    def check(self, codes: Tensor, labels: Tensor, known: Tensor | None = None) -> None:
        """That codes (B, T), labels (B,) and known places (B, P) are such as this prior was trained for, else a ValueError."""
        T, K = self.config.length, self.config.codebook_size
        if codes.ndim != 2 or codes.shape[1] != T:
            h, w = self.config.grid
            raise ValueError(
                f"codes must be (B, {T}), the grid of {h} x {w} places of {self.config.code_depth} codes this prior was "
                f"trained for; got {tuple(codes.shape)}"
            )
        if codes.is_floating_point() or codes.dtype == torch.bool or labels.is_floating_point():
            raise ValueError(f"codes and labels must be whole numbers, got {codes.dtype} and {labels.dtype}")
        if codes.numel() and not (codes.min() >= 0 and codes.max() < K):
            raise ValueError(f"codes must lie in [0, {K}), got {codes.min().item()} to {codes.max().item()}")
        if labels.shape != codes.shape[:1]:
            raise ValueError(f"one label an image: got {len(codes)} images and labels {tuple(labels.shape)}")
        if labels.numel() and not (labels.min() >= 0 and labels.max() <= self.config.num_classes):
            raise ValueError(f"labels must lie in [0, {self.config.num_classes}], got {labels.min()} to {labels.max()}")
        if known is not None and (known.dtype != torch.bool or known.shape != (len(codes), self.config.places)):
            raise ValueError(
                f"known must be bool ({len(codes)}, {self.config.places}), a mask of each image's places; got "
                f"{known.dtype} {tuple(known.shape)}"
            )

    def save_pretrained(self, path: str | Path) -> None:
        """Write `config.json` and `model.safetensors` into a folder."""
        folder.save_model(Path(path), self, self.config)

    @classmethod
    def from_folder(cls, path: Path) -> Self:
        return folder.load_model(path, cls, PriorConfig)


def load_prior(path: str | Path) -> Prior:
    """Return the prior in a folder, or in a Hub repository `owner/name`. Raises what `Prior.from_pretrained` raises."""
    return Prior.from_pretrained(path)


def nll_each(logits: Tensor, codes: Tensor, vocabularies: Sequence[int]) -> Tensor:
    """−log p of each code (B, T), in nats, the sum over its parts: logits (B, T, V), codes (B, T)."""
    digits = to_digits(codes, vocabularies).unbind(-1)
    parts = logits.float().transpose(1, 2).split(list(vocabularies), dim=1)
    each = [F.cross_entropy(part, digit, reduction="none") for part, digit in zip(parts, digits, strict=True)]
    return torch.stack(each).sum(0)


def own_rows(order: Tensor) -> Tensor:
    """order (B, T) -> (B, T): the row of the table of angles where each step's input stands: the class, then each code."""
    return F.pad(1 + order[:, :-1], (1, 0))


def embedding_rows(config: PriorConfig) -> Tensor:
    """(T, G): the row of the embedding table where part g of the codes at place t begins."""
    sizes = torch.tensor(config.vocabularies)
    depth = torch.arange(config.length)[:, None] % config.code_depth
    return depth * sizes.sum() + sizes.cumsum(0) - sizes

"""What every prior over codes offers: the contract that training, drawing, evaluating and coding ask for.

Shapes: labels (B,) int64, where `num_classes` stands for no class; codes (B, T) int64 in [0, K), in raster order, the Q
codes of a place side by side; logits (B, T, V), where V is K, or where a code is predicted in parts the sum of their sizes;
order (B, T), the place of the sequence that each step predicts; known (B, P) bool over the places.

A prior factorises log p(codes | class) into a distribution over each code given those before it, so its log-probabilities are
exact: the rate term of the lecture's ELBO.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smalti.common import folder
from smalti.common.digits import to_digits
from smalti.common.hub import Pretrained
from smalti.prior.config import PriorConfig
from smalti.prior.draw import Precision, SamplingConfig
from smalti.prior.order import code_order, known_first, raster

Choose = Callable[[Tensor, int, int], Tensor]  # (logits (B, V_g), t, g) -> digits (B,) of part g of code t


class Drawing(Protocol):
    """The state of one batch that is being drawn, with weights as they were when it was made."""

    def draw(self, labels: Tensor, seeds: list[int], codes: Tensor, order: Tensor, given: Tensor, lead: int) -> Tensor:
        """Return codes (b, T) of up to a batch of images whose order begins with `lead` known places: labels (b,), codes
        (b, T), order (b, P) and given (b, P) in the order."""


class Prior(nn.Module, Pretrained, ABC):
    face, files = "load_prior", folder.MODEL_FILES
    kind: ClassVar[str] = "smalti.prior"  # of the folder; which architecture stands in its config

    def __init__(self, config: PriorConfig):
        super().__init__()
        self.config, self.vocabularies = config, config.vocabularies

    # ----------------------------------------------------------------------------------------------- what a kind decides

    @abstractmethod
    def forward(self, labels: Tensor, codes: Tensor, order: Tensor | None = None) -> Tensor:
        """logits (B, T, V) fp32 of the codes in the order given, raster order where none is.

        logits[:, n] has seen the label, the n codes before it in the order, and of its own code the parts before.
        """

    @abstractmethod
    def matrices(self) -> list[nn.Parameter]:
        """Return the weights that are matrices of a layer: weight decay is theirs, and Muon moves them."""

    @abstractmethod
    def recomputing(self, wanted: bool) -> None:
        """Compute activations again in the backward pass, or keep them. Raises `UserError` where it cannot be had."""

    @abstractmethod
    def drawing(self, config: SamplingConfig, batch_size: int, precision: Precision) -> Drawing:
        """Return the state of a batch of so many images, drawn with these settings at a resolved precision."""

    @abstractmethod
    def resolved(self, precision: Precision) -> Precision:
        """Return the precision that is drawn in. Raises ValueError where there is none of that name for this prior."""

    @abstractmethod
    def drawing_bytes(self, config: SamplingConfig, batch_size: int, precision: Precision) -> int:
        """Return about how much memory a `drawing` of this size takes."""

    @abstractmethod
    def walk(self, labels: Tensor, choose: Choose) -> Tensor:
        """Return codes (B, T), whose parts `choose` says one after another, each from its logits once those before are known.

        Who codes and who decodes must compute the very same numbers, so both walk here; the parallel forward of training rounds
        its sums otherwise.
        """

    # --------------------------------------------------------------------------------------------------- what follows of it

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

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
        B, P = len(codes), self.config.layout.places
        if order is not None and (known is not None or not self.config.any_order):
            raise ValueError("an order is for a prior trained with order: any, and without known places, which give their own")
        if order is not None and not torch.equal(order.sort(1).values, raster(B, P, order.device)):
            raise ValueError(f"an order must be ({B}, {P}), a permutation of each image's places")
        if known is not None and self.config.any_order:
            order = known_first(known)
        nll = self.nll(codes, labels, order=order)
        if known is not None:
            nll = nll.masked_fill(known.repeat_interleave(self.config.layout.depth, 1), 0)
        return -nll.sum(1)

    @torch.no_grad()
    def nll(self, codes: Tensor, labels: Tensor, *, order: Tensor | None = None) -> Tensor:
        """−log p of each code given those before it in the order, (B, T) where the codes stand, in nats. Takes what `log_prob`
        takes, and checks nothing."""
        if order is None:
            return nll_each(self(labels, codes), codes, self.vocabularies)
        steps = code_order(order, self.config.layout.depth)
        nll = nll_each(self(labels, codes, steps), codes.gather(1, steps), self.vocabularies)
        return torch.empty_like(nll).scatter_(1, steps, nll)

    def check(self, codes: Tensor, labels: Tensor, known: Tensor | None = None) -> None:
        """That codes (B, T), labels (B,) and known places (B, P) are such as this prior was trained for, else a ValueError."""
        T, K = self.config.layout.length, self.config.layout.codebook_size
        if codes.ndim != 2 or codes.shape[1] != T:
            raise ValueError(
                f"codes must be (B, {T}), the {self.config.layout} this prior was trained for; got {tuple(codes.shape)}"
            )
        if codes.is_floating_point() or codes.dtype == torch.bool or labels.is_floating_point():
            raise ValueError(f"codes and labels must be whole numbers, got {codes.dtype} and {labels.dtype}")
        if codes.numel() and not (codes.min() >= 0 and codes.max() < K):
            raise ValueError(f"codes must lie in [0, {K}), got {codes.min().item()} to {codes.max().item()}")
        if labels.shape != codes.shape[:1]:
            raise ValueError(f"one label an image: got {len(codes)} images and labels {tuple(labels.shape)}")
        if labels.numel() and not (labels.min() >= 0 and labels.max() <= self.config.num_classes):
            raise ValueError(f"labels must lie in [0, {self.config.num_classes}], got {labels.min()} to {labels.max()}")
        if known is not None and (known.dtype != torch.bool or known.shape != (len(codes), self.config.layout.places)):
            raise ValueError(
                f"known must be bool ({len(codes)}, {self.config.layout.places}), a mask of each image's places; got "
                f"{known.dtype} {tuple(known.shape)}"
            )

    # ------------------------------------------------------------------------------------------------------- on the disk

    def save_pretrained(self, path: str | Path) -> None:
        """Write `config.json` and `model.safetensors` into a folder."""
        folder.save_model(Path(path), self, self.config)

    @classmethod
    def from_folder(cls, path: Path) -> Self:
        """Return the prior in a folder that holds one of this class; `smalti.prior.model.load_prior` asks the folder."""
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
    depth = torch.arange(config.layout.length)[:, None] % config.layout.depth
    return depth * sizes.sum() + sizes.cumsum(0) - sizes

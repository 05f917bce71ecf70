"""The contract of an image tokenizer, and what some tokenizers offer beyond it.

    ImageTokenizer         images to latents and back, and a folder on the disk: all that the rest of the project needs
    LikelihoodTokenizer    its decoder gives p(x | z): bits, and compression
    DrawsCodes             its codes can be shown one by one
    EmbedsCodes            its codes have vectors on the same grid: a prior over vectors can draw them
    DecodesCoarse          the coarse grids of its layout can be decoded without the finer ones
    TrainedTokenizer       what tokenizer/train.py asks of one that it trains
    DecodesByNetwork       a network's last layer gives what its likelihood reads: perceptual and adversarial losses

Shapes: images (B, C, H, W) in [-1, 1]; latents (B, T) as the layout has them, grid after grid, place after place in
raster order, the numbers of a place side by side: codes, int64 in [0, K), or vectors, float32. On their grid codes are
`indices`, (B, h, w), or (B, h, w, Q) where a place has Q > 1.

A tokenizer may be told of the class of an image: `condition`, (B,) int64 as `tokenizer.condition` has it. One that is
told of nothing does not look at it, so that a caller who knows it can always pass it.
"""

import math
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar, NamedTuple, Protocol, Self, runtime_checkable

import torch
from accelerate import Accelerator
from torch import Generator, Tensor, nn
from torch.nn import Parameter

from smalti.common import folder
from smalti.common.condition import Condition, Nothing
from smalti.common.data.split import ImageSplit
from smalti.common.errors import UserError
from smalti.common.hub import Pretrained
from smalti.common.layout import Layout
from smalti.tokenizer.bottleneck.base import Quantized, Table
from smalti.tokenizer.config import ImageTokenizerConfig, TrainConfig
from smalti.tokenizer.criterion.likelihood.base import Likelihood
from smalti.tokenizer.posterior.of_images import ImagePosteriors


class ImageTokenizer(nn.Module, Pretrained, ABC):
    """A tokenizer of images; its `config` has image_size, image_channels and the layout of the latents."""

    face, files = "load_tokenizer", folder.MODEL_FILES
    config_class: ClassVar[type[ImageTokenizerConfig]]
    decodes_only: ClassVar[tuple[str, ...]] = ()  # its modules that no code of an image depends on
    config: ImageTokenizerConfig

    @property
    def black_and_white(self) -> bool:
        """Return whether every pixel of the images must be -1 or 1."""
        return False

    @property
    def condition(self) -> Condition:
        """Return what encoder and decoder are told of an image beside its pixels and latents."""
        return Nothing()

    @torch.no_grad()
    def encode(self, images: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the latents (B, T) of images (B, C, H, W) in [-1, 1].

        Args:
            condition: (B,) the class of each image, where the tokenizer is told of it.
        Raises:
            ValueError: images of another size or number of channels than the tokenizer was trained for.
            UserError: the encoder's output is NaN or Inf; see `told`.
        """
        expected = (self.config.image_channels, *self.config.image_size)
        if images.ndim != 4 or images.shape[1:] != expected:
            raise ValueError(f"images must be (B, {', '.join(map(str, expected))}), got {tuple(images.shape)}")
        return self._encode(images, self.told(condition, images)).flatten(1)

    @torch.no_grad()
    def decode(self, latents: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the images (B, C, H, W) in [-1, 1] of latents (B, T).

        Args:
            condition: as of `encode`.
        Raises:
            ValueError: latents that the layout does not have, see `check`.
            UserError: see `told`.
        """
        self.check(latents)
        return self._decode(latents, self.told(condition, latents)).float()

    def told(self, condition: Tensor | None, samples: Tensor) -> Tensor | None:
        """Return the condition (B,) of images or latents (B, ...) on their device; None where nothing is told.

        Raises:
            UserError: there is none for each, or one is no class; the message says what to give.
        """
        if not self.condition.told:
            return None
        classes, kind = self.condition.num_classes, self.config.name()
        if condition is None:
            raise UserError(
                f"this tokenizer (kind {kind}) is told of the class of every image, to encode and to decode it: give "
                "the labels, one for each image"
            )
        given: object = condition
        if not isinstance(given, Tensor) or given.shape != (len(samples),) or given.is_floating_point():
            got = f"{given.dtype} {tuple(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
            raise UserError(
                f"labels must be a tensor of whole numbers ({len(samples)},), one for each image, got {got}"
            )
        without = int(((condition < 0) | (condition >= classes)).sum())
        if without:
            raise UserError(
                f"{without} of {len(condition)} images have no class of the {classes} that this tokenizer (kind {kind})"
                " is told of: give each its label, or leave them out"
            )
        return condition.to(samples.device)

    @property
    def has_moments(self) -> bool:
        """Return whether `deviation` gives the spread of q(z | x) around what `encode` gives."""
        return False

    @torch.no_grad()
    def deviation(self, images: Tensor, condition: Tensor | None = None) -> Tensor | None:
        """Return the standard deviation (B, T) under q(z | x) of each number of the latents, around what `encode`
        gives; None of codes and of an autoencoder."""
        return None

    def check(self, latents: Tensor) -> None:
        """Raise ValueError unless latents are (B, T), of the layout."""
        layout = self.config.layout
        what, kind = ("codes", "integers") if layout.discrete else ("latents", "numbers of floating point")
        if latents.ndim != 2 or latents.shape[1] != layout.length or latents.is_floating_point() == layout.discrete:
            got = f"{latents.dtype} {tuple(latents.shape)}"
            raise ValueError(f"{what} must be {kind} (B, {layout.length}), {layout}; got {got}")
        for part, grid in zip(layout.split(latents), layout.grids, strict=True) if layout.discrete else ():
            if part.numel() and not (part.min() >= 0 and part.max() < grid.codebook_size):
                raise ValueError(
                    f"codes must lie in [0, {grid.codebook_size}), got {part.min().item()} to {part.max().item()}"
                )

    @abstractmethod
    def _encode(self, images: Tensor, condition: Tensor | None) -> Tensor:
        """Return the latents of checked images: (B, ...), which flatten to (B, T)."""

    @abstractmethod
    def _decode(self, latents: Tensor, condition: Tensor | None) -> Tensor:
        """Return the images of checked latents (B, T)."""

    def save_pretrained(self, path: str | Path) -> None:
        """Write `config.json` and `model.safetensors` into a folder."""
        folder.save_model(Path(path), self, self.config, decodes_only=list(self.decodes_only))

    @classmethod
    def from_folder(cls, path: Path) -> Self:
        """Return the tokenizer of this class in a folder; `smalti.load_tokenizer` reads the class from the folder."""
        return folder.load_model(path, cls, cls.config_class)


def check_finite(outputs: Tensor, instead: str) -> None:
    """Raise `UserError`, which says what to do instead, unless an encoder's outputs (B, ...) are all finite.

    The nearest code to NaN is some code: it would be written down as if it meant something. A graph that is exported
    cannot raise, and does not check.
    """
    if torch.compiler.is_exporting():
        return
    bad = ~outputs.flatten(1).isfinite().all(1)
    if bad.any():
        raise UserError(f"the encoder's output is NaN or Inf for {int(bad.sum())} of {len(bad)} images: {instead}")


DIVERGED = "its weights have diverged, or precision fp32 is needed; train another --run with a lower lr"


class Bound(NamedTuple):
    """The terms of bounds on −log p(x) of images under p(z) = N(0, I), in nats; given the class where it is told."""

    distortion: Tensor  # (B,) E_q[−log p(x | z)], the mean over the draws
    rate: Tensor  # (B, P, G) KL(q(z | x) || p(z)) in the finest parts of which it is a sum
    importance_weighted: Tensor  # (B,) −log 1/K Σ_k p(x, z_k) / q(z_k | x) of all K draws
    drawn: Tensor  # (B, T) the first of the draws


class LikelihoodTokenizer(ImageTokenizer):
    """A tokenizer whose decoder gives a likelihood, p(x | z)."""

    likelihood: Likelihood  # of what `output` gives

    @property
    def black_and_white(self) -> bool:
        return self.likelihood.kind == "bernoulli"

    @torch.no_grad()
    def output(self, latents: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return what `likelihood` reads, (B, P, H, W), of latents (B, T). Raises as `decode` does."""
        self.check(latents)
        return self._output(latents, self.told(condition, latents))

    @torch.no_grad()
    def nll(self, images: Tensor, latents: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return −log p(images | latents), (B,) in nats, of 8-bit images (B, C, H, W) in [-1, 1].

        Divided by ln 2 · C · H · W it is the distortion in bits per dimension.
        """
        return self.likelihood.nll(self.output(latents, condition), images)

    @property
    def stochastic(self) -> bool:
        """Return whether q(z | x) gives other codes a probability than the one of `encode`."""
        return False

    @torch.no_grad()
    def log_posterior(self, images: Tensor) -> Tensor | None:
        """Return log q(z | x) of every code at every place, (B, T, K), or None where `encode` gives the only code."""
        return None

    @torch.no_grad()
    def bound(
        self,
        images: Tensor,
        samples: int,
        generator: Generator | None = None,
        condition: Tensor | None = None,
    ) -> Bound | None:
        """Return bounds on −log p(images) by draws of vectors from q(z | x), or None where z is no draw of vectors.

        Args:
            samples: K, draws for each image.
            generator: on the device of the images.
            condition: as of `encode`; the bounds are then on −log p(images | condition).
        """
        return None

    @torch.no_grad()
    def posteriors(self, images: Tensor, condition: Tensor | None = None) -> ImagePosteriors | None:
        """Return q(z | x) of images over vectors, or None where it has no density: of codes and of an autoencoder."""
        return None

    @torch.no_grad()
    def exact_nll(self, images: Tensor) -> dict[str, Tensor]:
        """Return −log p(images) where the model's own p(x) has a formula, each (B,) float64 in nats; nothing elsewhere.

        `levels` is of the 256 levels, whose probabilities sum to one. `density` is of the density at the pixels times
        the width of a level for each, which is close to it where the density is wide, and no probability.
        """
        return {}

    def decoder_terms(self, images: Tensor, latents: Tensor, condition: Tensor | None = None) -> "Terms":
        """Return the terms of a training of the decoder alone: −log p(images | latents) of given latents (B, T)."""
        output = self._output(latents, condition)
        nats = self.likelihood.nll(output, images).mean() / images[0].numel()
        losses = {"reconstruction_loss": self.likelihood.weight() * nats}
        return Terms(losses, {"distortion": nats / math.log(2)}, latents, output=output)

    def _decode(self, latents: Tensor, condition: Tensor | None) -> Tensor:
        return self.likelihood.mean(self._output(latents, condition))  # the mean of p(x | z)

    @abstractmethod
    def _output(self, latents: Tensor, condition: Tensor | None) -> Tensor:
        """Return what `likelihood` reads, of checked latents."""


@runtime_checkable
class DrawsCodes(Protocol):
    """A tokenizer whose codes can be drawn one by one: its codebook can be browsed, and searched for duplicates."""

    def code_tables(self) -> list[Tensor]:
        """Return the vectors (K, D) that are searched at each depth; an empty list where codes are digits."""

    def code_vectors(self, depth: int, codes: Tensor) -> Tensor:
        """Return the vectors (N, D) of codes (N,) of a depth."""

    def code_pictures(self, counts: Tensor, depth: int, codes: Tensor) -> Tensor:
        """Return the patches (N, C, p, p) in [-1, 1] that codes (N,) of a depth draw, for usage counts (Q, K)."""


@runtime_checkable
class EmbedsCodes(Protocol):
    """A tokenizer whose codes stand for vectors on the same grid, which its decoder reads in their place."""

    @property
    def vector_layout(self) -> Layout:
        """Return the layout of those vectors: the grid of the codes, with D channels."""

    def embed(self, codes: Tensor) -> Tensor:
        """Return the vectors (B, P D) float32 of codes (B, T)."""

    def nearest(self, vectors: Tensor) -> Tensor:
        """Return the codes (B, T) whose vectors are nearest to vectors (B, P D): the inverse of `embed`."""


@runtime_checkable
class DecodesCoarse(Protocol):
    """A tokenizer of several grids, of which the coarse ones alone make a picture."""

    def decode_coarse(self, latents: Tensor, grids: int) -> Tensor:
        """Return the images (B, C, H, W) in [-1, 1] that the first `grids` grids of latents (B, T) make.

        The finer ones are not read.
        """


class Terms(NamedTuple):
    """The terms of the loss of a batch. A NamedTuple, which DDP, Accelerate and torch.compile see through."""

    losses: dict[str, Tensor]  # () of each term of the loss, in the order of the paper
    watched: dict[str, Tensor]  # () each: logged, and not trained on
    latents: Tensor  # the encoder's output, or codes: a step where it is not finite is skipped
    quantized: Quantized | None = None  # where there are codes to keep in use
    output: Tensor | None = None  # (B, P, H, W) of a `DecodesByNetwork`, which its likelihood reads, with its gradient


class TrainedTokenizer(ImageTokenizer):
    """A tokenizer that tokenizer/train.py trains."""

    @abstractmethod
    def forward(self, images: Tensor, condition: Tensor | None = None) -> Terms:
        """Return the terms of a batch of images (B, C, H, W) of classes (B,), which were checked before the first."""

    def weights(self, c: TrainConfig) -> dict[str, float]:
        """Return the weights of the terms of the loss by name, where they are not 1."""
        return {}

    def begin(self, split: ImageSplit, c: TrainConfig, accelerator: Accelerator) -> None:
        """Initialize from the training images before the first step; all processes take part and end alike."""

    def refit(self, split: ImageSplit, c: TrainConfig, accelerator: Accelerator) -> tuple[Table, ...]:
        """Fit the tables that the steps cannot move to their place once more, and return them; all processes take part
        and end alike."""
        return ()

    def anneal(self, progress: float) -> None:
        """Set the values that change over training, as a function of the share of steps done."""

    def tables(self) -> tuple[Table, ...]:
        """Return the tables of vectors whose dead codes are revived."""
        return ()


@runtime_checkable
class DecodesByNetwork(Protocol):
    """A tokenizer whose terms have an `output`, so that losses of the decoded image can be added to them."""

    likelihood: Likelihood

    def last_layer(self) -> Parameter:
        """Return the weights of the decoder's last layer, at which the gradients of losses are compared."""

    def error_weight(self) -> Tensor | float:
        """Return the weight of the squared error, or what stands for it, in the loss: what another loss of the image is
        multiplied by to keep its balance with the likelihood. It has no gradient."""

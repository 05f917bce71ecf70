"""The contract of a trunk: a frozen network that gives feature maps of images, with a gradient to the images.

Shapes: pixels (B, C, H, W) in [-1, 1]; feature maps (B, N, h, w) of several levels, fine first.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, NamedTuple, Self

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from smalti.common.data.config import ImagesConfig
from smalti.common.data.images import ImageSet
from smalti.common.ends import pass_on
from smalti.common.errors import UserError
from smalti.common.seeds import generator
from smalti.tokenizer.criterion.trunk.config import TrunkConfig


class Place(NamedTuple):
    """The training in which a trunk is opened."""

    images: ImageSet
    settings: ImagesConfig  # how the images are read
    image_size: tuple[int, int]
    channels: int
    cache: Path  # of classifiers that were trained before
    accelerator: Accelerator


class Trunk(nn.Module, ABC):
    """A frozen network. It is no part of the model that is trained, of its average or of what is saved as a model."""

    config_class: ClassVar[type[TrunkConfig]]
    title: str  # what it is, in words
    remedy: str = "a larger least_side shows them enlarged"  # where it does not take the images
    identity: str  # SHA-256 of what its features depend on

    @classmethod
    @abstractmethod
    def open(cls, config: TrunkConfig, place: Place, kept: Mapping[str, Tensor] | None) -> Self:
        """Return the trunk of a config.

        Args:
            kept: what `kept` gave when the training's state was saved, or None at its beginning.
        Raises:
            UserError: a file is missing or damaged; it says which and what to do.
        """

    def check(self, place: Place) -> None:
        """Raise `UserError` where images of the training do not pass it one by one, or get no gradient from it."""
        noise = torch.rand(2, place.channels, *place.image_size, generator=generator(0)) * 2 - 1
        pixels = noise.to(place.accelerator.device).requires_grad_()
        try:
            levels = self(pixels)
        except UserError:
            raise
        except (RuntimeError, ValueError, AssertionError) as error:
            pass_on(error)  # out of memory, for example
            told = (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]
            raise UserError(
                f"{self.title} does not take images {tuple(pixels.shape[1:])}: {told}; {self.remedy}"
            ) from None
        if any(len(level) != len(pixels) for level in levels):
            raise UserError(
                f"{self.title} must give a feature map (B, N, h, w) for each of {len(pixels)} images, got "
                f"{', '.join(str(tuple(level.shape)) for level in levels)}"
            )
        if not all(level.isfinite().all() for level in levels):
            raise UserError(f"{self.title} gives NaN or Inf for noise in [-1, 1]: its weights are damaged")
        moving = [level.square().sum() for level in levels if level.requires_grad]
        if not moving or not torch.autograd.grad(torch.stack(moving).sum(), pixels)[0].count_nonzero():
            raise UserError(
                f"{self.title} gives no gradient to the images: something in it rounds them, computes without "
                "gradients, or gives the same for every image"
            )

    @abstractmethod
    def feature_maps(self, pixels: Tensor) -> list[Tensor]:
        """Return feature maps (B, N, h, w) of pixels as `forward` takes them, fine first."""

    def kept(self) -> dict[str, Tensor]:
        """Return the weights that a state of the training keeps, because no file of the user's has them."""
        return {}

    def freeze(self) -> Self:
        """Return itself in evaluation mode, its weights without gradients and those of its own training dropped."""
        self.zero_grad(set_to_none=True)
        return self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        return super().train(False)  # normalisation by the statistics of a batch would depend on the batch

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Return feature maps (B, N, h, w) of pixels (B, C, H, W) in [-1, 1], fine first."""
        return self.feature_maps(pixels)

    def widths(self, place: Place) -> list[int]:
        """Return the number of channels of each level."""
        with torch.no_grad():
            blank = torch.zeros(1, place.channels, *place.image_size, device=place.accelerator.device)
            return [level.shape[1] for level in self(blank)]


def rgb_of(pixels: Tensor) -> Tensor:
    """Return pixels (B, 1, 3 or 4, H, W) in [-1, 1] as RGB: grey is repeated, transparency is laid on white."""
    if pixels.shape[1] == 1:
        return pixels.expand(-1, 3, -1, -1)
    if pixels.shape[1] == 4:
        opacity = (pixels[:, 3:] + 1) / 2
        return pixels[:, :3] * opacity + (1 - opacity)
    return pixels


def enlarged(pixels: Tensor, least_side: int) -> Tensor:
    """Return pixels whose shorter side has at least so many, bilinear where it has fewer."""
    short = min(pixels.shape[2:])
    if short >= least_side:
        return pixels
    H, W = (round(side * least_side / short) for side in pixels.shape[2:])
    return F.interpolate(pixels, (H, W), mode="bilinear")

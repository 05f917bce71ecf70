"""The latent map: held-out images as points of a plane through the latents, and what each place of it decodes to.

The plane of two numbers is theirs. Of more it goes through the mean of the images' centres, along the two directions in
which they vary most (principal components).

Shapes: N images of T numbers; centers (N, T); a place on the plane (2,), to the right and up; plane (2, T).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from smalti.common.data.pixels import to_float
from smalti.common.data.split import ImageSplit
from smalti.common.errors import UserError
from smalti.common.spacing import evenly_spaced
from smalti.tokenizer.base import ImageTokenizer

MOST = 1000  # images, evenly spaced
BATCH = 128
BEYOND = 0.1  # of the width of all points, on each side of them


class LatentMap(NamedTuple):
    """Points of a plane through the latents, and the images they are of."""

    images: Tensor  # (N, C, H, W) uint8
    labels: Tensor  # (N,) -1 of those without a class
    class_names: tuple[str, ...]
    middle: Tensor  # (T,)
    plane: Tensor  # (2, T), of length 1
    points: Tensor  # (N, 2)
    axes: tuple[str, str]  # what each direction is called

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """Return left, right, bottom and top of the plane that is shown, as wide as high."""
        low, high = self.points.min(0).values, self.points.max(0).values
        half = math.ceil(100 * (0.5 + BEYOND) * max((high - low).max().item(), 0.1)) / 100 + 0.01
        across, up = (round(each, 2) for each in ((low + high) / 2).tolist())
        left, right, bottom, top = (
            round(each, 2) for each in (across - half, across + half, up - half, up + half)
        )  # as sliders show them
        return left, right, bottom, top

    def place(self, right: object, up: object) -> Tensor:
        """Return a place (2,) that a browser sent. Raises `UserError` where it is not on the plane."""
        if not all(isinstance(each, int | float) and math.isfinite(each) for each in (right, up)):
            raise UserError(f"a place must be two numbers, got {right!r} and {up!r}; load the page again")
        found = torch.tensor([right, up], dtype=torch.float32)
        left, most, bottom, top = self.extent
        return found.clamp(torch.tensor([left, bottom]), torch.tensor([most, top]))

    def latents(self, place: Tensor) -> Tensor:
        """Return the latents (1, T) at a place."""
        return (self.middle + place @ self.plane)[None]

    def nearest(self, place: Tensor) -> int:
        """Return the number of the image whose point is nearest."""
        return int((self.points - place).square().sum(1).argmin())

    def class_of(self, image: int) -> str | None:
        label = int(self.labels[image])
        return self.class_names[label] if 0 <= label < len(self.class_names) else None


@torch.no_grad()
def latent_map(
    tokenizer: ImageTokenizer, split: ImageSplit, class_names: tuple[str, ...], device: torch.device
) -> LatentMap:
    """Return the map of up to `MOST` images of a split, evenly spaced."""
    parts = [split.read(some) for some in evenly_spaced(MOST, len(split)).split(BATCH)]
    centers = torch.cat(
        [tokenizer.encode(to_float(part.images.to(device)), part.labels).float().cpu() for part in parts]
    )
    middle, plane, axes = plane_of(centers)
    return LatentMap(
        torch.cat([part.images for part in parts]),
        torch.cat([part.labels for part in parts]),
        class_names,
        middle,
        plane,
        (centers - middle) @ plane.T,
        axes,
    )


def plane_of(centers: Tensor) -> tuple[Tensor, Tensor, tuple[str, str]]:
    """Return middle (T,) and directions (2, T) of the plane through centers (N, T), and what they are called.

    Of a single number, or a single image, there is one direction or none, and the others have length 0.
    """
    T = centers.shape[1]
    if T == 2:
        return torch.zeros(2), torch.eye(2), ("first number of z", "second number of z")
    middle = centers.mean(0)
    directions = torch.linalg.svd(centers - middle, full_matrices=False).Vh[:2]
    plane = torch.cat([directions, directions.new_zeros(2 - len(directions), T)])
    plane = plane * plane.gather(1, plane.abs().argmax(1, keepdim=True)).sign()  # the largest part points up
    return middle, plane, ("first principal component", "second principal component")

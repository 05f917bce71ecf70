"""The use of the numbers of vectors: which of them depend on the image, and a warning where none do.

    active units    numbers of z whose centre varies over images by more than 0.01 (Burda et al. 2016, sec. 5)

A number of z that does not depend on the image costs no KL and says nothing: its posterior has collapsed onto the
prior. Some do in most VAEs, which so choose their own dimension; all do where the decoder manages without z.

Shapes: latents (B, T), the centres of q(z | x).
"""

from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from smalti.tokenizer.base import ImageTokenizer

ACTIVE = 0.01  # variance of a centre over images
COLLAPSED = 0.1  # share of the numbers; with fewer active ones there is a warning


class LatentUse(NamedTuple):
    """The variance of the centre of each number of z over images."""

    variance: Tensor  # (T,) float64

    @property
    def active(self) -> int:
        """Return the number of active units."""
        return int((self.variance > ACTIVE).sum())

    def warning(self, tokenizer: ImageTokenizer) -> str | None:
        """Return what to do where the numbers of z of a tokenizer go unused, or None where they are used."""
        if self.active > COLLAPSED * len(self.variance):
            return None
        found = f"{self.active} of {len(self.variance)} numbers of z depend on the image, the others"
        if tokenizer.has_moments:
            found = f"posterior collapse: {found} follow the prior whatever it shows, so that their KL is 0"
        else:
            found = f"{found} are nearly the same for all"
        *first, last = tokenizer.config.against_collapse or ("",)
        remedies = f"{', '.join(first)}, or {last}" if first else last
        return f"{found}. Early in training this passes. If it stays, {remedies}" if remedies else found


def latent_use(latents: Tensor) -> LatentUse:
    """Return the use of the numbers of z, from the centres (N, T) of images."""
    return LatentUse(latents.double().var(0, correction=0).cpu())


class CenterSums:
    """The sums over images that the variance of each centre is computed from."""

    def __init__(self, length: int, device: torch.device):
        self._sums = torch.zeros(2, length, dtype=torch.float64, device=device)
        self._images = torch.zeros(1, dtype=torch.float64, device=device)

    def add(self, latents: Tensor) -> None:
        """Take the centres (B, T) of a batch."""
        latents = latents.double()
        self._sums += torch.stack([latents.sum(0), latents.square().sum(0)])
        self._images += len(latents)

    def reduced(self, accelerator: Accelerator) -> LatentUse:
        """Return the use over all processes."""
        sums, images = accelerator.reduce(self._sums), accelerator.reduce(self._images).clamp_min(1)
        mean, square = sums / images
        return LatentUse((square - mean.square()).clamp_min(0).cpu())

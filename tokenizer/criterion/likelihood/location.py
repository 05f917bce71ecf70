"""A density around the decoder's output, with one scale a channel."""

import math
from abc import abstractmethod

import torch
from torch import Tensor, nn

from smalti.common.precision import fp32
from smalti.tokenizer.criterion.likelihood.base import Below, Likelihood
from smalti.tokenizer.criterion.likelihood.levels import HALF, all_levels, edges, pixels_of


class Location(Likelihood):
    """A likelihood whose location is the output, with one scale a channel, a parameter where it is learned."""

    def __init__(self, scale: float | None, channels: int):
        super().__init__()
        start = torch.full((channels,), math.log(scale or 0.5))
        if scale is None:
            self.log_scale = nn.Parameter(start)
        else:
            self.register_buffer("log_scale", start, persistent=False)

    @abstractmethod
    def log_mass(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the log of the mass between a and b, in scales from the location."""

    @abstractmethod
    def mass_below(self, a: Tensor) -> Tensor:
        """Return the mass below a, in scales from the location."""

    def log_prob(self, output: Tensor, images: Tensor) -> Tensor:
        return self.log_mass(*edges(images, output, self.log_scale.to(output.dtype)[:, None, None])).sum(1)

    def mean(self, output: Tensor) -> Tensor:
        return fp32(output).clamp(-1, 1)

    def mode(self, output: Tensor) -> Tensor:
        return self.mean(output)

    def probabilities(self, output: Tensor, images: Tensor, channel: int) -> Tensor:
        location = fp32(output)[:, channel, ..., None]
        return self.log_mass(*edges(all_levels(location), location, self.log_scale.to(location.dtype)[channel])).exp()

    def below(self, output: Tensor, images: Tensor, channel: int) -> Below:
        location = fp32(output)[:, channel, ..., None]
        inverse = (-self.log_scale.to(location.dtype)[channel]).exp()
        return lambda levels: self.mass_below((pixels_of(levels, location.dtype) - HALF - location) * inverse)

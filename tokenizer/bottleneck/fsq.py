"""`fsq`: no codebook; each of D numbers is bounded by tanh and rounded to one of a few levels.

Mentzer et al. (2023), https://arxiv.org/abs/2309.15505, sec. 3.1 and app. A.1. With levels (L_1, ..., L_D) there are
K = Π L_i codes, of which an index is the mixed-radix number of the levels. There is nothing to collapse and no loss:
the gradient goes straight through the rounding.
"""

import torch
from einops import rearrange
from torch import Tensor

from smalti.common.mixed_radix import to_digits, to_index
from smalti.tokenizer.bottleneck.base import Quantized, Quantizer
from smalti.tokenizer.bottleneck.config import FSQConfig
from smalti.tokenizer.bottleneck.estimators import straight_through

EDGE = 1e-3  # how far beyond the outermost level tanh may reach: at the bound itself rounding would be a tie


@FSQConfig.register
class FiniteScalarQuantizer(Quantizer):
    """The FSQ quantizer. Level l of L is the number (l − ⌊L / 2⌋) / ⌊L / 2⌋: from −1 up, to 1 where L is odd."""

    levels: Tensor  # (D, 1)
    radius: Tensor

    def __init__(self, config: FSQConfig):
        super().__init__()
        self.config = config
        levels = torch.tensor(config.levels).view(-1, 1)
        self.register_buffer("levels", levels, persistent=False)
        self.register_buffer("radius", torch.tensor([n // 2 for n in config.levels]).view(-1, 1), persistent=False)
        self.spacing = 1 / (max(config.levels) - 1)

    def prepare(self, z_e: Tensor) -> Tensor:
        """Return z_e bounded to the outermost levels, by a tanh that is 0 at 0."""
        reach = (self.levels - 1) * (1 + EDGE) / 2
        offset = (self.levels % 2 == 0) * 0.5  # an even number of levels has one more below 0 than above
        return (torch.tanh(z_e + torch.atanh(offset / reach)) * reach - offset) / self.radius

    def quantize(self, z_e: Tensor) -> Quantized:
        digits = (torch.round(z_e * self.radius) + self.radius).clamp(torch.zeros_like(self.levels), self.levels - 1)
        indices = to_index(rearrange(digits, "b d p -> b p d").nan_to_num(), self.config.levels)
        zero = z_e.new_zeros(())
        return Quantized(straight_through(z_e, self.lookup(indices)), indices, zero, zero, zero, z_e)

    def lookup(self, indices: Tensor) -> Tensor:
        digits = rearrange(to_digits(indices, self.config.levels), "b p d -> b d p")
        return (digits - self.radius) / self.radius

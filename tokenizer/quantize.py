"""Vector quantization: the codebook between the encoder and the decoder.

Shapes, for B images on an h x w grid with K codebook vectors of D dimensions:
    z_e      (B, D, h, w)  encoder output, on the unit sphere when `normalize`
    z_q      (B, D, h, w)  the nearest codebook vectors, straight-through
    indices  (B, h, w)     which vectors those are, int64 in [0, K)

van den Oord et al. (2017), https://arxiv.org/abs/1711.00937, eq. 3; low-dimensional, l2-normalised codes: Yu et al.
(2021), https://arxiv.org/abs/2110.04627, sec. 3.2.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from tokenizer.config import EMAVQConfig, QuantizerConfig, VQConfig
from tokenizer.nearest import nearest


class Quantized(NamedTuple):
    """What every quantizer returns. A NamedTuple, which DDP, Accelerate and torch.compile see through."""

    z_q: Tensor  # (B, D, h, w) the decoder's input; its gradient goes to z_e unchanged
    indices: Tensor  # (B, h, w)
    codebook_loss: Tensor  # () mean of (sg[z_e] − e)², moves the codebook to the encoder
    commitment_loss: Tensor  # () mean of (z_e − sg[e])², moves the encoder to the codebook; not yet weighted by β
    z_e: Tensor  # (B, D, h, w) what was quantized, fp32


class VectorQuantizer(nn.Module):
    """Nearest-neighbour lookup; the codebook is a parameter and learns through the codebook loss."""

    def __init__(self, config: VQConfig):
        super().__init__()
        self.config = config
        self.codebook = nn.Parameter(torch.randn(config.codebook_size, config.code_dim))

    @property
    def vectors(self) -> Tensor:
        """(K, D), as the decoder sees them."""
        return F.normalize(self.codebook, dim=1) if self.config.normalize else self.codebook

    def forward(self, z_e: Tensor) -> Quantized:
        with torch.autocast(z_e.device.type, enabled=False):  # distances in bf16 can pick the wrong neighbour
            z_e = z_e.float()
            if self.config.normalize:
                z_e = F.normalize(z_e, dim=1)
            indices = self.nearest(z_e)
            e = self.lookup(indices)
            return Quantized(
                z_q=z_e + (e - z_e).detach(),  # straight-through: dL/dz_e is dL/dz_q
                indices=indices,
                codebook_loss=F.mse_loss(e, z_e.detach()),
                commitment_loss=F.mse_loss(z_e, e.detach()),
                z_e=z_e,
            )

    def nearest(self, z_e: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, h, w)."""
        B, _, h, w = z_e.shape
        return nearest(rearrange(z_e, "b d h w -> (b h w) d"), self.vectors).view(B, h, w)  # B may be 0

    def lookup(self, indices: Tensor) -> Tensor:
        """(B, h, w) -> (B, D, h, w), the map the decoder reads."""
        return rearrange(F.embedding(indices, self.vectors), "b h w d -> b d h w")

    @torch.no_grad()
    def place(self, rows: Tensor, vectors: Tensor) -> None:
        """Put `vectors` (R, D) at the codebook's `rows` (R,)."""
        self.codebook[rows] = vectors.to(self.codebook.dtype)


class EMAVectorQuantizer(VectorQuantizer):
    """The codebook is a buffer that follows a moving average of what it was given; it has no codebook loss.

    The average itself is kept in `tokenizer.upkeep`, since it moves once an optimizer step, not once a forward.
    """

    def __init__(self, config: EMAVQConfig):
        super().__init__(config)
        codebook = self.codebook.detach()
        del self.codebook
        self.register_buffer("codebook", codebook)

    def forward(self, z_e: Tensor) -> Quantized:
        quantized = super().forward(z_e)
        return quantized._replace(codebook_loss=quantized.codebook_loss.detach())


def build_quantizer(config: QuantizerConfig) -> VectorQuantizer:
    return {"vq": VectorQuantizer, "vq_ema": EMAVectorQuantizer}[config.kind](config)


def perplexity(counts: Tensor) -> float:
    """exp(entropy) of code use: 1 when one code is used, K when all are used alike. counts (K,)."""
    share = counts.double() / counts.sum().clamp_min(1)
    return torch.special.entr(share).sum().exp().item()


def usage(counts: Tensor) -> float:
    """Share of the K codes that were used at all. counts (K,)."""
    return (counts > 0).double().mean().item()

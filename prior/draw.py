"""A draw from the distribution over the next code: temperature, truncation, guidance, and the draw itself.

Shapes: logits (B, K), u (B,) uniform in (0, 1], codes (B,). No function here waits for the device.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from smalti.common.seeds import uniforms
from smalti.prior.sampling_config import CodeSampling, SamplingConfig

DIVERGED = "the prior's logits became NaN or Inf: its weights have diverged, or the file is damaged"
BLOCK = 16  # codes that are summed together


def guidance_scales(config: SamplingConfig, length: int) -> Tensor:
    """Return the guidance of each code or pass, (T,).

    power-cosine is 1 + (s − 1) (1 − cos(π rᵖ)) / 2 at the share r of the steps. A single pass has all of it.
    """
    share = torch.linspace(0, 1, length, dtype=torch.float64) if length > 1 else torch.ones(1, dtype=torch.float64)
    weight = {
        "constant": torch.ones_like(share),
        "linear": share,
        "power-cosine": (1 - (torch.pi * share**config.guidance_power).cos()) / 2,
    }[config.guidance_schedule]
    return (1 + (config.guidance - 1) * weight).float()


def image_uniforms(seeds: Sequence[int], *shape: int) -> Tensor:
    """Return all the randomness of each image, (B, *shape) in (0, 1], drawn from its own seed."""
    return torch.stack([1 - uniforms(seed, *shape) for seed in seeds])


def draw_categorical(logits: Tensor, u: Tensor, config: CodeSampling) -> Tensor:
    """Return one code a row, (B,), by inverting the cumulative distribution of logits (B, K) at u (B,) in (0, 1].

    A row with NaN gives K.
    """
    if config.temperature != 1:
        logits = logits / config.temperature
    if config.top_k is not None and config.top_k < logits.shape[1]:
        logits = logits.masked_fill(logits < logits.topk(config.top_k).values[:, -1:], -torch.inf)
    probabilities = logits.softmax(dim=-1)
    if config.min_p is not None:
        least = config.min_p * probabilities.amax(1, keepdim=True)
        probabilities = probabilities.masked_fill(probabilities < least, 0)
    if config.top_p is not None and config.top_p < 1:
        ordered = probabilities.sort(descending=True).values
        before = ordered.cumsum(1) - ordered  # the mass of likelier codes
        kept = ordered.masked_fill(before >= config.top_p * ordered.sum(1, keepdim=True), torch.inf)
        least = kept.amin(1, keepdim=True)
        probabilities = probabilities.masked_fill(probabilities < least, 0)
    if probabilities.device.type == "cpu" and probabilities.shape[1] >= 4 * BLOCK:
        return _draw_in_blocks(probabilities, u)
    cumulative = probabilities.cumsum(dim=-1)
    return torch.searchsorted(cumulative, u[:, None] * cumulative[:, -1:]).squeeze(1)  # u > 0: never a code of mass 0


def _draw_in_blocks(probabilities: Tensor, u: Tensor) -> Tensor:
    """Return what the cumulative sum over all K codes gives: first a block of codes, then a code of it.

    torch sums cumulatively one number after the other on a CPU, which took more time than the network of a small prior.
    """
    B, K = probabilities.shape
    blocks = F.pad(probabilities, (0, -K % BLOCK)).view(B, -1, BLOCK)
    cumulative = blocks.sum(2).cumsum(1)  # (B, K / BLOCK)
    mass = u * cumulative[:, -1]
    block = torch.searchsorted(cumulative, mass[:, None])  # (B, 1)
    last = cumulative.shape[1] - 1
    before = F.pad(cumulative, (1, 0)).gather(1, block.clamp_max(last))
    inside = blocks[torch.arange(B), block[:, 0].clamp_max(last)].cumsum(1)  # (B, BLOCK)
    rest = torch.minimum(mass[:, None] - before, inside[:, -1:])  # sums in another order round otherwise
    found = block[:, 0] * BLOCK + torch.searchsorted(inside, rest.clamp_min(torch.finfo(rest.dtype).tiny))[:, 0]
    return torch.where(mass.isnan(), K, found)

"""Draw code sequences from the prior, one place at a time.

B images of T codes from a codebook of K:  labels (B,), seeds (B,) -> codes (B, T), int64 in [0, K).

All the randomness of an image is T uniform numbers from its own seed (times the parts a code is drawn in), and the batch
has a fixed, padded size, so that an image is the same wherever in the batch it stands and whichever process draws it.
"""

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from common.config import Settings
from common.digits import to_index
from prior.cache import KVCache
from prior.model import Prior


class SamplingConfig(Settings):
    """How codes are drawn from the prior's distribution."""

    temperature: float = Field(1.0, gt=0)
    """logits are divided by it: below 1 is safer, above 1 more varied"""
    top_k: int | None = Field(None, ge=1)
    """draw among the k likeliest codes only"""
    top_p: float | None = Field(None, gt=0, le=1)
    """draw among the fewest codes that hold this share of the probability (Holtzman et al. 2019)"""
    guidance: float = Field(1.0, ge=0)
    """classifier-free guidance (Ho and Salimans 2022): 1 is none, above 1 leans towards the class"""


@torch.inference_mode()
def sample(
    prior: Prior, labels: Tensor, seeds: Sequence[int], config: SamplingConfig, *, batch_size: int = 64
) -> Tensor:  # fmt: skip
    """One sequence an image, in batches of `batch_size`.

    Args:
        labels: (B,) in [0, num_classes], on the prior's device; num_classes stands for no class.
        seeds: B of them; the same label and seed give the same codes.
    Returns:
        (B, T) int64.
    Raises:
        ValueError: not one seed a label, labels the prior has no class for, top_k above K, guidance of an
            unconditional prior.
    """
    B, K = len(labels), prior.config.codebook_size
    if len(seeds) != B:
        raise ValueError(f"one seed an image: got {B} labels and {len(seeds)} seeds")
    if B and not (labels.min() >= 0 and labels.max() <= prior.config.num_classes):
        raise ValueError(f"labels must lie in [0, {prior.config.num_classes}], got {labels.tolist()}")
    if config.top_k is not None and config.top_k > K:
        raise ValueError(f"top_k {config.top_k} is more than the {K} codes there are")
    if config.guidance != 1 and prior.config.num_classes == 0:
        raise ValueError("guidance needs a prior with classes; this one is unconditional, leave guidance at 1")
    parts = [labels.new_empty(0, prior.config.length)]
    for start in range(0, B, batch_size):
        some = slice(start, min(start + batch_size, B))
        number = some.stop - some.start
        padded = torch.cat([labels[some], labels[some][-1:].expand(batch_size - number)])
        padding = [0] * (batch_size - number)
        uniforms = image_uniforms([*seeds[some], *padding], prior.config.length, len(prior.vocabularies))
        parts.append(_sample_batch(prior, padded, uniforms.to(labels.device), config)[:number])
    return torch.cat(parts)


def image_uniforms(seeds: Sequence[int], *shape: int) -> Tensor:
    """(B, *shape) in (0, 1]: all the randomness of each image, from its own seed; a number for each part of each code."""
    return torch.stack([1 - torch.rand(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def _sample_batch(prior: Prior, labels: Tensor, uniforms: Tensor, config: SamplingConfig) -> Tensor:
    B, T, G = uniforms.shape
    guided = config.guidance != 1
    if guided:  # with the class above, without it below, in one batch
        labels = torch.cat([labels, torch.full_like(labels, prior.config.num_classes)])
    cache = KVCache(prior.config, len(labels), device=labels.device, dtype=prior.head.weight.dtype)
    codes = torch.empty(B, T, dtype=torch.int64, device=labels.device)
    x = prior.class_embedding(labels)[:, None]  # (B or 2B, 1, C)
    for t in range(T):
        hidden, parts = prior.step(x, t, cache), []
        for g in range(G):
            logits = prior.head.part(hidden, t, [torch.cat([part, part]) if guided else part for part in parts])
            if guided:
                conditional, unconditional = logits.chunk(2)
                logits = torch.lerp(unconditional, conditional, config.guidance)
            parts.append(draw(logits, uniforms[:, t, g], config))
        codes[:, t] = to_index(torch.stack(parts, dim=-1), prior.vocabularies)
        x = prior.embed(codes[:, t : t + 1], t)
        x = torch.cat([x, x]) if guided else x
    return codes


def draw(logits: Tensor, u: Tensor, config: SamplingConfig) -> Tensor:
    """Invert the categorical's cumulative distribution at u: logits (B, K), u (B,) in (0, 1] -> (B,). No host sync."""
    logits = logits.float() / config.temperature
    if config.top_k is not None and config.top_k < logits.shape[1]:
        logits = logits.masked_fill(logits < logits.topk(config.top_k).values[:, -1:], -torch.inf)
    probabilities = logits.softmax(dim=-1)
    if config.top_p is not None and config.top_p < 1:
        ordered = probabilities.sort(descending=True).values
        before = ordered.cumsum(1) - ordered  # the mass of likelier codes
        least = ordered.masked_fill(before >= config.top_p, torch.inf).amin(1, keepdim=True)
        probabilities = probabilities.masked_fill(probabilities < least, 0)
    cumulative = probabilities.cumsum(dim=-1)
    return torch.searchsorted(cumulative, u[:, None] * cumulative[:, -1:]).squeeze(1)  # u > 0: never a code of mass 0

"""The start of the scales' codebooks: K-means of what the scales before leave of real images, scale after scale.

A scale that starts from the encoder's outputs themselves, as those of a grid do, lies far from the residuals that it
will be given, and the coarse ones, which see few vectors a step, never come near.

Late in training the starved scales are fitted once more in the same order, see `codebooks/initialization.py`.

One codebook for all scales starts from what each would be given if all before it were exact, as many vectors of every
scale. The vectors of kinds without a table are stretched to what is left for a scale.
"""

import torch
from accelerate import Accelerator
from einops import rearrange
from torch import Generator, Tensor

from smalti.common.data.split import ImageSplit
from smalti.common.seeds import generator
from smalti.tokenizer.bottleneck.base import Table
from smalti.tokenizer.bottleneck.vq import VectorQuantizer
from smalti.tokenizer.codebooks.initialization import (
    AGAIN_VECTORS,
    check_enough,
    check_finite,
    is_starved,
    outputs_of,
    refit_table,
    sample_of,
    sampled,
    share_state,
)
from smalti.tokenizer.config import TrainConfig
from smalti.tokenizer.multiscale.quantizer import MultiscaleQuantizer
from smalti.tokenizer.network_tokenizer import NetworkTokenizer

IMAGES_A_CODE = 4  # of a grid of one place
MOST_IMAGES = 2**15  # for that, but at least as many as codes
LEAST_STRETCH = 1e-3  # of a scale that nothing is left for
DRAWN = 2**12  # codes by which the length of vectors without a table is measured


@torch.no_grad()
def initialize_scales(
    tokenizer: NetworkTokenizer,
    quantizer: MultiscaleQuantizer,
    split: ImageSplit,
    c: TrainConfig,
    accelerator: Accelerator,
) -> None:
    """Set the codebooks of all scales; computed by the main process, the same on all.

    Raises:
        UserError: a scale has fewer vectors than its codebook has entries, or they are not finite.
    """
    layout = tokenizer.config.layout
    codes = layout.codebook_size if quantizer.tables() else 2
    otherwise = "choose a smaller one, leave the coarsest of model.scales out, or give model.shared true"
    for grid in layout.grids[-1:] if quantizer.shared else layout.grids:
        check_enough(codes, len(split), grid, "vectors", otherwise)
    if accelerator.is_main_process:
        images = min(IMAGES_A_CODE * codes, max(codes, MOST_IMAGES))
        images = max(images, -(-sampled(codes) // layout.grids[-1].places))
        z_e = outputs_of(tokenizer.latents, split, images, c, accelerator)
        check_finite(z_e)
        draws = generator(c.seed, z_e.device)
        if not quantizer.tables():
            stretch_to_what_is_left(quantizer, z_e, draws)
        elif quantizer.shared:
            start_together(quantizer, z_e, codes, draws)
        else:
            start_each(quantizer, z_e, codes, draws)
    share_state(quantizer)


@torch.no_grad()
def refit_scales(
    tokenizer: NetworkTokenizer,
    quantizer: MultiscaleQuantizer,
    split: ImageSplit,
    c: TrainConfig,
    accelerator: Accelerator,
) -> tuple[Table, ...]:
    """Fit the codebooks of the starved scales once more and return them, none where all scales share one; the same on
    all processes."""
    grids, codes = tokenizer.config.layout.grids, tokenizer.config.layout.codebook_size
    starved = [scale for scale, grid in enumerate(grids) if is_starved(codes, grid, c)]
    tables = [each for each in quantizer.bottlenecks if isinstance(each, VectorQuantizer)]
    if quantizer.shared or not tables or not starved:
        return ()
    if accelerator.is_main_process:
        images = min(AGAIN_VECTORS * codes // grids[starved[0]].places, max(codes, MOST_IMAGES))
        z_e = outputs_of(tokenizer.latents, split, images, c, accelerator)
        f = quantizer.centred(z_e.flatten(2), z_e.mean((0, 2, 3))).unflatten(2, z_e.shape[2:])
        f_hat = torch.zeros_like(f)
        for scale in range(starved[-1] + 1):
            left = quantizer.left_for(scale, f, f_hat)
            if scale in starved:
                refit_table(tables[scale], rearrange(left, "n d p -> (n p) d"))
            f_hat = f_hat + quantized(quantizer, scale, left)
    share_state(quantizer)
    return tuple(tables[scale] for scale in starved)


@torch.no_grad()
def start_each(quantizer: MultiscaleQuantizer, z_e: Tensor, codes: int, draws: Generator) -> None:
    """Set the codebook of each scale to K-means of what those before leave of z_e (N, D, h, w)."""
    f = prepared(quantizer, z_e)
    f_hat = torch.zeros_like(f)
    for scale in range(len(quantizer.grids)):
        left = quantizer.left_for(scale, f, f_hat)
        quantizer.bottleneck(scale).initialize(sample_of(left, sampled(codes), draws), draws)
        f_hat = f_hat + quantized(quantizer, scale, left)


@torch.no_grad()
def start_together(quantizer: MultiscaleQuantizer, z_e: Tensor, codes: int, draws: Generator) -> None:
    """Set the one codebook to K-means of what all scales would be given of z_e (N, D, h, w) if those before were
    exact."""
    f = prepared(quantizer, z_e)
    f_hat, number, found = torch.zeros_like(f), -(-sampled(codes) // len(quantizer.grids)), []
    for scale in range(len(quantizer.grids)):
        left = quantizer.left_for(scale, f, f_hat)
        found.append(sample_of(left, number, draws))
        f_hat = f_hat + quantizer.brought_up(scale, left)
    quantizer.bottleneck(0).initialize(torch.cat(found), draws)


@torch.no_grad()
def stretch_to_what_is_left(quantizer: MultiscaleQuantizer, z_e: Tensor, draws: Generator) -> None:
    """Fit a kind without a table to z_e (N, D, h, w), and the length of its vectors to what is left for each scale."""
    vectors = rearrange(prepared(quantizer, z_e), "n d h w -> (n h w) d")
    for scale in range(len(quantizer.bottlenecks)):
        quantizer.bottleneck(scale).initialize(vectors, draws)
    f = prepared(quantizer, z_e)
    f_hat = torch.zeros_like(f)
    codes = torch.randint(quantizer.config.size, (DRAWN,), generator=draws, device=f.device)
    length = quantizer.vectors_at(0, codes).square().mean().sqrt()  # their stretch is 1 as yet
    for scale in range(len(quantizer.grids)):
        left = quantizer.left_for(scale, f, f_hat)
        quantizer.stretch[scale] = (left.square().mean().sqrt() / length).clamp_min(LEAST_STRETCH)
        f_hat = f_hat + quantized(quantizer, scale, left)


def prepared(quantizer: MultiscaleQuantizer, z_e: Tensor) -> Tensor:
    """Return f (N, D, h, w) of z_e (N, D, h, w), whose mean is that from now on."""
    quantizer.center(z_e.flatten(2))
    return quantizer.centred(z_e.flatten(2), quantizer.mean).unflatten(2, z_e.shape[2:])


def quantized(quantizer: MultiscaleQuantizer, scale: int, left: Tensor) -> Tensor:
    """Return what the codes of what is left (N, D, h_s · w_s) for a scale add to f̂, (N, D, h, w)."""
    indices = quantizer.bottleneck(scale).quantize(left / quantizer.stretch[scale]).indices
    return quantizer.brought_up(scale, quantizer.vectors(scale, indices))

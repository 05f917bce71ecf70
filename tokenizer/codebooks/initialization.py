"""The first vectors of a codebook, K-means of the untrained encoder's outputs for real images; and some of it later.

A codebook far from the encoder's outputs is how collapse begins: few codes are near enough to be chosen, and only the
chosen ones learn.

A codebook to whose codes a batch gives few vectors each never comes to where the outputs are: a code is moved once in
several steps, and a dead one is put where one of few vectors lies. Such a table is fitted once more, late in training,
by steps of K-means from where its codes are.
"""

from collections.abc import Callable

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from einops import rearrange
from torch import Generator, Tensor

from smalti.common.data.pixels import to_float
from smalti.common.data.split import ImageSplit
from smalti.common.errors import UserError
from smalti.common.layout import Grid
from smalti.common.progress import advance, passing_bar
from smalti.common.row_order import RowOrder, Share
from smalti.common.seeds import generator
from smalti.tokenizer.bottleneck.base import Quantizer, Table
from smalti.tokenizer.bottleneck.vq import VectorQuantizer
from smalti.tokenizer.config import TrainConfig
from smalti.tokenizer.kmeans.clustering import moved
from smalti.tokenizer.network_tokenizer import NetworkTokenizer

VECTORS_A_CODE = 32  # Faiss asks for 39 to 256 points a centroid; 32 do for a start that training refines
LEAST_VECTORS = 2**12
MOST_VECTORS = 2**19  # at most, but at least twice the codes: a larger codebook starts from a coarser sample
BATCH = 256
STARVED = 4  # vectors a code that a batch gives at least, where a table needs no second fit
AGAIN_VECTORS, AGAIN_ITERATIONS = 12, 3  # a code, and steps of K-means, of a table that is fitted once more


def sampled(codebook_size: int) -> int:
    """Return how many vectors a codebook is fitted to at first."""
    return max(min(max(VECTORS_A_CODE * codebook_size, LEAST_VECTORS), MOST_VECTORS), 2 * codebook_size)


def check_enough(
    codebook_size: int, images: int, grid: Grid, what: str, otherwise: str = "choose a smaller one"
) -> None:
    """Raise `UserError` unless a grid of each image gives as many vectors as there are codes."""
    if (there := images * grid.places) < codebook_size:
        shape = " x ".join(map(str, [images, *grid.shape]))
        raise UserError(
            f"codebook_size {codebook_size} is more than the {shape} = {there} {what} of the training split; "
            f"{otherwise}"
        )


def check_finite(vectors: Tensor) -> None:
    """Raise `UserError` for encoder outputs that are NaN or Inf."""
    if not vectors.isfinite().all():
        raise UserError("the untrained encoder gives NaN or Inf for some images; take precision fp32")


def initialize_codebook(
    tokenizer: NetworkTokenizer, split: ImageSplit, c: TrainConfig, accelerator: Accelerator
) -> None:
    """Set the one codebook of a tokenizer to k-means of encoder outputs. Raises as `initialize_quantizer`."""
    (grid,) = tokenizer.config.layout.grids
    initialize_quantizer(tokenizer.quantizer, grid, tokenizer.latents, split, c, accelerator)


@torch.no_grad()
def initialize_quantizer(
    quantizer: Quantizer,
    grid: Grid,
    latents: Callable[[Tensor], Tensor],
    split: ImageSplit,
    c: TrainConfig,
    accelerator: Accelerator,
    otherwise: str = "choose a smaller one",
) -> None:
    """Set the codebook of a quantizer to k-means of what it is given on its grid; computed by the main process, the
    same on all.

    Args:
        latents: return z_e (B, D, h, w) of images.
        otherwise: what to do where there are too few vectors.
    Raises:
        UserError: the training split has fewer vectors than the codebook has entries, or they are not finite.
    """
    codes = grid.codebook_size if quantizer.tables() else 2
    check_enough(codes, len(split), grid, "vectors", otherwise)
    if accelerator.is_main_process:
        images = -(-sampled(codes) // grid.places)
        z_e = outputs_of(latents, split, images, c, accelerator)
        check_finite(z_e)
        draws = generator(c.seed, z_e.device)
        vectors = sample_of(quantizer.prepare(z_e.flatten(2)), sampled(codes), draws)
        quantizer.initialize(vectors, generator(c.seed, z_e.device))
    share_state(quantizer)


def is_starved(codebook_size: int, grid: Grid, c: TrainConfig) -> bool:
    """Return whether the batch of a step gives few vectors a code."""
    return c.batch_size * grid.places < STARVED * codebook_size


@torch.no_grad()
def refit_quantizer(
    quantizer: Quantizer,
    grid: Grid,
    latents: Callable[[Tensor], Tensor],
    split: ImageSplit,
    c: TrainConfig,
    accelerator: Accelerator,
) -> tuple[Table, ...]:
    """Fit the codebook of a quantizer once more and return it; nothing where it is not starved, or is not one table of
    nearest codes (a residual stack, a drawn or fixed code); the same on all processes.

    Args:
        latents: return z_e (B, D, h, w) of images.
    """
    if not isinstance(quantizer, VectorQuantizer) or not is_starved(grid.codebook_size, grid, c):
        return ()
    if accelerator.is_main_process:
        z_e = outputs_of(latents, split, -(-AGAIN_VECTORS * grid.codebook_size // grid.places), c, accelerator)
        refit_table(quantizer, rearrange(quantizer.prepare(z_e.flatten(2)), "n d p -> (n p) d"))
    share_state(quantizer)
    return (quantizer,)


@torch.no_grad()
def refit_table(table: VectorQuantizer, vectors: Tensor) -> None:
    """Move the codes of a table by steps of K-means of vectors (N, D), from where they are; not for NaN or Inf."""
    if not vectors.isfinite().all():
        return
    found = moved(vectors, table.vectors, iterations=AGAIN_ITERATIONS, spherical=table.config.normalize)
    table.place(torch.arange(len(found), device=found.device), found)


def share_state(quantizer: Quantizer) -> None:
    """Set the state of a quantizer to that of the main process; all processes call this."""
    for tensor in quantizer.state_dict().values():
        tensor.copy_(broadcast(tensor.contiguous()))


def outputs_of(
    latents: Callable[[Tensor], Tensor], split: ImageSplit, images: int, c: TrainConfig, accelerator: Accelerator
) -> Tensor:
    """Return z_e (N, D, h, w) fp32 of images in the order of training, at least `images` where there are so many."""
    order = RowOrder(len(split), c.seed, Share(batch_size=BATCH), 0)
    found, bar = [], passing_bar(images, "encode a sample", unit="image")
    for start in range(0, min(len(split), images), BATCH):
        positions, _ = order.at(start, min(start + BATCH, len(split)))
        pixels = to_float(split.read(positions).images.to(accelerator.device))
        with accelerator.autocast():
            found.append(latents(pixels).float())
        advance(bar, len(pixels))
    bar.close()
    return torch.cat(found)


def sample_of(vectors: Tensor, number: int, draws: Generator) -> Tensor:
    """Return at most `number` of vectors (N, D, P), drawn at random: (n, D)."""
    flat = rearrange(vectors, "n d p -> (n p) d")
    return flat[torch.randperm(len(flat), generator=draws, device=flat.device)[:number]]

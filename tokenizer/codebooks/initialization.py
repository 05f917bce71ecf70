"""The first vectors of a codebook: K-means of the untrained encoder's outputs for real images.

A codebook far from the encoder's outputs is how collapse begins: few codes are near enough to be chosen, and only the
chosen ones learn.
"""

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from einops import rearrange
from torch import Tensor

from smalti.common.data.pixels import to_float
from smalti.common.data.split import ImageSplit
from smalti.common.errors import UserError
from smalti.common.layout import Layout
from smalti.common.progress import advance, passing_bar
from smalti.common.row_order import RowOrder, Share
from smalti.common.seeds import generator
from smalti.tokenizer.config import TrainConfig
from smalti.tokenizer.network_tokenizer import NetworkTokenizer

VECTORS_A_CODE = 32  # Faiss asks for 39 to 256 points a centroid; 32 do for a start that training refines
LEAST_VECTORS = 2**12
MOST_VECTORS = 2**19  # at most, but at least twice the codes: a larger codebook starts from a coarser sample
BATCH = 256


def sampled(codebook_size: int) -> int:
    """Return how many vectors a codebook is fitted to at first."""
    return max(min(max(VECTORS_A_CODE * codebook_size, LEAST_VECTORS), MOST_VECTORS), 2 * codebook_size)


def check_enough(codebook_size: int, images: int, layout: Layout, what: str) -> None:
    """Raise `UserError` unless there are as many vectors as codes."""
    if (there := images * layout.places) < codebook_size:
        shape = " x ".join(map(str, [images, *layout.grids[0].shape]))
        raise UserError(
            f"codebook_size {codebook_size} is more than the {shape} = {there} {what} of the training split; "
            "choose a smaller one"
        )


@torch.no_grad()
def initialize_codebook(
    tokenizer: NetworkTokenizer, split: ImageSplit, c: TrainConfig, accelerator: Accelerator
) -> None:
    """Set the codebook to k-means of encoder outputs; computed by the main process, the same on all.

    Raises:
        UserError: the training split has fewer vectors than the codebook has entries, or they are not finite.
    """
    layout = tokenizer.config.layout
    codes = layout.codebook_size if tokenizer.quantizer.tables() else 2
    check_enough(codes, len(split), layout, "vectors")
    if accelerator.is_main_process:
        vectors = encoder_outputs(tokenizer, split, sampled(codes), c, accelerator)
        if not vectors.isfinite().all():
            raise UserError("the untrained encoder gives NaN or Inf for some images; take precision fp32")
        tokenizer.quantizer.initialize(vectors, generator(c.seed, vectors.device))
    for tensor in tokenizer.quantizer.state_dict().values():
        tensor.copy_(broadcast(tensor.contiguous()))


def encoder_outputs(
    tokenizer: NetworkTokenizer, split: ImageSplit, number: int, c: TrainConfig, accelerator: Accelerator
) -> Tensor:
    """Return prepared z_e (N, D) of images in the order of training, at most `number` vectors."""
    order = RowOrder(len(split), c.seed, Share(batch_size=BATCH), 0)
    found, bar = [], passing_bar(number, "encode a sample", unit="vector")
    for start in range(0, min(len(split), -(-number // tokenizer.config.layout.places)), BATCH):
        positions, _ = order.at(start, min(start + BATCH, len(split)))
        images = to_float(split.read(positions).images.to(accelerator.device))
        with accelerator.autocast():
            z_e = tokenizer.latents(images)
        found.append(rearrange(tokenizer.quantizer.prepare(z_e.flatten(2).float()), "b d p -> (b p) d"))
        advance(bar, len(found[-1]))
    bar.close()
    vectors = torch.cat(found)
    draws = generator(c.seed, vectors.device)
    return vectors[torch.randperm(len(vectors), generator=draws, device=vectors.device)[:number]]

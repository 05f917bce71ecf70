"""The codebook's first vectors: k-means of what the untrained encoder says of real images.

A codebook far from the encoder's outputs is how collapse begins: few codes are near enough to be chosen, and only the
chosen ones learn.
"""

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from einops import rearrange

from common.errors import UserError
from common.order import Order, Share
from tokenizer.config import TrainConfig
from tokenizer.images import ImageSplit, centre, to_float
from tokenizer.kmeans import kmeans
from tokenizer.model import Tokenizer

VECTORS_A_CODE = 32  # Faiss asks for 39 to 256 points a centroid; 32 do for a start that training refines
BATCH = 256
ITERATIONS = 10


@torch.no_grad()
def initialize_codebook(tokenizer: Tokenizer, split: ImageSplit, c: TrainConfig, accelerator: Accelerator) -> None:
    """Set the codebook to k-means of encoder outputs; computed by the main process, the same on all.

    Raises:
        UserError: the training split has fewer vectors than the codebook has entries.
    """
    K = c.model.quantizer.codebook_size
    h, w = c.model.grid
    if len(split) * h * w < K:
        raise UserError(
            f"codebook_size {K} is more than the {len(split)} x {h} x {w} = {len(split) * h * w} vectors of the "
            "training split; choose a smaller one"
        )
    means = torch.zeros_like(tokenizer.quantizer.vectors)
    if accelerator.is_main_process:
        order = Order(len(split), c.seed, Share(batch_size=BATCH), 0)
        found = []
        for start in range(0, min(len(split), -(-VECTORS_A_CODE * K // (h * w))), BATCH):
            positions, _ = order.at(start, min(start + BATCH, len(split)))
            images = to_float(centre(split.read(positions).images, c.model.image_size).to(accelerator.device))
            with accelerator.autocast():
                z_e = tokenizer.quantizer(tokenizer.encoder(images)).z_e
            found.append(rearrange(z_e, "b d h w -> (b h w) d"))
        vectors = torch.cat(found)
        generator = torch.Generator(vectors.device).manual_seed(c.seed)
        means = kmeans(
            vectors[torch.randperm(len(vectors), generator=generator, device=vectors.device)][: VECTORS_A_CODE * K], K,
            iterations=ITERATIONS, generator=generator, spherical=c.model.quantizer.normalize,
        )  # fmt: skip
    tokenizer.quantizer.place(torch.arange(K, device=means.device), broadcast(means))

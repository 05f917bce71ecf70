"""Evaluate a tokenizer on a split: the PSNR of its reconstructions and the use of its codebook, over the whole split.

    metrics    psnr_pooled and psnr (dB); of a likelihood distortion (bits per dimension); of codes usage and perplexity
    counts     (Q, K), how often each code was used at each depth

Of 8-bit pixels, `psnr_pooled` is 10 log10(255² / MSE) of the mean squared error over the whole split, as papers have
it, and `psnr` the mean over images of each one's own.
"""

import math
from pathlib import Path
from typing import NamedTuple

import PIL.Image
import torch
from accelerate import Accelerator
from torch import Tensor

from smalti.common.data.pixels import to_float, to_uint8
from smalti.common.data.split import ImageSplit
from smalti.common.folder import write_json
from smalti.common.plots import image_grid
from smalti.common.progress import advance, passing_bar
from smalti.metrics.similarity import psnr_of, squared_error_each
from smalti.tokenizer.base import ImageTokenizer, LikelihoodTokenizer
from smalti.tokenizer.codebooks.usage import count, perplexity, usage

BATCH = 256
SHOWN = 12  # images of the picture


class SplitEvaluation(NamedTuple):
    """The figures of a tokenizer on a split, and a few of its reconstructions."""

    images: int  # how many were evaluated
    psnr_pooled: float  # dB, of the squared error over all of them
    psnr: float  # dB, the mean of each image's own
    distortion: float | None  # −log2 p(x | z) a dimension, where the decoder says p(x | z)
    counts: Tensor | None  # (Q, K) how often each code was used, where there are codes
    originals: Tensor  # (n, C, H, W) uint8, a few
    reconstructions: Tensor  # (n, C, H, W) uint8

    def metrics(self) -> dict[str, float]:
        of_codes = {} if self.counts is None else {"usage": usage(self.counts), "perplexity": perplexity(self.counts)}
        return {
            "validation_images": self.images,  # fewer than the split when some cannot be read
            **({} if self.distortion is None else {"distortion": self.distortion}),
            "psnr_pooled": self.psnr_pooled,
            "psnr": self.psnr,
            **of_codes,
        }

    def summary(self) -> dict[str, str]:
        bits = {} if self.distortion is None else {"distortion": f"{self.distortion:.3f} bits/dim"}
        used = {} if self.counts is None else {"usage": f"{usage(self.counts):.1%}"}
        return {"psnr": f"{self.psnr_pooled:.2f} dB pooled, {self.psnr:.2f} mean", **bits, **used}


@torch.no_grad()
def evaluate_split(tokenizer: ImageTokenizer, split: ImageSplit, accelerator: Accelerator) -> SplitEvaluation:
    """Return the evaluation of a tokenizer, which is not wrapped, on a whole split; each process takes its share."""
    device = accelerator.device
    layout = tokenizer.config.layout
    counts = (
        torch.zeros(layout.depth, layout.codebook_size, dtype=torch.int64, device=device) if layout.discrete else None
    )
    sums = torch.zeros(4, dtype=torch.float32, device=device)  # squared error, PSNR, bits a dimension, images
    originals: list[Tensor] = []
    decoded: list[Tensor] = []
    bar = passing_bar(len(split), f"evaluate on {split.name}")
    for positions in torch.arange(accelerator.process_index, len(split), accelerator.num_processes).split(BATCH):
        images = split.read(positions).images.to(device)
        with accelerator.autocast():
            latents = tokenizer.encode(to_float(images))
            decoded_, nats = decode_with_nll(tokenizer, images, latents)
        if counts is not None:
            counts += count(latents, layout.codebook_size, layout.depth)
        again, bits = to_uint8(decoded_), nats / (math.log(2) * images[0].numel())
        errors = squared_error_each(images, again)
        sums += torch.stack([errors.sum(), psnr_of(errors).sum(), bits.sum(), bits.new_tensor(len(images))])
        if sum(map(len, originals)) < SHOWN:
            originals.append(images[:SHOWN].cpu())
            decoded.append(again[:SHOWN].cpu())
        advance(bar, len(positions) * accelerator.num_processes)
    bar.close()
    sums = accelerator.reduce(sums).cpu()
    error, psnr, bits = sums[:3] / sums[3].clamp_min(1)
    return SplitEvaluation(
        int(sums[3]),
        psnr_of(error).item(),
        psnr.item(),
        bits.item() if isinstance(tokenizer, LikelihoodTokenizer) else None,
        None if counts is None else accelerator.reduce(counts).cpu(),
        torch.cat(originals)[:SHOWN],
        torch.cat(decoded)[:SHOWN],
    )


def decode_with_nll(tokenizer: ImageTokenizer, images: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
    """Return the decoded latents (B, C, H, W), and −log p(images | latents), (B,), of images in uint8.

    The latter are zeros where the decoder gives no likelihood.
    """
    if not isinstance(tokenizer, LikelihoodTokenizer):
        return tokenizer.decode(latents), torch.zeros(len(images), device=images.device)
    output = tokenizer.output(latents)
    return tokenizer.likelihood.mean(output), tokenizer.likelihood.nll(output, to_float(images))


def save_histogram(counts: Tensor, images: int, path: Path) -> None:
    """Write how often each code was used on the validation split, as JSON: counts[depth][code]."""
    write_json(path, {"split": "validation", "images": images, "counts": counts.tolist()}, indent=None)


def reconstruction_grid(evaluation: SplitEvaluation) -> PIL.Image.Image:
    """Return a picture of the originals in the upper row and their reconstructions in the lower."""
    both = torch.cat([evaluation.originals, evaluation.reconstructions])
    return image_grid(both, columns=len(evaluation.originals))

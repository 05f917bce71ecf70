"""Evaluate a tokenizer on a split: the PSNR of its reconstructions and the use of its codebook, over the whole split.

    metrics    psnr_pooled and psnr (dB); of a likelihood distortion (bits per dimension); of codes usage, perplexity;
               of a posterior over vectors rate and bits per dimension, −ELBO (nats an image) and active units
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
from torch import Generator, Tensor

from smalti.common.data.pixels import to_float, to_uint8
from smalti.common.data.split import ImageSplit
from smalti.common.folder import write_json
from smalti.common.layout import Layout
from smalti.common.parts import share_of
from smalti.common.plots import image_grid
from smalti.common.progress import advance, passing_bar
from smalti.common.seeds import generator
from smalti.metrics.similarity import psnr_of, squared_error_each
from smalti.tokenizer.base import ImageTokenizer, LikelihoodTokenizer
from smalti.tokenizer.codebooks.usage import count, perplexity, usage
from smalti.tokenizer.latent_use import CenterSums, LatentUse

BATCH = 256
SHOWN = 12  # images of the picture


class Bounds(NamedTuple):
    """The bound on −log p(x) over a split, by one draw of z for each image, and the use of the numbers of z."""

    negative_elbo: float  # nats an image
    rate: float  # bits per dimension
    bits_per_dim: float  # distortion + rate
    latent_use: LatentUse

    def metrics(self) -> dict[str, float]:
        return {
            "rate": self.rate,
            "bits_per_dim": self.bits_per_dim,
            "negative_elbo": self.negative_elbo,
            "active_units": self.latent_use.active,
        }


class SplitEvaluation(NamedTuple):
    """The figures of a tokenizer on a split, and a few of its reconstructions."""

    images: int  # how many were evaluated
    psnr_pooled: float  # dB, of the squared error over all of them
    psnr: float  # dB, the mean of each image's own
    distortion: float | None  # −log2 p(x | z) a dimension, where the decoder says p(x | z)
    counts: Tensor | None  # (Q, K) how often each code was used, where there are codes
    bounds: Bounds | None  # where latents are drawn from a posterior over vectors
    originals: Tensor  # (n, C, H, W) uint8, a few of this process
    reconstructions: Tensor  # (n, C, H, W) uint8

    def metrics(self) -> dict[str, float]:
        of_codes = {} if self.counts is None else {"usage": usage(self.counts), "perplexity": perplexity(self.counts)}
        return {
            "validation_images": self.images,  # fewer than the split when some cannot be read
            **({} if self.distortion is None else {"distortion": self.distortion}),
            "psnr_pooled": self.psnr_pooled,
            "psnr": self.psnr,
            **of_codes,
            **({} if self.bounds is None else self.bounds.metrics()),
        }

    def summary(self) -> dict[str, str]:
        bits = {} if self.distortion is None else {"distortion": f"{self.distortion:.3f} bits/dim"}
        used = {} if self.counts is None else {"usage": f"{usage(self.counts):.1%}"}
        used |= {} if self.bounds is None else {"-ELBO": f"{self.bounds.negative_elbo:.2f} nats"}
        return {"psnr": f"{self.psnr_pooled:.2f} dB pooled, {self.psnr:.2f} mean", **bits, **used}


class Measured(NamedTuple):
    """The measures of a batch of b images."""

    reconstructions: Tensor  # (b, C, H, W) uint8
    latents: Tensor  # (b, T)
    figures: Tensor  # (5,) sums over the batch of squared error, PSNR, distortion and rate in nats, and images
    bounded: bool  # whether distortion and rate are those of draws from a posterior over vectors


@torch.no_grad()
def evaluate_split(tokenizer: ImageTokenizer, split: ImageSplit, accelerator: Accelerator) -> SplitEvaluation:
    """Return the evaluation of a tokenizer, which is not wrapped, on a whole split; each process takes its share."""
    device, layout = accelerator.device, tokenizer.config.layout
    shape = (layout.codebooks, layout.codebook_size) if layout.discrete else (0, 0)
    counts = torch.zeros(*shape, dtype=torch.int64, device=device)
    sums, centers = torch.zeros(5, device=device), CenterSums(layout.length, device)
    shown: list[Measured] = []
    originals: list[Tensor] = []
    noise, bounded = generator(0, device), False
    bar = passing_bar(len(split), f"evaluate on {split.name}")
    for positions in share_of(len(split), BATCH, accelerator):
        batch = split.read(positions)
        images = batch.images.to(device)
        with accelerator.autocast():
            found = measure(tokenizer, images, batch.labels, noise)
        sums, bounded = sums + found.figures, found.bounded
        if bounded:
            centers.add(found.latents)
        if layout.discrete:
            counts += count(found.latents, layout)
        if sum(map(len, originals)) < SHOWN:
            originals.append(images[:SHOWN].cpu())
            shown.append(found)
        advance(bar, len(positions) * accelerator.num_processes)
    bar.close()
    sums = accelerator.reduce(sums).cpu()
    bounded = (
        accelerator.reduce(torch.tensor(float(bounded), device=device)).item() > 0
    )  # one without images cannot say
    none = torch.zeros(0, tokenizer.config.image_channels, *tokenizer.config.image_size, dtype=torch.uint8)
    return evaluation_of(
        tokenizer,
        sums,
        accelerator.reduce(counts).cpu() if layout.discrete else None,
        centers.reduced(accelerator) if bounded else None,
        torch.cat([none, *originals])[:SHOWN],
        torch.cat([none, *(each.reconstructions.cpu() for each in shown)])[:SHOWN],
    )


def measure(tokenizer: ImageTokenizer, images: Tensor, labels: Tensor, noise: Generator) -> Measured:
    """Return the measures of images (b, C, H, W) uint8 of classes (b,); `noise` draws the vectors of those that have a
    posterior."""
    pixels = to_float(images)
    latents = tokenizer.encode(pixels, labels)
    if isinstance(tokenizer, LikelihoodTokenizer):
        output = tokenizer.output(latents, labels)
        decoded, nats = tokenizer.likelihood.mean(output), tokenizer.likelihood.nll(output, pixels)
        bound = tokenizer.bound(pixels, 1, noise, labels)
    else:
        decoded, nats, bound = tokenizer.decode(latents, labels), torch.zeros(len(images), device=images.device), None
    rate = torch.zeros_like(nats)
    if bound is not None:
        nats, rate = bound.distortion, bound.rate.sum((1, 2))
    again = to_uint8(decoded)
    errors = squared_error_each(images, again)
    sums = [errors.sum(), psnr_of(errors).sum(), nats.sum(), rate.sum(), nats.new_tensor(len(images))]
    return Measured(again, latents, torch.stack(sums), bound is not None)


def evaluation_of(
    tokenizer: ImageTokenizer,
    sums: Tensor,
    counts: Tensor | None,
    use: LatentUse | None,
    originals: Tensor,
    reconstructions: Tensor,
) -> SplitEvaluation:
    """Return the evaluation from `Measured.figures`, summed over a split, and the uses of codes and of vectors."""
    c = tokenizer.config
    error, psnr, distortion, rate = sums[:4] / sums[4].clamp_min(1)
    bits = math.log(2) * c.image_channels * math.prod(c.image_size)
    nats = (distortion + rate).item()
    return SplitEvaluation(
        images=int(sums[4]),
        psnr_pooled=psnr_of(error).item(),
        psnr=psnr.item(),
        distortion=distortion.item() / bits if isinstance(tokenizer, LikelihoodTokenizer) else None,
        counts=counts,
        bounds=None if use is None else Bounds(nats, rate.item() / bits, nats / bits, use),
        originals=originals,
        reconstructions=reconstructions,
    )


def save_histogram(counts: Tensor, images: int, layout: Layout, path: Path) -> None:
    """Write how often each code was used on the validation split, as JSON: counts[codebook][code], and their names."""
    of = {"split": "validation", "images": images, "codebooks": layout.codebook_names}
    write_json(path, of | {"counts": counts.tolist()}, indent=None)


def reconstruction_grid(evaluation: SplitEvaluation) -> PIL.Image.Image:
    """Return a picture of the originals in the upper row and their reconstructions in the lower."""
    both = torch.cat([evaluation.originals, evaluation.reconstructions])
    return image_grid(both, columns=len(evaluation.originals))

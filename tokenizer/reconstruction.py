"""The reconstructions of a split, measured image by image: what evaluating and comparing tokenizers share.

measured     of each image: squared error (N,), SSIM, distortion and bounds in nats, codes (N, T), and the features of
             the image and of its reconstruction (N, D)
figures      of the whole split, by the names that tokenizer/evaluate.py explains
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from smalti.common.data.images import ImageSet
from smalti.common.data.pixels import to_float, to_uint8
from smalti.common.data.split import ImageSplit
from smalti.common.errors import UserError
from smalti.common.layout import Layout
from smalti.common.parts import in_parts
from smalti.common.record import code_version
from smalti.common.seeds import generator
from smalti.common.spacing import evenly_spaced
from smalti.metrics.distances import frechet_distance
from smalti.metrics.feature_extractor import identity_of
from smalti.metrics.mmd import mmd_squared
from smalti.metrics.similarity import psnr_of, squared_error_each, ssim_each
from smalti.tokenizer.base import ImageTokenizer, LikelihoodTokenizer
from smalti.tokenizer.codebooks.usage import count, perplexity, reachable, usage
from smalti.tokenizer.latent_use import latent_use
from smalti.tokenizer.run_features import Extractors, rows_sha256

PART = 1000  # images
MOST_DRAWN = 4000  # vectors, evenly spaced, whose MMD to the prior is computed, with all pairs of them in memory
PRIOR_DRAWS = 2**63 - 1  # seed of the draws of N(0, I); no z has it, whose noise must be another


class Measuring(NamedTuple):
    """The settings by which reconstructions are measured."""

    batch_size: int  # images a process encodes at once
    precision: str  # of encoder and decoder
    importance_samples: int = 1  # draws of z for each image
    seed: int = 0  # of the draws of z


def plan_of(
    how: Measuring, tokenizer: str, images: ImageSet, split: ImageSplit, extractors: Extractors
) -> dict[str, Any]:
    """Return what the figures depend on; parts that were measured under another plan are measured again.

    Args:
        tokenizer: the SHA-256 of its file.
    """
    judge = extractors.classifier
    return {
        "code": code_version(),
        "tokenizer": tokenizer,
        "images": images.fingerprint,
        "split": split.name,
        "read": split.shape._asdict(),
        "rows": rows_sha256(split.rows),
        "features": extractors.features.identity if extractors.features else None,
        "classifier": None if judge is None else identity_of("classifier", judge.predict, judge.state_dict()),
        "precision": how.precision,
        "batch_size": how.batch_size,
        "importance_samples": how.importance_samples,
        "seed": how.seed,
    }


def not_measured(split: ImageSplit, number: int) -> int:
    """Return how many images of a split are not among those that were measured, damaged ones included."""
    return len(split.corrupt) + len(split) - number


def part_of_source(source: str, images: ImageSet, split: ImageSplit) -> str | None:
    """Return a line that says so where a source without splits is measured by the images that are held out of it."""
    if split.name != "validation" or len(images.splits) > 2:
        return None
    whole = sum(map(len, images.splits.values()))
    return (
        f"of the {whole:,} images of {source} the {len(split):,} of validation are measured: those in a folder named "
        "test would all be"
    )


def measure_split(
    how: Measuring,
    tokenizer: ImageTokenizer,
    split: ImageSplit,
    extractors: Extractors,
    folder: Path,
    plan: Mapping[str, Any],
    accelerator: Accelerator,
    what: str,
) -> dict[str, Tensor]:
    """Return what `measure_batch` does, of all images of a split that can be read; each process takes its share.

    Args:
        folder: of the parts that are computed, with which an interrupted command goes on.
        plan: that of `plan_of`.
        what: for the progress bar.
    Raises:
        UserError: of a whole part no image can be read.
    """

    def measure(positions: Tensor) -> dict[str, Tensor]:
        each = (
            measure_batch(how, tokenizer, split, some, extractors, accelerator)
            for some in positions.split(how.batch_size)
        )
        parts = [part for part in each if part]
        if not parts:
            raise UserError(f"none of {len(positions)} images of {split.name} can be read: nothing is measured of them")
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    return in_parts(folder, plan, len(split), PART, measure, accelerator, what)


@torch.inference_mode()
def measure_batch(
    how: Measuring,
    tokenizer: ImageTokenizer,
    split: ImageSplit,
    positions: Tensor,
    extractors: Extractors,
    accelerator: Accelerator,
) -> dict[str, Tensor]:
    """Return the figures (b,) of each image, its codes (b, T), and its and its reconstruction's features (b, D).

    Of a batch of which no image can be read there is nothing.
    """
    batch = split.read(positions)
    if len(batch.images) == 0:
        return {}
    images = batch.images.to(accelerator.device)
    pixels = to_float(images)
    with accelerator.autocast():
        latents = tokenizer.encode(pixels, batch.labels)
        decoder = tokenizer.output if isinstance(tokenizer, LikelihoodTokenizer) else tokenizer.decode
        decoded = decoder(latents, batch.labels)
    found: dict[str, Tensor] = {}
    if isinstance(tokenizer, LikelihoodTokenizer):
        found["distortion"] = tokenizer.likelihood.nll(decoded.double(), pixels.double())
        decoded = tokenizer.likelihood.mean(decoded)
        if (bound := bound_figures(how, tokenizer, pixels, batch.labels, int(positions[0]), accelerator)) is not None:
            found |= bound | {"center": latents}
        found |= {f"nll_of_{what}": nats for what, nats in tokenizer.exact_nll(pixels).items()}
    if tokenizer.config.layout.discrete:
        found["codes"] = latents.int()
    again = to_uint8(decoded)
    found |= {"squared_error": squared_error_each(images, again), "ssim": ssim_each(images, again)}
    if extractors.features is not None:
        found |= {"features": extractors.features(images), "features_again": extractors.features(again)}
    if extractors.classifier is not None:
        found["labelled"] = batch.labels >= 0
        for name, some in (("known", images), ("known_again", again)):
            found[name] = (extractors.classifier.predict(some) == batch.labels).to(torch.uint8)
    return found


def bound_figures(
    how: Measuring, tokenizer: LikelihoodTokenizer, pixels: Tensor, labels: Tensor, first: int, accelerator: Accelerator
) -> dict[str, Tensor] | None:
    """Return the terms of the bound of each image of a batch by draws of z, and one draw; None without a posterior.

    Args:
        first: the first image's place in the split, which the draws depend on beside the seed.
    """
    with accelerator.autocast():
        bound = tokenizer.bound(pixels, how.importance_samples, generator(how.seed + first, pixels.device), labels)
    if bound is None:
        return None
    return {
        "distortion": bound.distortion,
        "rate": bound.rate.flatten(1),
        "importance_weighted": bound.importance_weighted,
        "drawn": bound.drawn,
    }


def latent_figures(found: dict[str, Tensor], layout: Layout, samples: int, dimensions: int) -> dict[str, Any]:
    """Return the bounds on −log p(x) over a split, and the use of the numbers of z."""
    rate, bits = found["rate"].double().mean(0), math.log(2) * dimensions
    nats = found["distortion"].double().mean() + rate.sum()
    some = found["drawn"][evenly_spaced(MOST_DRAWN, len(found["drawn"]))]
    noise = torch.randn(some.shape, generator=generator(PRIOR_DRAWS))
    tighter = {"importance_weighted": found["importance_weighted"].double().mean().item()} if samples > 1 else {}
    return {
        "rate": rate.sum().item() / bits,
        "bits_per_dim": nats.item() / bits,
        "rate_nats": rate.sum().item(),
        "distortion_nats": (nats - rate.sum()).item(),
        "negative_elbo": nats.item(),
        **tighter,
        "active_units": latent_use(found["center"]).active,
        **({"kl_by_number": rate.tolist()} if len(rate) == layout.length else {}),
        **({"mmd_to_prior": mmd_squared(some, noise).item()} if len(some) > 1 else {}),
    }


def reconstruction_figures(
    found: dict[str, Tensor], tokenizer: ImageTokenizer, extractors: Extractors, samples: int
) -> dict[str, Any]:
    """Return the figures of the whole split; `samples` draws made the bounds, if there are any."""
    c = tokenizer.config
    dimensions = c.image_channels * math.prod(c.image_size)
    figures: dict[str, Any] = {
        "psnr_pooled": psnr_of(found["squared_error"].double().mean()).item(),
        "psnr": psnr_of(found["squared_error"].double()).mean().item(),
        "ssim": found["ssim"].double().mean().item(),
    }
    if "distortion" in found:
        figures["distortion"] = found["distortion"].mean().item() / (math.log(2) * dimensions)
    figures |= {name: nats.mean().item() for name, nats in found.items() if name.startswith("nll_of_")}
    if "rate" in found:
        figures |= latent_figures(found, c.layout, samples, dimensions)
    if "codes" in found:
        figures["uniform_rate"] = c.layout.length * math.log2(c.layout.codebook_size) / dimensions
        counts = count(found["codes"], c.layout)
        of_codes = {"usage": usage(counts), "perplexity": perplexity(counts)}
        both = (
            {"uniform_bits_per_dim": figures["uniform_rate"] + figures["distortion"]} if "distortion" in found else {}
        )
        figures |= both | of_codes
        if c.layout.codebooks > 1:
            figures["usage_by_codebook"] = [usage(row) for row in counts]
            figures["reachable_by_codebook"] = [reachable(row[None]) for row in counts]
    if extractors.features is not None and without_distance(found, extractors) is None:
        figures[extractors.features.frechet_name] = frechet_distance(found["features"], found["features_again"])
    if extractors.classifier is not None and (labelled := found["labelled"].bool()).any():
        figures["accuracy_images"] = found["known"][labelled].double().mean().item()
        figures["accuracy_reconstructions"] = found["known_again"][labelled].double().mean().item()
    return figures


def without_distance(found: Mapping[str, Tensor], extractors: Extractors) -> str | None:
    """Return why there is no Fréchet distance of a split: its covariance needs more images than features."""
    if extractors.features is None or len(found["features"]) > found["features"].shape[1]:
        return None
    number, features = found["features"].shape
    return (
        f"no Fréchet distance on {extractors.features.name}: it takes more images than features, and there are "
        f"{number:,} images and {features:,} features"
    )

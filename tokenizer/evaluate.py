"""Evaluate a tokenizer on held-out images: the quality and cost of its reconstructions, and the use of its codes.

    accelerate launch -q tokenizer/evaluate.py runs/digits
    accelerate launch -q tokenizer/evaluate.py runs/mine --features.kind inception --features.weights FILE

Reads RUN/tokenizer and its images. Writes RUN/evaluation/tokenizer-SPLIT.json, or of another --source
tokenizer-SPLIT-of-NAME. Each process takes its share of the images; interrupted, the same command goes on. The figures:

    psnr_pooled, psnr     dB, of the squared error over the whole split, as papers have it; the mean of each image's own
    ssim                  structural similarity (Wang et al. 2004)
    distortion            −log2 p(x | z), bits per dimension, where the decoder says p(x | z)
    rate                  KL(q(z | x) || N(0, I)), bits per dimension, of vectors with a posterior; their distortion is
                          then its mean over draws
    rate_nats, distortion_nats   the same in nats an image
    negative_elbo         nats an image, distortion + rate; bits_per_dim the same in bits per dimension. Where the
                          tokenizer is told of the class, both are given it
    importance_weighted   nats an image: the tighter bound by --importance_samples draws
    active_units          numbers of z whose centre varies over images by more than 0.01
    nll_of_density        nats an image: −log of the density at its pixels, times the width of a level for each, where
                          the model's own p(x) has a formula: a linear VAE, a mixture of Gaussians. No probability, so
                          bounds, which are of the levels, may lie below it where pixels are pure black or white
    nll_of_levels         nats an image: −log p(x) of its 8-bit levels, of a mixture without correlations
    kl_by_number          nats of each number of z, where the KL is a sum over them
    mutual_information    nats, I(x; z) by the posteriors of all images: at most mutual_information_cap, the log of
                          their number; with marginal_kl, KL(q(z) || N(0, I)), it is the rate of one draw an image
    mmd_to_prior          MMD² between draws of q(z) = E_x q(z | x) and N(0, I)
    uniform_rate          of codes: T log2 K over the dimensions, what they cost before there is a prior
    usage, perplexity     of the codebook over the whole split
    fd_NAME               Fréchet distance of reconstructions to the images on NAME's features; fid for Inception's
    accuracy_...          of a classifier of the run's labels, on the images and on their reconstructions
"""

import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from smalti.common.starting import answer_signals

    answer_signals()

from pydantic import Field

from smalti.common import config
from smalti.common.choices import Precision
from smalti.common.command_line import answer_at_once, is_command
from smalti.common.config import Settings as BaseSettings
from smalti.metrics.features_config import FeaturesConfig


class Settings(BaseSettings):
    """Evaluate a tokenizer."""

    run: str = "runs/digits"
    """folder of the experiment"""
    split: str | None = None
    """which split of the images; test, or where there is none validation, when null"""
    source: str | None = None
    """another dataset than the tokenizer was trained on: a Hub id or a folder"""
    features: FeaturesConfig = FeaturesConfig()
    """feature extractor that compares reconstructions with the images"""
    batch_size: int = Field(128, ge=1)
    """images a process encodes at once"""
    importance_samples: int = Field(1, ge=1, le=2**20)
    """draws of z for each image, of which bounds on -log p(x) are means: K of the importance-weighted bound; 1 leaves
    that bound away. It takes as many decodings of every image"""
    seed: int = Field(0, ge=0, le=2**62)
    """of the draws of z"""
    precision: Precision = "fp32"
    """of encoder and decoder; the likelihood of codes is fp64 always, that of draws of z fp32"""


def read_settings(argv: Sequence[str]) -> Settings:
    return config.parse(Settings, __doc__, argv, positional="run", positional_help="folder of the experiment")


if is_command(__name__):  # --help and a wrong setting are answered before torch is imported
    answer_at_once(read_settings)

import torch
from accelerate import Accelerator
from torch import Tensor

from smalti.common.commands import as_typed
from smalti.common.data.images import held_out_split
from smalti.common.data.pixels import to_float
from smalti.common.data.run_images import ANOTHER, open_run_images, run_images
from smalti.common.data.split import ImageSplit
from smalti.common.evaluation_file import evaluation_path, parts_path, tell, write_evaluation
from smalti.common.launch import check_agree, make_accelerator, run_command
from smalti.common.parts import in_parts
from smalti.common.seeds import generator
from smalti.common.session import session, tell_of_training
from smalti.common.spacing import evenly_spaced
from smalti.tokenizer.base import ImageTokenizer, LikelihoodTokenizer
from smalti.tokenizer.criterion.criteria import remark_on_losses
from smalti.tokenizer.criterion.likelihood.levels import above_its_bound
from smalti.tokenizer.labels import check_labels
from smalti.tokenizer.model import load_identified, trained
from smalti.tokenizer.mutual_information import INFORMATION, Surgery, paired_images, surgery
from smalti.tokenizer.posterior.of_images import ImagePosteriors
from smalti.tokenizer.reconstruction import (
    PART,
    Measuring,
    measure_split,
    not_measured,
    part_of_source,
    plan_of,
    reconstruction_figures,
    without_distance,
)
from smalti.tokenizer.run_features import features_cache, open_extractors


def evaluate(c: Settings, accelerator: Accelerator, arguments: Sequence[str] = ()) -> Path:
    """Compute the figures, or those still missing, and return their file."""
    run = Path(c.run)
    model = trained(run / "tokenizer")
    tokenizer, identity = load_identified(model, "")
    check_agree(identity.whole, f"the tokenizer of {run}")
    tokenizer.to(accelerator.device)
    settings = run_images(run / "tokenizer", c.source)
    images = open_run_images(run / "tokenizer", tokenizer.config, c.source, otherwise=ANOTHER)
    check_labels(tokenizer.condition, images)
    split = held_out_split(images.splits, c.split)
    if c.source is not None and (told := part_of_source(c.source, images, split)) is not None:
        accelerator.print(told, file=sys.stderr)
    if (told := remark_on_losses(run / "tokenizer")) is not None:
        accelerator.print(told, file=sys.stderr)
    extractors = open_extractors(c.features, images, settings, split, features_cache(run), accelerator)
    how = Measuring(c.batch_size, c.precision, c.importance_samples, c.seed)
    plan = plan_of(how, identity.whole, images, split, extractors)
    folder = parts_path(run, f"tokenizer-{split.name}")  # of one source at a time
    found = measure_split(how, tokenizer, split, extractors, folder, plan, accelerator, f"evaluate {split.name}")
    number = len(found["squared_error"])
    figures = reconstruction_figures(found, tokenizer, extractors, c.importance_samples)
    if (told := without_distance(found, extractors)) is not None:
        accelerator.print(told, file=sys.stderr)
    figures |= information_figures(c, tokenizer, split, plan, accelerator)
    if (told := above_its_bound(figures.get("nll_of_density"), figures.get("negative_elbo"))) is not None:
        accelerator.print(told, file=sys.stderr)
    protocol = {
        **plan,
        "source": settings.source,
        "number": number,
        "skipped": not_measured(split, number),
        "features_name": extractors.features.name if extractors.features else None,
        "likelihood": tokenizer.likelihood.kind if isinstance(tokenizer, LikelihoodTokenizer) else None,
        "binarize": settings.binarize,
        "condition": tokenizer.condition.name(),
    }
    name = split.name if c.source is None else f"{split.name}-of-{Path(c.source).name}"
    path = evaluation_path(run, "tokenizer", name)
    if accelerator.is_main_process:
        write_evaluation(run, "tokenizer", name, figures=figures, protocol=protocol, arguments=arguments)
    accelerator.wait_for_everyone()
    return path


def information_figures(
    c: Settings, tokenizer: ImageTokenizer, split: ImageSplit, plan: dict[str, Any], accelerator: Accelerator
) -> dict[str, float | None]:
    """Return the parts of the rate over evenly spaced images of a split, all of them where their pairs are not too
    many; None of each part where the posterior does not score the z of another image, and nothing without one."""

    def encoded(positions: Tensor) -> ImagePosteriors | None:
        batch = split.read(positions)
        pixels = to_float(batch.images.to(accelerator.device))
        with accelerator.autocast():
            return tokenizer.posteriors(pixels, batch.labels) if isinstance(tokenizer, LikelihoodTokenizer) else None

    each = (encoded(position) for position in torch.arange(len(split)).split(1))
    first = next((one for one in each if one is None or len(one.h)), None)  # the first that can be read
    if first is None:
        if c.importance_samples > 1:
            accelerator.print(
                "importance_samples has no effect: this tokenizer has no q(z | x) over vectors, and so no bound",
                file=sys.stderr,
            )
        return {}
    if not first.scores_any:
        accelerator.print(
            f"no mutual_information: log q of another image's z is slow under {first.posterior.config.name()}",
            file=sys.stderr,
        )
        return dict.fromkeys(INFORMATION)
    number = min(len(split), paired_images(first.h.numel()))

    @cache
    def all_posteriors() -> tuple[ImagePosteriors, Tensor]:
        """Return the posteriors of the images and a draw of each, (N, T)."""
        positions = evenly_spaced(number, len(split))
        parts = [part for some in positions.split(c.batch_size) if (part := encoded(some)) is not None]
        posteriors = first._replace(h=torch.cat([part.h for part in parts]))
        return posteriors, posteriors.draw(1, generator(c.seed, accelerator.device))[0][0]

    def compute(positions: Tensor) -> dict[str, Tensor]:
        posteriors, z = all_posteriors()
        some = positions[positions < len(z)].to(z.device)  # fewer, where images could not be read
        return surgery(posteriors, z[some], some)._asdict()

    folder = parts_path(Path(c.run), f"information-{split.name}")
    found = Surgery(**in_parts(folder, plan, number, PART, compute, accelerator, "mutual information"))
    return dict(found.figures(len(found.log_q)))


def main(argv: Sequence[str]) -> None:
    c = read_settings(argv)
    accelerator = make_accelerator(c.precision)
    tell_of_training("the figures", accelerator, Path(c.run) / "tokenizer")
    with session(Path(c.run) / "evaluation/tokenizer", accelerator):
        path = evaluate(c, accelerator, argv)
    if accelerator.is_main_process:
        tell(path, as_typed("prior/evaluate.py", Path(c.run)))


if __name__ == "__main__":
    run_command(main)

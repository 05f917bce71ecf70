"""Measure what amortisation costs: the bound of the encoder's q(z | x), and of a q of its own for each image.

    accelerate launch -q tokenizer/amortization.py runs/digits_vae --images 1000 --steps 300

Reads RUN/tokenizer, a VAE, and up to --images of its held-out images. The decoder stays as it is. For each image the
numbers h that the encoder gives, of which q(z | x) is made, are moved by Adam to where the ELBO is largest: EM with a
gradient in the place of the E step, and without an encoder. Writes RUN/evaluation/amortization-SPLIT.json, nats an
image:

    amortised              −ELBO of the encoder's q
    own                    −ELBO of each image's own q; where it is none better on draws aside, the encoder's
    amortisation_gap       amortised − own, what the encoder loses; the amortisation gap of Cremer et al. (2018),
                           https://arxiv.org/abs/1801.03558, where the decoder cannot follow
    gap_standard_error     of the gap on these images, by the draws of z
    gap_standard_error_of_images   of the gap, were other images taken
    importance_weighted    the bound of --draws draws from the own q: below it lies −log p(x)
    nll_of_density         −log p(x) itself, of the density, where the decoder is linear and Gaussian; the others are
                           of the levels, and may lie below it where pixels are pure black or white
    encoder_ms, own_ms     milliseconds an image (of the processor's time, where there is no accelerator): a
                           pass of the encoder, and moving h
    moved                  share of the images that keep a q of their own

The figures are of draws that no step saw, the same for both q.
"""

import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from smalti.common.starting import answer_signals

    answer_signals()

from pydantic import Field

from smalti.common import config
from smalti.common.command_line import answer_at_once, is_command
from smalti.common.config import Settings as BaseSettings

TOGETHER = 2**12  # draws of z that are decoded at once


class Settings(BaseSettings):
    """Measure what amortisation costs."""

    run: str = "runs/digits_vae"
    """folder of the experiment: its tokenizer is measured"""
    split: str | None = None
    """which split of the images; test, or where there is none validation, when null"""
    images: int = Field(1000, ge=2)
    """images that are measured at most, evenly spaced"""
    steps: int = Field(300, ge=1)
    """steps of Adam for each image"""
    lr: float = Field(0.05, gt=0)
    """Adam's learning rate at first; half a cosine leads it to 0"""
    samples: int = Field(4, ge=1, le=2**12)
    """draws of z in a step"""
    draws: int = Field(200, ge=2, le=2**16)
    """draws of z for the figures"""
    batch_size: int = Field(100, ge=1, le=TOGETHER)
    """images that are moved at once; each has its own step sizes, so this changes the draws alone"""
    seed: int = Field(0, ge=0, le=2**62)
    """of the draws"""


def read_settings(argv: Sequence[str]) -> Settings:
    return config.parse(Settings, __doc__, argv, positional="run", positional_help="folder of the experiment")


if is_command(__name__):  # --help and a wrong setting are answered before torch is imported
    answer_at_once(read_settings)

import torch
from accelerate import Accelerator
from torch import Generator, Tensor

from smalti.common.commands import as_typed
from smalti.common.data.images import held_out_split
from smalti.common.data.pixels import to_float
from smalti.common.data.run_images import open_run_images
from smalti.common.errors import UserError
from smalti.common.evaluation_file import evaluation_path, tell, write_evaluation
from smalti.common.folder import read_steadily, sha256
from smalti.common.launch import make_accelerator, run_command
from smalti.common.progress import progress_bar
from smalti.common.seeds import generator
from smalti.common.session import session
from smalti.common.spacing import evenly_spaced
from smalti.tokenizer.criterion.likelihood.levels import above_its_bound
from smalti.tokenizer.criterion.objective.iwae import importance_weighted_nll
from smalti.tokenizer.labels import check_labels
from smalti.tokenizer.model import load_tokenizer, trained
from smalti.tokenizer.vae.model import VAE


class Comparison(NamedTuple):
    """The bounds of images, in nats."""

    amortised: Tensor  # (B,) −ELBO of the encoder's q
    own: Tensor  # (B,) −ELBO of each one's own
    gap_variance: Tensor  # (B,) of the difference, as an estimate by these draws
    importance_weighted: Tensor  # (B,) by the draws of the own q
    moved: Tensor  # (B,) bool, whether its own q is another than the encoder's
    encoder_seconds: float  # of all
    own_seconds: float


def own_numbers(
    vae: VAE, images: Tensor, told: Tensor, start: Tensor, *, steps: int, lr: float, samples: int, generator: Generator
) -> Tensor:
    """Return h (B, P, N) that Adam has moved from `start` to where the ELBO of each image is large.

    Args:
        told: (B, E) what the decoder is told of each image, see `VAE.vector_of`.

    Adam's step sizes belong to each number, so an image's way is its own, whatever else is in the batch.
    """
    h = start.detach().clone().requires_grad_()
    optimizer = torch.optim.Adam([h], lr=lr)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / steps))
        loss = vae.evidence(images, h, told, samples, generator).negative_elbo.sum()
        (h.grad,) = torch.autograd.grad(loss, h)
        optimizer.step()
    return h.detach()


@torch.no_grad()
def bounds_of_draws(vae: VAE, images: Tensor, told: Tensor, h: Tensor, draws: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return −ELBO by each draw and log p(x, z) − log q(z | x) of each, (draws, B) both; draws belong to the seed."""
    noise, at_once = generator(seed, images.device), TOGETHER // max(1, len(images)) or 1
    bounds, weights = [], []
    for start in range(0, draws, at_once):
        evidence = vae.evidence(images, h, told, min(at_once, draws - start), noise)
        exact = evidence.kl is not None
        bounds.append(evidence.nll + evidence.rate.sum((1, 2)) if exact else -evidence.log_weights)
        weights.append(evidence.log_weights)
    return torch.cat(bounds).double(), torch.cat(weights).double()


def compared(vae: VAE, images: Tensor, labels: Tensor, c: Settings, seed: int) -> Comparison:
    """Return the bounds of images (B, C, H, W) of classes (B,) by the encoder's q and by one of each one's own."""
    clock = time.process_time if images.device.type == "cpu" else time.perf_counter  # others may use the core, too
    began = clock()
    with torch.no_grad():
        told = vae.vector_of(vae.told(labels, images), images)
        first = vae.network.encode(images, told)
    encoded = clock()
    draws = generator(seed, images.device)
    moved = own_numbers(vae, images, told, first, steps=c.steps, lr=c.lr, samples=c.samples, generator=draws)
    ended = clock()
    before, after = (bounds_of_draws(vae, images, told, h, c.draws, seed + 1)[0].mean(0) for h in (first, moved))
    kept = after < before
    own = torch.where(kept[:, None, None], moved, first)
    amortised, _ = bounds_of_draws(vae, images, told, first, c.draws, seed + 2)
    better, weights = bounds_of_draws(vae, images, told, own, c.draws, seed + 2)
    return Comparison(
        amortised.mean(0),
        better.mean(0),
        (amortised - better).var(0) / c.draws,
        importance_weighted_nll(weights),
        kept,
        encoded - began,
        ended - encoded,
    )


def trained_vae(model: Path) -> VAE:
    """Return the VAE in a folder, its weights fixed. Raises `UserError` where it has no q(z | x) over vectors."""
    vae = load_tokenizer(model)
    if not isinstance(vae, VAE) or not vae.config.posterior.stochastic:
        raise UserError(
            f"the tokenizer in {model} has no encoder of a q(z | x) over vectors: it is of kind {vae.config.name()}"
            f"{', posterior none' if isinstance(vae, VAE) else ''}; train one of model.kind vae with a posterior"
        )
    return vae.requires_grad_(False).eval()


def measure(c: Settings, accelerator: Accelerator, arguments: Sequence[str] = ()) -> Path:
    """Measure, write the figures, and return their file. The main process does it alone."""
    run = Path(c.run)
    model = trained(run / "tokenizer")
    vae, identity = read_steadily(model, lambda: (trained_vae(model), sha256(model / "model.safetensors")))
    vae.to(accelerator.device)
    images = open_run_images(run / "tokenizer", vae.config)
    check_labels(vae.condition, images)
    split = held_out_split(images.splits, c.split)
    path = evaluation_path(run, "amortization", split.name)
    if not accelerator.is_main_process:
        return path
    number = min(c.images, len(split))
    found, exact = [], []
    bar = progress_bar(accelerator, number, "a q of each image", unit="image")
    for positions in evenly_spaced(number, len(split)).split(c.batch_size):
        batch = split.read(positions)
        pixels = to_float(batch.images.to(accelerator.device))
        if len(pixels) == 0:  # none of them could be read
            continue
        found.append(compared(vae, pixels, batch.labels, c, c.seed + 3 * int(positions[0])))
        exact += [nats.cpu() for nats in vae.exact_nll(pixels).values()]
        bar.update(len(positions))
    bar.close()
    figures = figures_of(found) | ({"nll_of_density": torch.cat(exact).mean().item()} if exact else {})
    if (told := above_its_bound(figures.get("nll_of_density"), figures["importance_weighted"])) is not None:
        print(told, file=sys.stderr)
    protocol = {
        **c.model_dump(mode="json", exclude={"run", "split"}),
        "number": sum(len(each.own) for each in found),
        "tokenizer": identity,
        "posterior": vae.config.posterior.model_dump(mode="json"),
        "likelihood": vae.likelihood.kind,
    }
    return write_evaluation(
        run,
        "amortization",
        split.name,
        figures=figures,
        protocol=protocol,
        arguments=arguments,
        script="tokenizer/amortization.py",
    )


def figures_of(found: Sequence[Comparison]) -> dict[str, float]:
    """Return the figures of all batches together."""
    tensors = zip(*(each[:5] for each in found), strict=True)
    amortised, own, variance, weighted, moved = (torch.cat(parts).double().cpu() for parts in tensors)
    number, gap = len(own), amortised - own
    return {
        "amortised": amortised.mean().item(),
        "own": own.mean().item(),
        "amortisation_gap": gap.mean().item(),
        "gap_standard_error": (variance.sum().sqrt() / number).item(),
        "gap_standard_error_of_images": (gap.std() / number**0.5).item(),
        "importance_weighted": weighted.mean().item(),
        "moved": moved.mean().item(),
        "encoder_ms": 1000 * sum(each.encoder_seconds for each in found) / number,
        "own_ms": 1000 * sum(each.own_seconds for each in found) / number,
    }


def main(argv: Sequence[str]) -> None:
    c = read_settings(argv)
    accelerator = make_accelerator("fp32")
    with session(Path(c.run) / "evaluation/amortization", accelerator):
        path = measure(c, accelerator, argv)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        tell(path, as_typed("tokenizer/latents.py", Path(c.run)))


if __name__ == "__main__":
    run_command(main)

"""Measure both stages together: what a held-out image costs in bits, and how good drawn images are.

    accelerate launch -q pipeline/evaluate.py runs/digits
    accelerate launch -q pipeline/evaluate.py runs/mine --images 10000 --features.kind inception --features.weights FILE

Reads RUN/tokenizer, RUN/prior, RUN/codes and the images; draws as RUN/pipeline/generation_config.json says, and is told
the labels of the held-out images. Writes RUN/evaluation/pipeline-SPLIT.json, pipeline-SPLIT-samples.png and
pipeline-SPLIT-neighbours.png. Processes share the work; interrupted, the same command goes on. The figures:

    distortion            −log2 p(x | z) of held-out images, bits per dimension, and with each prior's rate the sum:
    PRIOR_rate, PRIOR_bits_per_dim    of PRIOR uniform, independent (code frequencies of train), learned (and the label)
    rate_saved            what the learned rate, label included, is under the independent one: a share of it
    PRIOR_elbo_..., PRIOR_importance_...   the tighter bounds where the posterior is stochastic (gumbel)
    fd_NAME, kernel_distance               of drawn to held-out images on NAME's features; fid for Inception's
    fd_NAME_train         of as many training images, for scale; a classifier has seen those, which moves it
    precision, recall, density, coverage   of their neighbourhoods
    class_agreement       share of drawn images a classifier takes for the label asked for
    classification_accuracy_score          of a classifier trained on the drawn images alone, on real held-out ones
    memorised_pixels, _features, _codes    share of drawn images as near to a training image as 1% of held-out ones
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from smalti.common.starting import answer_signals

    answer_signals()

import torch
from accelerate import Accelerator
from torch import Tensor

from smalti.common import config
from smalti.common.commands import as_typed
from smalti.common.errors import UserError
from smalti.common.evaluation import evaluation_path, parts_path, tell, write_evaluation
from smalti.common.folder import mend
from smalti.common.launch import make_accelerator, run_command
from smalti.common.parts import in_parts
from smalti.common.pictures import image_grid, save_picture
from smalti.common.progress import passing_bar
from smalti.common.seeds import generator
from smalti.common.session import session
from smalti.pipeline.evaluation.bench import Bench, Settings, evenly, features_of, open_bench, read
from smalti.pipeline.evaluation.bits import PRIORS, bits_per_dim, image_nats, likely, stochastic_bounds
from smalti.pipeline.evaluation.judge import SHOWN, Drawn, RealImages, ask_classifier, compare_features, look_up
from smalti.prior.base import Scores
from smalti.prior.baselines import Marginal
from smalti.prior.data import plain_views
from smalti.tokenizer.base import LikelihoodTokenizer
from smalti.tokenizer.features import labelled

PICTURES = ("samples", "neighbours")
PART = 500  # images
MOST_TRAIN, MOST_BYTES = (
    60_000,
    2**30,
)  # training images that drawn ones are looked up among, evenly spaced, and their pixels
FEWEST = 10  # drawn images that say anything of neighbourhoods
FEW_HELD_OUT = 100  # of which 1% are one image: below, nothing says how near to training images held-out ones are


def evaluate(c: Settings, accelerator: Accelerator, arguments: Sequence[str] = ()) -> Path:
    """Compute the figures, or what is missing of them, and return their file."""
    bench = open_bench(c, accelerator)
    number = min(len(bench.split), 10_000) if c.images is None else c.images
    if c.images is None and number < FEWEST:
        accelerator.print(
            f"{number} held-out images are too few to judge samples by: they are priced alone", file=sys.stderr
        )
        number = 0
    if number and min(number, len(bench.split)) < FEWEST:
        raise UserError(
            f"samples are judged by at least {FEWEST} images on either side, got {number} to draw and "
            f"{len(bench.split)} held out; --images 0 leaves them out"
        )
    figures, protocol = price(bench) if priced(bench) else ({}, {})
    if number:
        more, drawing = judge_samples(bench, number)
        figures, protocol = figures | more, protocol | drawing
    elif accelerator.is_main_process:
        for what in PICTURES:  # of another evaluation, and no longer beside their figures
            picture_path(bench, what).unlink(missing_ok=True)
    if accelerator.is_main_process:
        for what in PICTURES:
            mend(picture_path(bench, what))
    path = evaluation_path(bench.run, "pipeline", bench.split.name)
    if accelerator.is_main_process:
        write_evaluation(
            bench.run,
            "pipeline",
            bench.split.name,
            figures=figures,
            protocol=bench.plan | protocol,
            arguments=arguments,
        )
    accelerator.wait_for_everyone()
    return path


# ----------------------------------------------------------------------------------------------------------------- bits


def priced(bench: Bench) -> bool:
    """Return whether the run says what an image costs: the probability of its codes, and of its pixels given them."""
    pipeline = bench.pipeline
    says = isinstance(pipeline.tokenizer, LikelihoodTokenizer) and isinstance(pipeline.prior, Scores)
    if says and pipeline.prior.config.layout.discrete:
        return True
    bench.accelerator.print(
        "no bits: this tokenizer and prior do not say how likely an image's codes and pixels are", file=sys.stderr
    )
    return False


def price(bench: Bench) -> tuple[dict[str, Any], dict[str, Any]]:
    """What held-out images cost: figures, and their protocol."""
    c, pipeline, info = bench.c, bench.pipeline, bench.data.info
    none = pipeline.prior.config.condition.num_classes
    marginal = Marginal(
        plain_views(bench.data.splits["train"], info).codes, info.layout.codebook_size, info.layout.depth
    )
    stochastic = likely(pipeline).stochastic

    def compute(positions: Tensor) -> dict[str, Tensor]:
        parts = []
        for some in positions.split(c.batch_size):
            batch = bench.split.read(some)
            labels = torch.where((batch.labels < 0) | (batch.labels >= none), none, batch.labels)
            with bench.accelerator.autocast():
                found = image_nats(pipeline, marginal, batch.images, labels)._asdict()
            if stochastic:
                noise = generator(c.seed + int(some[0]))
                with bench.accelerator.autocast():
                    elbo, importance = stochastic_bounds(
                        pipeline, marginal, batch.images, labels, c.importance_samples, noise
                    )
                found |= {f"{prior}_elbo": elbo[prior] for prior in PRIORS}
                found |= {f"{prior}_importance": importance[prior] for prior in PRIORS}
            parts.append(found)
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    drawn = {"importance_samples": c.importance_samples, "seed": c.seed} if stochastic else {}
    folder = parts_path(bench.run, f"bits-{bench.split.name}")
    nats = in_parts(folder, bench.plan | drawn, len(bench.split), PART, compute, bench.accelerator, "bits")
    dimensions = pipeline.tokenizer.config.image_channels * math.prod(pipeline.tokenizer.config.image_size)
    bits = {name: bits_per_dim(each, dimensions) for name, each in nats.items()}
    figures: dict[str, Any] = {"distortion": bits["distortion"].mean().item()}
    for prior in PRIORS:
        figures[f"{prior}_rate"] = bits[prior].mean().item()
        figures[f"{prior}_bits_per_dim"] = (bits["distortion"] + bits[prior]).mean().item()
        for bound in ("elbo", "importance") if stochastic else ():
            figures[f"{prior}_{bound}_bits_per_dim"] = bits[f"{prior}_{bound}"].mean().item()
    total = bits["distortion"] + bits["learned"]
    figures["bits_per_dim_error"] = total.std().item() / len(total) ** 0.5 if len(total) > 1 else 0.0
    figures["rate_saved"] = 1 - figures["learned_rate"] / figures["independent_rate"]
    labelled = "with its label, which is paid for" if none else "without labels"
    protocol = {"priced": len(total), "conditional": labelled, "likelihood": likely(pipeline).likelihood.kind, **drawn}
    return figures, protocol


# -------------------------------------------------------------------------------------------------------------- samples


def draw_samples(bench: Bench, number: int) -> Drawn:
    """So many images, with the labels of the held-out split dealt evenly."""
    c, pipeline = bench.c, bench.pipeline
    held = torch.from_numpy(bench.split.labels[torch.arange(number) * len(bench.split) // number])
    classes = pipeline.prior.config.condition.num_classes
    labels = torch.where((held < 0) | (held >= classes), classes, held)
    sampler = pipeline.sampler(**pipeline.sampling.model_dump())

    def compute(positions: Tensor) -> dict[str, Tensor]:
        with passing_bar(len(positions), "draw a part") as bar:
            drawn = sampler(labels[positions], [c.seed + i for i in positions.tolist()], progress=bar.update).cpu()
        images = pipeline.decode(drawn)
        found = {"images": images, "codes": drawn if drawn.is_floating_point() else drawn.int()}
        return found if bench.eyes.features is None else found | {"features": bench.eyes.features(images)}

    plan = bench.plan | {
        "sampling": pipeline.sampling.model_dump(mode="json"),
        "seed": c.seed,
        "labels": labels.tolist(),
    }
    found = in_parts(parts_path(bench.run, "samples"), plan, number, PART, compute, bench.accelerator, "draw")
    codes = found["codes"] if found["codes"].is_floating_point() else found["codes"].long()
    return Drawn(found["images"], codes, labels, found.get("features"))


def judge_samples(bench: Bench, number: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """What drawn images are worth: figures, and their protocol."""
    drawn, eyes = draw_samples(bench, number), bench.eyes
    figures: dict[str, Any] = {}
    protocol = {
        "drawn": number,
        "seed": bench.c.seed,
        "sampling": bench.pipeline.sampling.model_dump(mode="json"),
        "labels": "of the held-out split, evenly",
    }
    train = evenly(bench.images.splits["train"], min(MOST_TRAIN, max(FEWEST, MOST_BYTES // drawn.images[0].numel())))
    train_features = None
    if eyes.features is not None:
        real = features_of(bench, eyes.features, bench.split, evenly(bench.split, number))
        train_features = features_of(bench, eyes.features, bench.images.splits["train"], train)
        if bench.accelerator.is_main_process:
            same = train_features[torch.arange(min(number, len(train))) * len(train) // min(number, len(train))]
            assert drawn.features is not None  # they were drawn for these eyes
            figures |= compare_features(drawn.features, real, same, eyes.features.frechet_name)
            if eyes.features.frechet_name not in figures:
                there = {
                    "drawn": len(drawn.features),
                    f"held out in {bench.split.name}": len(real),
                    "of train": len(same),
                }
                least, wanted = min(there, key=there.__getitem__), drawn.features.shape[1]
                more = (
                    "draw more (--images)"
                    if least == "drawn"
                    else "hold out more (the tokenizer's images.validation_share)"
                )
                print(
                    f"{there[least]} images {least} have no covariance of {wanted} features: no "
                    f"{eyes.features.frechet_name}; {'the set is that small' if least == 'of train' else more}",
                    file=sys.stderr,
                )
        protocol["features_name"] = eyes.features.name
    if bench.accelerator.is_main_process:
        prior = bench.pipeline.prior.config
        if eyes.classifier is not None:
            held = labelled(bench.split)
            figures |= ask_classifier(
                drawn, eyes.classifier, held, prior.condition.class_names or (), bench.accelerator.device
            )
        some = (
            0 if bench.split.name == "train" else min(bench.c.neighbours, number)
        )  # of train itself all would be copies
        if 0 < len(bench.split) < FEW_HELD_OUT:
            print(
                f"{len(bench.split)} held-out images are few: figures are rough, and it takes {FEW_HELD_OUT} to tell "
                "copies; the tokenizer's images.validation_share holds out more",
                file=sys.stderr,
            )
            some = 0
        if some:
            few = drawn.first(some)
            positions = evenly(bench.split, bench.c.neighbours)
            pixels = (read(bench.images.splits["train"], train), read(bench.split, positions))
            copied, rows = look_up(
                few, RealImages(*pixels, train_features), eyes.features, bench.pipeline.encode_pixels
            )
            figures, protocol = figures | copied, protocol | {"neighbours": some, "neighbours_among": len(train)}
            save_picture(image_grid(rows, columns=min(SHOWN, some)), picture_path(bench, "neighbours"))
        save_samples(bench, drawn)
    bench.accelerator.wait_for_everyone()
    return figures, protocol


def picture_path(bench: Bench, what: str) -> Path:
    return evaluation_path(bench.run, "pipeline", f"{bench.split.name}-{what}").with_suffix(".png")


def save_samples(bench: Bench, drawn: Drawn) -> None:
    """A column a class, ten rows, where there are up to 20 classes; else a square."""
    classes, some = bench.pipeline.prior.config.condition.num_classes, min(100, len(drawn.images))
    chosen, across = torch.arange(some), max(1, round(some**0.5))
    if 1 < classes <= 20:
        columns = [(drawn.labels == label).nonzero()[:10, 0] for label in range(classes)]
        rows = min(map(len, columns))
        if rows:
            chosen, across = torch.stack([column[:rows] for column in columns], dim=1).flatten(), classes
    save_picture(image_grid(drawn.images[chosen], across), picture_path(bench, "samples"))


def main(argv: Sequence[str]) -> None:
    c = config.parse(Settings, __doc__, argv, positional="run", positional_help="folder of the experiment")
    accelerator = make_accelerator(c.precision)
    with session(Path(c.run) / "evaluation/pipeline", accelerator):
        path = evaluate(c, accelerator, argv)
    if accelerator.is_main_process:
        tell(path, as_typed("pipeline/report.py", Path(c.run)))


if __name__ == "__main__":
    run_command(main)

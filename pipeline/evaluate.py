"""Measure both stages together: what a held-out image costs in bits, and how good drawn images are.

    accelerate launch -q pipeline/evaluate.py runs/digits
    accelerate launch -q pipeline/evaluate.py runs/mine --images 10000 --features.kind inception --features.weights FILE

Reads RUN/tokenizer, RUN/prior, RUN/codes and the images; draws as RUN/pipeline/generation_config.json says, with the
labels of the held-out images. Writes RUN/evaluation/pipeline-SPLIT.json, pipeline-SPLIT-samples.png and
pipeline-SPLIT-neighbours.png. Processes share the work; interrupted, the same command goes on. The figures:

    distortion            −log2 p(x | z) of held-out images, bits per dimension, and with each prior's rate the sum:
    PRIOR_rate, PRIOR_bits_per_dim    of PRIOR uniform, independent (code frequencies of train), learned (and the label)
    rate_saved            the share by which the learned rate, label included, is below the independent one
    PRIOR_elbo_..., PRIOR_importance_...   the tighter bounds if the posterior is stochastic (gumbel)
    standard_normal_..., learned_...       of vectors: distortion and rate are means over --importance_samples draws of
                          q(z | x), their sum is minus the ELBO; ..._nats the same in nats an image; label_nats of the
                          learned rate are the label's; a bound each
    fd_NAME, kernel_distance               of drawn to held-out images on NAME's features; fid for Inception's
    fd_NAME_train         of as many training images, for scale; a classifier has seen those, which moves it
    precision, recall, density, coverage   of their neighbourhoods
    class_agreement       share of drawn images that a classifier gives the label they were drawn for
    classification_accuracy_score          of a classifier trained on the drawn images alone, on real held-out ones
    memorised_pixels, _features, _codes    share of drawn images as near to a training image as 1% of held-out ones
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from smalti.common.starting import answer_signals

    answer_signals()

from smalti.common import config
from smalti.common.command_line import answer_at_once, is_command
from smalti.pipeline.evaluation.settings import Settings


def read_settings(argv: Sequence[str]) -> Settings:
    return config.parse(Settings, __doc__, argv, positional="run", positional_help="folder of the experiment")


if is_command(__name__):  # --help and a wrong setting are answered before torch is imported
    answer_at_once(read_settings)

import torch
from accelerate import Accelerator
from torch import Tensor

from smalti.common.commands import as_typed
from smalti.common.evaluation_file import evaluation_path, parts_path, tell, write_evaluation
from smalti.common.folder import mend
from smalti.common.launch import make_accelerator, run_command
from smalti.common.parts import in_parts
from smalti.common.plots import image_grid, save_picture
from smalti.common.progress import passing_bar
from smalti.common.session import session, tell_of_training
from smalti.common.spacing import evenly_spaced
from smalti.pipeline.evaluation.bench import (
    FEWEST,
    EvaluationBench,
    codes_of,
    features_of,
    open_bench,
    read_images,
)
from smalti.pipeline.evaluation.cost import PART, price
from smalti.pipeline.evaluation.judge import SHOWN, Drawn, RealImages, ask_classifier, compare_features, look_up
from smalti.tokenizer.criterion.criteria import remark_on_losses
from smalti.tokenizer.labelled import labelled

PICTURES = ("samples", "neighbours")
MOST_TRAIN = 60_000  # training images, evenly spaced, among which copies are looked for
MOST_BYTES = 2**30  # of their pixels
FEW_HELD_OUT = 100  # below it 1% of the held-out images is less than one, and the limit for copies is unknown


def evaluate(c: Settings, accelerator: Accelerator, arguments: Sequence[str] = ()) -> Path:
    """Compute the figures that are missing, and return their file."""
    bench = open_bench(c, accelerator)
    if (told := remark_on_losses(bench.run / "tokenizer")) is not None:
        accelerator.print(told, file=sys.stderr)
    figures, protocol = price(bench)
    if bench.judged:
        more, drawing = judge_samples(bench, bench.judged)
        figures, protocol = figures | more, protocol | drawing
    elif accelerator.is_main_process:
        for what in PICTURES:  # of an earlier evaluation, whose figures are replaced
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


# -------------------------------------------------------------------------------------------------------------- samples


def draw_samples(bench: EvaluationBench, number: int) -> Drawn:
    """Draw images with labels evenly spaced in the held-out split."""
    c, pipeline = bench.c, bench.pipeline
    held = torch.from_numpy(bench.split.labels[torch.arange(number) * len(bench.split) // number])
    classes = pipeline.condition.num_classes
    labels = torch.where((held < 0) | (held >= classes), classes, held)
    sampler = pipeline.sampler(**pipeline.sampling.model_dump())

    def compute(positions: Tensor) -> dict[str, Tensor]:
        with passing_bar(len(positions), "draw a part") as bar:
            told = pipeline.told_to_prior(labels[positions])
            latents = sampler(told, [c.seed + i for i in positions.tolist()], progress=bar.update).cpu()
        drawn = pipeline.from_prior(latents)
        images = pipeline.decode(drawn, labels[positions])
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


def judge_samples(bench: EvaluationBench, number: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draw images, and return figures of their quality and the protocol."""
    drawn, eyes, is_main = draw_samples(bench, number), bench.eyes, bench.accelerator.is_main_process
    train_split = bench.images.splits["train"]
    most = min(MOST_TRAIN, max(FEWEST, MOST_BYTES // drawn.images[0].numel()))
    train = evenly_spaced(most, len(train_split))
    train_features = None
    figures: dict[str, Any] = {}
    protocol = {
        "drawn": number,
        "seed": bench.c.seed,
        "sampling": bench.pipeline.prior.heeded(bench.pipeline.sampling),
        "labels": "of the held-out split, evenly",
    }
    if eyes.features is not None:
        real = features_of(bench, eyes.features, bench.split, evenly_spaced(number, len(bench.split)))
        train_features = features_of(bench, eyes.features, train_split, train)
        if is_main:
            same = train_features[evenly_spaced(number, len(train_features))]  # damaged images have none
            figures |= distances_to_real(bench, drawn, real, same)
        protocol |= {"features_name": eyes.features.name, "compared": len(real)}
    if is_main:
        if eyes.classifier is not None:
            held, names = labelled(bench.split), bench.pipeline.condition.class_names or ()
            figures |= ask_classifier(drawn, eyes.classifier, held, names, bench.accelerator.device)
        some = number_to_look_up(bench, number)
        if some:
            figures |= look_up_copies(bench, drawn.at(evenly_spaced(some, number)), train, train_features)
            protocol |= {"neighbours": some, "neighbours_among": len(train)}
        else:
            picture_path(bench, "neighbours").unlink(missing_ok=True)  # of an earlier evaluation
        save_samples(bench, drawn)
    bench.accelerator.wait_for_everyone()
    return figures, protocol


def distances_to_real(bench: EvaluationBench, drawn: Drawn, real: Tensor, train: Tensor) -> dict[str, Any]:
    """Return the distances of drawn images to real features, and print why there is no Fréchet distance if so."""
    assert bench.eyes.features is not None and drawn.features is not None
    name, width = bench.eyes.features.frechet_name, drawn.features.shape[1]
    figures = compare_features(drawn.features, real, train, name)
    if name not in figures:
        there = {"drawn": len(drawn.features), f"held out in {bench.split.name}": len(real), "of train": len(train)}
        least = min(there, key=there.__getitem__)
        advice = "hold out more (the tokenizer's images.validation_share)"
        if least in ("drawn", "of train"):
            advice = "draw more (--images)" if least == "drawn" else "the set is that small"
        print(
            f"{there[least]} images {least} have no covariance of {width} features: no {name}; {advice}",
            file=sys.stderr,
        )
    return figures


def number_to_look_up(bench: EvaluationBench, number: int) -> int:
    """Return how many of the drawn images are looked up among the training images: none if that says nothing."""
    held_out = len(bench.split)
    if 0 < held_out < FEW_HELD_OUT:
        print(
            f"{held_out} held-out images are few: figures are rough, and it takes {FEW_HELD_OUT} to tell copies; "
            "the tokenizer's images.validation_share holds out more",
            file=sys.stderr,
        )
        return 0
    return 0 if bench.split.name == "train" else min(bench.c.neighbours, number)  # in train itself all would be copies


def look_up_copies(
    bench: EvaluationBench, drawn: Drawn, train: Tensor, train_features: Tensor | None
) -> dict[str, Any]:
    """Return the shares of copies among drawn images, and save the picture of their nearest training images.

    Args:
        train: (N,) the training images that they may be copies of, as places in the split.
        train_features: (N, D) of those.
    """
    of_train = read_images(bench.images.splits["train"], train)
    held = evenly_spaced(bench.c.neighbours, len(bench.split))
    held_out = read_images(bench.split, held)
    train_codes = codes_of(bench, bench.images.splits["train"], train, of_train)
    held_out_codes = codes_of(bench, bench.split, held, held_out)
    real = RealImages(of_train.images, held_out.images, train_features, train_codes, held_out_codes)
    copied, rows = look_up(drawn, real, bench.eyes.features)
    save_picture(image_grid(rows, columns=min(SHOWN, len(drawn.images))), picture_path(bench, "neighbours"))
    return copied


def picture_path(bench: EvaluationBench, what: str) -> Path:
    """Return the path of a picture of the evaluation."""
    return evaluation_path(bench.run, "pipeline", f"{bench.split.name}-{what}").with_suffix(".png")


def save_samples(bench: EvaluationBench, drawn: Drawn) -> None:
    """Save a picture of drawn images: ten rows with a column for each of up to 20 classes, else a square."""
    classes, some = bench.pipeline.condition.num_classes, min(100, len(drawn.images))
    chosen, across = evenly_spaced(some, len(drawn.images)), max(1, round(some**0.5))
    if 1 < classes <= 20:
        columns = [(drawn.labels == label).nonzero()[:10, 0] for label in range(classes)]
        rows = min(map(len, columns))
        if rows:
            chosen, across = torch.stack([column[:rows] for column in columns], dim=1).flatten(), classes
    save_picture(image_grid(drawn.images[chosen], across), picture_path(bench, "samples"))


def main(argv: Sequence[str]) -> None:
    c = read_settings(argv)
    accelerator = make_accelerator(c.precision)
    tell_of_training("the figures", accelerator, Path(c.run) / "tokenizer", Path(c.run) / "prior")
    with session(Path(c.run) / "evaluation/pipeline", accelerator):
        path = evaluate(c, accelerator, argv)
    if accelerator.is_main_process:
        tell(path, as_typed("pipeline/report.py", Path(c.run)))


if __name__ == "__main__":
    run_command(main)

"""Make one page of a run: its figures, pictures, curves, settings, and the commands that repeat it.

    python pipeline/report.py runs/digits

Reads what is there of RUN: tokenizer/, codes/, prior/, pipeline/, samples/ and evaluation/; and a few held-out images, which
it completes. Writes RUN/report.html, a single file that loads nothing and may be sent as it is, and the charts of it as PNG
files into RUN/report/. What is not there yet has one line in its place, which says the command that fills it.
"""

import math
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import PIL.Image
import torch
import yaml
from torch import Tensor

from common import codes, config
from common.codes import CodesInfo
from common.config import Settings as BaseSettings
from common.errors import UserError
from common.evaluation import read_evaluations
from common.folder import check_format, kind_of, read_json, replacing, sha256
from common.launch import run_command
from common.pictures import image_grid, save_picture
from common.record import commit
from common.run import read_metrics
from pipeline import report_figures as draw
from pipeline.generation_config import GenerationConfig
from pipeline.image_pipeline import ImagePipeline
from pipeline.page import (
    Figure,
    Html,
    Section,
    bars,
    chart,
    code,
    details,
    figure,
    figures_table,
    join,
    labelled,
    listing,
    missing,
    number,
    page,
    paragraph,
    percent,
    picture,
    side_by_side,
    table,
    tag,
    tiles,
)  # fmt: skip
from pipeline.page import (
    panel as titled,
)
from prior.draw import SamplingConfig
from tokenizer.config import KMeansConfig, TokenizerConfig
from tokenizer.images import centre, held_out, open_images, run_images, to_pil
from tokenizer.kmeans import KMeansTokenizer
from tokenizer.model import Tokenizer

STAGES = ("tokenizer", "prior", "pipeline")
COMPLETED = 8  # images
DRAWS = 2  # completions of each
GREY = 128  # of what a completion is not shown
CLASSES = 40  # that a table of classes has at most


class Settings(BaseSettings):
    """Report on a run."""

    run: str = "runs/digits"
    """folder of the experiment"""
    split: str | None = None
    """whose evaluations are shown; of each stage test, or where there is none validation, when null"""
    completion: bool = True
    """complete a few held-out images, for which the images and both models are read"""


class Found(NamedTuple):
    """What is there of a run."""

    path: Path
    split: str | None
    settings: dict[str, dict[str, Any]]  # config.yaml of each stage that was begun
    all_evaluations: list[dict[str, Any]]
    evaluations: dict[str, dict[str, Any]]  # of each stage, the one that is shown
    codes: tuple[CodesInfo, dict[str, dict[str, Any]]] | None
    model: TokenizerConfig | KMeansConfig | None
    prior: dict[str, Any] | None  # config.json of its model
    sampling: GenerationConfig | None

    @property
    def place(self) -> Path:
        """The run as the page names it: what stands above it is the machine's affair."""
        if not self.path.is_absolute():
            return self.path
        return self.path.relative_to(Path.cwd()) if self.path.is_relative_to(Path.cwd()) else Path("...") / self.path.name

    @property
    def shown(self) -> str:
        """The same for a command line."""
        return shlex.quote(str(self.place))

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def pixels(self) -> bool:
        """Whether images are so small that each pixel is to be seen."""
        return self.model is not None and max(self.model.image_size) < 64

    @property
    def classes(self) -> tuple[str, ...]:
        names = self.codes[0].class_names if self.codes else (self.prior or {}).get("class_names")
        return tuple(map(str, names)) if isinstance(names, list | tuple) else ()

    def command(self, script: str) -> str:
        evaluation = self.split is not None and script.endswith("evaluate.py")
        return f"python {script} {self.shown}" + (f" --split {shlex.quote(self.split)}" if evaluation else "")

    def value(self, stage: str, name: str) -> float | None:
        """A figure of a stage's evaluation, where it is there and a number."""
        return finite(self.evaluations.get(stage, {}).get("figures", {}).get(name))

    def numbers(self, stage: str, name: str) -> dict[str, float]:
        """A figure that is a number for each of several names."""
        values = self.evaluations.get(stage, {}).get("figures", {}).get(name)
        found = {key: finite(value) for key, value in values.items()} if isinstance(values, Mapping) else {}
        return {key: value for key, value in found.items() if value is not None}

    def of(self, stage: str, count: str) -> str:
        """What a stage's evaluation was of, for people."""
        evaluation = self.evaluations[stage]
        images = evaluation["protocol"].get(count)
        return f"{evaluation['split']} split" + (f", {images:,} images" if isinstance(images, int) else "")


def finite(value: Any) -> float | None:
    """A number that is one."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) else None


# ------------------------------------------------------------------------------------------------------------ gathering


def gather(c: Settings) -> Found:
    """Read what is there. Raises `UserError` for what is no run, and for files that are damaged."""
    run = Path(c.run)
    if not run.is_dir():
        raise UserError(f"there is no run folder {run}; pipeline/run.py makes one, or tokenizer/train.py with --run {run}")
    stages = [stage for stage in ("tokenizer", "prior") if (run / stage / "config.yaml").exists()]
    if not stages:
        raise UserError(
            f"{run} must be a run folder, with tokenizer/config.yaml or prior/config.yaml in it, and has neither; "
            "give the folder that the trainings were given as --run"
        )
    evaluations = [checked(value, run) for value in read_evaluations(run)]
    tokenizer, prior = run / "tokenizer/model/config.json", run / "prior/model/config.json"
    kept = run / "pipeline/generation_config.json"
    return Found(
        path=run,
        split=c.split,
        settings={stage: config.read_yaml(run / stage / "config.yaml") for stage in stages},
        all_evaluations=evaluations,
        evaluations=chosen(evaluations, c.split),
        codes=codes.read_info(run / "codes") if codes.is_whole(run / "codes") else None,
        model=read_model(tokenizer) if tokenizer.exists() else None,
        prior=read_json(prior) if prior.exists() else None,
        sampling=GenerationConfig.read(kept) if kept.exists() else None,
    )


def read_model(path: Path) -> TokenizerConfig | KMeansConfig:
    """A tokenizer's config.json, without its weights."""
    written = read_json(path)
    kinds = {kind_of(Tokenizer): TokenizerConfig, kind_of(KMeansTokenizer): KMeansConfig}
    cls = kinds.get(written.get("kind"), TokenizerConfig)
    check_format(written, next(kind for kind, each in kinds.items() if each is cls), path)
    return config.build(cls, {key: value for key, value in written.items() if key not in ("kind", "format")}, str(path))


def checked(evaluation: dict[str, Any], run: Path) -> dict[str, Any]:
    """That an evaluation has what every page shows of it."""
    kinds = {"stage": str, "split": str, "figures": dict, "protocol": dict}
    for name, kind in kinds.items():
        if not isinstance(evaluation.get(name), kind):
            raise UserError(
                f"a file in {run / 'evaluation'} has no {name} of type {kind.__name__}, got {evaluation.get(name)!r}; "
                "run the evaluate.py that wrote it again"
            )
    return evaluation


def chosen(evaluations: Sequence[dict[str, Any]], split: str | None) -> dict[str, dict[str, Any]]:
    """The evaluation of each stage that is shown."""
    splits = {evaluation["split"] for evaluation in evaluations}
    if split is not None and splits and split not in splits:
        raise UserError(f"there is no evaluation of split {split!r}; there are some of {', '.join(sorted(splits))}")
    liked = {"test": 0, "validation": 1} if split is None else {split: 0}
    wanted = [each for each in evaluations if split in (None, each["split"])]
    wanted.sort(key=lambda each: liked.get(each["split"], 2), reverse=True)
    return {each["stage"]: each for each in wanted}


def outdated(found: Found) -> Iterator[str]:
    """Which evaluations are of other weights than the run has now."""
    files = {stage: found.path / stage / "model/model.safetensors" for stage in ("tokenizer", "prior")}
    now = {stage: sha256(path) for stage, path in files.items() if path.exists()}
    for name, evaluation in found.evaluations.items():
        for stage, digest in now.items():
            measured = evaluation["protocol"].get(stage)
            if isinstance(measured, str) and measured != digest:
                yield (
                    f"The {name}'s figures on the {evaluation['split']} split were measured with another {stage} than the "
                    f"run has now; {found.command(f'{name}/evaluate.py')} measures them anew."
                )


def read_picture(path: Path) -> PIL.Image.Image:
    try:
        with PIL.Image.open(path) as opened:
            opened.load()
            return opened
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        raise UserError(f"{path} must be a whole PNG file: {error}; remove it, or run what wrote it again") from None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects in a file of JSON lines."""
    try:
        return [line for line in read_metrics(path) if isinstance(line, dict)]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} must hold JSON lines: {error}; the command that wrote it writes it again") from None


# ------------------------------------------------------------------------------------------------ what each figure means


class Meaning(NamedTuple):
    title: str
    text: str
    share: bool = False


MEANINGS = {
    "psnr": Meaning("PSNR, dB", "of 8-bit reconstructions: each image's, averaged; higher is closer to the original"),
    "psnr_pooled": Meaning("PSNR pooled, dB", "of the squared error over the whole split"),
    "ssim": Meaning("SSIM", "structural similarity of reconstructions; 1 is the original"),
    "distortion": Meaning("distortion, bits/dim", "what pixels cost once their codes are known"),
    "usage": Meaning("usage", "share of the codebook that was used at all", True),
    "perplexity": Meaning("perplexity", "codes that would be as varied were they used alike; at most K"),
    "accuracy_images": Meaning("accuracy on images", "of the classifier that looks at both", True),
    "accuracy_reconstructions": Meaning("accuracy on reconstructions", "of the same: what codes keep of a class", True),
    "nll": Meaning("nats per code", "what a held-out code costs under the prior; lower is better"),
    "nll_error": Meaning("its standard error", "over images"),
    "bits_per_code": Meaning("bits per code", "the same in bits; at most log₂ K for a prior that learned nothing"),
    "bits_per_image": Meaning("bits per image", "what an ideal coder needs for all codes of an image"),
    "independent_nll": Meaning("nats, independent codes", "drawn one by one by their frequency in train"),
    "uniform_nll": Meaning("nats, uniform codes", "ln K: no code likelier than another"),
    "saved": Meaning("saved", "share of the rate under independent codes that the prior does without", True),
    "train_nll": Meaning("nats, training images", "of as many training images"),
    "gap": Meaning("gap", "by how much held-out images cost more than training images: memorising is a large gap"),
    "bits_per_dim_error": Meaning("its standard error", "of the learned prior's bits per dimension, over images"),
    "kernel_distance": Meaning("kernel distance", "to held-out images on the same features; chance may take it below 0"),
    "precision": Meaning("precision", "share of drawn images among held-out ones: are they believable?", True),
    "recall": Meaning("recall", "share of held-out images among drawn ones: is everything drawn?", True),
    "density": Meaning("density", "how closely held-out images surround drawn ones; about 1 for real images"),
    "coverage": Meaning("coverage", "share of held-out images that have a drawn one in their neighbourhood", True),
    "classifier_accuracy": Meaning("classifier accuracy", "on held-out images: how far to trust the next figures", True),
    "class_agreement": Meaning("class agreement", "share of drawn images it takes for the class asked for", True),
    "classification_accuracy_score": Meaning(
        "classification accuracy score", "on held-out images, of a classifier that learned from drawn images alone", True
    ),
}  # fmt: skip
PRIORS = {
    "uniform": "all codes alike likely",
    "independent": "each code by its frequency in train",
    "learned": "the Transformer",
}


def meaning(name: str) -> Meaning:
    """Of a figure by its name in an evaluation; one that is not known has its name for a title."""
    if name in MEANINGS:
        return MEANINGS[name]
    if name == "fid":
        return Meaning("FID", "Fréchet distance to held-out images on Inception's features; lower is better")
    if name.startswith("memorised_"):
        what = name.removeprefix("memorised_")
        return Meaning(f"memorised, {what}", f"as near to a training image in {what} as 1% of held-out images are", True)
    if name.endswith("_train") and (name.startswith("fd_") or name == "fid_train"):
        return Meaning(
            f"{meaning(name.removesuffix('_train')).title}, train",
            "of as many training images: what a perfect sampler would have",
        )
    if name.startswith("fd_"):
        features = name.removeprefix("fd_")
        return Meaning(f"Fréchet distance ({features})", f"to held-out images on {features} features; lower is better")
    for prior, words in PRIORS.items():
        if name == f"{prior}_rate":
            return Meaning(f"rate, {prior}, bits/dim", f"what codes cost: {words}")
        if name.startswith(f"{prior}_") and name.endswith("_bits_per_dim"):
            bound = name.removeprefix(prior).removesuffix("_bits_per_dim").strip("_")
            bounds = {"": "distortion and rate", "elbo": "evidence lower bound", "importance": "importance-weighted bound"}
            return Meaning(f"bits/dim, {prior}" + (f", {bound}" if bound else ""), f"{bounds.get(bound, bound)}: {words}")
    return Meaning(name, "")


def told(name: str, value: float) -> str:
    """A figure in digits, or percent where it is a share."""
    return percent(value) if meaning(name).share else number(value)


def told_figures(found: Found, stage: str) -> list[Figure]:
    """All plain numbers of a stage's evaluation."""
    figures = found.evaluations[stage]["figures"]
    return [
        Figure(meaning(name).title, told(name, value), meaning(name).text)
        for name, value in figures.items()
        if finite(value) is not None
    ]


# ----------------------------------------------------------------------------------------------------------------- head


def reconstruction(found: Found, name: str) -> tuple[float, str] | None:
    """PSNR, usage or perplexity, and of what: the evaluation's, else what encoding measured, else training's last."""
    if (value := found.value("tokenizer", name)) is not None:
        return value, found.of("tokenizer", "number")
    splits = found.codes[1] if found.codes else {}
    for split in ("test", "validation"):
        if (value := finite(splits.get(split, {}).get(name))) is not None:
            return value, f"{split} split, as encoded"
    for line in reversed(metrics_of(found, "tokenizer")):
        if (value := finite(line.get(name))) is not None:
            return value, "validation split, in training"
    return None


def nats(found: Found) -> tuple[float, float | None, str] | None:
    """Nats per code, the share saved under independent codes, and of what."""
    if (value := found.value("prior", "nll")) is not None:
        return value, found.value("prior", "saved"), found.of("prior", "number")
    path = found.path / "prior/figures.json"
    figures = read_json(path) if path.exists() else {}
    for split in ("test", "validation"):
        value, alone = finite(figures.get(f"{split}_nll")), finite(figures.get(f"{split}_marginal_nll"))
        if value is not None:
            return value, 1 - value / alone if alone else None, f"{split} split, after training"
    return None


def headline(found: Found) -> Iterator[Figure]:
    """The few figures that one looks for first."""
    if seen := reconstruction(found, "psnr"):
        yield Figure("PSNR of reconstructions", f"{seen[0]:.2f} dB", seen[1])
    if seen := reconstruction(found, "usage"):
        yield Figure("codebook in use", percent(seen[0]), seen[1])
    if (value := found.value("pipeline", "learned_bits_per_dim")) is not None:
        yield Figure("bits per dimension", f"{value:.3f}", f"learned prior, {found.of('pipeline', 'priced')}")
    if seen := nats(found):
        saved = f"{percent(seen[1])} saved under independent codes; " if seen[1] is not None else ""
        yield Figure("nats per code", f"{seen[0]:.3f}", f"{saved}{seen[2]}")
    for name in found.evaluations.get("pipeline", {}).get("figures", {}):
        value = found.value("pipeline", name)
        if value is not None and (name == "fid" or name.startswith("fd_")) and not name.endswith("_train"):
            train = found.value("pipeline", f"{name}_train")
            beside = f"; training images have {number(train)}" if train is not None else ""
            yield Figure(meaning(name).title, number(float(value)), f"{found.of('pipeline', 'drawn')} drawn{beside}")
    if (value := found.value("pipeline", "class_agreement")) is not None:
        yield Figure("class agreement", percent(value), "drawn images that a classifier takes for the class asked for")


def head(found: Found) -> Html:
    """What was made of what, and the large figures."""
    warnings = [paragraph(line, class_="warning") for line in outdated(found)]
    return join(paragraph(*lead(found), class_="lead"), *warnings, tiles(headline(found)))


def lead(found: Found) -> Iterator[str]:
    """Source, numbers and sizes, in a sentence or two."""
    images = found.settings.get("tokenizer", {}).get("images")
    source = found.codes[0].source if found.codes else images if isinstance(images, Mapping) else {}
    name, subset = private(source.get("source")), source.get("subset")
    yield f"Images of {name}" + (f" ({subset})" if subset else "") if name else "Images"
    if found.codes:
        counts = [f"{number(split.get('images', split.get('rows')))} {name}" for name, split in found.codes[1].items()]
        yield f": {', '.join(counts)}"
    yield ". "
    if (model := found.model) is not None:
        (H, W), (h, w), Q = model.image_size, model.grid, model.code_depth
        colours = {1: "grey", 3: "RGB", 4: "RGBA"}[model.image_channels]
        depth = f", {Q} at each place," if Q > 1 else ""
        yield f"Each is {H}×{W} {colours} and becomes {h}×{w} codes{depth} of K = {model.codebook_size:,} values. "
    if found.classes:
        yield f"There are {len(found.classes):,} classes. " if len(found.classes) > 1 else "There is one class. "


# -------------------------------------------------------------------------------------------------------------- pictures


def samples(found: Found) -> Section:
    drawn, grid = evaluation_picture(found, "samples"), found.path / "samples/grid.png"
    if drawn is None and not grid.exists():
        return Section("samples", "Samples", missing("Nothing was drawn yet", found.command("pipeline/generate.py")), False)
    path = drawn or grid
    across = columns_of(read_picture(path), found)
    names = (found.classes if by_class(found, across) else ()) if drawn else request_names(found, across)
    if drawn:
        how = f"labels dealt as the {found.evaluations['pipeline']['split']} split has them; the first that were drawn"
    else:
        how = "drawn by pipeline/generate.py; the first that were drawn"
    columns = "Each column is a class, named over it. " if names else ""
    alt = f"Drawn images in {across} columns" + (", a column for each class" if names else "")
    image = picture(path, alt, pixels=found.pixels)
    content = figure(labelled(image, columns=names), f"{columns}Nobody made these: {how}, none picked out.")
    return Section("samples", "Samples", join(content, sampling_line(found)))


def sampling_line(found: Found) -> Html | None:
    """With which settings images were drawn."""
    sampling = found.evaluations.get("pipeline", {}).get("protocol", {}).get("sampling")
    if not isinstance(sampling, Mapping):
        sampling = found.sampling.sampling.model_dump(mode="json") if found.sampling else {}
    if not sampling:
        return None
    usual = SamplingConfig().model_dump(mode="json")
    told = ", ".join(f"{name} {value}" for name, value in sampling.items() if value != usual.get(name))
    return paragraph(
        "Sampling settings: ", code(told) if told else "the defaults", "; the others are the defaults." if told else "."
    )


def evaluation_picture(found: Found, what: str) -> Path | None:
    """A picture that the shown evaluation of the pipeline left."""
    if "pipeline" not in found.evaluations:
        return None
    path = found.path / f"evaluation/pipeline-{found.evaluations['pipeline']['split']}-{what}.png"
    return path if path.exists() else None


def columns_of(image: PIL.Image.Image, found: Found) -> int:
    """How many images stand side by side in a picture of common/pictures.py."""
    H, W = found.model.image_size if found.model is not None else (64, 64)
    scale = max(1, 64 // max(H, W))
    return max(1, round((image.width + 2 * scale) / ((W + 2) * scale)))


def by_class(found: Found, across: int) -> bool:
    """Whether the evaluation's samples have a column for each class: as long as each was drawn."""
    drawn = found.numbers("pipeline", "agreement_by_class")
    return 1 < len(found.classes) == across <= 20 and (not drawn or len(drawn) == across)


def request_names(found: Found, across: int) -> tuple[str, ...]:
    """The names over the columns of what pipeline/generate.py drew, where labels were dealt in turn."""
    labels = [str(line["label"]) for line in request(found) if "label" in line]
    names = tuple(dict.fromkeys(labels))
    in_turn = all(label == names[i % len(names)] for i, label in enumerate(labels))
    return names if in_turn and 1 < len(names) == across else ()


def request(found: Found) -> list[dict[str, Any]]:
    """What samples/metadata.jsonl says of each image."""
    return read_lines(found.path / "samples/metadata.jsonl")


def reconstructions(found: Found) -> Section:
    path, title = found.path / "tokenizer/reconstructions.png", "Reconstructions"
    parts = []
    if path.exists():
        read_picture(path)
        image = picture(path, "A row of validation images over a row of their reconstructions", pixels=found.pixels)
        parts.append(figure(
            labelled(image, rows=("originals", "through the codes")),
            "Validation images over what is left of each when only its codes are kept: the best that any prior can draw.",
        ))  # fmt: skip
    if "tokenizer" in found.evaluations:
        parts.append(figures_table(told_figures(found, "tokenizer"), caption=f"On the {found.of('tokenizer', 'number')}"))
    elif parts:
        parts.append(missing("The tokenizer was not evaluated", found.command("tokenizer/evaluate.py")))
    lacking = missing("There are no reconstructions yet", first_stage(found))
    return Section("reconstructions", title, join(*parts) if parts else lacking, bool(parts))


def first_stage(found: Found) -> str:
    """The command that trains the tokenizer."""
    cluster = "iterations" in found.settings.get("tokenizer", {})
    return f"python tokenizer/{'cluster' if cluster else 'train'}.py CONFIG --run {found.shown}"


def neighbours(found: Found) -> Section:
    path, title = evaluation_picture(found, "neighbours"), "Nearest training images"
    if path is None:
        lacking = missing("Drawn images were not looked up among the training images", found.command("pipeline/evaluate.py"))
        return Section("neighbours", title, lacking, False)
    read_picture(path)
    kinds = [kind for kind in ("pixels", "features", "codes") if found.value("pipeline", f"memorised_{kind}") is not None]
    image = picture(path, f"Drawn images over the nearest training image of each in {', '.join(kinds)}", pixels=found.pixels)
    protocol = found.evaluations["pipeline"]["protocol"]
    looked, among = protocol.get("neighbours"), protocol.get("neighbours_among")
    caption = (
        "The upper row was drawn. Under each image stands the training image nearest to it, once for each way of measuring: "
        "an image that repeats one of them would stand there twice."
    )
    reading = (
        "The threshold is set so that 1% of held-out images, which nobody has memorised, fall under it: about 1% is what a "
        "sampler that copies nothing shows, and a share many times that says that training images are repeated. Few codes, "
        "or few training images, raise it too."
    )
    number_of = f" Looked up were {number(looked)} drawn images among {number(among)} of train." if looked and among else ""
    rows = [(kind, percent(found.value("pipeline", f"memorised_{kind}"))) for kind in kinds]
    shares = table(("measured in", "as near as 1% of held-out images"), rows)
    return Section("neighbours", title, join(
        figure(labelled(image, rows=("drawn", *(f"nearest in {kind}" for kind in kinds))), caption),
        shares, paragraph(reading, number_of),
    ))  # fmt: skip


# --------------------------------------------------------------------------------------------------------------- curves


class Panel(NamedTuple):
    title: str
    names: Mapping[str, tuple[str, bool | None]]  # of each curve: the metric, and whether validation's, training's or either
    log: bool = False
    shares: bool = False


PANELS = (
    Panel("losses", {
        "loss": ("loss", False), "reconstruction": ("reconstruction_loss", False), "commitment": ("commitment_loss", False),
        "regularizer": ("regularizer", False),
    }, log=True),
    Panel("mean squared error", {"train": ("objective", None)}),
    Panel("empty codes", {"train": ("empty", None)}),
    Panel("distortion, bits per dimension", {"train": ("distortion", False), "validation": ("distortion", True)}),
    Panel("PSNR on validation, dB", {"validation": ("psnr", True)}),
    Panel("codebook in use on validation", {"validation": ("usage", True)}, shares=True),
    Panel("perplexity on validation", {"validation": ("perplexity", True)}),
)  # fmt: skip


def metrics_of(found: Found, stage: str) -> list[dict[str, Any]]:
    lines = read_lines(found.path / stage / "metrics.jsonl")
    return [line for line in lines if finite(line.get("step")) is not None]


def curve(name: str, lines: Sequence[Mapping[str, Any]], metric: str, *, log: bool = False) -> draw.Curve | None:
    """A metric over the step; None where there is nothing to draw."""
    points = [(line["step"], value) for line in lines if (value := finite(line.get(metric))) is not None]
    points = [point for point in points if point[1] > 0 or not log]
    return draw.Curve(name, *zip(*points, strict=True)) if points else None


def panels(found: Found, lines: Sequence[Mapping[str, Any]]) -> Iterator[Html]:
    """The tokenizer's curves, those that it has; of a single evaluation there is none."""
    for panel in PANELS:
        curves = [
            curve(name, [line for line in lines if validation in (None, "psnr" in line)], metric, log=panel.log)
            for name, (metric, validation) in panel.names.items()
        ]
        curves = [each for each in curves if each is not None]
        if any(len(each.steps) > 1 for each in curves):
            path = found.path / "report" / f"tokenizer-{panel.title.split(',')[0].replace(' ', '-').lower()}.png"
            last = "; ".join(f"{each.name} ends at {number(float(each.values[-1]))}" for each in curves)
            drawn = draw.curves(curves, path, log=panel.log, shares=panel.shares)
            yield titled(panel.title, chart(drawn, f"{panel.title} over the step: {last}"))


def training(found: Found) -> Section:
    tokenizer, prior = metrics_of(found, "tokenizer"), metrics_of(found, "prior")
    parts = [tag("h3", "Tokenizer")]
    parts.append(
        tag("div", *panels(found, tokenizer), class_="charts") if tokenizer else missing("Not trained yet", first_stage(found))
    )
    parts.append(tag("h3", "Prior"))
    parts.append(prior_curves(found, prior) if prior else missing("Not trained yet", prior_command(found)))
    return Section("training", "Training", join(*parts), bool(tokenizer or prior))


def prior_command(found: Found) -> str:
    encode = "" if found.codes else f"python tokenizer/encode.py {found.shown} && "
    return f"{encode}python prior/train.py CONFIG --run {found.shown}"


def prior_curves(found: Found, lines: Sequence[Mapping[str, Any]]) -> Html:
    """Nats per code over the step, and after it."""
    path = found.path / "prior/figures.json"
    after = read_json(path) if path.exists() else {}
    after = {name: value for name, value in after.items() if finite(value) is not None}
    named = {"uniform codes": "uniform_nll", "independent codes": "validation_marginal_nll"}
    levels = {name: after[key] for name, key in named.items() if key in after}
    curves = [curve("train", lines, "nll"), curve("validation", lines, "validation_nll")]
    curves = [each for each in curves if each is not None]
    drawn = draw.curves(curves, found.path / "report/prior-nll.png", levels=levels, width=5.6)
    last = "; ".join(f"{each.name} ends at {number(float(each.values[-1]))}" for each in curves)
    caption = "Nats per code, beside the two priors that need no training. Validation is without dropout."
    left = figure(chart(drawn, f"Nats per code over the step: {last}"), caption)
    if not after:
        return tag("div", left, class_="small")
    names = {"best_step": "step of the weights kept", "uniform_nll": "uniform codes, ln K"}
    rows = [(names.get(name, prior_words(name)), number(value)) for name, value in after.items()]
    return side_by_side(left, table(("after training", "nats per code"), rows))


def prior_words(name: str) -> str:
    """`test_marginal_nll` in words."""
    split, _, kind = name.removesuffix("_nll").partition("_")
    return f"{split}, {'independent codes' if kind == 'marginal' else 'learned'}"


# ------------------------------------------------------------------------------------------------------------- codebook


def codebook(found: Found) -> Section:
    histogram, drawn = found.path / "tokenizer/histogram.json", found.path / "tokenizer/codebook.png"
    parts = []
    if histogram.exists():
        parts.append(use_of_codes(found, histogram))
    if drawn.exists():
        read_picture(drawn)
        caption = "The codebook: its use over each split, what every code decodes to, and the nearest pairs of codes."
        parts.append(figure(tag("div", picture(drawn, caption), class_="plate"), caption))
    elif found.model is not None:
        parts.append(missing("The patches of its codes were not drawn yet", found.command("tokenizer/codebook.py")))
    lacking = missing("There is no codebook yet", first_stage(found))
    return Section("codebook", "Codebook", join(*parts) if parts else lacking, bool(parts))


def read_counts(path: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """(Q, K), how often each code was used, and what else the file says."""
    value = read_json(path)
    try:
        counts = np.array(value.get("counts"), dtype=np.int64)
    except (ValueError, TypeError, OverflowError):
        counts = np.zeros(0, dtype=np.int64)
    if counts.ndim != 2 or not counts.size or counts.min() < 0:
        raise UserError(f"{path} must hold counts, a list of whole numbers for each depth; training again writes it anew")
    return counts, value


def use_of_codes(found: Found, path: Path) -> Html:
    counts, value = read_counts(path)
    never = int((counts == 0).sum())
    images = value.get("images")
    of = f"{value.get('split', 'validation')} split" + (f", {images:,} images" if isinstance(images, int) else "")
    drawn = draw.code_use(counts, found.path / "report/codebook-use.png")
    seen = f"{never:,} of {counts.size:,} codes were never used" if never else f"all {counts.size:,} codes were used"
    return figure(
        chart(
            drawn,
            f"How often each code was used, sorted: from {counts.max():,} times down to {counts.min():,}; {seen}",
            wide=True,
        ),
        f"How often each code was used on the {of}, the most used first; {seen}. A curve that stays near the dashed line uses "
        "its codes alike; one that falls early leaves codes idle.",
    )


# ----------------------------------------------------------------------------------------------------------------- bits


def bits(found: Found) -> Section:
    title, parts = "Bits", []
    stage = next((s for s in ("pipeline", "tokenizer") if found.value(s, "distortion") is not None), None)
    if stage:
        parts.append(rate_distortion(found, stage))
    if stage != "pipeline":
        parts.append(missing("What an image costs under the priors was not measured", found.command("pipeline/evaluate.py")))
    if "prior" in found.evaluations:
        parts += [tag("h3", "The prior on held-out codes"), figures_table(told_figures(found, "prior")), where_nats_go(found)]
    else:
        parts.append(missing("The prior was not evaluated", found.command("prior/evaluate.py")))
    return Section("bits", title, join(*parts), stage is not None or "prior" in found.evaluations)


def rate_distortion(found: Found, stage: str) -> Html:
    """What an image costs: its pixels given the codes, and the codes under each prior."""
    distortion = found.value(stage, "distortion")
    rates = {prior: found.value(stage, f"{prior}_rate") for prior in PRIORS}
    rates = {prior: rate for prior, rate in rates.items() if rate is not None}
    of = found.of(stage, "priced" if stage == "pipeline" else "number")
    drawn = draw.bits(distortion, rates, found.path / "report/bits.png")
    rows = [
        (prior, PRIORS[prior], f"{distortion:.4f}", f"{rate:.4f}", f"{distortion + rate:.4f}", percent(1 - rate / least))
        for least in [rates.get("uniform") or math.inf] for prior, rate in rates.items()
    ]  # fmt: skip
    spoken = ", ".join(f"{prior} {distortion + rate:.3f}" for prior, rate in rates.items())
    error = found.value(stage, "bits_per_dim_error")
    doubt = f" The learned sum has a standard error of {error:.4f}." if error else ""
    conditional = found.evaluations[stage]["protocol"].get("conditional")
    if isinstance(conditional, str) and "learned" in rates:
        doubt = f" The learned rate is that of an image {conditional}.{doubt}"
    names = ("prior", "", "distortion", "rate", "sum", "rate saved")
    return join(
        figure(
            chart(drawn, f"Bits per dimension of distortion and rate together: {spoken}", wide=True),
            f"What a held-out image costs, in bits for each of its numbers ({of}): its codes under each prior, and its "
            f"pixels once the codes are known, which no prior changes. Shorter is better.{doubt}",
        ),
        table(names, rows, words=(0, 1)),
    )


def where_nats_go(found: Found) -> Html:
    """Nats by class, and by place of the grid."""
    classes, places = found.numbers("prior", "by_class"), place_nats(found)
    parts = []
    if classes:
        parts.append(by_class_bars("Nats per code, by class", classes, number))
    if places is not None:
        drawn = draw.place_map(places, found.path / "report/prior-places.png")
        size = f"{places.shape[0]} by {places.shape[1]}"
        alt = f"Nats per code on a grid of {size}, from {places.min():.2f} to {places.max():.2f}"
        about = "by place of the grid: dark places cost most."
        if found.evaluations["prior"]["protocol"].get("order") == "raster":
            about += " In raster order the first codes are drawn knowing little."
        parts.append(figure(tag("div", chart(drawn, alt), class_="small"), f"Nats per code, {about}"))
    return side_by_side(*parts) if parts else join()


def place_nats(found: Found) -> np.ndarray | None:
    """(h, w), where the evaluation says it."""
    try:
        values = np.array(found.evaluations["prior"]["figures"].get("by_place"), dtype=np.float64)
    except (ValueError, TypeError):
        return None
    return values if values.ndim == 2 and values.size and np.isfinite(values).all() else None


def by_class_bars(caption: str, values: Mapping[str, float], write: Callable[[float], str]) -> Html:
    """A bar for each class; of many classes the lowest and the highest."""
    shown = dict(values)
    if len(values) > CLASSES:
        ranked = sorted(values, key=values.__getitem__)
        shown = {name: values[name] for name in (*ranked[: CLASSES // 2], *ranked[-CLASSES // 2 :])}
        caption += f" (of {len(values):,} the {CLASSES // 2} lowest and highest)"
    return bars(("class", "value"), shown, {name: write(float(value)) for name, value in shown.items()}, caption=caption)


# ----------------------------------------------------------------------------------------------------------- completion


def completion(found: Found, wanted: bool) -> Section:
    title, models = "Completion", (found.path / "tokenizer/model", found.path / "prior/model")
    if not wanted:
        return Section("completion", title, missing("Left out as asked", found.command("pipeline/report.py")), False)
    for model, command in zip(models, (first_stage(found), prior_command(found)), strict=True):
        if not (model / "config.json").exists():
            return Section("completion", title, missing(f"There is no {model.parent.name} yet", command), False)
    try:
        rows, split = completed(found)
    except UserError as error:
        reason = str(error).replace(str(found.path), found.shown)
        return Section("completion", title, paragraph(f"No images could be completed: {reason}", class_="missing"), False)
    path = found.path / "report/completion.png"
    save_picture(image_grid(torch.cat(rows), len(rows[0])), path)
    image = picture(path, "Held-out images, the upper half of each that is kept, and completions", pixels=found.pixels)
    names = ("originals", "what is kept", *(f"drawn, seed {seed}" for seed in range(DRAWS)))
    caption = (
        f"{len(rows[0])} images evenly spaced in the {split} split. Of each the upper half is kept and the lower half drawn "
        "anew, knowing the class where there is one; nothing is read of what is hidden. What is kept is shown as its codes "
        "decode."
    )
    return Section("completion", title, figure(labelled(image, rows=names), caption))


def completed(found: Found) -> tuple[list[Tensor], str]:
    """Rows of images (n, C, H, W): originals, what is kept of them, and completions. Raises `UserError` if it cannot be."""
    pipeline = ImagePipeline.from_run(found.path, found.sampling.sampling if found.sampling else SamplingConfig())
    pipeline.to("cpu" if not torch.accelerator.is_available() else torch.accelerator.current_accelerator())
    c = pipeline.tokenizer.config
    settings = run_images(found.path / "tokenizer").model_copy(update={"memory": 0.0})  # a few images alone are decoded
    split = held_out(open_images(settings, c.image_size, c.image_channels).splits, found.split)
    n = min(COMPLETED, len(split))
    batch = split.read(torch.arange(n) * len(split) // n)
    originals, rows = centre(batch.images, c.image_size), half_rows(c)
    kept = torch.zeros(c.image_size, dtype=torch.bool)
    kept[:rows] = True
    classes = pipeline.prior.config.num_classes
    labels = batch.labels.tolist() if all(0 <= label < classes for label in batch.labels) else None
    drawn = [
        pipeline.complete(to_pil(originals), kept, labels=labels, seed=seed * len(originals), batch_size=len(originals))
        for seed in range(DRAWS)
    ]
    seen = torch.where(kept, originals, torch.full_like(originals, GREY))
    return [originals, seen, *(pipeline.decode(each.codes) for each in drawn)], split.name


def half_rows(c: TokenizerConfig | KMeansConfig) -> int:
    """Pixel rows of the upper half of the grid. Raises `UserError` where a grid of one row has no half."""
    if c.grid[0] < 2:
        raise UserError(f"a grid of {c.grid[0]}×{c.grid[1]} codes has no upper half")
    return c.grid[0] // 2 * (c.image_size[0] // c.grid[0])


# -------------------------------------------------------------------------------------------------------------- quality


def quality(found: Found) -> Section:
    title = "Quality of samples and codes"
    if "pipeline" not in found.evaluations:
        lacking = missing("Both stages together were not evaluated", found.command("pipeline/evaluate.py"))
        return Section("quality", title, lacking, False)
    number_drawn = found.evaluations["pipeline"]["protocol"].get("drawn")
    drawn = f"; {number_drawn:,} images were drawn" if isinstance(number_drawn, int) else "; none were drawn"
    parts = [figures_table(told_figures(found, "pipeline"), caption=f"On the {found.of('pipeline', 'priced')}{drawn}")]
    if classes := found.numbers("pipeline", "agreement_by_class"):
        parts.append(by_class_bars("Class agreement, by class", classes, percent))
    return Section("quality", title, join(*parts))


# -------------------------------------------------------------------------------------------------- settings and commands


def private(value: Any) -> Any:
    """Settings whose absolute paths have their last name only."""
    if isinstance(value, Mapping):
        return {key: private(each) for key, each in value.items()}
    if isinstance(value, list):
        return [private(each) for each in value]
    return f".../{Path(value).name}" if isinstance(value, str) and Path(value).is_absolute() else value


def as_yaml(value: Any) -> Html:
    return listing(
        yaml.safe_dump(private(value), sort_keys=False, default_flow_style=None, allow_unicode=True, width=100).rstrip()
    )


def settings(found: Found) -> Section:
    """What each stage was given, and by which protocol each figure was measured."""
    files = {f"{stage}/config.yaml": value for stage, value in found.settings.items()}
    if found.codes:
        files["codes/codes.json"] = found.codes[0].model_dump(mode="json")
    if found.sampling:
        files["pipeline/generation_config.json"] = found.sampling.model_dump(mode="json")
    parts = [details(code(name), as_yaml(value)) for name, value in files.items()]
    parts.append(tag("h3", "Protocols"))
    if found.all_evaluations:
        rows = [protocol_row(each) for each in found.all_evaluations]
        parts.append(table(("evaluation", "split", "images", "seed", "date", "commit", "machine"), rows, words=(0, 1, 4, 5, 6)))
        parts += [
            details(join("all of ", code(f"evaluation/{each['stage']}-{each['split']}.json"), " but its figures"), as_yaml(
                {key: value for key, value in each.items() if key not in ("kind", "format", "figures")}
            )) for each in found.all_evaluations
        ]  # fmt: skip
    else:
        parts.append(missing("Nothing was evaluated yet", found.command("pipeline/evaluate.py")))
    return Section("settings", "Settings and protocols", join(*parts))


def protocol_row(evaluation: Mapping[str, Any]) -> tuple[Any, ...]:
    """The part of a protocol that one looks for first."""
    protocol, machine = evaluation["protocol"], evaluation.get("machine")
    machine = machine if isinstance(machine, Mapping) else {}
    priced, drawn = protocol.get("number", protocol.get("priced")), protocol.get("drawn")
    images = " + ".join(f"{n:,}{what}" for n, what in ((priced, ""), (drawn, " drawn")) if isinstance(n, int))
    accelerators = machine.get("accelerators")
    device = ", ".join(map(str, accelerators)) if isinstance(accelerators, list) and accelerators else machine.get("cpu", "–")
    cores = f", {machine['cores']} cores" if "cores" in machine else ""
    commit_, dirty, _ = str(evaluation.get("commit") or "–").partition("-dirty")
    return (
        evaluation["stage"], evaluation["split"], images, str(protocol.get("seed", "–")), evaluation.get("date", "–"),
        code(commit_[:10] + dirty), f"{device}{cores}",
    )  # fmt: skip


def commands(found: Found) -> Section:
    """What repeats the run in a folder beside it."""
    lines = [f"run={found.shown}", f"again={shlex.quote(f'{found.place}-again')}", *stage_commands(found)]
    recorded = {each["stage"]: each.get("command") for each in found.evaluations.values()}
    for stage in STAGES if "prior" in found.settings else STAGES[:1]:
        given = recorded.get(stage)
        lines.append(elsewhere(found, given) if isinstance(given, str) else f'python {stage}/evaluate.py "$again"')
    lines.append('python pipeline/report.py "$again"')
    how = (
        "In order, from the folder of the code. The trainings take the settings that this run kept, whatever was given on the "
        "command line included; evaluations are as they were recorded, or with their defaults where there was none. Names "
        "that begin with three dots were absolute paths: put your own there. On several devices, "
    )
    return Section("commands", "Commands that repeat it", join(
        paragraph(how, code("accelerate launch -q SCRIPT"), " stands for ", code("python SCRIPT"), "."),
        listing("\n".join(lines)),
    ))  # fmt: skip


def stage_commands(found: Found) -> Iterator[str]:
    """Training, encoding and drawing."""
    first = "cluster" if "iterations" in found.settings.get("tokenizer", {}) else "train"
    if "tokenizer" in found.settings:
        yield f'python tokenizer/{first}.py "$run/tokenizer/config.yaml" --run "$again"'
        yield 'python tokenizer/encode.py "$again"' + (f" --views {found.codes[0].views}" if found.codes else "")
    if "prior" in found.settings:
        yield 'python prior/train.py "$run/prior/config.yaml" --run "$again"'
        yield 'python pipeline/generate.py "$again"' + drawing_options(found)


def drawing_options(found: Found) -> str:
    """Number, seed, labels and sampling settings of what was drawn, those that differ from the defaults."""
    lines, options = request(found), []
    if lines:
        labels = list(dict.fromkeys(str(line["label"]) for line in lines if "label" in line))
        options += ["--num-images", str(len(lines)), "--seed", str(lines[0].get("seed", 0))]
        options += ["--labels", *labels] if labels and tuple(labels) != found.classes else []
    kept = found.sampling.sampling.model_dump(mode="json", exclude_defaults=True) if found.sampling else {}
    options += [word for name, value in kept.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return "".join(f" {shlex.quote(option)}" for option in options)


def elsewhere(found: Found, command: str) -> str:
    """A recorded command with its run replaced."""
    begun = found.settings.get("tokenizer", found.settings.get("prior", {})).get("run")
    names = {found.name, Path(begun).name if isinstance(begun, str) else found.name}
    words = re.split(r"(\s+)", command)
    runs = [i for i, word in enumerate(words) if Path(word).name in names and not word.startswith("-")]
    if runs:
        words[runs[0]] = '"$again"'
    return "".join(words)


# ----------------------------------------------------------------------------------------------------------------- page


def report(c: Settings) -> Path:
    """Write the page, and return its file."""
    found = gather(c)
    sections = [
        samples(found), reconstructions(found), training(found), codebook(found), bits(found), completion(found, c.completion),
        neighbours(found), quality(found), settings(found), commands(found),
    ]  # fmt: skip
    code_of = commit()
    at = f", of the code at commit {code_of[:10]}{'-dirty' if code_of.endswith('-dirty') else ''}" if code_of else ""
    foot = paragraph(f"Made by pipeline/report.py of Tesserae on {datetime.now(UTC).date().isoformat()}{at}.")
    path = found.path / "report.html"
    with replacing(path) as aside:
        aside.write_text(page(found.name, head(found), sections, foot), encoding="utf-8", errors="replace")
    return path


def main(argv: Sequence[str]) -> None:
    c = config.parse(Settings, __doc__, argv, positional="run", positional_help="folder of the experiment")
    path = report(c)
    print(f"the page is {path} ({path.stat().st_size / 2**20:.1f} MiB), its charts are in {path.with_suffix('')}")


if __name__ == "__main__":
    run_command(main)

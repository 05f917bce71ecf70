"""The lecture's board: one tokenizer, every prior. Stage one by row, stage two by column, equal CPU minutes a stage.

    python -m benchmarks.lecture_board run --dataset Fashion-MNIST --data FOLDER_OF_PARQUET --work DIR
    python -m benchmarks.lecture_board write        # the tables of docs/lecture_board.md and its figure

Protocol: every row has 7 x 7 places of 28 x 28 grey pixels; rows of codes 9 bits a place, rows of vectors 4 numbers.
Rows of several grids have the bits of 7 x 7 codes of 512 in all: 4 x 4 over 7 x 7 codes of 111, grids of 1, 2, 3, 5
and 7 a side of 32, or grids of 1, 3 and 7 of 178.
Rows with a network share encoder, decoder, batches and learning rate, and no setting was searched for here: those of
the PixelCNN are the best of five by benchmarks/priors.py, the others' those of the shipped configs, but that diffusion
has the width of the Transformers, 160, where its preset has 128. A row's
tokenizer is trained once a seed, and all of its columns take its codes. A stage takes as many steps as its minutes
hold, by two short trials, which say what a step costs and what the command does beside: CPU seconds of one thread. They
begin at `TRIALS` steps, and the longer one is made longer until what its steps cost stands out. The number of steps is
kept in the work folder for all seeds. EM stops at `MOST_EM` steps, priors that are fitted or have nothing to fit stop
when they are done. What a training then took stands beside it.

Figures are of the test split, by pipeline/evaluate.py: bits per dimension, which are an exact length where tokenizer
and prior are, a bound, or none; images drawn at temperature 1 without guidance, with the labels of test, by their
Fréchet distance, precision and recall on a classifier's features, and by how many the classifier takes for the class
asked for. Images a second of one thread's processor time are from a class to pixels, 64 at once and one at a time, the
fastest round. Passes are of the prior's network, an image.

`run` writes a cell into benchmarks/results/lecture_board.json as soon as it is measured, and the same command goes on
with what is missing; figures of another machine stand apart, under the words of `--where`. Two processes may share a
work folder: give each its own --seeds. A night of one core holds the default minutes and seeds of a data set, about.
"""

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fcntl import LOCK_EX, flock
from functools import partial
from itertools import product
from pathlib import Path
from statistics import fmean
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from benchmarks.claim import mean_and_spread, short
from benchmarks.timing import ROOT, Work, interleaved, once
from smalti.common.data.pixels import to_uint8
from smalti.common.folder import read_json, replacing, write_json
from smalti.common.record import record
from smalti.pipeline.image_pipeline import ImagePipeline
from smalti.prior.base import Prior, Unfolds
from smalti.prior.sampling_config import SamplingConfig

RESULT = ROOT / "benchmarks/results/lecture_board.json"
PAGE, FIGURE = ROOT / "docs/lecture_board.md", ROOT / "docs/lecture_board.png"
BEGIN, END = "<!-- written by benchmarks.lecture_board: from here -->", "<!-- to here -->"
TRIALS = (5, 50)  # steps of the two trials
EM_TRIALS = (1, 3)
MOST_EM = 30
STANDS_OUT = 0.5  # of the time of the shorter trial, by which the longer one must take longer
LONGER, LONGEST = 3, 3  # by which the longer trial is made longer until it does, and how often at most
LOOKS = 2  # evaluations on the validation split in a training
DRAWN = 5000  # images that are judged
DRAWS = 4  # of q(z | x) for each test image, where it is drawn
BATCHES = (64, 1)  # images at once where speed is measured
ROUNDS = 3

Options = Mapping[str, Any]  # of a command; a tuple is several words
Figures = dict[str, Any]


class Row(NamedTuple):
    """A tokenizer."""

    title: str
    codes: bool  # otherwise vectors
    config: str
    settings: Options
    hierarchical: bool = False  # several grids

    @property
    def by_em(self) -> bool:
        return self.config.endswith("cluster.yaml")


class Fill(NamedTuple):
    """A prior over codes, or one over vectors."""

    title: str
    script: str
    settings: Options
    config: str | None = None


class Column(NamedTuple):
    """A prior over codes, a prior over vectors, or both in one column."""

    codes: Fill | None = None
    vectors: Fill | None = None
    passes: tuple[int, ...] = ()  # settings of `steps` that are drawn with, where the prior has it
    draws: int = DRAWS  # of q(z | x) for each test image; a bound by many passes of the network has one
    hierarchical: bool | None = None  # of rows of several grids alone, or of one alone
    draws_by: Options = MappingProxyType({})  # sampling settings, as the shipped configs have them

    def of(self, row: Row) -> Fill | None:
        if self.hierarchical is not None and self.hierarchical != row.hierarchical:
            return None
        return self.codes if row.codes else self.vectors


IMAGES: Options = {"images.validation_share": 0.05, "model.image_size": (28, 28), "model.image_channels": 1}
CODES, VECTORS = "configs/fashion_mnist/tokenizer.yaml", "configs/fashion_mnist_vae/tokenizer.yaml"
PATCHES = {"model.patch": 4, "model.codebook_size": 512}
EACH = {"model.quantizer.each.kind": "vq", "model.quantizer.each.codebook_size": 8}
ROWS: Mapping[str, Row] = {
    "kmeans": Row("K-means", True, "configs/digits_kmeans/cluster.yaml", PATCHES),
    "gmm": Row("GMM", True, "configs/digits_mixture/cluster.yaml", PATCHES),
    "ae": Row("AE", False, VECTORS, {"model.posterior.kind": "none", "model.objective.kind": "reconstruction"}),
    "vae": Row("VAE", False, VECTORS, {}),
    "vae_flow": Row("VAE, flow posterior", False, VECTORS, {"model.posterior.kind": "flow"}),
    "vqvae": Row("VQ-VAE", True, CODES, {}),
    "fsq": Row("FSQ", True, CODES, {"model.quantizer.kind": "fsq", "model.quantizer.levels": (8, 8, 8)}),
    "residual": Row(
        "residual", True, CODES, {"model.quantizer.kind": "residual", "model.quantizer.code_depth": 3, **EACH}
    ),
    "vqvae2": Row("VQ-VAE-2", True, CODES, {"model.kind": "vqvae2", "model.quantizer.codebook_size": 111}, True),
    "multiscale": Row(
        "multi-scale", True, CODES, {"model.kind": "multiscale", "model.quantizer.codebook_size": 32}, True
    ),
    "multiscale3": Row(
        "multi-scale, 3 grids",
        True,
        CODES,
        {"model.kind": "multiscale", "model.scales": (1, 3, 7), "model.quantizer.codebook_size": 178},
        True,
    ),
}

TRAIN, FIT, PRIOR = "prior/train.py", "prior/fit.py", "configs/fashion_mnist/prior.yaml"
CONVOLUTIONS = {"model.depth": 4, "model.dim": 96, "model.kernel": 3, "model.dropout": 0.0}
BLOCKS = {"model.depth": 4, "model.dim": 160, "model.heads": 4, "model.dropout": 0.0}
EACH_LEVEL = {
    f"model.{part}.{name.removeprefix('model.')}": v for part in ("top", "rest") for name, v in BLOCKS.items()
}
LEVELS = {**EACH_LEVEL, "model.hint.depth": 2, "model.hint.dim": 96, "model.hint.heads": 4, "model.hint.dropout": 0.0}
COLUMNS: Mapping[str, Column] = {
    "uniform": Column(
        Fill("uniform", FIT, {"model.kind": "uniform"}), Fill("N(0, I)", FIT, {"model.kind": "standard_normal"})
    ),
    "independent": Column(
        Fill("independent", FIT, {"model.kind": "independent"}),
        Fill("mixture of Gaussians", FIT, {}, "configs/fashion_mnist_vae/fit.yaml"),
    ),
    "pixelcnn": Column(Fill("PixelCNN", TRAIN, {"model.kind": "pixelcnn", **CONVOLUTIONS}, PRIOR), hierarchical=False),
    "transformer": Column(Fill("Transformer", TRAIN, {}, PRIOR)),
    "any_order": Column(Fill("any order", TRAIN, {"order": "any"}, PRIOR)),
    "masked": Column(
        Fill("masked", TRAIN, {"model.kind": "masked", **BLOCKS}, PRIOR), passes=(12,), draws_by={"order": "halton"}
    ),
    "nextset": Column(Fill("sets of codes", TRAIN, {"model.kind": "nextset", **BLOCKS}, PRIOR), hierarchical=False),
    "levels": Column(Fill("a prior a grid", TRAIN, {"model.kind": "levels", **LEVELS}, PRIOR), hierarchical=True),
    "nextscale": Column(Fill("next scale", TRAIN, {"model.kind": "nextscale", **BLOCKS}, PRIOR), hierarchical=True),
    "diffusion": Column(
        vectors=Fill("diffusion", TRAIN, {"model.kind": "diffusion", **BLOCKS, "lr": 3e-3, "matrix_lr": 0.02}, PRIOR),
        passes=(10, 25, 50),
        draws=1,
    ),
}


class Bench(NamedTuple):
    """The data and work folder of a run of the board, its minutes a stage, and its number of drawn images."""

    data: Path
    work: Path  # of one data set: its runs lie side by side, and share the classifier
    minutes: float  # of a stage
    drawn: int
    where: str = ""  # the machine in words, where results of another are to stand beside

    @property
    def budget(self) -> str:
        """Return the name of its minutes on the board."""
        return f"{self.minutes:g}, {self.where}" if self.where else f"{self.minutes:g}"


def options(settings: Options) -> list[str]:
    """Return settings as the words of a command line."""
    several = {name: value if isinstance(value, tuple) else (value,) for name, value in settings.items()}
    return [str(word) for name, values in several.items() for word in (f"--{name}", *values)]


def command(ended: Path, script: str, *words: object, **settings: Any) -> float:
    """Run a script, unless `ended` says that it did, and return its CPU seconds."""
    return once([sys.executable, script, *map(str, words), *options(settings)], ended)


def kept(path: Path, compute: Callable[[], Figures]) -> Figures:
    """Return the figures in a file, which are computed where it is not there."""
    if not path.exists():
        write_json(path, compute())
    found: Figures = read_json(path)
    return found


# ---------------------------------------------------------------------------------------------------------- its steps


def steps_within(bench: Bench, stage: str, train: Callable[[Path, int], float], trials: tuple[int, int]) -> int:
    """Return how many steps of a stage its minutes hold, by two trials whose runs are removed.

    The first process to know writes the number down for all.
    """
    path = bench.work / f"steps/{stage}-{bench.minutes:g}.json"
    if not path.exists():
        trial, (few, more) = bench.work / f"trial-{stage}-{os.getpid()}", trials
        took = {steps: train(trial.with_name(f"{trial.name}-{steps}"), steps) for steps in trials}
        while took[more] < (1 + STANDS_OUT) * took[few] and more < trials[1] * LONGER**LONGEST:
            more *= LONGER
            took[more] = train(trial.with_name(f"{trial.name}-{more}"), more)
        a_step = max((took[more] - took[few]) / (more - few), 1e-3)
        beside = max(0.0, took[more] - more * a_step)
        steps = max(trials[0], round((60 * bench.minutes - beside) / a_step))
        mine = path.with_name(f"{path.name}.{os.getpid()}")
        write_json(mine, {"steps": steps, "a_step": a_step, "beside": beside, "trials": took})
        try:
            os.link(mine, path)
        except FileExistsError:
            print(f"{path.name} is another process's: its steps are taken", flush=True)
        mine.unlink()
        for steps in took:
            shutil.rmtree(trial.with_name(f"{trial.name}-{steps}"))
    return int(read_json(path)["steps"])


def tokenize(bench: Bench, row: Row, run: Path, steps: int, seed: int) -> float:
    """Train a row's tokenizer for so many steps, and return the CPU seconds it took."""
    given = {"run": run, "images.source": bench.data, "seed": seed, **IMAGES, **row.settings}
    if row.by_em:
        return command(run / ".tokenizer.json", "tokenizer/cluster.py", row.config, **given, iterations=steps)
    few = {"steps": steps, "save_every": steps, "evaluate_every": -(-steps // LOOKS)}
    return command(run / ".tokenizer.json", "tokenizer/train.py", row.config, **given, **few)


def train(fill: Fill, first: Path, run: Path, steps: int | None, seed: int) -> float:
    """Make a prior over the codes of the run `first`, in so many steps if it has steps, and return its CPU seconds."""
    if not (run / "tokenizer").exists():  # the pipeline's other half
        shutil.copytree(first / "tokenizer", run / "tokenizer", ignore=shutil.ignore_patterns("state"))
    given = {"run": run, "codes": first / "codes", "seed": seed, **fill.settings}
    if steps is not None:
        # a trial is too short to be compiled, and what it says of a step is to hold
        given |= {"steps": steps, "save_every": steps, "evaluate_every": -(-steps // LOOKS), "compile": "false"}
    return command(run / ".prior.json", fill.script, *([fill.config] if fill.config else []), **given)


def first_stage(bench: Bench, name: str, seed: int) -> tuple[Path, Figures]:
    """Train a row's tokenizer, encode the images, and return its run with what reconstructions are like."""
    row, run = ROWS[name], bench.work / f"{name}-{seed}-{bench.minutes:g}"
    trial = partial(tokenize, bench, row, seed=seed)
    steps = steps_within(bench, name, trial, EM_TRIALS if row.by_em else TRIALS)
    steps = min(steps, MOST_EM) if row.by_em else steps
    seconds = tokenize(bench, row, run, steps, seed)
    command(run / ".encode.json", "tokenizer/encode.py", run, views=1)
    command(run / ".evaluate.json", "tokenizer/evaluate.py", run, importance_samples=DRAWS)
    found = read_json(run / "evaluation/tokenizer-test.json")["figures"]
    figures = {name: found[name] for name in ("psnr_pooled", "fd_classifier", "usage") if name in found}
    return run, {"steps": steps, "training_cpu_seconds": seconds, **figures}


def second_stage(bench: Bench, row: str, column: str, seed: int, first: Path) -> Iterator[tuple[str, Figures]]:
    """Train a column's prior, and yield each cell's name, which has the passes where they vary, and its figures."""
    fill = COLUMNS[column].of(ROWS[row])
    assert fill is not None  # `cells` asks
    run, steps = bench.work / f"{row}-{seed}-{bench.minutes:g}-{column}", None
    if fill.script == TRAIN:
        steps = steps_within(bench, f"{row}-{column}", partial(train, fill, first, seed=seed), TRIALS)
    seconds = train(fill, first, run, steps, seed)
    for passes in COLUMNS[column].passes or (None,):
        name = column if passes is None else f"{column} {passes}"
        file = f".{name.replace(' ', '-')}"
        figures = kept(run / f"{file}.json", partial(measure, bench, column, first, run, passes, seed))
        figures = figures | kept(run / f"{file}-speed.json", partial(speed, column, run, passes))
        yield name, {"training_cpu_seconds": seconds, "steps": steps, **figures}


# ---------------------------------------------------------------------------------------------------------- measuring


def measure(bench: Bench, column: str, first: Path, run: Path, passes: int | None, seed: int) -> Figures:
    """Return the figures of a trained cell, drawn with so many passes."""
    draws = COLUMNS[column].draws
    settings = run / f"draw-{passes}.yaml"
    drawn_by = dict(COLUMNS[column].draws_by) if passes is None else {**COLUMNS[column].draws_by, "steps": passes}
    settings.write_text(json.dumps(drawn_by) + "\n", encoding="utf-8")
    few = {"config": settings, "num_images": 20, "overwrite": "true"}
    command(run / f".generate-{passes}.json", "pipeline/generate.py", run, **few)
    judged = {"codes": first / "codes", "images": bench.drawn, "neighbours": 0, "importance_samples": draws}
    judged["priced"] = 10_000  # all of test
    command(run / f".evaluate-{passes}.json", "pipeline/evaluate.py", run, split="test", seed=seed, **judged)
    found = read_json(run / "evaluation/pipeline-test.json")
    assert found["protocol"].get("sampling", {}).get("steps") == passes
    return told(found)


def told(found: Figures) -> Figures:
    """Return what the board shows of an evaluation of both stages."""
    figures, protocol = found["figures"], found["protocol"]
    names = [name for name in SHOWN if name not in ("bits", "bits_kind")]
    names += ["fd_classifier_train", "classifier_accuracy"]
    cell = {name: figures[name] for name in names if name in figures} | {"bits_kind": "none"}
    if "learned_bits_per_dim" in figures:
        kind = protocol.get(
            "kind", protocol.get("learned_rate")
        )  # of vectors a bound under any prior; of codes the prior's
        cell |= {"bits_kind": "exact length" if kind == "exact" else kind, "bits": figures["learned_bits_per_dim"]}
        cell |= {"distortion": figures["distortion"], "rate": figures["learned_rate"]}
    return cell


@torch.inference_mode()
def speed(column: str, run: Path, passes: int | None) -> Figures:
    """Return images a second from a class to pixels, by images at once, and the passes of the network an image."""
    sampling = SamplingConfig(steps=passes, **COLUMNS[column].draws_by)
    pipeline = ImagePipeline.from_run(run, sampling)
    prior, works = pipeline.prior, dict[str, Work]()
    for batch in BATCHES:
        labels, sampler = torch.arange(batch) % max(1, pipeline.condition.num_classes), pipeline.sampler(batch)
        works[f"images_a_second_{batch}"] = partial(draw, pipeline, sampler, labels)
    seconds = interleaved(works, ROUNDS, "cpu", time.process_time)
    found = {name: batch / min(seconds[name]) for name, batch in zip(works, BATCHES, strict=True)}
    return {**found, "passes": passes_of(prior, sampling)}


def passes_of(prior: Prior, sampling: SamplingConfig) -> int:
    """Return the passes of a prior's network in which it draws an image."""
    if prior.config.architecture.made_by == FIT:
        return 0
    if isinstance(prior, Unfolds):
        return sum(1 for _ in prior.unfold(sampling, prior.config.condition.none(1), [0]))
    return prior.config.layout.length


def draw(pipeline: ImagePipeline, sampler: Callable[..., torch.Tensor], labels: torch.Tensor) -> None:
    told = None if not pipeline.condition.told else labels
    to_uint8(pipeline.tokenizer.decode(sampler(pipeline.told_to_prior(labels), range(len(labels))), told))


# ----------------------------------------------------------------------------------------------------------- together


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a file of this name, for which other processes wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        flock(file, LOCK_EX)
        yield


def put(result: Path, keys: Sequence[str], figures: Figures, came: Figures) -> None:
    """Write figures and their record into the result at these keys. Another process may do the same."""
    with locked(result.with_name(f".{result.name}.lock")):
        whole: Figures = read_json(result) if result.exists() else {"protocol": __doc__, "datasets": {}}
        inside = whole["datasets"]
        for key in keys[:-1]:
            inside = inside.setdefault(key, {})
        if inside.get(keys[-1], {}).get("figures") != figures:
            inside[keys[-1]] = {"figures": figures, "record": came}
            write_json(result, whole)


def cells(rows: Sequence[str], columns: Sequence[str]) -> list[tuple[str, str]]:
    """Return the pairs of a row and a column that there are."""
    return [(row, column) for row, column in product(rows, columns) if COLUMNS[column].of(ROWS[row]) is not None]


def run_board(
    bench: Bench, dataset: str, rows: Sequence[str], columns: Sequence[str], seeds: Sequence[int], result: Path
) -> None:
    """Train and measure what is missing, a row after the other."""
    came = record("benchmarks.lecture_board")  # before the result is another file than the commit's
    for seed, row in product(seeds, rows):
        first, figures = first_stage(bench, row, seed)
        place = (dataset, bench.budget, row)
        put(result, (*place, "tokenizer", str(seed)), figures, came)
        for _, column in cells([row], columns):
            for name, each in second_stage(bench, row, column, seed, first):
                put(result, (*place, name, str(seed)), each, came)
                print(f"{dataset}, {row}, {name}, seed {seed}: {json.dumps(each)}", flush=True)


# ------------------------------------------------------------------------------------------------------------ writing


SHOWN = {  # of the table, and digits
    "bits": ("bits/dim", 3),
    "bits_kind": ("kind", 0),
    "fd_classifier": ("FD", 2),
    "precision": ("precision", 3),
    "recall": ("recall", 3),
    "class_agreement": ("agreement", 3),
    "classification_accuracy_score": ("CAS", 3),
    "images_a_second_64": ("images a second, 64 at once", 0),
    "images_a_second_1": ("one at a time", 1),
    "passes": ("passes", 0),
}


def titled(row: str, cell: str) -> str:
    """Return the title of a cell's prior, with its passes."""
    column, *passes = cell.split()
    fill = COLUMNS[column].of(ROWS[row])
    assert fill is not None
    return " ".join([fill.title, *(f"x {each}" for each in passes)])


def spread(several: Sequence[Figures], name: str, digits: int) -> str:
    """Return mean and, of several seeds, their standard deviation; a word as it is."""
    if any(name not in each for each in several):
        return "–"
    if isinstance(several[0][name], str):
        return str(several[0][name])
    found = mean_and_spread([{name: each[name]} for each in several])[name]
    beside = "" if not found["std"] else f" ± {found['std']:,.{digits}f}"
    return f"{found['mean']:,.{digits}f}{beside}"


def figures_of(of_row: Figures, cell: str) -> list[Figures]:
    """Return the figures of a cell, a seed each."""
    return [each["figures"] for each in of_row[cell].values()]


def measured(of_row: Figures) -> list[str]:
    """Return the cells of a row that are measured, in the order of the columns."""
    names = [name for column, c in COLUMNS.items() for name in [column, *(f"{column} {p}" for p in c.passes)]]
    return [name for name in names if name in of_row]


def board(found: Figures) -> str:
    """Return the table of Fréchet distances, stage one by row and stage two by column."""
    order = measured({cell: {} for row in ROWS for cell in measured(found.get(row, {}))})
    titles = [" / ".join(dict.fromkeys(titled(row, cell) for row in ROWS if fits(row, cell))) for cell in order]
    lines = ["| FD | decoded test images | " + " | ".join(titles) + " |", "|---|" + "---|" * (len(order) + 1)]
    for row in (row for row in ROWS if row in found):
        values = [spread(figures_of(found[row], c), "fd_classifier", 2) if c in found[row] else "" for c in order]
        again = spread(figures_of(found[row], "tokenizer"), "fd_classifier", 2)
        lines.append("| " + " | ".join([ROWS[row].title, again, *values]) + " |")
    return "\n".join(lines)


def fits(row: str, cell: str) -> bool:
    return COLUMNS[cell.split()[0]].of(ROWS[row]) is not None


def table(found: Figures) -> str:
    """Return the table of all figures, a line a cell."""
    names = ["stage one", "stage two", "seeds", "CPU s", *(title for title, _ in SHOWN.values())]
    lines = ["| " + " | ".join(names) + " |", "|---|" + "---|" * (len(names) - 1)]
    for row in (row for row in ROWS if row in found):
        for cell in measured(found[row]):
            several = figures_of(found[row], cell)
            values = [spread(several, name, digits) for name, (_, digits) in SHOWN.items()]
            took = spread(several, "training_cpu_seconds", 0)
            lines.append(
                "| " + " | ".join([ROWS[row].title, titled(row, cell), str(len(several)), took, *values]) + " |"
            )
    return "\n".join(lines)


def section(dataset: str, minutes: str, found: Figures) -> str:
    """Return what the page says of a data set in one budget."""
    records = [each["record"] for row in found.values() for cell in row.values() for each in cell.values()]
    dates, commits = ({each[name] for each in records} for name in ("date", "commit"))
    when = f"Measured {', '.join(sorted(dates))} at {', '.join(sorted(short(each) for each in commits))}"
    head = f"### {dataset}, CPU minutes a stage: {minutes}\n\n{when}, on {records[-1]['machine']['cpu']}."
    return f"{head}\n\n{board(found)}\n\n{table(found)}"


def write(result: Path, page: Path, figure: Path) -> None:
    """Write the tables into the page, between their marks, and draw the figure."""
    datasets = read_json(result)["datasets"]
    sections = [section(name, minutes, found) for name, each in datasets.items() for minutes, found in each.items()]
    before, rest = page.read_text(encoding="utf-8").split(BEGIN)
    picture = f"![distance over the time of an image]({figure.name})"
    text = "\n\n".join([f"{before}{BEGIN}", picture, *sections, f"{END}{rest.split(END)[1]}"])
    page.write_text(text, encoding="utf-8")
    save_figure(
        {f"{name}, minutes: {minutes}": of for name, each in datasets.items() for minutes, of in each.items()}, figure
    )


MARKERS = dict(zip(ROWS, "osPXD^vh<>p", strict=True))


def save_figure(boards: Mapping[str, Figures], path: Path) -> None:
    """Draw the Fréchet distance over the time of an image: a colour a prior, a shape a tokenizer."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import LogLocator, NullFormatter

    colours = dict(zip(COLUMNS, colormaps["tab10"].colors, strict=False))  # type: ignore[attr-defined]
    figure = Figure(figsize=(1.5 + 5 * len(boards), 5), layout="constrained")
    for axes, (name, found) in zip(figure.subplots(1, len(boards), squeeze=False)[0], boards.items(), strict=True):
        for row in (row for row in ROWS if row in found):
            several: dict[str, list[tuple[float, float]]] = {}
            for cell in measured(found[row]):
                each = [f for f in figures_of(found[row], cell) if "fd_classifier" in f]
                if each:
                    milliseconds = fmean(1000 / f["images_a_second_64"] for f in each)
                    at = (milliseconds, fmean(f["fd_classifier"] for f in each))
                    several.setdefault(cell.split()[0], []).append(at)
            for column, points in several.items():
                axes.plot(*zip(*points, strict=True), MARKERS[row], ls="-", lw=0.8, color=colours[column], alpha=0.8)
        axes.set(xscale="log", yscale="log", title=name, xlabel="milliseconds an image, 64 at once, one thread")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter(NullFormatter())
        axes.set_ylabel("Fréchet distance to test images")
        axes.grid(alpha=0.3, which="both")
    titles = {c: " / ".join(f.title for f in (each.codes, each.vectors) if f) for c, each in COLUMNS.items()}
    keys = [Line2D([], [], color=colours[c], lw=4, label=title) for c, title in titles.items()]
    keys += [Line2D([], [], color="grey", marker=MARKERS[row], ls="", label=ROWS[row].title) for row in ROWS]
    figure.legend(handles=keys, loc="outside right upper", fontsize=8)
    with replacing(path) as aside:
        figure.savefig(aside, format="png", dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "write"))
    parser.add_argument("--dataset", help="its name on the board")
    parser.add_argument("--data", type=Path, help="its folder of Parquet files, of 28 x 28 grey images with labels")
    parser.add_argument("--work", type=Path, help="folder of the runs, to keep")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=[*ROWS])
    parser.add_argument("--columns", nargs="+", choices=COLUMNS, default=[*COLUMNS])
    parser.add_argument("--minutes", type=float, default=4.0, help="CPU minutes of each stage's training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--where", default="", help="the machine in words, to keep results of another beside")
    parser.add_argument("--images", type=int, default=DRAWN, help="drawn images that are judged")
    parser.add_argument("--result", type=Path, default=RESULT, help="another file of results, for a trial")
    args = parser.parse_args()
    if args.what == "write":
        write(args.result, PAGE, FIGURE)
    elif None in (args.dataset, args.data, args.work):
        parser.error("run needs --dataset, --data and --work")
    else:
        torch.set_num_threads(1)
        bench = Bench(args.data.resolve(), args.work.resolve() / args.dataset, args.minutes, args.images, args.where)
        run_board(bench, args.dataset, args.rows, args.columns, args.seeds, args.result.resolve())


if __name__ == "__main__":
    main()

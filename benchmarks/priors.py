"""The gated PixelCNN beside the Transformer: the same codes of one tokenizer, and as much processor time for both.

    python -m benchmarks.priors choose --fashion_mnist FOLDER --work DIR  # the PixelCNN, on validation
    python -m benchmarks.priors run --fashion_mnist FOLDER --work DIR --seeds 0 1 2

Protocol: of each set, the digits and Fashion-MNIST, the shipped config's tokenizer is trained once (seed 0) and its
codes are shared. A prior is trained by prior/train.py with the config's batch and label dropout, evaluated as often on
the validation split, the best weights kept. Its budget is the CPU seconds of the whole command on one thread, with
start and evaluations: two short trainings of a kind, all kinds in turn, say what a step costs and so how many steps the
budget holds. What each training then took stands beside it. The Transformer has the shipped config; the PixelCNN's
settings are the best of a few by validation NLL of seed 0, each trained for a share of the budget (`choose`). Neither
was chosen on the test split.

Figures are of the test split: nats a code by prior/evaluate.py in fp32; drawn images, at temperature 1 without guidance
and with the labels of test, by their Fréchet distance to it on a trained classifier's features, and by how many the
classifier takes for the class asked for. Images a second are the sampler's, codes alone, on one thread, interleaved,
the fastest round.

Writes benchmarks/results/priors.json, a set after the other, each with the record of its own measurement, and of each
set docs/priors_NAME.png, drawn by the first seed's priors. The same command goes on where it was interrupted.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.claim import mean_and_spread
from benchmarks.timing import ROOT, Work, interleaved, once
from smalti.common.errors import UserError
from smalti.common.folder import read_json, replacing, write_json
from smalti.common.launch import make_accelerator
from smalti.common.plots import image_grid
from smalti.common.record import record
from smalti.common.run_folder import read_metrics
from smalti.common.spacing import evenly_spaced
from smalti.metrics.distances import frechet_distance
from smalti.metrics.features_config import FeaturesConfig
from smalti.pipeline.evaluation.bench import features_of, open_bench
from smalti.pipeline.evaluation.settings import Settings
from smalti.pipeline.image_pipeline import ImagePipeline
from smalti.prior.autoregressive import AutoregressivePrior
from smalti.prior.model import load_prior
from smalti.prior.sampling_config import SamplingConfig

RESULT = ROOT / "benchmarks/results/priors.json"
PICTURES = ROOT / "docs"
KINDS = ("transformer", "pixelcnn")
NAMES = {"transformer": "Transformer", "pixelcnn": "gated PixelCNN"}
BATCHES = (64, 1)  # images at once where speed is measured
ROUNDS = 5
SHOWN = 3  # images of each class on the picture
PART = 500  # images drawn at once
# of the table, and digits
COLUMNS = {"training_cpu_seconds": 0, "nll": 3, "gap": 2, "fd_classifier": 2, "class_agreement": 3}

Options = Mapping[str, Any]  # of a command; a sequence is several words
Figures = dict[str, Any]
Command = Callable[[Sequence[str], Path], float]
"""Run a script with its arguments, unless the file says that it has ended before; return its CPU seconds"""


class Contest(NamedTuple):
    """A data set, and what a prior of either kind is given on it."""

    source: str | None  # of the images; none where the command line says it
    seconds: float  # CPU time of a training
    looks: int  # evaluations on the validation split within it
    short: tuple[int, int]  # steps of the two trainings that say what a step costs
    drawn: int  # images that are judged
    kinds: Mapping[str, Options]  # what each kind's settings are beside the config's
    candidates: Mapping[str, Options]  # what the PixelCNN's were chosen among
    choosing: float  # CPU seconds of a candidate
    stages: Mapping[str, Options] = {}  # settings of every kind beside the config's: tokenizer, encode, prior
    features: FeaturesConfig = FeaturesConfig()  # by which drawn images are judged


def pixelcnn(depth: int, dim: int, kernel: int, lr: float, dropout: float) -> Options:
    shape = {"model.depth": depth, "model.dim": dim, "model.kernel": kernel, "model.dropout": dropout}
    return {"model.kind": "pixelcnn", **shape, "lr": lr}


CONTESTS = {
    "digits": Contest(
        source="digits",
        seconds=60,
        looks=8,
        short=(20, 270),
        drawn=1485,
        choosing=25,
        kinds={"transformer": {}, "pixelcnn": pixelcnn(4, 96, 3, 6e-3, 0.2)},
        candidates={
            "6 x 64": pixelcnn(6, 64, 3, 3e-3, 0.2),
            "6 x 64, slower": pixelcnn(6, 64, 3, 1.5e-3, 0.2),
            "6 x 64, faster": pixelcnn(6, 64, 3, 6e-3, 0.2),
            "4 x 96, more dropout": pixelcnn(4, 96, 3, 3e-3, 0.3),
            "4 x 96, faster": pixelcnn(4, 96, 3, 6e-3, 0.2),
        },
    ),
    "fashion_mnist": Contest(
        source=None,
        seconds=150,
        looks=4,
        short=(10, 110),
        drawn=10_000,
        choosing=60,
        kinds={"transformer": {}, "pixelcnn": pixelcnn(4, 96, 3, 6e-3, 0.0)},
        candidates={
            "4 x 96": pixelcnn(4, 96, 3, 6e-3, 0.0),
            "6 x 96": pixelcnn(6, 96, 3, 6e-3, 0.0),
        },
    ),
}


def as_a_process(words: Sequence[str], ended: Path) -> float:
    return once([sys.executable, *words], ended)


def options(settings: Options) -> list[str]:
    several = {name: value if isinstance(value, tuple | list) else (value,) for name, value in settings.items()}
    return [str(word) for name, values in several.items() for word in (f"--{name}", *values)]


# ------------------------------------------------------------------------------------------------------------- training


def tokenize(name: str, contest: Contest, work: Path, command: Command) -> Path:
    """Train the tokenizer of a set, encode its images, and return the run."""
    run, source = work / name / "first", contest.source
    assert source is not None  # `main` has filled it in
    tokenizer = ["tokenizer/train.py", f"configs/{name}/tokenizer.yaml", "--run", str(run), "--images.source", source]
    command([*tokenizer, *options(contest.stages.get("tokenizer", {}))], run / ".tokenizer-ended.json")
    command(["tokenizer/encode.py", str(run), *options(contest.stages.get("encode", {}))], run / ".encode-ended.json")
    return run


class Training(NamedTuple):
    """Trains priors over the codes of a set."""

    name: str
    contest: Contest
    first: Path  # the run of the codes
    command: Command

    def __call__(self, run: Path, settings: Options, steps: int, looks: int, seed: int) -> float:
        """Train in `run` for so many steps, evaluate so often, and return the CPU seconds it took."""
        if not (run / "tokenizer").exists():  # the pipeline's other half
            shutil.copytree(self.first / "tokenizer", run / "tokenizer", ignore=shutil.ignore_patterns("state"))
        given = {"run": run, "codes": self.first / "codes", "seed": seed, "steps": steps, "save_every": steps}
        given |= {"evaluate_every": -(-steps // looks), **self.contest.stages.get("prior", {}), **settings}
        return self.command(
            ["prior/train.py", f"configs/{self.name}/prior.yaml", *options(given)], run / ".prior-ended.json"
        )

    def calibrate(self, settings: Mapping[str, Options], looks: int, work: Path) -> dict[str, Figures]:
        """Return what a step of each costs and what the command does beside, in CPU seconds, by two short trainings."""
        took: dict[str, list[float]] = {each: [] for each in settings}
        for steps in self.contest.short:
            for each, given in settings.items():
                took[each].append(self(work / f"{each.replace(' ', '-')}-{steps}-steps", given, steps, looks, seed=0))
        few, more = self.contest.short
        a_step = {each: max((long - short) / (more - few), 1e-6) for each, (short, long) in took.items()}
        return {
            each: {
                "steps": [few, more],
                "cpu_seconds": took[each],
                "a_step": a_step[each],
                "beside": max(0.0, took[each][1] - more * a_step[each]),
            }
            for each in settings
        }


def steps_within(seconds: float, cost: Figures) -> int:
    return max(1, round((seconds - cost["beside"]) / cost["a_step"]))


def choose(name: str, contest: Contest, first: Path, work: Path, command: Command) -> Figures:
    """Train each candidate for a share of the budget, and return what all of them came to on the validation split."""
    train, looks, found = Training(name, contest, first, command), 1, dict[str, Figures]()
    costs = train.calibrate(contest.candidates, looks, work / name / "short")
    for each, settings in contest.candidates.items():
        run, steps = work / name / "chosen" / each.replace(" ", "-"), steps_within(contest.choosing, costs[each])
        seconds = train(run, settings, steps, looks, seed=0)
        found[each] = {
            "settings": dict(settings),
            "steps": steps,
            "weights": weights(run),
            "cpu_seconds": seconds,
            "cost": costs[each],
            **best_on_validation(run),
        }
        print(
            f"{name}, {each}: {steps} steps, {found[each]['validation_nll']:.4f} nats a code on validation", flush=True
        )
    best = min(found, key=lambda each: found[each]["validation_nll"])
    return {"cpu_seconds_each": contest.choosing, "seed": 0, "candidates": found, "best": best}


def best_on_validation(run: Path) -> Figures:
    taken = [line for line in read_metrics(run / "prior/metrics.jsonl") if "validation_nll" in line]
    best = min(taken, key=lambda line: line["validation_nll"])
    return {"best_step": best["step"], "validation_nll": best["validation_nll"]}


def weights(run: Path) -> int:
    return sum(each.numel() for each in load_prior(run / "prior/model").parameters())


# ------------------------------------------------------------------------------------------------------------ measuring


def evaluate(run: Path, codes: Path, contest: Contest, seed: int, command: Command) -> Figures:
    """Return the figures of a trained prior on the test split."""
    given = {"codes": codes, "split": "test"}
    command(["prior/evaluate.py", str(run), *options(given)], run / ".evaluate-ended.json")
    if not (run / "judged.json").exists():
        write_json(run / "judged.json", judge(run, codes, contest, seed))
    told = read_json(run / "evaluation/prior-test.json")["figures"]
    names = ("nll", "train_nll", "gap", "independent_nll", "uniform_nll", "bits_per_image")
    return best_on_validation(run) | {name: told[name] for name in names} | read_json(run / "judged.json")


def judge(run: Path, codes: Path, contest: Contest, seed: int) -> Figures:
    """Draw so many images with the labels of test dealt evenly; return how a classifier of the real images sees
    them."""
    settings = Settings(run=str(run), codes=str(codes), split="test", features=contest.features)
    bench, number = open_bench(settings, make_accelerator()), contest.drawn
    features, classifier = bench.eyes
    if features is None or classifier is None:
        raise UserError(f"the images of {run} have no labels, so no classifier can look at what is drawn")
    test, train = bench.split, bench.images.splits["train"]
    labels = torch.from_numpy(test.labels[torch.arange(number) * len(test) // number])
    sampler, seeds = bench.pipeline.sampler(), range(seed * number, (seed + 1) * number)
    parts = zip(labels.split(PART), (seeds[i : i + PART] for i in range(0, number, PART)), strict=True)
    images = torch.cat([bench.pipeline.decode(sampler(some, few).cpu()) for some, few in parts])
    real, same = (
        features_of(bench, features, split, evenly_spaced(len(test), len(split))).cpu() for split in (test, train)
    )
    return {
        features.frechet_name: frechet_distance(real, features(images).cpu()),
        f"{features.frechet_name}_train": frechet_distance(real, same),
        "class_agreement": (classifier.predict(images) == labels).double().mean().item(),
        "classifier_accuracy": classifier.accuracy,
    }


def speeds(runs: Mapping[str, Path]) -> dict[str, Figures]:
    """Return the images a second of each kind's sampler, by precision and images at once, and its precision by
    itself."""
    priors = dict[str, AutoregressivePrior]()
    for kind, run in runs.items():
        prior = load_prior(run / "prior/model").eval()
        assert isinstance(prior, AutoregressivePrior)  # both kinds are
        priors[kind] = prior
    found: dict[str, Figures] = {kind: {"by_itself": prior.resolved("auto")} for kind, prior in priors.items()}
    for batch in BATCHES:
        works: dict[str, Work] = {}
        for kind, prior in priors.items():
            labels = torch.arange(batch) % max(1, prior.config.condition.num_classes)
            for precision in {prior.resolved("auto"), prior.resolved("fp32")}:
                sampler = prior.sampler(SamplingConfig(precision=precision), batch)
                works[f"{kind}, {precision}"] = partial(sampler, labels, range(batch))
        for name, times in interleaved(works, ROUNDS, "cpu").items():
            kind, used = name.split(", ")
            found[kind].setdefault(used, {})[f"batch {batch}"] = batch / min(times)
    return found


# -------------------------------------------------------------------------------------------------------------- drawing


def rows_of(run: Path) -> Tensor:
    """Return images (SHOWN · classes, C, H, W) that a prior draws, a column a class."""
    pipeline = ImagePipeline.from_run(run, SamplingConfig())
    labels = list(range(pipeline.prior.config.condition.num_classes)) * SHOWN
    codes = pipeline.sampler()(torch.tensor(labels), range(len(labels))).cpu()
    return pipeline.decode(codes)


def draw_picture(images: Mapping[str, Tensor], nll: Mapping[str, float], path: Path) -> None:
    """Both kinds side by side: images (N, C, H, W) of each, and its nats a code on test."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 1.85), layout="constrained")
    for panel, (kind, several) in zip(figure.subplots(1, len(images)), images.items(), strict=True):
        picture = image_grid(several, len(several) // SHOWN, side=several.shape[-1])
        panel.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        panel.set_title(f"{NAMES[kind]}, {nll[kind]:.2f} nats a code", fontsize=9)
        panel.set_axis_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as aside:
        figure.savefig(aside, format="png", dpi=100)


# ------------------------------------------------------------------------------------------------------------- together


def measure(
    name: str, contest: Contest, work: Path, seeds: Sequence[int], picture: Path, command: Command = as_a_process
) -> Figures:
    """Train and measure both kinds on a set, and draw the picture."""
    first, runs = tokenize(name, contest, work, command), dict[str, Path]()
    train, per_seed = Training(name, contest, first, command), dict[str, list[Figures]]()
    costs = train.calibrate(contest.kinds, contest.looks, work / name / "short")
    steps = {kind: steps_within(contest.seconds, costs[kind]) for kind in contest.kinds}
    for seed in seeds:
        for kind, settings in contest.kinds.items():
            run = work / name / f"{kind}-{seed}"
            seconds = train(run, settings, steps[kind], contest.looks, seed)
            found = {"training_cpu_seconds": seconds, **evaluate(run, first / "codes", contest, seed, command)}
            per_seed.setdefault(kind, []).append(found)
            runs.setdefault(kind, run)
            print(f"{name}, {kind}, seed {seed}: {json.dumps(found)}", flush=True)
    speed = speeds(runs)
    draw_picture(
        {kind: rows_of(run) for kind, run in runs.items()}, {kind: per_seed[kind][0]["nll"] for kind in runs}, picture
    )
    return {
        "budget_cpu_seconds": contest.seconds,
        "looks": contest.looks,
        "drawn": contest.drawn,
        "seeds": list(seeds),
        "kinds": {
            kind: {
                "settings": dict(settings),
                "steps": steps[kind],
                "weights": weights(runs[kind]),
                "cost": costs[kind],
                "summary": mean_and_spread(per_seed[kind]),
                "per_seed": per_seed[kind],
                "images_a_second": speed[kind],
            }
            for kind, settings in contest.kinds.items()
        },
    }


def rows(name: str, found: Figures) -> list[str]:
    """Return the lines of the page's table about a set, a kind each."""
    lines = []
    for kind, each in found["kinds"].items():
        of, fast = each["summary"], each["images_a_second"][each["images_a_second"]["by_itself"]]
        told = [
            f"{name.replace('_', ' ')}, {NAMES[kind]}",
            f"{each['steps']:,}",
            f"{each['weights']:,}",
            *(spread(of[figure], digits) for figure, digits in COLUMNS.items()),
            *(f"{fast[f'batch {batch}']:,.0f}" for batch in BATCHES),
        ]
        lines.append(f"| {' | '.join(told)} |")
    return lines


def spread(figure: Mapping[str, float | None], digits: int) -> str:
    """Mean and, of several seeds, their standard deviation."""
    beside = "" if figure["std"] is None else f" ± {figure['std']:.{digits}f}"
    return f"{figure['mean']:.{digits}f}{beside}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("choose", "run"))
    parser.add_argument("--fashion_mnist", type=Path, help="its folder of Parquet files")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", choices=CONTESTS, default=[*CONTESTS])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    if "fashion_mnist" in args.sets and args.fashion_mnist is None:
        parser.error("fashion_mnist is read from its folder: give --fashion_mnist, or --sets digits")
    torch.set_num_threads(1)
    work, result = args.work.resolve(), read_json(RESULT) if RESULT.exists() else {"sets": {}}
    for name in args.sets:
        contest, of_set = CONTESTS[name], result["sets"].setdefault(name, {})
        if contest.source is None:
            contest = contest._replace(source=str(args.fashion_mnist.resolve()))
        if args.what == "choose":
            found = choose(name, contest, tokenize(name, contest, work, as_a_process), work, as_a_process)
        else:
            found = measure(name, contest, work, args.seeds, PICTURES / f"priors_{name}.png")
        of_set[args.what] = record("benchmarks.priors") | found
        write_json(RESULT, {"protocol": __doc__, "sets": result["sets"]})
        print(*(rows(name, found) if args.what == "run" else []), sep="\n", flush=True)


if __name__ == "__main__":
    main()

"""The losses of stage one on the same photo: squared error, perceptual, adversarial, both, in equal CPU time.

    python -m benchmarks.sharper --name emoji --data FOLDER_OF_PARQUET --judge LABELLED_FOLDER --work DIR \
        --before 4 --minutes 4 --seeds 0 1 2

Protocol: one small VQ-VAE (`--size` pixels a side, 8 x 8 codes of 512, convolutional), AdamW with half a cosine,
batches of 32. A row differs in `perceptual` and `adversarial` alone, and no setting of a row was searched for. Every
row takes as many steps as fit its CPU minutes, by its own time for a step: the difference between two short trainings
of it. The time of the whole command, start and evaluations included, stands beside it. The classifier of a trunk is
trained once, in the first short training, and shared by all rows and seeds; it is not counted.

With `--before`, every row begins from the weights that the row `squared error` had after so many minutes, of the same
seed, and takes its own minutes from there (`--start_from`), at a quarter of the rate and with a discriminator that is
trained from its first step; the row `squared error` goes on in the same way.

Without labels a trunk learns rotations whatever it is asked, so the row of rotations is left out. The row
`perceptual, given trunk` takes its feature maps from the TorchScript file of `--trunk`, and is left out without one.

Figures are of the test split: PSNR, SSIM, bits per dimension of the pixels, use of the codes, and Fréchet distances of
reconstructions to the images on two extractors that no loss has seen: `fd_judge`, the last convolutional level of a
classifier of other labels than a trunk's (`--judge`), meaned over places; and `fd_wavelets`, which is no network: the
moduli of oriented derivatives at three scales, meaned over a 2 x 2 grid (as the first order of Bruna and Mallat 2013).
With `--trunk`, `fd_trunk` is a third, of its last level, meaned over places; of the row that it trained it says
nothing.

Writes benchmarks/results/sharper.json, where other sets and rows that were not asked for stay, and with `--picture` a
picture of test images and what each row makes of them. The same command goes on where it was interrupted.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.claim import Claim, mean_and_spread, verdict
from benchmarks.extractors import BATCH, judge_features, open_judge, trunk_features, wavelet_features
from benchmarks.lines import save_lines
from benchmarks.timing import ROOT, once
from smalti.common.data.config import ImagesConfig
from smalti.common.data.images import held_out_split, open_images
from smalti.common.data.pixels import to_float, to_uint8
from smalti.common.data.run_images import open_run_images
from smalti.common.folder import read_json, write_json
from smalti.common.record import record
from smalti.common.spacing import evenly_spaced
from smalti.metrics.classifier import Classifier
from smalti.metrics.distances import frechet_distance
from smalti.tokenizer.model import load_tokenizer

RESULT = ROOT / "benchmarks/results/sharper.json"
SHORT, LONGER = 20, 120  # steps of the trainings that tell how long a step takes
SHOWN = 8  # images of the picture

SHARED: Mapping[str, Any] = {
    "images.shift": 2,
    "model.image_channels": 3,
    "model.channels": (64, 128),
    "model.quantizer.kind": "vq",
    "model.quantizer.codebook_size": 512,
    "model.quantizer.code_dim": 8,
    "batch_size": 32,
    "lr": 2e-3,
}
LATER_LR, LATER_WARMUP = 5e-4, 20  # of rows that begin from weights
PERCEPTUAL, ADVERSARIAL = "perceptual.kind", "adversarial.kind"
WEIGHT = "perceptual.weight"
PLAIN, ROTATIONS, GIVEN = "squared error", "perceptual, rotations", "perceptual, given trunk"
BOTH, LIGHTER = "perceptual + patches", "perceptual of weight 0.3 + patches"
ROWS: Mapping[str, Mapping[str, Any]] = {
    PLAIN: {},
    "perceptual": {PERCEPTUAL: "features"},
    "perceptual of weight 0.3": {PERCEPTUAL: "features", WEIGHT: 0.3},
    ROTATIONS: {PERCEPTUAL: "features", "perceptual.trunk.task": "rotations"},
    GIVEN: {PERCEPTUAL: "features", "perceptual.trunk.kind": "torchscript"},
    "adversarial, patches": {ADVERSARIAL: "patches"},
    "adversarial, features": {ADVERSARIAL: "features"},
    BOTH: {PERCEPTUAL: "features", ADVERSARIAL: "patches"},
    LIGHTER: {PERCEPTUAL: "features", WEIGHT: 0.3, ADVERSARIAL: "patches"},
}


def claims_of(row: str) -> tuple[Claim, ...]:
    """Return what a row claims beside the squared error."""
    return (
        Claim(
            text=f"{row}: Fréchet distance on the judge below that of the squared error",
            relation="more than",
            threshold=0.0,
            value=lambda ours, plain: plain["fd_judge"] - ours["fd_judge"],
        ),
        Claim(
            text=f"{row}: Fréchet distance on wavelets below that of the squared error",
            relation="more than",
            threshold=0.0,
            value=lambda ours, plain: plain["fd_wavelets"] - ours["fd_wavelets"],
        ),
        Claim(
            text=f"{row}: PSNR at most 1 dB below that of the squared error",
            relation="at least",
            threshold=-1.0,
            value=lambda ours, plain: ours["psnr_pooled"] - plain["psnr_pooled"],
        ),
    )


CLAIMS = {row: claims_of(row) for row in (BOTH, LIGHTER)}


# ------------------------------------------------------------------------------------------------------------ the rows


class ImagesOf(NamedTuple):
    """A set of images, the pixels a side that they are trained at, and the file of a trunk for them, if any."""

    data: Path
    size: int
    trunk: Path | None

    def settings(self) -> dict[str, Any]:
        """Return the settings that follow from them: 8 x 8 codes whatever the size."""
        size = self.size
        return {"images.source": self.data, "model.image_size": (size, size), "model.patch": size // 16}

    def labelled(self) -> bool:
        """Return whether the images have classes."""
        settings = ImagesConfig(source=str(self.data), memory=0)
        return bool(open_images(settings, (self.size, self.size), 3).class_names)


class Minutes(NamedTuple):
    """The CPU minutes of every row, and those of the squared error that all rows go on from."""

    each: float
    before: float

    def __str__(self) -> str:
        return f"{self.before:g}+{self.each:g}" if self.before else f"{self.each:g}"


def command(script: str, ended: Path, *words: object, **settings: Any) -> float:
    """Run a script with settings, unless `ended` says that it did, and return its CPU seconds."""
    given = [str(word) for word in words]
    for name, value in settings.items():
        given += [f"--{name}", *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    return once([sys.executable, script, *given], ended)


def train(run: Path, row: str, images: ImagesOf, steps: int, seed: int, begun: Path | None = None) -> float:
    """Train a row for so many steps, from the weights of the run `begun`, and return the CPU seconds it took."""
    few = {"steps": steps, "save_every": steps, "evaluate_every": max(1, steps // 4), "seed": seed}
    settings = {"run": run, **images.settings(), **SHARED, **few, "warmup": min(100, steps // 10), **ROWS[row]}
    settings |= {"perceptual.trunk.path": images.trunk} if row == GIVEN else {}
    if steps == 1 and ADVERSARIAL in settings:  # no share of one step is left to count otherwise
        settings |= {"adversarial.start": 0.0, "adversarial.warmup": 0.0, "adversarial.ramp": 0.0}
    if begun is not None:
        settings |= {"start_from": begun, "lr": LATER_LR, "warmup": min(LATER_WARMUP, steps // 10)}
        settings |= {"adversarial.start": 0.0} if ADVERSARIAL in settings else {}
    return command("tokenizer/train.py", run / ".trained.json", **settings)


def steps_of(row: str, images: ImagesOf, work: Path, minutes: float, begun: Path | None = None) -> int:
    """Return how many steps of a row take so many minutes, by the difference of two short trainings."""
    on = "" if begun is None else f"-on-{begun.name}"
    runs = {steps: run_of(work, row, f"{steps}-steps{on}", 0) for steps in (1, SHORT, LONGER)}
    took = [train(run, row, images, steps, 0, begun) for steps, run in runs.items()]
    return max(LONGER, round(60 * minutes * (LONGER - SHORT) / max(took[2] - took[1], 1e-3)))


@torch.no_grad()
def measure(run: Path, judge: Classifier, trunk: Path | None) -> dict[str, float]:
    """Return the figures of a trained row on the test split, and keep the reconstructions that are shown."""
    command("tokenizer/evaluate.py", run / ".evaluated.json", run, **{"features.kind": "none"})
    told = read_json(run / "evaluation/tokenizer-test.json")["figures"]
    tokenizer = load_tokenizer(run / "tokenizer/model")
    split = held_out_split(open_run_images(run / "tokenizer", tokenizer.config).splits)
    images = torch.cat([split.read(some).images for some in torch.arange(len(split)).split(BATCH)])
    again = torch.cat([to_uint8(tokenizer.decode(tokenizer.encode(to_float(some)))) for some in images.split(BATCH)])
    figures = {name: told[name] for name in ("psnr_pooled", "psnr", "ssim", "distortion", "usage", "perplexity")}
    figures["fd_judge"] = frechet_distance(judge_features(judge, images), judge_features(judge, again))
    figures["fd_wavelets"] = frechet_distance(wavelet_features(images), wavelet_features(again))
    if trunk is not None:
        figures["fd_trunk"] = frechet_distance(trunk_features(trunk, images), trunk_features(trunk, again))
    return figures


def measure_rows(
    names: Sequence[str], images: ImagesOf, judge: Classifier, work: Path, minutes: Minutes, seeds: Sequence[int]
) -> dict[str, Any]:
    """Train rows for so many minutes, and measure them."""
    found: dict[str, Any] = {row: {"settings": {k: str(v) for k, v in ROWS[row].items()}} for row in names}
    of_first: Path | None = None  # what the rows of the first seed go on from, and the trials of every seed
    for seed in seeds:
        begun = None
        if minutes.before:
            begun = run_of(work, PLAIN, f"{minutes.before:g}", seed)
            train(begun, PLAIN, images, steps_of(PLAIN, images, work, minutes.before), seed)
            of_first = of_first or begun
        for row in names:
            run, steps = run_of(work, row, str(minutes), seed), steps_of(row, images, work, minutes.each, of_first)
            took = train(run, row, images, steps, seed, begun)
            figures = {"training_cpu_seconds": took, "steps": steps, **measure(run, judge, images.trunk)}
            print(f"{row}, {minutes} minutes, seed {seed}: {json.dumps(figures)}", flush=True)
            found[row].setdefault("per_seed", []).append(figures)
    return {row: {"summary": mean_and_spread(each["per_seed"]), **each} for row, each in found.items()}


def run_of(work: Path, row: str, length: str, seed: int) -> Path:
    """Return the folder of a row's run. Runs lie side by side, and share the classifier of their trunks."""
    return work / f"{row.replace(',', '').replace(' ', '-')}-{length}-{seed}"


@torch.no_grad()
def save_reconstructions(runs: Mapping[str, Path], path: Path) -> None:
    """Save a picture of test images, and a line for each row of what it makes of them."""
    lines: dict[str, Tensor] = {}
    for row, run in runs.items():
        tokenizer = load_tokenizer(run / "tokenizer/model")
        split = held_out_split(open_run_images(run / "tokenizer", tokenizer.config).splits)
        images = split.read(evenly_spaced(SHOWN, len(split))).images
        lines.setdefault("images", images)
        lines[row] = to_uint8(tokenizer.decode(tokenizer.encode(to_float(images))))
    save_lines(lines, path)


def table(rows: Mapping[str, Any]) -> list[str]:
    """Return the lines of the page's table, a row each."""
    columns = {
        "training_cpu_seconds": 0,
        "steps": 0,
        "psnr_pooled": 2,
        "ssim": 3,
        "fd_judge": 2,
        "fd_wavelets": 5,
        "fd_trunk": 2,
        "distortion": 3,
        "usage": 2,
    }
    lines = []
    for row, each in rows.items():
        told = [spread(each["summary"][name], digits) for name, digits in columns.items() if name in each["summary"]]
        lines.append(f"| {' | '.join([row, *told])} |")
    return lines


def spread(figure: Mapping[str, float | None], digits: int) -> str:
    """Return mean and, of several seeds, their standard deviation."""
    beside = "" if figure["std"] is None else f" ± {figure['std']:.{digits}f}"
    return f"{figure['mean']:.{digits}f}{beside}"


def judged(rows: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the claims, where both rows that one compares were measured with the same seeds."""
    plain, found = rows.get(PLAIN, {}), []
    for row, claims in CLAIMS.items():
        ours = rows.get(row, {})
        if "per_seed" in plain and ours.get("seeds") == plain["seeds"]:
            pairs = [*zip(ours["per_seed"], plain["per_seed"], strict=True)]
            found += [claim.judge(pairs) for claim in claims]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True, help="of the set in the result")
    parser.add_argument("--data", type=Path, required=True, help="its folder of Parquet files")
    parser.add_argument("--size", type=int, choices=(32, 64, 128), default=64, help="pixels a side")
    parser.add_argument("--judge", type=Path, required=True, help="the labelled folder that the judge is trained on")
    parser.add_argument("--trunk", type=Path, help="a TorchScript network of RGB that gives feature maps, fine first")
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--picture", type=Path, help="of the first seed's reconstructions, a PNG")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=[*ROWS])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--before", type=float, default=0.0, help="of the squared error, from whose weights rows go on")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    torch.set_num_threads(1)
    trunk = args.trunk and args.trunk.resolve()
    work, images = args.work.resolve() / args.name, ImagesOf(args.data.resolve(), args.size, trunk)
    work.mkdir(parents=True, exist_ok=True)
    judge = open_judge(args.judge.resolve(), args.work.resolve() / ".judge")
    left_out = {GIVEN} if trunk is None else set()
    left_out |= set() if images.labelled() else {ROTATIONS}
    rows = [row for row in args.rows if row not in left_out]
    minutes = Minutes(args.minutes, args.before)
    found = measure_rows(rows, images, judge, work, minutes, args.seeds)
    sets = read_json(args.result)["sets"] if args.result.exists() else {}
    came = record("benchmarks.sharper") | {"seeds": args.seeds, "size": args.size, "judge_accuracy": judge.accuracy}
    here = sets.setdefault(args.name, {}).setdefault(str(minutes), {"rows": {}})
    here["rows"] |= {row: came | each for row, each in found.items()}
    here["claims"] = judged(here["rows"])
    write_json(args.result, {"protocol": __doc__, "sets": sets})
    if args.picture is not None:
        save_reconstructions({row: run_of(work, row, str(minutes), args.seeds[0]) for row in rows}, args.picture)
    print(*table(found), *map(verdict, here["claims"]), sep="\n", flush=True)


if __name__ == "__main__":
    main()

"""The results board: our presets beside a chain of PyPI parts, all measured by our own evaluate commands.

    python -m benchmarks.board run --dataset Fashion-MNIST --data FOLDER --work DIR --rows fashion_mnist peer
        --seeds 0 1 2
    python -m benchmarks.board write        # docs/board.md, of all results

A row of ours is a folder of configs/: tokenizer/train.py, encode.py, prior/train.py, generate.py and the three
evaluate.py with 10,000 drawn images, each a process of its own. The row `peer` is benchmarks/peer_chain.py:
vector-quantize-pytorch and x-transformers, given as many CPU seconds for each stage as the first row took to start,
train and encode. All run on one thread and no accelerator, and time is the CPU's, so that what else the machine does is
not counted. Every row is trained on 95% of train, chosen on the other 5% and measured on test; distances and agreement
are by one classifier of the real images.

`run` writes benchmarks/results/board_DATASET.json after every seed of every row; the same command goes on with what is
missing.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.claim import Claim, mean_and_spread, short, verdict
from benchmarks.images import channels_first, read_npz
from benchmarks.timing import ROOT, once
from smalti.common.errors import UserError
from smalti.common.evaluation_file import read_evaluations
from smalti.common.folder import read_json, write_json
from smalti.common.launch import make_accelerator
from smalti.common.record import record
from smalti.common.spacing import evenly_spaced
from smalti.metrics.distances import frechet_distance
from smalti.metrics.feature_extractor import Features
from smalti.metrics.features_config import FeaturesConfig
from smalti.metrics.similarity import psnr_of, squared_error_each, ssim_each
from smalti.pipeline.evaluation.bench import EvaluationBench, features_of, open_bench
from smalti.pipeline.evaluation.judge import Drawn, ask_classifier, compare_features
from smalti.pipeline.evaluation.settings import Settings
from smalti.tokenizer.labelled import labelled

RESULTS = ROOT / "benchmarks/results"
DRAWN = 10_000
PEERS = ["vector-quantize-pytorch", "x-transformers"]
Figures = dict[str, Any]


# ------------------------------------------------------------------------------------------------------------ measuring


def ours(config: str, data: Path, run: Path, seed: int) -> Figures:
    """Run our chain and its evaluations."""
    configs, given = f"configs/{config}", ["--run", str(run), "--seed", str(seed)]
    commands = {
        "tokenizer": ["tokenizer/train.py", f"{configs}/tokenizer.yaml", "--images.source", str(data), *given],
        "encode": ["tokenizer/encode.py", str(run)],
        "prior": ["prior/train.py", f"{configs}/prior.yaml", *given],
        "generate": ["pipeline/generate.py", str(run), "--config", f"{configs}/generate.yaml", "--overwrite", "true"],
        "evaluate_tokenizer": ["tokenizer/evaluate.py", str(run)],
        "evaluate_prior": ["prior/evaluate.py", str(run)],
        "evaluate_pipeline": ["pipeline/evaluate.py", str(run), "--images", str(DRAWN), "--seed", str(seed)],
    }
    seconds = {
        f"{name}_cpu_seconds": once([sys.executable, *c], run / f".{name}-ended.json") for name, c in commands.items()
    }
    of = {value["stage"]: value["figures"] for value in read_evaluations(run)}
    tokenizer = {f"reconstruction_{name}" if name.startswith("fd_") else name: v for name, v in of["tokenizer"].items()}
    prior = {name: value for name, value in of["prior"].items() if not isinstance(value, dict | list)}
    return tokenizer | {f"prior_{name}": value for name, value in prior.items()} | numbers(of["pipeline"]) | seconds


def numbers(figures: Figures) -> Figures:
    return {name: value for name, value in figures.items() if type(value) in (int, float)}


def peer(data: Path, folder: Path, seed: int, beside: Path) -> Figures:
    """Run the peer for the CPU seconds of the run `beside`, and measure it with that run's classifier."""
    took = {name: read_json(beside / f".{name}-ended.json")["cpu_seconds"] for name in ("tokenizer", "encode", "prior")}
    budget = ["--tokenizer-seconds", str(took["tokenizer"] + took["encode"]), "--prior-seconds", str(took["prior"])]
    command = ["-m", "benchmarks.peer_chain", "--data", str(data), "--out", str(folder), *budget, "--seed", str(seed)]
    folder.mkdir(parents=True, exist_ok=True)
    once([sys.executable, *command], folder / ".peer-ended.json")
    if not (folder / "judged.json").exists():
        write_json(folder / "judged.json", judge_peer(folder, beside, FeaturesConfig()))
    return numbers(read_json(folder / "figures.json")) | numbers(read_json(folder / "judged.json"))


def judge_peer(folder: Path, beside: Path, compared: FeaturesConfig) -> Figures:
    """Return our evaluation of the peer's samples and of its reconstructions of the test split."""
    bench = open_bench(Settings(run=str(beside), features=compared), make_accelerator())
    features, classifier = bench.eyes
    if features is None or classifier is None:
        raise UserError(f"the images of {beside} have no labels, so no classifier can look at what the peer draws")
    (images, labels), (again, _) = read_npz(folder / "samples.npz"), read_npz(folder / "reconstructions.npz")
    images, again = channels_first(images), channels_first(again)
    seen = features(images)
    drawn = Drawn(images, torch.empty(len(images), 0), labels, seen)
    train, test = bench.images.splits["train"], bench.split
    number = len(images)
    real, same = (features_of(bench, features, split, evenly_spaced(number, len(split))) for split in (test, train))
    figures = compare_features(seen, real, same, features.frechet_name)
    classes = bench.images.class_names or ()
    figures |= ask_classifier(drawn, classifier, labelled(test), classes, bench.accelerator.device)
    return figures | judge_reconstructions(bench, features, again)


def judge_reconstructions(bench: EvaluationBench, features: Features, again: Tensor) -> Figures:
    """Return the distances between reconstructions (n, C, H, W) of all test images and their originals."""
    test, everywhere = bench.split, evenly_spaced(len(bench.split), len(bench.split))
    pairs = list(zip(test.read(everywhere).images.split(1000), again.split(1000), strict=True))
    real = features_of(bench, features, test, everywhere)
    errors = torch.cat([squared_error_each(a, b) for a, b in pairs])
    return {
        "psnr_pooled": psnr_of(errors.mean()).item(),
        "psnr": psnr_of(errors).mean().item(),
        "ssim": torch.cat([ssim_each(a, b) for a, b in pairs]).mean().item(),
        f"reconstruction_{features.frechet_name}": frechet_distance(real.cpu(), features(again).cpu()),
    }


def row_picture(dataset: str, row: str) -> Path:
    """Return the picture of a row's first seed for the board."""
    return ROOT / f"docs/board_{slug(dataset)}_{row}.png"


def slug(dataset: str) -> str:
    return dataset.lower().replace("-", "_")


def run_rows(dataset: str, data: Path, work: Path, rows: Sequence[str], seeds: Sequence[int]) -> None:
    path = RESULTS / f"board_{slug(dataset)}.json"
    result: dict[str, Any] = read_json(path) if path.exists() else {"dataset": dataset, "protocol": __doc__, "rows": {}}
    for seed in seeds:
        for row in rows:
            by_seed = result["rows"].setdefault(row, {})
            if str(seed) not in by_seed:
                folder, beside = work / f"{row}-{seed}", work / f"{rows[0]}-{seed}"
                figures = peer(data, folder, seed, beside) if row == "peer" else ours(row, data, folder, seed)
                by_seed[str(seed)] = {"figures": figures, "record": record("benchmarks.board", PEERS)}
                write_json(path, result)
                drawn = folder / ("grid.png" if row == "peer" else "evaluation/pipeline-test-samples.png")
                if not row_picture(dataset, row).exists():
                    shutil.copy(drawn, row_picture(dataset, row))
                print(f"{row}, seed {seed}: {json.dumps(numbers(figures))}", flush=True)


# -------------------------------------------------------------------------------------------------------------- writing


COLUMNS = {
    "psnr_pooled": ("PSNR, dB", 2),
    "psnr": ("mean over images", 2),
    "ssim": ("SSIM", 3),
    "usage": ("codes used", 3),
    "distortion": ("distortion", 3),
    "learned_rate": ("rate", 3),
    "learned_bits_per_dim": ("**bits/dim**", 3),
    "independent_bits_per_dim": ("independent", 3),
    "uniform_bits_per_dim": ("uniform", 3),
    "prior_nll": ("nats a code", 3),
    "prior_saved": ("saved", 3),
    "fd_classifier": ("fd_classifier", 2),
    "kernel_distance": ("kernel", 3),
    "precision": ("precision", 3),
    "recall": ("recall", 3),
    "density": ("density", 3),
    "coverage": ("coverage", 3),
    "class_agreement": ("agreement", 3),
    "classification_accuracy_score": ("CAS", 3),
    "memorised_features": ("memorised", 3),
}
TABLES = {
    "What an image costs, in bits per dimension": (
        "distortion",
        "learned_rate",
        "learned_bits_per_dim",
        "independent_bits_per_dim",
        "uniform_bits_per_dim",
        "prior_nll",
        "prior_saved",
    ),
    "Reconstructions": ("psnr_pooled", "psnr", "ssim", "usage"),
    "10,000 drawn images": (
        "fd_classifier",
        "kernel_distance",
        "precision",
        "recall",
        "density",
        "coverage",
        "class_agreement",
        "classification_accuracy_score",
        "memorised_features",
    ),
}
AGREEMENT = Claim(
    text="class agreement, share of the classifier's accuracy on real images",
    relation="at least",
    threshold=0.9,
    value=lambda f: f["class_agreement"] / f["classifier_accuracy"],
)
SAVED = Claim(
    text="what the prior saves of the rate of independent codes",
    relation="at least",
    threshold=0.55,
    value=lambda f: f["prior_saved"],
)
CLAIMS = {
    "fashion_mnist": (
        Claim(
            text="PSNR at 7x7 codes, mean over images, dB",
            relation="at least",
            threshold=24.0,
            value=lambda f: f["psnr"],
        ),
        Claim(text="share of the 512 codes used", relation="at least", threshold=0.95, value=lambda f: f["usage"]),
        SAVED,
        AGREEMENT,
    ),
    "fashion_mnist peer": (
        Claim(
            text="PSNR ahead of the peer's, mean over images, dB",
            relation="at least",
            threshold=1.5,
            value=lambda f, p: f["psnr"] - p["psnr"],
        ),
        Claim(
            text="fd_classifier, share of the peer's",
            relation="at most",
            threshold=0.5,
            value=lambda f, p: f["fd_classifier"] / p["fd_classifier"],
        ),
        Claim(
            text="bits per dimension under the peer's",
            relation="at least",
            threshold=0.0,
            value=lambda f, p: p["learned_bits_per_dim"] - f["learned_bits_per_dim"],
        ),
    ),
    "fashion_mnist_fine": (SAVED, AGREEMENT),
    "cifar10_small peer": (
        Claim(
            text="bits per dimension under the peer's",
            relation="at least",
            threshold=0.0,
            value=lambda f, p: p["learned_bits_per_dim"] - f["learned_bits_per_dim"],
        ),
        Claim(
            text="fd_classifier, share of the peer's",
            relation="at most",
            threshold=1.0,
            value=lambda f, p: f["fd_classifier"] / p["fd_classifier"],
        ),
    ),
}


def cell(figures: Sequence[Figures], name: str) -> str:
    """Return the mean and, for several seeds, their standard deviation."""
    if any(name not in each for each in figures):
        return "–"
    digits, found = COLUMNS[name][1], mean_and_spread([{name: each[name]} for each in figures])[name]
    spread = f" ± {found['std']:.{digits}f}" if found["std"] is not None else ""
    return f"{found['mean']:.{digits}f}{spread}"


def board_table(rows: dict[str, list[Figures]], names: Sequence[str]) -> str:
    head = "| row | seeds | " + " | ".join(COLUMNS[name][0] for name in names) + " |\n|---|---|" + "---|" * len(names)
    lines = [
        f"| `{row}` | {len(each)} | " + " | ".join(cell(each, name) for name in names) + " |"
        for row, each in rows.items()
    ]
    return "\n".join([head, *lines])


def claims(rows: dict[str, list[Figures]]) -> list[str]:
    """Return whether each claim about a row holds for its worst seed; a figure that is missing is not judged."""
    found = []
    for key, several in CLAIMS.items():
        names = key.split()
        for claim in several if all(name in rows for name in names) else ():
            try:
                found.append(
                    f"{names[0]}: {verdict(claim.judge(list(zip(*(rows[name] for name in names), strict=False))))}"
                )
            except KeyError:
                found.append(f"{names[0]}: {claim.text}: not measured yet")
    return found


def stage_seconds(figures: Figures, stage: str) -> float:
    """Return the CPU seconds of a stage: of our command, or those that the peer was given."""
    ours = f"{stage}_cpu_seconds"
    return figures[ours] if ours in figures else figures.get(f"{stage}_seconds", 0)


def training_minutes(each: Sequence[Figures]) -> str:
    """Return the CPU minutes of training: both stages and the codes between them."""
    spent = [stage_seconds(figures, name) for figures in each for name in ("tokenizer", "encode", "prior")]
    return f"{sum(spent) / len(each) / 60:.0f}"


def dataset_section(result: dict[str, Any]) -> str:
    rows = {name: [each["figures"] for each in by_seed.values()] for name, by_seed in result["rows"].items() if by_seed}
    records = [each["record"] for by_seed in result["rows"].values() for each in by_seed.values()]
    machine, dates = records[-1]["machine"], sorted({each["date"] for each in records})
    commits = sorted({short(each["commit"]) for each in records})
    spent = ", ".join(f"`{name}` {training_minutes(each)}" for name, each in rows.items())
    accuracy = next(
        (e["classifier_accuracy"] for each in rows.values() for e in each if "classifier_accuracy" in e), None
    )
    real = next((e["fd_classifier_train"] for each in rows.values() for e in each if "fd_classifier_train" in e), None)
    known = (
        f"The classifier knows {accuracy:.1%} of the real test images; 10,000 training images, which it has seen, "
        f"are at {real:.2f}.\n\n"
        if accuracy is not None and real is not None
        else "\n\n"
    )
    measured = {name for row in rows.values() for figures in row for name in figures}
    shown = {title: names for title, names in TABLES.items() if measured.intersection(names)}
    tables = "\n\n".join(f"### {title}\n\n{board_table(rows, names)}" for title, names in shown.items())
    pictures = "\n\n".join(
        f"`{row}`\n\n![samples of {row}]({row_picture(result['dataset'], row).name})"
        for row in rows
        if row_picture(result["dataset"], row).exists()
    )
    judged = "".join(f"    {line}\n" for line in claims(rows))
    held = f"### What we say of it, for the worst seed\n\n{judged}\n" if judged else ""
    return (
        f"## {result['dataset']}\n\n{NOTES.get(result['dataset'], '')}Training took, in minutes of one core "
        f"({machine['cpu']}): {spent}. {known}{tables}\n\n{held}{pictures}\n\n"
        f"Measured {', '.join(dates)} at {', '.join(commits)}.\n"
    )


NOTES = {
    "CIFAR-10": "Minutes of one CPU core, no GPU being at hand: rows of `configs/cifar10_small`, not of "
    "`configs/cifar10`. Of the 60,000 images 189 were missing from the copy at hand; figures are of the 9,966 test "
    "images that were there. ",
    "Emoji": "Noto emoji at 32 x 32, unlabelled, for the pictures: no classifier looks at them, so there are no "
    "distances. Measured when the config read pictures with a margin, resampled (see "
    "[what a margin cost](bits.md#what-a-margin-cost)), against that view. ",
}


def heading(result: dict[str, Any]) -> str:
    """Return the text on CIFAR-10's direction: the points of benchmarks/cifar10_bits.py, their fit, the full run."""
    rows = "\n".join(
        f"| {p['steps']} | {p['training_cpu_seconds']:.0f} | {p['distortion']:.3f} | {p['learned_rate']:.3f} | "
        f"**{p['learned_bits_per_dim']:.3f}** | {p['independent_bits_per_dim']:.3f} |"
        for p in result["points"]
    )
    fit, bits = result["fit"], [p["learned_bits_per_dim"] for p in result["points"]]
    said = (
        (
            f"A curve a + b S^−c over the steps S through these points tends to {fit['a']:.2f}; few points, of a model "
            "that a core can train in minutes: a direction, no promise."
        )
        if fit
        else (
            "Each doubling of both took "
            + ", ".join(f"{a - b:.2f}" for a, b in pairwise(bits))
            + " bits off: the curve has not bent, so these points say the direction and not where it ends."
        )
    )
    return (
        "## CIFAR-10: where bits per dimension are heading\n\n"
        "The paper's 4.67 bits/dim (van den Oord et al. 2017; its VAE 4.51) is for a GPU: no GPU was at hand, so the "
        "preset `cifar10_bits` has not been trained. Its small brother, 96 channels and a prior of 4 x 192, was, on "
        "one CPU core for minutes, by other rates and batches, on the first 10,000 training images without their "
        "mirrors (`python -m benchmarks.cifar10_bits`, one seed, the first 1,000 test images, commit "
        f"{short(result['commit'])}):\n\n"
        "| steps of each | CPU s | distortion | rate | bits/dim | independent |\n|---|---|---|---|---|---|\n"
        f"{rows}\n\n{said}\n\n![bits per dimension over training time](cifar10_bits.png)\n\n"
        "In earnest: `python pipeline/run.py configs/cifar10_bits`, then the three `evaluate.py`.\n"
    )


INTRODUCTION = """# The board

Figures of our presets, and of a chain of two PyPI libraries (`peer`) in the same CPU time, on images anyone can get.
Written by `python -m benchmarks.board write` from `benchmarks/results/board_*.json`, which hold every figure, the
command, the versions and the machine. Mean and standard deviation over seeds. Everything is measured on the test split
by the product's own commands, `tokenizer/evaluate.py`, `prior/evaluate.py` and `pipeline/evaluate.py`; nothing was
chosen on it.

**bits/dim** is distortion, −log2 p(pixels | codes), plus rate, −log2 p(codes), over the number of pixel values: an
upper bound of −log2 p(image), which an arithmetic coder turns into bytes (`pipeline/compress.py`). *independent* and
*uniform* are the sum with the codes paid for by their frequency, or all alike, and *saved* what the learned prior saves
of the former's rate. A class-conditional prior pays for the class. The peer has no p(pixels | codes); it is given the
best Gaussian, its variance that of its error on the images held out of train.

**PSNR** is of the squared error pooled over all test images, as papers report it; the mean over images of each one's
own stands beside it, and is higher. Of the peer the mean alone was kept.

**The peer's sizes** are those of the libraries' READMEs, cut to what a CPU trains in minutes
(`benchmarks/peer_chain.py`). Its tokenizer has 141 thousand weights on Fashion-MNIST and 143 on CIFAR-10, a fifteenth
of those of `fashion_mnist` and `cifar10_small`; its prior has 6.6 million, 4.6 times theirs. It draws without guidance
and with its library's default top-k; ours draw with guidance 1.25, as their presets say, but for `emoji_small`. Between
one encoder and decoder vector-quantize-pytorch has a mean PSNR of 22.59 dB on Fashion-MNIST by its first example and
23.17 as its README advises, where our `vq` has 22.94 ([quantizers](quantizers.md#all-of-them-at-equal-rate)): so most
of the 2.7 dB between the rows below is the network's.
"""


def write() -> None:
    results = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("board_*.json"), reverse=True)]
    bits = RESULTS / "cifar10_bits.json"
    further = [heading(read_json(bits))] if bits.exists() else []
    text = "\n".join([INTRODUCTION, *(dataset_section(result) for result in results), *further])
    (ROOT / "docs/board.md").write_text(text, encoding="utf-8")
    print(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    commands.add_parser("write", help="docs/board.md from the results")
    run = commands.add_parser("run", help="train and measure rows")
    run.add_argument("--dataset", required=True, help="its name on the board")
    run.add_argument("--data", type=Path, required=True, help="folder that datasets.load_dataset reads")
    run.add_argument("--work", type=Path, required=True, help="folder of the runs, to keep")
    run.add_argument("--rows", nargs="+", required=True, help="folders of configs/, or peer")
    run.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    if args.what == "write":
        write()
    else:
        run_rows(args.dataset, args.data.resolve(), args.work.resolve(), args.rows, args.seeds)


if __name__ == "__main__":
    main()

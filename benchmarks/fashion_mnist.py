"""Fashion-MNIST end to end: our chain against a plain vector-quantize-pytorch + x-transformers chain, seed by seed.

Both chains: 7x7 codes of K = 512, 95% of the train split, 2 CPU cores and no accelerator, the same wall-clock. Ours
runs first; the peer (`benchmarks/peer_chain.py`) then trains its tokenizer for as long as ours took to start, train and
encode, and its prior for as long as ours to start and train. Each draws 10,000 images, 1,000 a class. They are measured
with one classifier trained on the real train split (`metrics/classifier.py`): `fd_classifier` is the Fréchet
distance of its features to those of the 10,000 test images, `class_agreement` the share of images it takes for the
class asked for. 10,000 real train images, scored alike, are the floor. A claim holds when it holds for the worst seed.

    python -m benchmarks.fashion_mnist --data FOLDER --work DIR [--seeds 0 1 2] [--only ours|peer|figures] [--out JSON]

Reads FOLDER with `datasets.load_dataset` (columns image, label). Writes DIR/ours-SEED, DIR/peer-SEED, the classifier,
and the result to JSON. The same command goes on with the first part that has not ended; a new DIR starts afresh.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from benchmarks.claim import Claim, mean_and_spread, verdict
from benchmarks.images import LabelledImages, Splits, load_grey, per_class, psnr, psnr_pooled, read_npz, write_grid, write_npz
from common.record import record
from metrics.classifier import Classifier, LabelledSource, Recipe, load_or_train
from metrics.distances import frechet_distance
from tokenizer.images import to_float, to_uint8
from tokenizer.model import Tokenizer

ROOT = Path(__file__).parents[1]
CORES = 2
PER_CLASS = 1000
Figures = dict[str, Any]


# ----------------------------------------------------------------------------------------------------- the two chains


def pipeline_command(data: Path, folder: Path, seed: int) -> list[str]:
    """Our chain, both stages and its own evaluation. Leaves summary.json in the folder."""
    python = [sys.executable, "pipeline/run.py", "configs/fashion_mnist"]
    return [*python, "--images", str(data), "--run", str(folder), "--seed", str(seed)]


def generate_command(folder: Path, count: int) -> list[str]:
    """Our samples, the labels in equal parts. Leaves npz/samples.npz in the folder."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]
    options = ["--num-images", str(count), "--format", "npz", "--output", str(folder / "npz")]
    return [*launch, "pipeline/generate.py", str(folder), *options]


def peer_command(data: Path, folder: Path, seed: int, ours: Figures) -> list[str]:
    """The peer, in our wall-clock. Leaves figures.json, samples.npz and grid.png in the folder."""
    tokenizer_seconds = ours["tokenizer_seconds"] + ours["encode_seconds"]
    budget = ["--tokenizer-seconds", str(tokenizer_seconds), "--prior-seconds", str(ours["prior_seconds"])]
    python = [sys.executable, "-m", "benchmarks.peer_chain", "--data", str(data), "--out", str(folder)]
    return [*python, *budget, "--seed", str(seed)]


def once(command: Sequence[str], ended: Path) -> None:
    """Run a command unless it has ended before; its wall-clock seconds then stand in `ended`."""
    if not ended.exists():
        print("+", *command, flush=True)
        # Two threads and no accelerator for every part of either chain, whatever the machine has besides.
        fixed = {"OMP_NUM_THREADS": str(CORES), "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
        start = time.perf_counter()
        subprocess.run(command, check=True, cwd=ROOT, env=os.environ | fixed)
        ended.write_text(json.dumps({"wall_seconds": time.perf_counter() - start}) + "\n")


def numbers(file: Path) -> Figures:
    """The numbers of a JSON file that a part of the benchmark left."""
    if not file.exists():
        raise FileNotFoundError(f"there is no {file}; run the part that leaves it first, or all by giving no --only")
    values = json.loads(file.read_text())
    return {key: value for key, value in values.items() if type(value) in (int, float) and key != "seed"}


# ------------------------------------------------------------------------------------------------------- the measure


class Ruler:
    """A classifier and the features of the real test images, which all images are measured against."""

    def __init__(self, classifier: Classifier, test: LabelledImages):
        self.classifier, self.test = classifier, test
        self.test_features = classifier.features(channels_first(test.images))

    def distance(self, split: LabelledImages) -> float:
        return frechet_distance(self.classifier.features(channels_first(split.images)), self.test_features)

    def measure(self, split: LabelledImages) -> Figures:
        agreement = self.classifier.agreement(channels_first(split.images), split.labels)
        return {"fd_classifier": self.distance(split), "class_agreement": agreement}


def channels_first(images: Tensor) -> Tensor:
    return rearrange(images, "b h w c -> b c h w").contiguous()


def trained_classifier(splits: Splits, work: Path) -> tuple[Classifier, dict[str, Any]]:
    """The classifier that every chain and seed is measured with, and what is known of it."""
    sources = [LabelledSource.in_memory(channels_first(split.images), split.labels) for split in splits]
    content = hashlib.sha256(splits.train.images.contiguous().numpy()).hexdigest()
    recipe = Recipe(mirror=True)
    classifier = load_or_train(*sources, content, work, recipe)
    known = {"train_seconds": classifier.config.train_seconds, "accuracy_test": classifier.accuracy}
    return classifier, {"recipe": recipe.model_dump(), **known}


def read_samples(file: Path, classes: int) -> LabelledImages:
    """Samples as grey images. Raises `ValueError` when they are not `PER_CLASS` of each class."""
    images, labels = read_npz(file)
    counts = torch.bincount(labels, minlength=classes).tolist()
    if counts != [PER_CLASS] * classes:
        raise ValueError(f"{file} must hold {PER_CLASS} images of each of {classes} classes, got {counts}")
    if not torch.equal(images, images[..., :1].expand_as(images)):
        raise ValueError(f"{file} must hold grey images, got {images.shape[-1]} channels that differ")
    return LabelledImages(images[..., :1], labels)


def write_our_reconstructions(folder: Path, test: LabelledImages) -> None:
    """The test split through our tokenizer, in the layout the peer leaves its own in."""
    tokenizer = Tokenizer.from_pretrained(folder / "tokenizer" / "model").eval()
    pixels = to_float(rearrange(test.images, "b h w c -> b c h w"))
    decoded = torch.cat([to_uint8(tokenizer.decode(tokenizer.encode(batch))) for batch in pixels.split(500)])
    images = rearrange(decoded, "b c h w -> b h w c")
    write_npz(folder / "reconstructions.npz", LabelledImages(images, test.labels))


def measure_chain(folder: Path, samples: LabelledImages, ruler: Ruler) -> Figures:
    """What one ruler says of a chain's samples and of its reconstructions of the test split."""
    write_grid(folder / "samples.png", samples)
    test, again = ruler.test.images, read_npz(folder / "reconstructions.npz")
    return ruler.measure(samples) | {
        "fd_classifier_reconstructions": ruler.distance(again),
        "psnr_reconstructions": psnr(test, again.images),
        "psnr_pooled_reconstructions": psnr_pooled(test, again.images),
    }


# -------------------------------------------------------------------------------------------------------- the claims


CLAIMS = (
    Claim(text="PSNR on test at 7x7 codes, dB", relation="at least", threshold=24.0,
          value=lambda ours, peer: ours["psnr_test"]),
    Claim(text="share of the 512 codes used on test", relation="at least", threshold=0.95,
          value=lambda ours, peer: ours["usage_test"]),
    Claim(text="prior NLL under the i.i.d. marginal's, share of it", relation="at least", threshold=0.5,
          value=lambda ours, peer: 1 - ours["nll_test"] / ours["marginal_nll_test"]),
    Claim(text="PSNR on test ahead of the peer's, dB", relation="at least", threshold=1.5,
          value=lambda ours, peer: ours["psnr_test"] - peer["psnr_test"]),
    Claim(text="share of codes used on test, ours less the peer's", relation="at least", threshold=0.0,
          value=lambda ours, peer: ours["usage_test"] - peer["usage_test"]),
    Claim(text="fd_classifier, ours as a share of the peer's", relation="at most", threshold=0.5,
          value=lambda ours, peer: ours["fd_classifier"] / peer["fd_classifier"]),
    Claim(text="class agreement, ours less the peer's", relation="more than", threshold=0.0,
          value=lambda ours, peer: ours["class_agreement"] - peer["class_agreement"]),
)  # fmt: skip


def run_chains(data: Path, work: Path, seeds: Sequence[int], only: str | None) -> None:
    for seed in seeds:
        ours, peer = work / f"ours-{seed}", work / f"peer-{seed}"
        if only != "peer":
            once(pipeline_command(data, ours, seed), work / f"ours-{seed}-ended.json")
        if only != "ours":
            budget = numbers(ours / "summary.json")
            once(peer_command(data, peer, seed, budget), work / f"peer-{seed}-ended.json")


def measure(data: Path, work: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """Draws our samples and measures both chains of every seed: the whole result but its record."""
    splits = load_grey(data)
    classes = int(splits.train.labels.max()) + 1
    classifier, known = trained_classifier(splits, work)
    ruler, real = Ruler(classifier, splits.test), per_class(splits.train, PER_CLASS)
    by_seed = {}
    for seed in seeds:
        ours, peer = work / f"ours-{seed}", work / f"peer-{seed}"
        once(generate_command(ours, classes * PER_CLASS), work / f"samples-{seed}-ended.json")
        write_our_reconstructions(ours, splits.test)
        by_seed[str(seed)] = {
            "ours": numbers(ours / "summary.json") | numbers(work / f"ours-{seed}-ended.json")
            | measure_chain(ours, read_samples(ours / "npz" / "samples.npz", classes), ruler),
            "peer": numbers(peer / "figures.json") | numbers(work / f"peer-{seed}-ended.json")
            | measure_chain(peer, read_samples(peer / "samples.npz", classes), ruler),
        }  # fmt: skip
    chains = {chain: [figures[chain] for figures in by_seed.values()] for chain in ("ours", "peer")}
    return {
        "claims": [claim.judge(list(zip(*chains.values(), strict=True))) for claim in CLAIMS],
        "summary": {chain: mean_and_spread(per_seed) for chain, per_seed in chains.items()},
        "real_train": ruler.measure(real),
        "classifier": known,
        "seeds": by_seed,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="everything but the result; a folder to keep")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", choices=("ours", "peer", "figures"), help="one part, for all seeds")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/fashion_mnist.json"))
    args = parser.parse_args()
    data, work = args.data.resolve(), args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])  # and with it every part's
    torch.set_num_threads(CORES)

    if args.only != "figures":
        run_chains(data, work, args.seeds, args.only)
    if args.only in (None, "figures"):
        protocol = (__doc__ or "").split("\n\n")[1].replace("\n", " ")
        peers = ("vector-quantize-pytorch", "x-transformers")
        result = record("benchmarks.fashion_mnist", peers) | {"protocol": protocol} | measure(data, work, args.seeds)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=2) + "\n")
        print(*map(verdict, result["claims"]), sep="\n")


if __name__ == "__main__":
    main()

"""The codes in use on every grid: multi-scale and VQ-VAE-2 tokenizers as shipped, and without what keeps codes alive.

    python -m benchmarks.grid_use --fashion_mnist FOLDER_OF_PARQUET --cifar10 FOLDER_OF_PARQUET --work DIR --seeds 0 1 2

Protocol: the presets of a data set with a small network (patches of 4 pixels, one level of 64 channels), 512 codes of 8
numbers a grid, `STEPS` steps of 64 images, fp32, one thread. On the test split the codes that a grid uses are counted
against those that as many codes drawn evenly would reach, nearly all 512. `plain` rows have the same network and
losses without the start by K-means, the revival of dead codes and the second fit, of the first seed alone.

Writes benchmarks/results/grid_use.json after every seed of every row; the same command goes on with what is missing.
"""

import argparse
import json
import runpy
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.claim import Claim, verdict
from benchmarks.timing import ROOT, once
from smalti.common.evaluation_file import read_evaluations
from smalti.common.folder import read_json, write_json
from smalti.common.record import record

RESULT = ROOT / "benchmarks/results/grid_use.json"
STEPS = 300
KINDS = {"multiscale": "scales", "vqvae2": "vqvae2"}  # and the end of their presets' names
DATASETS = ("fashion_mnist", "cifar10")
SMALL: Mapping[str, Sequence[Any]] = {
    "model.patch": [4],
    "model.channels": [64],
    "model.blocks": [1],
    "model.quantizer.codebook_size": [512],
    "steps": [STEPS],
    "batch_size": [64],
    "lr": [2e-3],
    "warmup": [100],
    "ema_decay": [0.999],
    "evaluate_every": [STEPS],
    "save_every": [STEPS],
    "precision": ["fp32"],
}
CLAIM = Claim(
    text="as shipped, the least share of reachable codes that a grid uses on test",
    relation="at least",
    threshold=0.95,
    value=lambda figures: min(figures["used_of_reachable"]),
)


def train_plain(argv: Sequence[str]) -> None:
    """Run tokenizer/train.py with a start by random vectors and no second fit; give it --revive_below 0."""
    from smalti.tokenizer.multiscale.model import MultiscaleTokenizer
    from smalti.tokenizer.vqvae2.model import VQVAE2

    for kind in (MultiscaleTokenizer, VQVAE2):
        kind.begin = lambda *_: None  # type: ignore[method-assign]
        kind.refit = lambda *_: ()  # type: ignore[method-assign]
    sys.argv = ["tokenizer/train.py", *argv]
    runpy.run_path(str(ROOT / "tokenizer/train.py"), run_name="__main__")


def measure(kind: str, dataset: str, data: Path, run: Path, seed: int, plain: bool) -> dict[str, Any]:
    """Train a row, and return the codes that each grid uses on test, and its PSNR."""
    config = f"configs/{dataset}_{KINDS[kind]}/tokenizer.yaml"
    settings = {**SMALL, "run": [run], "images.source": [data], "seed": [seed]}
    words = [str(word) for name, values in settings.items() for word in (f"--{name}", *values)]
    script = ["-m", "benchmarks.grid_use", "plain", config, "--revive_below", "0"] if plain else []
    once([sys.executable, *(script or ["tokenizer/train.py", config]), *words], run / ".trained.json")
    evaluate = [sys.executable, "tokenizer/evaluate.py", str(run), "--features.kind", "none"]
    once(evaluate, run / ".evaluated.json")
    (found,) = read_evaluations(run)
    figures = found["figures"]
    both = zip(figures["usage_by_codebook"], figures["reachable_by_codebook"], strict=True)
    used = [share / reach for share, reach in both]
    return {"used_of_reachable": used, "psnr_pooled": figures["psnr_pooled"]}


def main() -> None:
    if sys.argv[1:2] == ["plain"]:
        train_plain(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for dataset in DATASETS:
        parser.add_argument(f"--{dataset}", type=Path, help="the folder of its images")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    result: dict[str, Any] = read_json(RESULT) if RESULT.exists() else {"rows": {}}
    result["protocol"] = __doc__
    for seed in args.seeds:
        for dataset in DATASETS:
            for kind in KINDS:
                for plain in (False, True) if seed == args.seeds[0] else (False,):
                    row = result["rows"].setdefault(f"{dataset}, {kind}{', plain' if plain else ''}", {"seeds": {}})
                    if getattr(args, dataset) is None or str(seed) in row["seeds"]:
                        continue
                    run = args.work.resolve() / f"{dataset}-{kind}{'-plain' if plain else ''}-{seed}"
                    figures = measure(kind, dataset, getattr(args, dataset).resolve(), run, seed, plain)
                    row["seeds"][str(seed)] = {"figures": figures, "record": record("benchmarks.grid_use")}
                    shipped = [
                        (each["figures"],)
                        for name, row in result["rows"].items()
                        if not name.endswith("plain")
                        for each in row["seeds"].values()
                    ]
                    result["claims"] = [CLAIM.judge(shipped)]
                    write_json(RESULT, result)
                    print(f"{dataset}, {kind}{', plain' * plain}, seed {seed}: {json.dumps(figures)}", flush=True)
    print(*map(verdict, result["claims"]), sep="\n")


if __name__ == "__main__":
    main()

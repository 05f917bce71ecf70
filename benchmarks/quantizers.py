"""Every quantizer at equal rate on Fashion-MNIST and CIFAR-10, beside vector-quantize-pytorch, seed by seed.

    python -m benchmarks.quantizers --fashion_mnist FOLDER --cifar10 FOLDER --work DIR --seeds 0 1 2

Protocol: the same encoder and decoder (two levels of 32 and 64 channels over 2 x 2 pixels), the same images in the same
order, steps, batch and learning rates for all; 9 bits a place of the grid (7 x 7 or 8 x 8) for all: K = 512, three
numbers of 8 levels, 9 signs, or three depths of 8. Ours with shipped defaults otherwise. Figures are of the averaged
weights on the whole test split, never seen before; 5% of train is held out and not used. K-means is of 4 x 4 patches,
without a network. Seconds of ours are of the command, with its start.

The peer stands between that same encoder and decoder in two settings: as the first example of its README (decay 0.8,
commitment weight 1), and with what its README advises against dead codes (8 dimensions, cosine similarity, K-means
start, dead codes replaced). Writes benchmarks/results/quantizers.json; finished jobs in --work are not run again.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from accelerate import Accelerator
from einops import rearrange
from torch import Tensor, nn

from smalti.common.config import build
from smalti.common.data.config import ImagesConfig
from smalti.common.data.images import ImageSet, open_images
from smalti.common.data.pixels import to_float
from smalti.common.ema import EMA
from smalti.common.launch import make_accelerator
from smalti.common.record import record
from smalti.common.row_order import RowOrder, Share, batches
from smalti.common.schedule import warmup_cosine
from smalti.tokenizer.base import ImageTokenizer, LikelihoodTokenizer
from smalti.tokenizer.codebooks.usage import entropy_bits, perplexity, usage
from smalti.tokenizer.config import TrainConfig
from smalti.tokenizer.criterion.likelihood.base import build_likelihood
from smalti.tokenizer.model import load_tokenizer
from smalti.tokenizer.network.convolutional import ConvolutionalDecoder, ConvolutionalEncoder
from smalti.tokenizer.split_evaluation import evaluate_split
from smalti.tokenizer.vqvae.config import VQVAEConfig

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks/results/quantizers.json"
IMAGES = {"fashion_mnist": ((28, 28), 1), "cifar10": ((32, 32), 3)}
OURS: dict[str, dict[str, Any]] = {
    "vq": {"kind": "vq"},
    "vq, rotation": {"kind": "vq", "gradient": "rotation"},
    "vq_ema": {"kind": "vq_ema"},
    "simvq": {"kind": "simvq"},
    "gumbel": {"kind": "gumbel"},
    "fsq": {"kind": "fsq"},
    "lfq": {"kind": "lfq"},
    "residual": {"kind": "residual", "code_depth": 3, "each": {"kind": "vq", "codebook_size": 8}},
}
PEERS: dict[str, dict[str, Any]] = {
    "vector-quantize-pytorch, first example": {"decay": 0.8, "commitment_weight": 1.0},
    "vector-quantize-pytorch, advised": {
        "codebook_dim": 8,
        "use_cosine_sim": True,
        "kmeans_init": True,
        "threshold_ema_dead_code": 2,
    },
}
NAMES = [*OURS, "kmeans", *PEERS]
WITHOUT_TABLE = {"fsq", "lfq"}
BITS = 9  # a place of the grid
USAGE_WANTED = 0.95
BATCH_SIZE, LR, WARMUP = 64, 2e-3, 50
TRAINING = {"batch_size": BATCH_SIZE, "lr": LR, "warmup": WARMUP}


def tokenizer_settings(dataset: str, quantizer: dict[str, Any]) -> dict[str, Any]:
    size, channels = IMAGES[dataset]
    return {"image_size": [*size], "image_channels": channels, "patch": 2, "channels": [32, 64], "quantizer": quantizer}


def fit_ours(dataset: str, name: str, source: str, run: Path, seed: int, steps: int) -> ImageTokenizer:
    """Train as a user does, by the command, and return the tokenizer."""
    script, settings = "tokenizer/train.py", {"run": str(run), "images": {"source": source}, "seed": seed}
    if name == "kmeans":
        size, channels = IMAGES[dataset]
        script = "tokenizer/cluster.py"
        settings["model"] = {"image_size": [*size], "image_channels": channels, "patch": 4, "codebook_size": 2**BITS}
    else:
        intervals = {"log_every": 50, "evaluate_every": steps, "save_every": steps, "precision": "auto"}
        settings |= {**TRAINING, **intervals, "steps": steps, "model": tokenizer_settings(dataset, OURS[name])}
    run.mkdir(parents=True, exist_ok=True)
    (run / "settings.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    subprocess.run([sys.executable, script, str(run / "settings.yaml")], check=True, cwd=ROOT)
    return load_tokenizer(run / "tokenizer/model")


class PeerTokenizer(LikelihoodTokenizer):
    """Our encoder and decoder around the peer's quantizer."""

    config: VQVAEConfig

    def __init__(self, dataset: str, settings: dict[str, Any]):
        from vector_quantize_pytorch import VectorQuantize

        super().__init__()
        shape = {"kind": "vq", "codebook_size": 2**BITS, "code_dim": 64}  # the quantizer of it is not built
        self.config = build(VQVAEConfig, tokenizer_settings(dataset, shape), "peer")
        c, channels = self.config, self.config.image_channels
        self.encoder = ConvolutionalEncoder(c, channels, c.quantizer.dim)
        self.decoder = ConvolutionalDecoder(c, c.quantizer.dim, c.likelihood.outputs(channels))
        self.quantizer = VectorQuantize(dim=64, codebook_size=2**BITS, **settings)
        self.likelihood = build_likelihood(self.config.likelihood, self.config.image_channels)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        z_q, _, loss = self._quantize(images)
        return self.decoder(z_q), loss.sum()

    def _quantize(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z_e = self.encoder(images)
        z_q, indices, loss = self.quantizer(rearrange(z_e.float(), "b d h w -> b (h w) d"))
        h, w = self.config.grid
        return rearrange(z_q, "b (h w) d -> b d h w", h=h), indices.view(-1, h, w), loss

    def _encode(self, images: Tensor, condition: Tensor | None = None) -> Tensor:
        return self._quantize(images)[1]

    def _output(self, codes: Tensor, condition: Tensor | None = None) -> Tensor:
        vectors = self.quantizer.get_output_from_indices(codes)
        return self.decoder(rearrange(vectors, "b (h w) d -> b d h w", h=self.config.grid[0]))


def fit_peer(
    dataset: str, name: str, images: ImageSet, seed: int, steps: int, accelerator: Accelerator
) -> PeerTokenizer:
    torch.manual_seed(seed)
    model = PeerTokenizer(dataset, PEERS[name])
    ema, split = EMA(model, TrainConfig.model_fields["ema_decay"].default), images.splits["train"]
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.99), weight_decay=1e-4)
    reader = batches(split, RowOrder(len(split), seed, Share(batch_size=BATCH_SIZE), 0))
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = warmup_cosine(step, peak=LR, warmup=WARMUP, total=steps)
        pixels = to_float(next(reader).images)
        with accelerator.autocast():
            reconstruction, quantizer_loss = model(pixels)
        (F.mse_loss(reconstruction.float(), pixels) + quantizer_loss.float()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.update(model, step)
    return ema.model


def job(dataset: str, name: str, source: str, seed: int, steps: int, work: Path) -> None:
    """Train and evaluate one tokenizer, and write its figures into `work`."""
    size, channels = IMAGES[dataset]
    accelerator, began = make_accelerator("auto"), time.perf_counter()
    images = open_images(build(ImagesConfig, {"source": source}, "images"), size, channels)
    tokenizer: ImageTokenizer
    if name in PEERS:
        tokenizer = fit_peer(dataset, name, images, seed, steps, accelerator)
    else:
        tokenizer = fit_ours(dataset, name, source, folder_of(work, dataset, name, seed), seed, steps)
    found = evaluate_split(tokenizer.eval(), images.splits["test"], accelerator)
    assert found.counts is not None  # both have codes
    figures = {
        "psnr_pooled": found.psnr_pooled,
        "psnr": found.psnr,
        "usage": usage(found.counts),
        "perplexity": perplexity(found.counts),
        "bits_per_image": tokenizer.config.layout.length * math.log2(tokenizer.config.layout.codebook_size),
        "entropy_bits_per_image": tokenizer.config.layout.length * entropy_bits(found.counts),
        "seconds": round(time.perf_counter() - began, 1),
    }
    path = folder_of(work, dataset, name, seed) / "figures.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures))


def folder_of(work: Path, dataset: str, name: str, seed: int) -> Path:
    return work / dataset / name.replace(", ", "-").replace(" ", "_") / str(seed)


def summary(runs: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Return of each figure the mean, the standard deviation over seeds, and each seed's value."""
    return {
        name: {
            "mean": round(mean(run[name] for run in runs), 4),
            "std": round(stdev(run[name] for run in runs), 4) if len(runs) > 1 else None,
            "seeds": [round(run[name], 4) for run in runs],
        }
        for name in runs[0]
    }


def print_table(results: dict[str, dict[str, Any]]) -> None:
    for dataset, methods in results.items():
        print(f"\n{dataset:42} PSNR dB        usage %  (least)  perplexity  bits/image  of entropy")
        for name, f in methods.items():
            least, bits, entropy = (
                min(f["usage"]["seeds"]),
                f["bits_per_image"]["mean"],
                f["entropy_bits_per_image"]["mean"],
            )
            print(
                f"{name:42} {f['psnr']['mean']:6.2f} ± {f['psnr']['std'] or 0:4.2f}  {100 * f['usage']['mean']:6.1f}  "
                f"{100 * least:6.1f}  {f['perplexity']['mean']:8.1f}   {bits:8.0f}  {entropy:8.0f}"
            )


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the options of a command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for dataset in IMAGES:
        parser.add_argument(f"--{dataset}", help="its folder of Parquet files")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--names", nargs="+", default=NAMES, choices=NAMES)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="trainings at once, each on one thread")
    parser.add_argument("--job", nargs=3, metavar=("DATASET", "NAME", "SEED"), help="this one training alone")
    return parser.parse_args(argv)


def run_jobs(c: argparse.Namespace, argv: Sequence[str], datasets: Collection[str]) -> dict[str, dict[str, Any]]:
    """Run the jobs that have not run yet, each in its own process, and return the summary of each method."""

    def start(task: tuple[str, str, int]) -> None:
        dataset, name, seed = task
        if not (folder_of(c.work, dataset, name, seed) / "figures.json").exists():
            command = [sys.executable, "-m", "benchmarks.quantizers", *argv, "--job", dataset, name, str(seed)]
            subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
            print(f"done: {dataset}, {name}, seed {seed}", flush=True)

    tasks = [(dataset, name, seed) for dataset in datasets for name in c.names for seed in c.seeds]
    with ThreadPoolExecutor(c.jobs) as pool:
        list(pool.map(start, tasks))
    results: dict[str, dict[str, Any]] = {dataset: {} for dataset in datasets}
    for dataset, name, _ in tasks[:: len(c.seeds)]:
        files = [folder_of(c.work, dataset, name, seed) / "figures.json" for seed in c.seeds]
        results[dataset][name] = summary([json.loads(file.read_text()) for file in files])
    return results


def usage_check(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the claim that every codebook of ours stays in use, and whether it holds."""
    least = {
        f"{dataset}: {name}": min(figures["usage"]["seeds"])
        for dataset, methods in results.items()
        for name, figures in methods.items()
        if name not in WITHOUT_TABLE and name not in PEERS
    }
    wanted = f"usage >= {USAGE_WANTED} on test for every seed"
    return {"wanted": wanted, "least": least, "met": min(least.values()) >= USAGE_WANTED}


def main(argv: Sequence[str]) -> None:
    c = parse(argv)
    sources = {dataset: getattr(c, dataset) for dataset in IMAGES if getattr(c, dataset)}
    if c.job:
        dataset, name, seed = c.job
        return job(dataset, name, sources[dataset], int(seed), c.steps, c.work)
    results = run_jobs(c, argv, sources)
    print_table(results)
    check = usage_check(results)
    rates = {"bits_a_place": BITS, "threads_a_training": 1}
    protocol = {"split": "test", "steps": c.steps, **TRAINING, "seeds": c.seeds, **rates}
    written = record("benchmarks.quantizers", ["vector-quantize-pytorch"])
    body = {**written, "protocol": protocol, "check": check, "results": results}
    if not check["met"]:
        print(f"\nnot met: {check}")
    RESULT.write_text(json.dumps(body, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])

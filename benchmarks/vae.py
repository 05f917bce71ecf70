"""The Gaussian VAE and its relatives on MNIST, binarized anew in each epoch: every row for about as much time.

    python -m benchmarks.vae --data FOLDER_OF_PARQUET --work DIR --minutes 3.4 --seeds 0 1 2

Protocol: one network (fully connected, tanh, 2 hidden layers of 400, 40 numbers an image, Bernoulli), AdamW at 1e-3
with half a cosine, batches of 128, images neither shifted nor mirrored. A row differs in its posterior or its
objective alone, and no setting of a row was searched for. A row takes as many steps as `RATES` gives for its minutes,
those of a core with AVX2 on which the row `diagonal` takes 50 a second; rows of as many minutes take about as much time
on any core. What the training command took, in CPU seconds of one thread, start and evaluations included, stands
beside it. Cores that share their units with a busy neighbour take up to 1.4 times as long.

Figures are of the test split, drawn once: −ELBO, rate and distortion in nats by `DRAWS` draws of z, −IWAE by `MANY`
draws of every tenth image, active units, MMD² of q(z) to N(0, I). Drawn images are draws of pixels, as the test images
are, and are compared with these by the Fréchet distance on a classifier's features: with z from N(0, I), and from a
mixture of 10 Gaussians with full covariance fitted to the training images' latents, moments where there are moments.

`--peer` adds Pythae's VAE (benchmarks/vae_peer.py) for as many CPU seconds as the row `diagonal` took.

Writes benchmarks/results/vae.json, in which each row has the commit and the machine it was measured on and, as
`trained_at`, the commits at which it was trained (rows of before November 30, 2026 have that of the measuring alone);
rows that were not asked for stay. Of all rows it draws docs/vae_samples.png. The same command goes on where it was
interrupted.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.claim import mean_and_spread
from benchmarks.timing import ROOT, commits_of, once
from smalti.common.data.pixels import to_float, to_uint8
from smalti.common.data.split import ImageSplit
from smalti.common.folder import read_json, write_json
from smalti.common.launch import make_accelerator
from smalti.common.plots import image_grid, save_picture
from smalti.common.record import record
from smalti.common.spacing import evenly_spaced
from smalti.metrics.distances import frechet_distance
from smalti.pipeline.evaluation.bench import features_of, open_bench
from smalti.pipeline.evaluation.settings import Settings
from smalti.prior.model import load_prior
from smalti.prior.sampling_config import SamplingConfig
from smalti.tokenizer.base import LikelihoodTokenizer
from smalti.tokenizer.model import load_tokenizer

RESULT = ROOT / "benchmarks/results/vae.json"
PICTURE = ROOT / "docs/vae_samples.png"
LOOKS = 4  # evaluations on the validation split in a training
DRAWS = 10  # of z for each test image
MANY, TENTH = 500, 10  # draws of z for each tenth test image
START = 20  # seconds before the first step and after the last
DRAWN = 5000  # images that are compared
PART = 500
FIGURES = ("negative_elbo", "rate", "distortion", "active_units", "mmd_to_prior")

SHARED: Mapping[str, Any] = {
    "images.binarize": "dynamic",
    "images.shift": 0,
    "images.validation_share": 0.05,
    "model.kind": "vae",
    "model.image_size": (28, 28),
    "model.network.kind": "mlp",
    "model.network.hidden": (400, 400),
    "model.latent_dim": 40,
    "model.likelihood.kind": "bernoulli",
    "batch_size": 128,
    "lr": 1e-3,
}
POSTERIOR, OBJECTIVE = "model.posterior.kind", "model.objective.kind"
ROWS: Mapping[str, Mapping[str, Any]] = {
    "autoencoder": {POSTERIOR: "none", OBJECTIVE: "reconstruction"},
    "KL left out": {OBJECTIVE: "reconstruction"},
    "isotropic": {"model.posterior.covariance": "isotropic"},
    "diagonal": {},
    "full": {"model.posterior.covariance": "full"},
    "mixture": {POSTERIOR: "mixture"},
    "flow": {POSTERIOR: "flow"},
    "IWAE-5": {OBJECTIVE: "iwae", "model.objective.samples": 5},
    "IWAE-50": {OBJECTIVE: "iwae", "model.objective.samples": 50},
    "beta 0.5": {"model.objective.kl_weight": 0.5},
    "beta 4": {"model.objective.kl_weight": 4.0},
    "InfoVAE": {OBJECTIVE: "infovae"},
    "WAE": {OBJECTIVE: "wae"},
}
RATES: Mapping[str, float] = {  # steps a second where the others take 50, by three seeds on a core with AVX-512
    "full": 36.0,
    "mixture": 41.0,
    "flow": 41.0,
    "IWAE-5": 24.0,
    "IWAE-50": 4.0,
    "InfoVAE": 45.0,
    "WAE": 45.0,
}


def command(script: str, ended: Path, *words: object, **settings: Any) -> float:
    """Run a script with settings, unless `ended` says that it did, and return its CPU seconds."""
    given = [str(word) for word in words]
    for name, value in settings.items():
        given += [f"--{name}", *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    return once([sys.executable, script, *given], ended)


def train(run: Path, row: str, data: Path, steps: int, seed: int) -> float:
    """Train a row for so many steps, and return the CPU seconds it took."""
    few = {"steps": steps, "save_every": steps, "evaluate_every": -(-steps // LOOKS), "seed": seed}
    settings = {"run": run, "images.source": data, **SHARED, **few, **ROWS[row]}
    return command("tokenizer/train.py", run / ".trained.json", **settings)


def steps_of(row: str, minutes: float) -> int:
    """Return how many steps a row takes in so many minutes."""
    return max(LOOKS, round((60 * minutes - START) * RATES.get(row, 50.0)))


def measure(run: Path, seed: int) -> dict[str, float]:
    """Return the figures of a trained row, and keep a picture of what it draws."""
    command("tokenizer/evaluate.py", run / ".evaluated.json", run, importance_samples=DRAWS, batch_size=250, seed=seed)
    command("tokenizer/encode.py", run / ".encoded.json", run, views=1)
    mixture = {"model.kind": "mixture", "model.components": 10, "condition": "nothing", "iterations": 30}
    command("prior/fit.py", run / ".fitted.json", run=run, **mixture)
    if not (run / "drawn.json").exists():
        write_json(run / "drawn.json", draw(run, seed))
    told = read_json(run / "evaluation/tokenizer-test.json")["figures"]
    found = {name: told[name] for name in FIGURES if name in told}
    nats = 784 * torch.log(torch.tensor(2.0)).item()
    found |= {name: found[name] * nats for name in ("rate", "distortion") if name in found}
    return found | read_json(run / "drawn.json")


def tight_bound(tokenizer: LikelihoodTokenizer, split: ImageSplit, seed: int) -> dict[str, float]:
    """Return −IWAE in nats by `MANY` draws of every tenth image, where there is a density."""
    noise, found = torch.Generator().manual_seed(seed), []
    for some in torch.arange(0, len(split), TENTH).split(50):
        bound = tokenizer.bound(to_float(split.read(some).images), MANY, noise)
        found += [] if bound is None else [bound.importance_weighted]
    return {f"importance_weighted_{MANY}": torch.cat(found).mean().item()} if found else {}


def draw(run: Path, seed: int) -> dict[str, float]:
    """Return the Fréchet distances of images drawn with z from N(0, I) and from the mixture, and save some of each."""
    bench = open_bench(Settings(run=str(run), split="test"), make_accelerator("fp32"))
    features, tokenizer = bench.eyes.features, load_tokenizer(run / "tokenizer/model")
    assert features is not None and isinstance(tokenizer, LikelihoodTokenizer)
    noise = torch.Generator().manual_seed(seed)
    mixture = load_prior(run / "prior/model").sampler(SamplingConfig())
    latents = {
        "normal": torch.randn(DRAWN, tokenizer.config.layout.length, generator=noise),
        "mixture": mixture(torch.zeros(DRAWN, dtype=torch.int64), range(seed * DRAWN, (seed + 1) * DRAWN)),
    }
    real = features_of(bench, features, bench.split, evenly_spaced(DRAWN, len(bench.split))).cpu()
    same = features_of(bench, features, bench.images.splits["train"], torch.arange(DRAWN)).cpu()
    found = {"fd_train": frechet_distance(real, same), **tight_bound(tokenizer, bench.split, seed)}
    shown = []
    for name, z in latents.items():
        found[f"fd_{name}"] = frechet_distance(real, features(pixels(tokenizer, z, noise)).cpu())
        shown.append(to_uint8(tokenizer.decode(z[:12])))
    save_picture(image_grid(torch.cat(shown), 12, side=28), run / "drawn.png")
    return found


@torch.no_grad()
def pixels(tokenizer: LikelihoodTokenizer, z: Tensor, noise: torch.Generator) -> Tensor:
    """Return images (N, C, H, W) uint8, each pixel drawn from p(x | z)."""
    parts = [tokenizer.likelihood.sample(tokenizer.output(some), noise) for some in z.split(PART)]
    return to_uint8(torch.cat(parts))


def save_samples(runs: Mapping[str, Path], path: Path) -> None:
    """Save a picture of what each row draws: the first line from N(0, I), the second from the mixture."""
    import PIL.Image
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.95 * len(runs)), layout="constrained")
    for axes, (row, run) in zip(figure.subplots(len(runs), 1), runs.items(), strict=True):
        axes.imshow(PIL.Image.open(run / "drawn.png"), cmap="gray", interpolation="nearest")
        axes.set_ylabel(row, rotation=0, ha="right", va="center", fontsize=9)
        axes.set(xticks=[], yticks=[])
    figure.savefig(path, dpi=80)


def table(rows: Mapping[str, Any]) -> list[str]:
    """Return the lines of the page's table, a row each."""
    columns = {"training_cpu_seconds": 0, "negative_elbo": 2, f"importance_weighted_{MANY}": 2, "rate": 1}
    columns |= {"distortion": 1, "active_units": 0, "fd_normal": 1, "fd_mixture": 1}
    lines = []
    for row, each in rows.items():
        told = [spread(each["summary"].get(name), digits) for name, digits in columns.items()]
        lines.append(f"| {' | '.join([row, *told])} |")
    return lines


def spread(figure: Mapping[str, float | None] | None, digits: int) -> str:
    """Return mean and, of several seeds, their standard deviation."""
    if figure is None:
        return "–"
    beside = "" if figure["std"] is None else f" ± {figure['std']:.{digits}f}"
    return f"{figure['mean']:.{digits}f}{beside}"


def measure_rows(names: Sequence[str], data: Path, work: Path, minutes: float, seeds: Sequence[int]) -> dict[str, Any]:
    """Train rows for so many minutes, and measure them."""
    found: dict[str, Any] = {row: {"settings": {k: str(v) for k, v in ROWS[row].items()}} for row in names}
    for seed in seeds:
        for row in names:
            run, steps = run_of(work, row, minutes, seed), steps_of(row, minutes)
            took = train(run, row, data, steps, seed)
            figures = {"training_cpu_seconds": took, "steps": steps, **measure(run, seed)}
            print(f"{row}, {minutes:g} minutes, seed {seed}: {json.dumps(figures)}", flush=True)
            found[row].setdefault("per_seed", []).append(figures)
    for row in names:
        ended = [run_of(work, row, minutes, seed) / ".trained.json" for seed in seeds]
        found[row]["trained_at"] = commits_of(ended)
    return {row: {"summary": mean_and_spread(each["per_seed"]), **each} for row, each in found.items()}


def measure_peer(data: Path, work: Path, minutes: float, seeds: Sequence[int]) -> dict[str, Any]:
    """Train Pythae's VAE for the CPU seconds of the row `diagonal`, and return its figures."""
    per_seed = []
    for seed in seeds:
        beside = run_of(work, "diagonal", minutes, seed) / ".trained.json"
        out = run_of(work, "Pythae", minutes, seed)
        words = ["--data", data, "--out", out, "--seconds", read_json(beside)["cpu_seconds"], "--seed", seed]
        words += ["--draws", DRAWS, "--many", MANY, "--few", 10_000 // TENTH]
        once([sys.executable, "-m", "benchmarks.vae_peer", *map(str, words)], out / ".ended.json")
        per_seed.append({"training_cpu_seconds": words[5], **read_json(out / "figures.json")})
        print(f"Pythae, {minutes:g} minutes, seed {seed}: {json.dumps(per_seed[-1])}", flush=True)
    return {"summary": mean_and_spread(per_seed), "per_seed": per_seed}


def run_of(work: Path, row: str, minutes: float, seed: int) -> Path:
    """Return the folder of a row's run. Runs lie side by side, and share the classifier."""
    return work / f"{row.replace(' ', '-')}-{minutes:g}-{seed}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="MNIST's folder of Parquet files")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=[*ROWS])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--peer", action="store_true", help="Pythae's VAE beside the row diagonal")
    args = parser.parse_args()
    torch.set_num_threads(1)
    work, data, result = args.work.resolve(), args.data.resolve(), read_json(RESULT) if RESULT.exists() else {}
    found = measure_rows(args.rows, data, work, args.minutes, args.seeds)
    if args.peer:
        found["Pythae"] = measure_peer(data, work, args.minutes, args.seeds)
    budgets = result.get("minutes", {})
    came = record("benchmarks.vae") | {"seeds": args.seeds}
    rows = budgets.setdefault(f"{args.minutes:g}", {"rows": {}})["rows"]
    rows |= {row: came | each for row, each in found.items()}
    write_json(RESULT, {"protocol": __doc__, "minutes": budgets})
    if args.rows == [*ROWS]:
        save_samples({row: run_of(work, row, args.minutes, args.seeds[0]) for row in args.rows}, PICTURE)
    print(*table(found), sep="\n", flush=True)


if __name__ == "__main__":
    main()

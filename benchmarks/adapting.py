"""A tokenizer made one's own: trained on CIFAR-10, trained further on emoji; and a decoder that bears a prior's codes.

    python -m benchmarks.adapting --cifar10 FOLDER --emoji FOLDER --fashion_mnist FOLDER --work DIR --seeds 0 1 2

Protocol. `vqvae`: the tokenizer of configs/cifar10_small, trained on CIFAR-10 for `--first` steps. `diffusers`: a VQGAN
(`VQGAN` below) trained on CIFAR-10 likewise, written as the folder of a diffusers VQModel, and read again by
tokenizer/convert.py. Each is trained on the emoji at 32 x 32 pixels for `--steps` steps of 64 images, all of it and the
decoder alone (lr 1e-3 with half a cosine, flips off); `from scratch` takes those steps from random weights. PSNR (dB,
pooled) is of the emoji's test split and of CIFAR-10's, by tokenizer/evaluate.py; `codes_equal` is the share of emoji of
the test split whose codes are those of the tokenizer it began from, all of an image's or none. A row's
`training_cpu_seconds` are of its command on the emoji, start and evaluations included, on one thread.

A prior (that of configs/cifar10_small, 300 steps) is trained on the emoji's codes, which are the unadapted tokenizer's
and the adapted decoder's alike, and its 2,000 images are drawn by each decoder: `fd_samples_judge` and
`fd_samples_wavelets` are their distances to the test images, `fd_judge` and `fd_wavelets` those of reconstructions, on
the extractors of benchmarks/extractors.py. The judge is a classifier of CIFAR-10's labels, which no loss here has seen.

`fashion_mnist` and `drawn_codes`: the tokenizer and the prior of configs/fashion_mnist, or fewer of their steps by
`--fashion_steps`; then the decoder alone, `--tuned` steps at lr 1e-3, with codes replaced as `TUNED` says, and the same
prior's samples again. `drawn_codes` replaces them by what that prior draws in the place of each, given the true ones
before it (prior/redraw.py, at the settings that the samples are drawn with); the images of these rows are not shifted.
Fréchet distances are of `--drawn` samples to test images on the features of a classifier of the labels. `more of all`
takes as many steps with encoder and codebook too: its codes are no longer the prior's, so that its figures are of
reconstructions alone.

Writes benchmarks/results/adapting.json. The same command goes on where it was interrupted.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.claim import Claim, mean_and_spread, verdict
from benchmarks.extractors import judge_features, open_judge, wavelet_features
from benchmarks.timing import ROOT, once
from smalti.common.data.pixels import from_pil, to_float, to_uint8
from smalti.common.data.run_images import open_run_images
from smalti.common.folder import read_json, write_json
from smalti.common.record import record
from smalti.metrics.classifier import Classifier
from smalti.metrics.distances import frechet_distance
from smalti.pipeline.image_pipeline import ImagePipeline
from smalti.prior.sampling_config import SamplingConfig
from smalti.tokenizer.model import load_tokenizer
from smalti.tokenizer.vqgan.model import VQGANTokenizer
from smalti.tokenizer.vqgan.published import checkpoint_places

RESULT = ROOT / "benchmarks/results/adapting.json"
VQGAN: Mapping[str, Any] = {
    "model.kind": "vqgan",
    "model.image_size": (32, 32),
    "model.first_channels": 32,
    "model.channels": (32, 64, 128),
    "model.blocks": 1,
    "model.attention_levels": (2,),
    "model.z_channels": 32,
    "model.codebook_size": 512,
    "model.code_dim": 8,
    "model.normalize": False,
}
PRIOR, DRAWN = 300, 2000  # steps of the prior of the emoji's codes, and its images
TUNED: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "fashion_mnist": {
        "decoder": {"replace_codes": 0},
        "decoder, 0.2 near": {"replace_codes": 0.2, "replace_by": "near"},
        "decoder, 0.5 near": {"replace_codes": 0.5, "replace_by": "near"},
        "decoder, 0.2 any": {"replace_codes": 0.2, "replace_by": "any"},
    },
    "drawn_codes": {
        "decoder": {"replace_codes": 0},
        "decoder, 0.2 drawn": {"replace_codes": 0.2, "replace_by": "drawn"},
        "decoder, 1 drawn": {"replace_codes": 1.0, "replace_by": "drawn"},
    },
}
PARTS = ["vqvae", "diffusers", *TUNED]
CLAIMS = (
    [
        Claim(
            text=f"{row} of {source}: PSNR on emoji test above the unadapted one's, dB",
            relation="at least",
            threshold=2.0,
            value=lambda figures, source=source, row=row: (
                figures[source][row]["psnr_emoji"] - figures[source]["unadapted"]["psnr_emoji"]
            ),
        )
        for source in ("vqvae", "diffusers")
        for row in ("all", "decoder")
    ]
    + [
        Claim(
            text=f"decoder of {source}: FD of the old prior's samples on the {extractor} below the unadapted decoder's",
            relation="more than",
            threshold=0.0,
            value=lambda figures, source=source, extractor=extractor: (
                figures[source]["unadapted"][f"fd_samples_{extractor}"]
                - figures[source]["decoder"][f"fd_samples_{extractor}"]
            ),
        )
        for source in ("vqvae", "diffusers")
        for extractor in ("judge", "wavelets")
    ]
    + [
        Claim(
            text=f"{row} of drawn_codes: FD of the old prior's samples below that of {than}",
            relation="more than",
            threshold=0.0,
            value=lambda figures, row=row, than=than: (
                figures["drawn_codes"][than]["fd_samples"] - figures["drawn_codes"][row]["fd_samples"]
            ),
        )
        for row in ("decoder, 0.2 drawn", "decoder, 1 drawn")
        for than in ("before", "decoder")
    ]
)


def command(script: str, ended: Path, *words: object, **settings: Any) -> float:
    """Run a script with settings, unless `ended` says that it did, and return its CPU seconds."""
    given = [str(word) for word in words]
    for name, value in settings.items():
        given += [f"--{name}", *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    return once([sys.executable, script, *given], ended)


# ------------------------------------------------------------------------------------------------------------ emoji


def first_run(source: str, data: Path, work: Path, steps: int, seed: int) -> Path:
    """Train a tokenizer on CIFAR-10, and return its run: of `diffusers` that of the converted one."""
    run = work / f"{source}-{seed}"
    kind = VQGAN if source == "diffusers" else {}
    few = {"steps": steps, "evaluate_every": steps, "save_every": steps, "seed": seed}
    config = "configs/cifar10_small/tokenizer.yaml"
    command("tokenizer/train.py", run / ".trained.json", config, run=run, **{"images.source": data}, **few, **kind)
    if source == "vqvae":
        return run
    theirs, converted = work / f"theirs-{seed}", work / f"converted-{seed}"
    if not (theirs / "config.json").exists():
        write_as_diffusers(run / "tokenizer/model", theirs)
    settings = {"kind": "diffusers", "run": converted, "images.source": data, "image_size": (32, 32)}
    command("tokenizer/convert.py", converted / ".converted.json", theirs, **settings)
    return converted


def write_as_diffusers(model: Path, folder: Path) -> None:
    """Write a VQGAN of ours as the folder of a diffusers VQModel."""
    tokenizer = load_tokenizer(model)
    assert isinstance(tokenizer, VQGANTokenizer)
    c, tensors = tokenizer.config, tokenizer.state_dict()
    places = checkpoint_places(c, "diffusers")
    folder.mkdir(parents=True, exist_ok=True)
    found = {place.name: tensors[ours].reshape(place.shape).contiguous() for ours, place in places.items()}
    save_file(found, folder / "diffusion_pytorch_model.safetensors")
    attends = [level in c.attention_levels for level in range(len(c.channels))]
    said = {
        "_class_name": "VQModel",
        "in_channels": c.image_channels,
        "out_channels": c.image_channels,
        "block_out_channels": c.channels,
        "layers_per_block": c.blocks,
        "latent_channels": c.z_channels,
        "num_vq_embeddings": c.codebook_size,
        "vq_embed_dim": c.code_dim,
        "norm_num_groups": c.norm_groups,
        "down_block_types": ["AttnDownEncoderBlock2D" if each else "DownEncoderBlock2D" for each in attends],
        "up_block_types": ["AttnUpDecoderBlock2D" if each else "UpDecoderBlock2D" for each in reversed(attends)],
    }
    write_json(folder / "config.json", said)  # last: a folder that has it is whole


def measure_emoji(source: str, args: argparse.Namespace, seed: int) -> dict[str, dict[str, float]]:
    """Return the figures of a tokenizer before and after it was trained on the emoji."""
    given = first_run(source, args.cifar10, args.work, args.first, seed)
    judge = open_judge(args.cifar10, args.work / ".judge")
    rows = {"unadapted": {"psnr_emoji": psnr(given, args.emoji), "psnr_cifar10": psnr(given, None)}}
    train = {"images.source": args.emoji, "images.flip": "false", "seed": seed, "steps": args.steps, "batch_size": 64}
    few = {"evaluate_every": args.steps, "save_every": args.steps, "lr": 1e-3}
    for row in ("all", "decoder"):
        run = args.work / f"{source}-{row}-{seed}"
        settings = {"run": run, "start_from": given, "train": row, **train, **few}
        took = command("tokenizer/train.py", run / ".trained.json", **settings)
        same = same_codes(given, run)
        rows[row] = figures_of(run, args.cifar10) | {"training_cpu_seconds": took, "codes_equal": same}
        rows[row] |= distances(again(run / "tokenizer/model", images_of(run)), images_of(run), judge)
    emoji = images_of(run)
    rows["unadapted"] |= distances(again(given / "tokenizer/model", emoji), emoji, judge)
    command("tokenizer/encode.py", run / ".encoded.json", run)
    command("prior/train.py", run / ".prior.json", "configs/cifar10_small/prior.yaml", run=run, steps=PRIOR, seed=seed)
    for row, tokenizer in (("unadapted", given), ("decoder", run)):
        drawn = samples(tokenizer / "tokenizer/model", run / "prior/model")
        rows[row] |= {f"{name[:2]}_samples{name[2:]}": fd for name, fd in distances(drawn, emoji, judge).items()}
    if source == "vqvae":
        run, config = args.work / f"scratch-{seed}", "configs/cifar10_small/tokenizer.yaml"
        took = command("tokenizer/train.py", run / ".trained.json", config, run=run, **train, **few)
        rows["from scratch"] = figures_of(run, args.cifar10) | {"training_cpu_seconds": took}
    for row, figures in rows.items():
        print(f"{source}, {row}, seed {seed}: {json.dumps(figures)}", flush=True)
    return rows


def figures_of(run: Path, cifar10: Path) -> dict[str, float]:
    return {"psnr_emoji": psnr(run, None), "psnr_cifar10": psnr(run, cifar10)}


def psnr(run: Path, other: Path | None) -> float:
    """Return the pooled PSNR on the test split of a run's images, or of others."""
    name = "test" if other is None else f"test-of-{other.name}"
    more = {} if other is None else {"source": other}
    none = {"features.kind": "none", "split": "test"}
    command("tokenizer/evaluate.py", run / f".evaluated-{name}.json", run, **none, **more)
    figures: dict[str, float] = read_json(run / f"evaluation/tokenizer-{name}.json")["figures"]
    return figures["psnr_pooled"]


def images_of(run: Path) -> Tensor:
    """Return the images (N, C, H, W) uint8 of a run's test split."""
    split = open_run_images(run / "tokenizer", load_tokenizer(run / "tokenizer/model").config).splits["test"]
    return split.read(torch.arange(len(split))).images


@torch.no_grad()
def again(model: Path, images: Tensor) -> Tensor:
    """Return what a tokenizer makes of images, uint8 as they are."""
    tokenizer = load_tokenizer(model)
    parts = images.split(64)
    return torch.cat([to_uint8(tokenizer.decode(tokenizer.encode(to_float(some)))) for some in parts])


def samples(tokenizer: Path, prior: Path) -> Tensor:
    """Return images (N, C, H, W) uint8 of a prior, drawn by a decoder of its codes: the same codes for each decoder."""
    pipeline = ImagePipeline.from_models(tokenizer, prior, SamplingConfig())
    c = pipeline.tokenizer.config
    return from_pil(pipeline(num_images=DRAWN, seed=0).images, c.image_size, c.image_channels)


@torch.no_grad()
def distances(images: Tensor, real: Tensor, judge: Classifier) -> dict[str, float]:
    """Return the Fréchet distances of images to real ones on two unlike extractors."""
    return {
        "fd_judge": frechet_distance(judge_features(judge, real), judge_features(judge, images)),
        "fd_wavelets": frechet_distance(wavelet_features(real), wavelet_features(images)),
    }


def same_codes(before: Path, run: Path) -> float:
    """Return the share of the test images of a run whose codes are those of the tokenizer that it began from."""
    tokenizers = [load_tokenizer(each / "tokenizer/model") for each in (before, run)]
    split = open_run_images(run / "tokenizer", tokenizers[1].config, None).splits["test"]
    same = []
    for some in torch.arange(len(split)).split(64):
        images = to_float(split.read(some).images)
        same.append((tokenizers[0].encode(images) == tokenizers[1].encode(images)).all(1))
    return torch.cat(same).double().mean().item()


# ----------------------------------------------------------------------------------------------------- Fashion-MNIST


def measure_fashion(part: str, args: argparse.Namespace, seed: int) -> dict[str, dict[str, float]]:
    """Return the figures of a prior's samples, decoded by the tokenizer of its codes and by those tuned further."""
    data, given = {"images.source": args.fashion_mnist}, args.work / f"fashion_mnist-{seed}"
    preset = "configs/fashion_mnist"
    first, second = ({"seed": seed, "steps": steps} for steps in args.fashion_steps)
    command("tokenizer/train.py", given / ".trained.json", f"{preset}/tokenizer.yaml", run=given, **data, **first)
    command("tokenizer/encode.py", given / ".encoded.json", given, views=1)
    command("prior/train.py", given / ".prior.json", f"{preset}/prior.yaml", run=given, **second)
    rows = {"before": drawn(given, args.drawn)}
    few = {"steps": args.tuned, "evaluate_every": args.tuned, "save_every": args.tuned, "lr": 1e-3, "batch_size": 64}
    drawing = command("prior/redraw.py", given / ".redrawn.json", given) if part == "drawn_codes" else 0.0
    for row, settings in TUNED[part].items():
        run = args.work / f"fashion_mnist-{row.replace(', ', '-').replace(' ', '-')}-{seed}"
        tuned = {"start_from": given, "train": "decoder", "seed": seed, **data, **few, **settings}
        tuned |= {"drawn_codes": given / "redrawn"} if settings.get("replace_by") == "drawn" else {}
        took = command("tokenizer/train.py", run / ".trained.json", run=run, **tuned)
        for stage in ("codes", "prior"):
            if not (run / stage).exists():
                shutil.copytree(given / stage, run / stage)
        rows[row] = drawn(run, args.drawn) | {"training_cpu_seconds": took}
        rows[row] |= {"drawing_cpu_seconds": drawing} if settings.get("replace_by") == "drawn" else {}
    if part == "fashion_mnist":
        run = args.work / f"fashion_mnist-more-{seed}"
        took = command("tokenizer/train.py", run / ".trained.json", run=run, start_from=given, seed=seed, **data, **few)
        rows["more of all"] = reconstructed(run) | {"training_cpu_seconds": took}
    for row, figures in rows.items():
        print(f"{part}, {row}, seed {seed}: {json.dumps(figures)}", flush=True)
    return rows


def drawn(run: Path, images: int) -> dict[str, float]:
    """Return the Fréchet distances of a run's samples and of its reconstructions, and PSNR."""
    command("pipeline/evaluate.py", run / ".drawn.json", run, images=images, neighbours=0)
    figures = read_json(run / "evaluation/pipeline-test.json")["figures"]
    return {"fd_samples": figures["fd_classifier"], "agreement": figures["class_agreement"], **reconstructed(run)}


def reconstructed(run: Path) -> dict[str, float]:
    command("tokenizer/evaluate.py", run / ".evaluated.json", run)
    figures = read_json(run / "evaluation/tokenizer-test.json")["figures"]
    return {"fd_reconstructions": figures["fd_classifier"], "psnr": figures["psnr_pooled"]}


# ------------------------------------------------------------------------------------------------------------ results


def summary(per_seed: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, Any]:
    """Return mean and spread of each row, and its figures of each seed."""
    rows = {row: [dict(figures[row]) for figures in per_seed] for row in per_seed[0]}
    return {row: {"summary": mean_and_spread(figures), "per_seed": figures} for row, figures in rows.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("cifar10", "emoji", "fashion_mnist"):
        parser.add_argument(f"--{name}", type=lambda path: Path(path).resolve(), required=True)
    parser.add_argument("--work", type=lambda path: Path(path).resolve(), required=True)
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--first", type=int, default=1200, help="steps on CIFAR-10")
    parser.add_argument("--steps", type=int, default=1200, help="steps on the emoji")
    parser.add_argument("--fashion_steps", type=int, nargs=2, default=[900, 1700], help="of tokenizer and prior")
    parser.add_argument("--tuned", type=int, default=450, help="steps of the decoder on Fashion-MNIST")
    parser.add_argument("--drawn", type=int, default=5000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    torch.set_num_threads(1)
    result = read_json(args.result) if args.result.exists() else {"parts": {}}
    for part in args.parts:
        measured = measure_fashion if part in TUNED else measure_emoji
        found = [measured(part, args, seed) for seed in args.seeds]
        budget = {name: getattr(args, name) for name in ("first", "steps", "fashion_steps", "tuned", "drawn", "seeds")}
        claims = [claim for claim in CLAIMS if f" of {part}:" in claim.text]
        judged = [claim.judge([({part: figures},) for figures in found]) for claim in claims]
        print(*map(verdict, judged), sep="\n", flush=True)
        result["parts"][part] = record("benchmarks.adapting") | budget | {"rows": summary(found), "claims": judged}
        write_json(args.result, {"protocol": __doc__, **result})


if __name__ == "__main__":
    main()

"""Measure EM beside the VAE: time and storage of q on MNIST; and draw what a decoder makes of N(0, I) without the KL.

    python -m benchmarks.em_and_vae RUN --work DIR

RUN is a VAE of `benchmarks.vae` (row `diagonal`) on which tokenizer/amortization.py has been run. Times
are of the processor, one thread, an image:

    em            a mixture of `COMPONENTS` Gaussians, diagonal, on the first `IMAGES` training images, binarized as
                  the VAE's: an E step (`e_step`, with the sums that the M step needs) and an M step, the mean of
                  `STEPS` each
    own_q         a q of its own for each image, by the steps of Adam that tokenizer/amortization.py took
    vae           the encoder's pass, and a step of training (forward and backward, batches of 128)

Storage is in numbers: of EM's responsibilities N K, of means and variances of each image 2 N D, of the encoder its
weights; N is the training split. Of EM nothing of it needs to be kept, for the E step is made anew.

Two VAEs of the digits (16 x 16, 8 numbers, 200 hidden), one with the KL and one without (`objective.kind
reconstruction`, posterior diagonal), take 1,500 steps each into DIR, and decode the same 12 draws of N(0, I). Writes
benchmarks/results/em_and_vae.json and docs/lecture_kl.png.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.timing import ROOT, once
from smalti.common.data.pixels import to_float, to_uint8
from smalti.common.data.run_images import open_run_images
from smalti.common.data.split import ImageSplit
from smalti.common.folder import read_json
from smalti.common.gaussian_mixture import e_step, first_mixture, m_step
from smalti.common.plots import image_grid, save_picture
from smalti.common.record import record
from smalti.tokenizer.latent_use import latent_use
from smalti.tokenizer.model import load_tokenizer
from smalti.tokenizer.vae.model import VAE

RESULT = ROOT / "benchmarks/results/em_and_vae.json"
PICTURE = ROOT / "docs/lecture_kl.png"
COMPONENTS, IMAGES, STEPS, BATCHES = 40, 10_000, 3, 30
SHOWN = 12
DIGITS: dict[str, Any] = {
    "images.source": "digits",
    "model.kind": "vae",
    "model.network.kind": "mlp",
    "model.network.hidden": 200,
    "model.latent_dim": 8,
    "steps": 1500,
    "evaluate_every": 1500,
    "save_every": 1500,
}
LOSSES = {"with the KL": "elbo", "without": "reconstruction"}


def em_times(points: Tensor) -> dict[str, float]:
    """Return the milliseconds an image of an E step and of an M step over points (N, D)."""
    noise = torch.Generator().manual_seed(0)
    mixture = first_mixture(points[:2000], COMPONENTS, "diagonal", regularization=1e-2, generator=noise)
    spent = {"e_step": 0.0, "m_step": 0.0}
    for _ in range(STEPS):
        began = time.process_time()
        moments = e_step(points, mixture)
        between = time.process_time()
        mixture = m_step(moments, mixture, 1e-2)
        spent["e_step"] += between - began
        spent["m_step"] += time.process_time() - between
    return {f"{name}_ms": 1000 * seconds / STEPS / len(points) for name, seconds in spent.items()}


def training_ms(vae: VAE, images: Tensor) -> float:
    """Return the milliseconds an image of a step of training, without the optimizer's."""
    batches = images[: 128 * BATCHES].split(128)
    began = time.process_time()
    for batch in batches:
        terms = vae(batch)
        sum(terms.losses.values()).backward()
        vae.zero_grad()
    return 1000 * (time.process_time() - began) / sum(map(len, batches))


def measured(run: Path) -> dict[str, Any]:
    """Return times and storage on the images of a run."""
    vae = load_tokenizer(run / "tokenizer/model")
    assert isinstance(vae, VAE)
    train = open_run_images(run / "tokenizer", vae.config).splits["train"]
    images = to_float(train.read(torch.arange(IMAGES)).images)
    own = read_json(run / "evaluation/amortization-test.json")
    D = vae.config.latent_dim
    return {
        "images": len(train),
        "em": {**em_times(images.flatten(1)), "numbers_of_q": len(train) * COMPONENTS},
        "own_q": {**own["figures"], "steps": own["protocol"]["steps"], "numbers_of_q": 2 * len(train) * D},
        "vae": {
            "encoder_ms": own["figures"]["encoder_ms"],
            "training_ms": training_ms(vae, images),
            "numbers_of_q": sum(
                weight.numel() for name, weight in vae.network.named_parameters() if name.startswith("encoder.")
            ),
        },
    }


def draw_without_kl(work: Path) -> dict[str, Any]:
    """Train both VAEs of the digits, draw what they make of N(0, I), and return how far their latents reach."""
    z = torch.randn(SHOWN, 8, generator=torch.Generator().manual_seed(0))
    rows, found = [], {}
    for name, kind in LOSSES.items():
        run = work / kind
        settings = {"run": run, **DIGITS, "model.objective.kind": kind}
        given = [str(word) for option, value in settings.items() for word in (f"--{option}", value)]
        once([sys.executable, "tokenizer/train.py", *given], run / ".trained.json")
        vae = load_tokenizer(run / "tokenizer/model")
        assert isinstance(vae, VAE)
        rows.append(to_uint8(vae.decode(z)))
        found[name] = spread(vae, open_run_images(run / "tokenizer", vae.config).splits["test"])
    save_picture(image_grid(torch.cat(rows), SHOWN, side=48), PICTURE)
    return found


def spread(vae: VAE, test: ImageSplit) -> dict[str, float]:
    """Return the deviation of the centres of q over images and the mean deviation of q, a mean over numbers of z."""
    images = to_float(test.read(torch.arange(len(test))).images)
    deviation = vae.deviation(images)
    assert deviation is not None
    centre = latent_use(vae.encode(images)).variance.sqrt().mean().item()
    return {"deviation_of_centres": centre, "deviation_of_q": deviation.mean().item()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--work", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    kept = record("benchmarks.em_and_vae")  # before the picture is written
    found = {"without_kl": draw_without_kl(given.work), **measured(given.run)}
    RESULT.write_text(json.dumps({**kept, "protocol": __doc__, **found}, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()

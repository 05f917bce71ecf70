"""Pythae's VAE of the row `diagonal` of benchmarks/vae.py, trained by its own trainer for as many CPU seconds.

    python -m benchmarks.vae_peer --data FOLDER_OF_PARQUET --out DIR --seconds 600     (wants: pip install pythae)

The same network (tanh, 400-400, 40 numbers), the same batches of 128 and the same Adam rate of 1e-3, constant as its
trainer has it by default; its images are binarized anew each time it reads one. Its bounds are computed here, with its
own encoder and decoder, on the test images that our rows are measured on. Writes DIR/figures.json.
"""

import argparse
import time
from pathlib import Path

import torch
from pythae.data.datasets import BaseDataset, DatasetOutput
from pythae.models import VAE, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.trainers import BaseTrainer, BaseTrainerConfig
from pythae.trainers.training_callbacks import TrainingCallback
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy

from smalti.common.data.config import ImagesConfig
from smalti.common.data.images import ImageSet, open_images
from smalti.common.folder import write_json
from smalti.tokenizer.criterion.objective.iwae import importance_weighted_nll
from smalti.tokenizer.network.mlp import layers
from smalti.tokenizer.posterior.normal import DiagonalNormal, standard_log_prob

WIDTHS, LATENTS, PIXELS = (400, 400), 40, 784
BATCH = 128


class Encoder(BaseEncoder):
    def __init__(self) -> None:
        super().__init__()
        self.body = layers([PIXELS, *WIDTHS])
        self.mean, self.log_variance = nn.Linear(WIDTHS[-1], LATENTS), nn.Linear(WIDTHS[-1], LATENTS)

    def forward(self, x: Tensor) -> ModelOutput:
        h = self.body(x.flatten(1)).tanh()
        return ModelOutput(embedding=self.mean(h), log_covariance=self.log_variance(h))


class Decoder(BaseDecoder):
    def __init__(self) -> None:
        super().__init__()
        self.body = layers([LATENTS, *reversed(WIDTHS), PIXELS])

    def forward(self, z: Tensor) -> ModelOutput:
        return ModelOutput(reconstruction=self.body(z).sigmoid().view(-1, 1, 28, 28))


class Binarized(BaseDataset):
    """Grey images, each drawn black and white whenever it is read."""

    def __getitem__(self, index: int) -> DatasetOutput:
        grey = self.data[index]
        return DatasetOutput(data=(torch.rand_like(grey) < grey).float(), labels=self.labels[index])


class Stopped(Exception):
    """The budget is spent."""


class Budget(TrainingCallback):
    """Stops training once this process has used so many CPU seconds; counts the steps."""

    def __init__(self, seconds: float):
        self.seconds, self.steps = seconds, 0

    def on_train_step_end(self, training_config: BaseTrainerConfig, **kwargs: object) -> None:
        self.steps += 1
        if time.process_time() > self.seconds:
            raise Stopped


def train(images: ImageSet, out: Path, seconds: float, seed: int) -> tuple[VAE, int]:
    """Return Pythae's VAE, trained until the process has used so many CPU seconds, and its number of steps."""
    split = images.splits["train"]
    grey = split.read(torch.arange(len(split))).images / 255.0
    config = VAEConfig(input_dim=(1, 28, 28), latent_dim=LATENTS, reconstruction_loss="bce")
    torch.manual_seed(seed)
    model, budget = VAE(config, encoder=Encoder(), decoder=Decoder()), Budget(seconds)
    training = BaseTrainerConfig(
        output_dir=str(out),
        per_device_train_batch_size=BATCH,
        num_epochs=10**6,
        learning_rate=1e-3,
        keep_best_on_train=True,
        seed=seed,
        no_cuda=True,
    )
    trainer = BaseTrainer(model, Binarized(grey, torch.zeros(len(grey))), training_config=training, callbacks=[budget])
    try:
        trainer.train()
    except Stopped:
        print(f"{budget.steps} steps in {time.process_time():.0f} CPU seconds", flush=True)
    return trainer.model.eval(), budget.steps


@torch.no_grad()
def bounds(model: VAE, x: Tensor, samples: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return distortion, rate and the bound of `samples` draws, (B,) nats each, of black and white x (B, 1, H, W)."""
    encoded = model.encoder(x)
    q = DiagonalNormal(encoded.embedding, encoded.log_covariance / 2)
    noise = torch.randn(samples, *q.mean.shape)
    z = q.move(noise)
    pixels = model.decoder(z.flatten(0, 1)).reconstruction
    nll = binary_cross_entropy(pixels, x.repeat(samples, 1, 1, 1), reduction="none").flatten(1).sum(1).view(samples, -1)
    log_weights = standard_log_prob(z) - standard_log_prob(noise) + q.log_det() - nll
    return nll.mean(0), q.kl().sum(-1), importance_weighted_nll(log_weights)


def measured(model: VAE, images: ImageSet, draws: int, many: int, few: Tensor) -> dict[str, float]:
    """Return the figures: −ELBO by `draws` draws of all test images, the bound of `many` draws of a `few`."""
    test = images.splits["test"]

    def of(rows: Tensor, samples: int, at_once: int) -> list[float]:
        parts = [bounds(model, test.read(some).images / 255.0, samples) for some in rows.split(at_once)]
        return [torch.cat(each).mean().item() for each in zip(*parts, strict=True)]

    distortion, rate, _ = of(torch.arange(len(test)), draws, 100)
    tight = of(few, many, 8)[2]
    return {
        "negative_elbo": distortion + rate,
        "distortion": distortion,
        "rate": rate,
        f"importance_weighted_{many}": tight,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--many", type=int, default=500)
    parser.add_argument("--few", type=int, default=1000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    grey = open_images(ImagesConfig(source=str(args.data)), (28, 28), 1)
    model, steps = train(grey, args.out, args.seconds, args.seed)
    images = open_images(ImagesConfig(source=str(args.data), binarize="dynamic"), (28, 28), 1)
    test = len(images.splits["test"])
    few = torch.arange(args.few) * test // args.few
    torch.manual_seed(args.seed)
    figures = measured(model, images, args.draws, args.many, few)
    write_json(args.out / "figures.json", {"steps": steps, **figures})
    print(figures, flush=True)


if __name__ == "__main__":
    main()

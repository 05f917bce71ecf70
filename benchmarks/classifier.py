"""A small classifier of the real images: the ruler that generated ones are measured with.

    images (N, H, W, C) uint8    features (N, 128)    labels (N,)

Trained on the train split alone, so the test split is as new to it as a sample is. Its penultimate activations are the
features of `fd_classifier`; its predictions, held against the labels asked for, are the class agreement. One training
serves all chains and seeds of a benchmark: it is kept in a folder named after the recipe and the data's content.

    python -m benchmarks.classifier --data FOLDER --cache DIR
"""

import argparse
import hashlib
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.images import LabelledImages, Splits, load_grey

FEATURES = 128


@dataclass(frozen=True, kw_only=True)
class Recipe:
    width: int = 24
    epochs: int = 4
    batch_size: int = 128
    peak_lr: float = 4e-3
    weight_decay: float = 0.05
    label_smoothing: float = 0.05
    seed: int = 0


class Classifier(nn.Module):
    def __init__(self, image_size: int, channels: int, classes: int, width: int):
        super().__init__()
        self.trunk = nn.Sequential(
            _block(channels, width), nn.MaxPool2d(2), _block(width, 2 * width), nn.MaxPool2d(2),
            _block(2 * width, 4 * width), nn.Flatten(),
            nn.Linear(4 * width * (image_size // 4) ** 2, FEATURES), nn.BatchNorm1d(FEATURES), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(FEATURES, classes)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.trunk(pixels))  # (B, classes)

    @torch.inference_mode()
    def features(self, images: Tensor, batch_size: int = 500) -> Tensor:
        """Penultimate activations."""
        return torch.cat([self.trunk(_pixels(batch)) for batch in images.split(batch_size)])

    @torch.inference_mode()
    def predict(self, images: Tensor) -> Tensor:
        """The likeliest label of each image."""
        return self.head(self.features(images)).argmax(1)

    def agreement(self, split: LabelledImages) -> float:
        """The share of images that it takes for what their label says: on real images, its accuracy."""
        return (self.predict(split.images) == split.labels).double().mean().item()


def _block(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


def _pixels(images: Tensor) -> Tensor:
    return rearrange(images, "b h w c -> b c h w").float() / 127.5 - 1


def train(model: Classifier, split: LabelledImages, recipe: Recipe) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), recipe.peak_lr, weight_decay=recipe.weight_decay)
    steps = recipe.epochs * (len(split.labels) // recipe.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.peak_lr, total_steps=steps)
    model.train()
    for _ in range(recipe.epochs):
        order = torch.randperm(len(split.labels))
        for rows in order[: len(order) // recipe.batch_size * recipe.batch_size].split(recipe.batch_size):
            pixels = _pixels(split.images[rows])
            mirrored = torch.rand(len(rows), 1, 1, 1) < 0.5
            logits = model(torch.where(mirrored, pixels.flip(-1), pixels))
            loss = F.cross_entropy(logits, split.labels[rows], label_smoothing=recipe.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()


def load_or_train(data: Splits, cache: Path, recipe: Recipe) -> tuple[Classifier, dict]:
    """The classifier of this recipe and this data, and what is known of it: accuracy, seconds, fingerprint."""
    folder = cache / f"classifier-{_fingerprint(data, recipe)}"
    _, size, _, channels = data.train.images.shape
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        model = Classifier(size, channels, int(data.train.labels.max()) + 1, recipe.width)
        if not (folder / "classifier.json").exists():
            start = time.perf_counter()
            train(model, data.train, recipe)
            seconds = time.perf_counter() - start
            known = {"recipe": asdict(recipe), "train_seconds": seconds, "accuracy_test": model.agreement(data.test)}
            folder.mkdir(parents=True, exist_ok=True)
            save_file(model.state_dict(), folder / "model.safetensors")
            (folder / "classifier.json").write_text(json.dumps(known, indent=2) + "\n")
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval(), json.loads((folder / "classifier.json").read_text())


def _fingerprint(data: Splits, recipe: Recipe) -> str:
    """What the weights depend on: the recipe and the content of the train split, wherever it lies."""
    content = hashlib.sha256(json.dumps(asdict(recipe), sort_keys=True).encode())
    content.update(data.train.images.contiguous().numpy())
    content.update(data.train.labels.numpy())
    return content.hexdigest()[:16]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    args = parser.parse_args()
    print(json.dumps(load_or_train(load_grey(args.data), args.cache, Recipe())[1], indent=2))

"""A small classifier of the user's own images, whose features compare drawn images where no other network is at hand.

    images (N, C, H, W) uint8    features (N, 128)    labels (N,), -1 where unlabelled

Trained on the train split alone, so a held-out image is as new to it as a drawn one is. Its penultimate activations are
features for a Fréchet distance; its predictions, compared with the labels asked for, are the class agreement. Kept in

    CACHE/classifier-FINGERPRINT/    config.json (sizes, recipe, accuracy on the held-out images) and model.safetensors

The classification accuracy score (Ravuri and Vinyals 2019, https://arxiv.org/abs/1905.10887) turns it around: train one
on drawn images, and see how well it does on real ones.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from smalti.common import folder
from smalti.common.config import Settings
from smalti.common.errors import UserError
from smalti.common.lock import Lock
from smalti.common.progress import passing_bar
from smalti.common.seeds import generator
from smalti.metrics.features_config import Recipe

FEATURES = 128
CELLS = 8  # a side at most, before they are flattened
PIXELS = 2**21  # of the images that are measured at once
COMPUTATION = 2  # counts the ways of computing a recipe, whose weights differ by what rounding grows to


class ClassifierConfig(Settings):
    """The settings in `config.json`."""

    image_size: tuple[int, int]
    """height and width of the images, in pixels"""
    image_channels: int = Field(ge=1)
    """1 grey, 3 RGB, 4 RGBA"""
    classes: int = Field(ge=2)
    """labels lie in [0, classes)"""
    recipe: Recipe = Recipe()
    """how it was trained"""
    accuracy: float | None = None
    """on the held-out images; null before it is trained, and where none are labelled"""
    train_seconds: float | None = None
    """that training took"""


class LabelledSource(NamedTuple):
    """Labelled images, in memory (`in_memory`) or read as they are needed."""

    labels: np.ndarray  # (N,) int64, -1 where a position is unlabelled
    # positions (B,) -> (n, C, H, W) uint8, labels (n,); n < B if damaged
    read: Callable[[Tensor], tuple[Tensor, Tensor]]
    mirrored: tuple[int, ...] | None = None  # the label of an image once it is mirrored, where that is another

    @classmethod
    def in_memory(cls, images: Tensor, labels: Tensor) -> "LabelledSource":
        return cls(labels.numpy(), lambda positions: (images[positions], labels[positions]))

    def labelled(self) -> Tensor:
        """Return the positions that have a label."""
        return torch.from_numpy(np.flatnonzero(self.labels >= 0))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Return (C, H, W) of the first image that can be read."""
        for positions in self.labelled().split(64):
            images, _ = self.read(positions)
            if len(images):
                _, C, H, W = images.shape
                return C, H, W
        raise UserError("a classifier needs labelled images, and not one of them can be read")


# ---------------------------------------------------------------------------------------------------------- the network


class Level(nn.Sequential):
    """The convolution of a level, before its ReLU."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs))


def _halving() -> nn.Module:
    return nn.Sequential(nn.MaxPool2d(2, ceil_mode=True), nn.ReLU())  # max(0, x) of the largest is the largest of them


def to_pixels(images: Tensor) -> Tensor:
    """Return uint8 images as float in [-1, 1]."""
    return images.float() / 127.5 - 1


class Classifier(nn.Module):
    """A classifier of three convolutional levels for images of up to 32 pixels a side, one more for each doubling."""

    def __init__(self, config: ClassifierConfig):
        super().__init__()
        self.config, width = config, config.recipe.width
        halvings = max(2, math.ceil(math.log2(max(config.image_size) / CELLS)))
        widths = [config.image_channels, *(width * min(2**level, 4) for level in range(halvings + 1))]
        levels = [Level(*pair) for pair in pairwise(widths)]
        halved = [layer for level in levels[:-1] for layer in (level, _halving())]
        cells = math.prod(math.ceil(side / 2**halvings) for side in config.image_size)
        self.trunk = nn.Sequential(
            *halved,
            levels[-1],
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(widths[-1] * cells, FEATURES),
            nn.BatchNorm1d(FEATURES),
            nn.ReLU(),
        )
        self.head = nn.Linear(FEATURES, config.classes)
        self.to(memory_format=torch.channels_last)  # in which convolutions and their gradients are faster

    @property
    def accuracy(self) -> float | None:
        """Return the accuracy on the held-out images of its training."""
        return self.config.accuracy

    def forward(self, pixels: Tensor) -> Tensor:
        """Return logits (B, classes) for pixels (B, C, H, W) in [-1, 1]."""
        return self.head(self.trunk(pixels))

    def feature_maps(self, pixels: Tensor) -> list[Tensor]:
        """Return the rectified activations (B, C, h, w) of each level for pixels in [-1, 1], fine first."""
        found, x = [], pixels
        for layer in self.trunk:
            if isinstance(layer, nn.Flatten):
                break
            x = layer(x)
            if isinstance(layer, Level):
                found.append(x.relu())
        return found

    def prepare(self, images: Tensor) -> Tensor:
        """Return uint8 images as `trunk` wants them. Raises `ValueError` for another size or other channels."""
        expected = (self.config.image_channels, *self.config.image_size)
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1:] != expected:
            raise ValueError(
                f"images must be uint8 (N, {', '.join(map(str, expected))}), as the classifier was trained on, "
                f"got {images.dtype} {tuple(images.shape)}"
            )
        return to_pixels(images)

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Return the penultimate activations (N, 128), on the CPU."""
        at_once, device = max(1, min(512, PIXELS // math.prod(self.config.image_size))), self.head.weight.device
        return torch.cat([self.trunk(self.prepare(batch.to(device))).cpu() for batch in images.split(at_once)])

    @torch.no_grad()
    def log_probs(self, images: Tensor) -> Tensor:
        """Return log p(label | image) of each label, (N, classes) on the CPU."""
        return self.head(self.features(images).to(self.head.weight.device)).log_softmax(1).cpu()

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Return the likeliest label of each image, (N,) on the CPU."""
        return self.log_probs(images).argmax(1)

    def agreement(self, images: Tensor, labels: Tensor) -> float:
        """Return the share of images whose label it predicts: on real images, its accuracy."""
        return (self.predict(images) == labels.cpu()).double().mean().item()


# --------------------------------------------------------------------------------------------------------- the training


def _beginning(config: ClassifierConfig) -> tuple[Classifier, torch.Generator]:
    """Return an untrained model and the generator that drew its weights; torch's own generator stays as it was."""
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would seed the accelerator too
        torch.set_rng_state(generator(config.recipe.seed).get_state())
        return Classifier(config), torch.Generator().set_state(torch.get_rng_state())


def train_classifier(
    config: ClassifierConfig, source: LabelledSource, device: torch.device | str = "cpu"
) -> Classifier:
    """Return a classifier trained on the labelled images of `source`, in evaluation mode."""
    recipe, positions = config.recipe, source.labelled()
    model, generator = _beginning(config)
    model.to(device).train()
    batch_size = min(recipe.batch_size, len(positions))
    an_epoch = len(positions) // batch_size
    steps = max(recipe.least_steps, recipe.epochs * an_epoch)
    optimizer = torch.optim.AdamW(model.parameters(), recipe.peak_lr, weight_decay=recipe.weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.peak_lr, total_steps=steps)
    bar = passing_bar(steps, "classifier", unit="step")
    for step in range(steps):
        if step % an_epoch == 0:
            order = positions[torch.randperm(len(positions), generator=generator)]
        images, labels = source.read(order[step % an_epoch * batch_size :][:batch_size])
        pixels, labels = to_pixels(images.to(device)), labels.to(device)
        if recipe.mirror:
            mirrored = (torch.rand(len(pixels), 1, 1, 1, generator=generator) < 0.5).to(device)
            pixels = torch.where(mirrored, pixels.flip(-1), pixels)
            if source.mirrored is not None:
                others = torch.tensor(source.mirrored, device=device)
                labels = torch.where(mirrored.flatten(), others[labels], labels)
        loss = F.cross_entropy(model(pixels), labels, label_smoothing=recipe.label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        bar.update()
    bar.close()
    return model.eval()


def accuracy_on(model: Classifier, source: LabelledSource) -> float | None:
    """Return the share of the labelled images of `source` that are classified correctly; None where there are none."""
    known = images_seen = 0
    for positions in source.labelled().split(1024):
        images, labels = source.read(positions)
        known += int((model.predict(images) == labels.cpu()).sum()) if len(images) else 0
        images_seen += len(images)
    return known / images_seen if images_seen else None


def classifier_config(train_source: LabelledSource, held_out: LabelledSource, recipe: Recipe) -> ClassifierConfig:
    """Return the config for these images. Raises `UserError` if fewer than two labelled images or classes are there."""
    labels = train_source.labels[train_source.labels >= 0]
    there = len(np.unique(labels))
    if there < 2:
        raise UserError(
            f"a classifier needs images of at least 2 classes, got {len(labels)} labelled images of {there}"
        )
    classes = 1 + max(int(source.labels.max(initial=-1)) for source in (train_source, held_out))
    C, H, W = train_source.image_shape
    return ClassifierConfig(image_size=(H, W), image_channels=C, classes=classes, recipe=recipe)


def load_or_train(
    train_source: LabelledSource,
    held_out: LabelledSource,
    fingerprint: str,
    cache: Path,
    recipe: Recipe,
    device: torch.device | str = "cpu",
) -> Classifier:
    """Return the classifier of this recipe and these images, from the cache or trained now and written there.

    Args:
        fingerprint: of the images' content and of how they are read; of the labels and sizes it is seen here.
        cache: folder of such classifiers. One process at a time trains; the others wait, then call it as well.

    Raises:
        UserError: fewer than two classes are labelled.
    """
    config = classifier_config(train_source, held_out, recipe)
    path = cache / f"classifier-{_fingerprint(config, fingerprint, train_source, held_out)[:16]}"
    if (there := _kept(path)) is not None:
        return there.to(device)
    lock = Lock(path)
    lock.take(wait=True)  # another run may be training the same one
    try:
        there = _kept(path)
        there = _trained(config, train_source, held_out, path, device) if there is None else there
    finally:
        lock.release()
    return there.to(device)


def _kept(path: Path) -> Classifier | None:
    """Return the classifier in a folder of the cache; None where there is none, or a damaged one."""
    if not (path / folder.MODEL_FILES[0]).exists():
        return None
    try:
        return folder.load_model(path, Classifier, ClassifierConfig)
    except UserError:  # it is trained anew: it is a cache
        return None


def _trained(
    config: ClassifierConfig,
    train_source: LabelledSource,
    held_out: LabelledSource,
    path: Path,
    device: torch.device | str,
) -> Classifier:
    """Train a classifier, and write it into a folder of the cache."""
    start = time.perf_counter()
    model = train_classifier(config, train_source, device)
    seconds = time.perf_counter() - start
    found = {"accuracy": accuracy_on(model, held_out), "train_seconds": round(seconds, 1)}
    model.config = config.model_copy(update=found)
    folder.save_model(path, model, model.config)
    return model


def accuracy_score(
    drawn: LabelledSource, held_out: LabelledSource, recipe: Recipe, device: torch.device | str = "cpu"
) -> float | None:
    """Return the classification accuracy score: the accuracy on real held-out images after training on drawn ones.

    A classifier trained on as many real images is the best that it could be; one trained on all real images, which
    `pipeline/evaluate.py` puts beside it, is better still where there are more of them.
    """
    return accuracy_on(train_classifier(classifier_config(drawn, held_out, recipe), drawn, device), held_out)


def _fingerprint(config: ClassifierConfig, images: str, *sources: LabelledSource) -> str:
    """Return the SHA-256 of everything that the weights and the accuracy depend on."""
    content = hashlib.sha256(json.dumps([COMPUTATION, config.model_dump(mode="json"), images], sort_keys=True).encode())
    for source in sources:
        content.update(hashlib.sha256(np.ascontiguousarray(source.labels).data).digest())
        if config.recipe.mirror and source.mirrored is not None:
            content.update(str(source.mirrored).encode())
    return content.hexdigest()

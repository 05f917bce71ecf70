"""Feature extractors that no loss of ours has seen, which judge reconstructions and samples in benchmarks.

judge       the last convolutional level of a classifier of other images' labels, meaned over places
wavelets    no network: the moduli of oriented derivatives at three scales, meaned over a 2 x 2 grid (as the first
            order of Bruna and Mallat 2013)
trunk       the last level of a TorchScript network of RGB, meaned over places

Images are (N, C, H, W) uint8 of any size, RGB for the networks.
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from smalti.common.data.config import ImagesConfig
from smalti.common.data.images import held_out_split, open_images
from smalti.common.data.pixels import to_float
from smalti.metrics.classifier import Classifier, load_or_train
from smalti.metrics.features_config import Recipe
from smalti.tokenizer.labelled import as_read, labelled

BATCH = 128
JUDGED = 32  # pixels a side that the judge's own images are brought to
SCALES, DIRECTIONS = (1.0, 2.0, 4.0), 4  # of the wavelets, pixels


def open_judge(folder: Path, cache: Path) -> Classifier:
    """Return a classifier of a dataset's labels, for RGB images."""
    settings = ImagesConfig(source=str(folder), flip=True)
    images = open_images(settings, (JUDGED, JUDGED), 3)
    train, known = labelled(images.splits["train"]), labelled(held_out_split(images.splits))
    return load_or_train(train, known, as_read(images, settings), cache, Recipe(mirror=True))


@torch.no_grad()
def judge_features(judge: Classifier, images: Tensor) -> Tensor:
    """Return the last convolutional level (N, D), meaned over places, of uint8 images of any size."""
    parts = [judge.feature_maps(to_float(some))[-1].mean((2, 3)) for some in images.split(BATCH)]
    return torch.cat(parts)


def wavelet_features(images: Tensor) -> Tensor:
    """Return the moduli (N, 48) of oriented derivatives of a Gaussian, meaned over a 2 x 2 grid, of uint8 images."""
    grey = to_float(images).mean(1, keepdim=True)
    found = []
    for scale in SCALES:
        reach = math.ceil(3 * scale)
        at = torch.arange(-reach, reach + 1.0)
        bell = torch.exp(-at.square() / (2 * scale**2)) / (scale * math.sqrt(2 * math.pi))
        slope = -at / scale * bell  # the derivative, times the scale: of equal size for edges at all scales
        across = torch.outer(bell, slope)
        along = torch.outer(slope, bell)
        turns = [math.pi * i / DIRECTIONS for i in range(DIRECTIONS)]
        kernels = torch.stack([math.cos(turn) * across + math.sin(turn) * along for turn in turns])[:, None]
        moduli = F.conv2d(F.pad(grey, [reach] * 4, mode="replicate"), kernels).abs()
        found.append(F.adaptive_avg_pool2d(moduli, 2).flatten(1))
    return torch.cat(found, 1)


@torch.no_grad()
def trunk_features(trunk: Path, images: Tensor) -> Tensor:
    """Return the last level (N, D) of a TorchScript network of RGB, meaned over places, of uint8 images of any size."""
    network = torch.jit.load(str(trunk)).eval()
    return torch.cat([network(to_float(some))[-1].mean((2, 3)) for some in images.split(BATCH)])

"""The images a benchmark trains and scores on, read once into memory, and the figures that measure every chain.

    images (N, H, W, C) uint8    labels (N,) int64    indices (N, h, w) int64

Pixels are compared as the bytes a viewer sees; every figure is one over a whole split, never a mean over batches.
"""

from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from datasets import ClassLabel, Dataset, load_dataset
from datasets import Image as ImageFeature
from einops import rearrange
from PIL import Image
from torch import Tensor


class LabelledImages(NamedTuple):
    images: Tensor  # (N, H, W, C) uint8
    labels: Tensor  # (N,) int64


class Splits(NamedTuple):
    train: LabelledImages
    test: LabelledImages


def load_images(path: Path) -> Splits:
    """Return the train and test split of a folder that `datasets.load_dataset` reads: C = 1 if all are grey, else 3."""
    folder = load_dataset(str(path))
    return Splits(_decode(folder["train"]), _decode(folder["test"]))


def _decode(split: Dataset) -> LabelledImages:
    # Decoding the bytes here takes 4 s for 60,000 images; through the column's own decoder it takes 20.
    column = next(name for name, feature in split.features.items() if isinstance(feature, ImageFeature))
    labels = next(name for name, feature in split.features.items() if isinstance(feature, ClassLabel))
    rows = split.cast_column(column, ImageFeature(decode=False))[column]
    opened = [Image.open(BytesIO(row["bytes"])) for row in rows]
    mode = "L" if all(image.mode == "L" for image in opened) else "RGB"
    images = np.stack([np.atleast_3d(np.asarray(image.convert(mode))) for image in opened])
    return LabelledImages(torch.from_numpy(images), torch.tensor(split[labels][:]))


def held_out(split: LabelledImages, share: float) -> tuple[LabelledImages, LabelledImages]:
    """Return the rest and a share of the rows, by a fixed seed: every chain and run holds the same rows out."""
    order = torch.randperm(len(split.labels), generator=torch.Generator().manual_seed(0))
    out, rest = order[: round(share * len(order))], order[round(share * len(order)) :]
    return LabelledImages(split.images[rest], split.labels[rest]), LabelledImages(split.images[out], split.labels[out])


def per_class(split: LabelledImages, count: int) -> LabelledImages:
    """Return the first `count` images of each class, class after class."""
    rows = torch.cat([torch.nonzero(split.labels == label)[:count, 0] for label in split.labels.unique()])
    return LabelledImages(split.images[rows], split.labels[rows])


def channels_first(images: Tensor) -> Tensor:
    """(N, H, W, C) -> (N, C, H, W)."""
    return rearrange(images, "b h w c -> b c h w").contiguous()


def read_npz(path: Path) -> LabelledImages:
    """Read images in the field's evaluator layout: `arr_0` uint8 NHWC, `arr_1` labels."""
    with np.load(path) as arrays:
        return LabelledImages(torch.from_numpy(arrays["arr_0"]), torch.from_numpy(arrays["arr_1"]).long())


def write_npz(path: Path, split: LabelledImages) -> None:
    np.savez_compressed(path, split.images.numpy(), split.labels.numpy())


def write_grid(path: Path, split: LabelledImages, rows: int = 8) -> None:
    """Write a picture with one column a class, the first `rows` images of each."""
    images = per_class(split, rows).images
    grid = rearrange(images, "(column row) h w c -> (row h) (column w) c", row=rows)
    Image.fromarray(grid.squeeze(-1).numpy()).save(path)


def psnr(images: Tensor, reconstructions: Tensor) -> float:
    """Return the peak signal-to-noise ratio in dB, the mean over images of 10 log10(255² / MSE)."""
    mse = (images.double() - reconstructions.double()).square().flatten(1).mean(1)
    return (10 * torch.log10(255**2 / mse)).mean().item()


def psnr_pooled(images: Tensor, reconstructions: Tensor) -> float:
    """Return the PSNR of the error pooled over the split. It is lower, by half a dB here; never compare the two."""
    mse = (images.double() - reconstructions.double()).square().mean()
    return (10 * torch.log10(255**2 / mse)).item()


def usage(indices: Tensor, codebook_size: int) -> float:
    """Return the share of a codebook that occurs in a whole split."""
    return (torch.bincount(indices.flatten(), minlength=codebook_size) > 0).double().mean().item()


def perplexity(indices: Tensor, codebook_size: int) -> float:
    """Return exp of the entropy of code use over a whole split, in [1, K]."""
    frequencies = torch.bincount(indices.flatten(), minlength=codebook_size).double() / indices.numel()
    return torch.special.entr(frequencies).sum().exp().item()


def marginal_nll(train: Tensor, test: Tensor, codebook_size: int) -> float:
    """Return nats per test code under the i.i.d. marginal of train codes, with one added to each count."""
    counts = torch.bincount(train.flatten(), minlength=codebook_size).double() + 1
    return -(counts / counts.sum()).log()[test.flatten()].mean().item()

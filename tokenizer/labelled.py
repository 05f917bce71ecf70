"""The images of a split as a classifier reads them: with their labels, or with made ones where they have none."""

import json

import numpy as np
import torch
from torch import Tensor

from smalti.common.data.config import ImagesConfig
from smalti.common.data.images import ImageSet
from smalti.common.data.split import ImageSplit
from smalti.metrics.classifier import LabelledSource


def labelled(split: ImageSplit) -> LabelledSource:
    """Return a split as a classifier reads it."""

    def read(positions: Tensor) -> tuple[Tensor, Tensor]:
        batch = split.read(positions)
        return batch.images, batch.labels

    return LabelledSource(split.labels, read)


def rotated(split: ImageSplit) -> LabelledSource:
    """Return each image of a split in four turns of 90 degrees, the turn being its label; in two, of 180 degrees, where
    images are not square (Gidaris et al. 2018, https://arxiv.org/abs/1803.07728)."""
    turns = 4 if split.shape.height == split.shape.width else 2

    def read(positions: Tensor) -> tuple[Tensor, Tensor]:
        batch = split.read(positions // turns)
        labels = positions % turns
        # an image that cannot be read is missing in the batch, and its turns are then too
        read_rows = np.isin(split.rows[(positions // turns).numpy()], batch.rows.numpy())
        labels = labels[torch.from_numpy(read_rows)]
        images = batch.images.clone()
        for turn in range(1, turns):
            images[labels == turn] = torch.rot90(batch.images[labels == turn], turn * 4 // turns, (2, 3))
        return images, labels

    mirrored = tuple(-turn % turns for turn in range(turns))  # left turns become right ones
    return LabelledSource(np.tile(np.arange(turns), len(split)), read, mirrored)


def as_read(images: ImageSet, settings: ImagesConfig) -> str:
    """Return the identity of images and how they are read, as JSON: the key of their classifier in the cache.

    The classifier sees images unshifted, so `shift`, an augmentation of training, is no part of the key.
    """
    how = settings.model_dump(mode="json", exclude={"source", "memory", "shift"})
    return json.dumps([images.fingerprint, how], sort_keys=True)

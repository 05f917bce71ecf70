"""The feature extractors that compare the images of a run; one is a classifier trained on their labels.

Features of real images are cached beside the runs, in a folder for each plan: the images' fingerprint and size, the
rows, and the extractor's identity. Runs that are evaluated at once wait for each other there.
"""

import hashlib
import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
from accelerate import Accelerator
from torch import Tensor

from smalti.common.data.config import ImagesConfig
from smalti.common.data.images import ImageSet
from smalti.common.data.split import ImageSplit
from smalti.common.parts import are_whole, in_parts
from smalti.common.session import session
from smalti.metrics.classifier import Classifier, load_or_train
from smalti.metrics.feature_extractor import Features, load_features
from smalti.metrics.features_config import FeaturesConfig
from smalti.tokenizer.labelled import as_read, labelled

PART = 1000  # images
LABELLED = 2  # classes at least


class Extractors(NamedTuple):
    """The feature extractor that the settings choose, and the classifier of the run's labels."""

    features: Features | None  # none where the classifier is asked for and the images have no labels to train it on
    classifier: Classifier | None  # the same for the labels, whatever the features are


def features_cache(run: Path) -> Path:
    """Return the folder of the cache, which all runs side by side share."""
    return run.parent / ".cache"


def open_extractors(
    c: FeaturesConfig,
    images: ImageSet,
    settings: ImagesConfig,
    held_out: ImageSplit,
    cache: Path,
    accelerator: Accelerator,
) -> Extractors:
    """Return the chosen feature extractor, and if there are labels the classifier, which the main process trains.

    Of kind none there is neither.
    """
    if c.kind == "none":
        return Extractors(None, None)
    classifier = None
    there = set(images.splits["train"].labels.tolist()) - {-1}
    if images.class_names is not None and len(there) >= LABELLED:
        train, known = labelled(images.splits["train"]), labelled(held_out)
        recipe = c.classifier.model_copy(update={"mirror": c.classifier.mirror or settings.flip})
        with accelerator.main_process_first():
            classifier = load_or_train(train, known, as_read(images, settings), cache, recipe, accelerator.device)
    if c.kind == "classifier" and classifier is None:
        reason = "the images have no labels to train a classifier on: give --features.kind another network"
        accelerator.print(reason, file=sys.stderr)
        return Extractors(None, None)
    return Extractors(load_features(c, accelerator.device, classifier), classifier)


def real_features(
    features: Features,
    images: ImageSet,
    split: ImageSplit,
    positions: Tensor,
    cache: Path,
    accelerator: Accelerator,
) -> Tensor:
    """Return the features (n, D) of images of a split, from the cache where they were computed before."""
    plan = {
        "images": images.fingerprint,
        "split": split.name,
        "read": split.shape._asdict(),
        "features": features.identity,
        "rows": rows_sha256(split.rows[positions.numpy()]),
    }
    name = f"features-{features.name}-{split.name}-{hashlib.sha256(json.dumps(plan).encode()).hexdigest()[:16]}"

    def compute(places: Tensor) -> dict[str, Tensor]:
        return {"features": features(split.read(positions[places]).images)}

    whole = are_whole(cache / name, plan, len(positions), PART)
    with nullcontext() if whole else session(cache / name, accelerator, wait=True):  # another run may compute the same
        found = in_parts(cache / name, plan, len(positions), PART, compute, accelerator, f"features of {split.name}")
    return found["features"]


def rows_sha256(rows: np.ndarray) -> str:
    """Return a hash of the rows of a source that a split has, or of some of them."""
    return hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()

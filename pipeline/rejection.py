"""Classifier-based rejection sampling: draw more images than are wanted, keep those whose class is surest.

    kept_c = the n_c candidates of class c with the largest p(c | image), of ⌈n / share⌉ candidates in all

Razavi et al. (2019), https://arxiv.org/abs/1906.00446, sec. 3.3; p is given by the classifier of the run's own images
and labels (`metrics/classifier.py`), which evaluation judges with too. Quality is bought with variety, and with time.

Only the seeds are decided here: a kept image is drawn again, as any other, from (weights, label, seed).
"""

import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from smalti.common.data.images import held_out_split
from smalti.common.data.run_images import open_run_images, run_images
from smalti.common.errors import UserError
from smalti.common.evaluation_file import parts_path
from smalti.common.parts import in_parts
from smalti.common.session import session
from smalti.metrics.classifier import Classifier
from smalti.metrics.features_config import FeaturesConfig
from smalti.pipeline.image_pipeline import ImagePipeline
from smalti.prior.base import Sampler
from smalti.tokenizer.run_features import features_cache, open_extractors

PART = 1000  # candidates
INSTEAD = "leave keep_share out, or give 1, to keep every image"


class Candidates(NamedTuple):
    """The images that are drawn to choose from."""

    labels: list[int]
    seeds: list[int]


def candidates_for(wanted: int, share: float) -> int:
    """Return how many images are drawn so that `wanted` are a share of them."""
    return math.ceil(wanted / share)


def surest(labels: Sequence[int], wanted: Sequence[int], log_p: Tensor) -> list[int]:
    """Return for each wanted label the place of a candidate: of each class those with the largest log p, in order.

    Args:
        labels: (M,) of the candidates, each class at least as often as it is wanted.
        log_p: (M,) of each candidate's own label.
    """
    of_candidates, kept = torch.tensor(labels), dict[int, list[int]]()
    for label in set(wanted):
        places = (of_candidates == label).nonzero()[:, 0]
        best = log_p[places].argsort(descending=True, stable=True)[: list(wanted).count(label)]
        kept[label] = places[best].sort().values.tolist()
    return [kept[label].pop(0) for label in wanted]


def open_classifier(
    run: Path, pipeline: ImagePipeline, wanted: Collection[int], accelerator: Accelerator
) -> Classifier:
    """Return the classifier of a run's images, from the cache that evaluation uses or trained now.

    Args:
        wanted: the classes that it will be asked for.
    Raises:
        UserError: there is none for these classes; the message says why, and what to do.
    """
    if not (run / "tokenizer/config.yaml").exists():
        raise UserError(
            f"keep_share asks a classifier of the images that a run was trained on, and {run} is a pipeline alone: "
            f"give the run's folder; or {INSTEAD}"
        )
    if not pipeline.condition.told:
        raise UserError(f"keep_share keeps images of their class, and this pipeline is told of none: {INSTEAD}")
    images = open_run_images(run / "tokenizer", pipeline.tokenizer.config, otherwise=f"or {INSTEAD}")
    if images.class_names != pipeline.condition.class_names:
        raise UserError(
            f"keep_share asks a classifier of the run's images for the classes that are drawn, "
            f"{pipeline.condition}, and those of the images are {images.class_names or 'none'}: {INSTEAD}"
        )
    there = {int(label) for label in images.splits["train"].labels}
    if unseen := sorted(set(wanted) - there):
        names = pipeline.condition.class_names or ()
        told = ", ".join(str(names[label]) if label < len(names) else str(label) for label in unseen)
        raise UserError(
            f"keep_share asks a classifier of the training images, which has seen none of the class {told}: leave it "
            f"out of labels; or {INSTEAD}"
        )
    split, settings = held_out_split(images.splits, None), run_images(run / "tokenizer")
    cache = features_cache(run)
    eyes = open_extractors(FeaturesConfig(), images, settings, split, cache, accelerator)
    if eyes.classifier is None:
        raise UserError(f"keep_share needs images of at least 2 classes to train a classifier on: {INSTEAD}")
    return eyes.classifier


def keep_surest(
    candidates: Candidates,
    wanted: Sequence[int],
    classifier: Classifier,
    pipeline: ImagePipeline,
    sampler: Sampler,
    plan: dict[str, Any],
    run: Path,
    batch_size: int,
    accelerator: Accelerator,
) -> list[int]:
    """Return the seeds of the images that are kept, one for each wanted label.

    Args:
        plan: all else that decides the candidates, as JSON would keep it; those scored before under it are not drawn
            again.
    """

    def score(positions: Tensor) -> dict[str, Tensor]:
        labels, seeds = ([column[i] for i in positions.tolist()] for column in candidates)
        batches = pipeline.generate(labels, seeds, sampler, batch_size=batch_size)
        of_classes = torch.cat([classifier.log_probs(batch.images) for batch in batches])
        return {"log_p": of_classes.gather(1, torch.tensor(labels)[:, None])[:, 0]}

    plan = {**plan, **candidates._asdict(), "classifier": classifier.config.model_dump(mode="json")}
    path = parts_path(run, "candidates")
    with session(path, accelerator, wait=True):  # another request of this run may be scoring its own
        found = in_parts(path, plan, len(candidates.seeds), PART, score, accelerator, "candidates")
    return [candidates.seeds[place] for place in surest(candidates.labels, wanted, found["log_p"])]

"""The bench of `pipeline/evaluate.py`: a run's models, codes and held-out images, opened and checked.

images (n, C, H, W) uint8    features (n, D)    positions (n,) of a split
"""

import copy
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from smalti.common import codes
from smalti.common.codes import Codes
from smalti.common.data.images import ImageSet, held_out_split
from smalti.common.data.run_images import open_run_images, run_images
from smalti.common.data.split import ImageSplit
from smalti.common.errors import UserError
from smalti.common.launch import check_agree
from smalti.common.progress import passing_bar
from smalti.common.record import code_version
from smalti.common.spacing import evenly_spaced
from smalti.metrics.feature_extractor import Features
from smalti.pipeline.evaluation.settings import Settings
from smalti.pipeline.generation_config import GenerationConfig, carried
from smalti.pipeline.image_pipeline import ImagePipeline
from smalti.prior.data import tell_of_other_codes
from smalti.prior.sampling_config import SamplingConfig
from smalti.tokenizer.run_features import Extractors, features_cache, open_extractors, real_features

READ = 500  # images at once
FEWEST = 10  # images on either side from which neighbourhoods say anything


class EvaluationBench(NamedTuple):
    """Everything that an evaluation of both stages measures with."""

    c: Settings
    run: Path
    pipeline: ImagePipeline
    data: Codes
    images: ImageSet
    split: ImageSplit
    judged: int  # samples to draw and judge
    binarize: str  # how pixels were made black and white
    eyes: Extractors
    plan: dict[str, Any]  # everything that decides the figures
    accelerator: Accelerator


def open_bench(c: Settings, accelerator: Accelerator) -> EvaluationBench:
    """Open what a run is measured with.

    Raises:
        UserError: the codes are another tokenizer's, or samples are asked for and there are too few images.
    """
    run = Path(c.run)
    kept = GenerationConfig.of_run(run)
    pipeline = ImagePipeline.from_run(run, kept.sampling if kept else SamplingConfig())
    check_agree(f"{pipeline.identity.whole} {pipeline.prior_sha256}", f"a model of {run}")
    pipeline.sampling, left_out = carried(pipeline.sampling, pipeline.sampling, pipeline.prior)
    if left_out is not None:
        accelerator.print(left_out, file=sys.stderr)
    pipeline.check_sampling()  # before an hour of pricing
    pipeline.to(accelerator.device)
    data = codes.load_codes(Path(c.codes or run / "codes"))
    if not data.info.tokenizer.same_codes(pipeline.identity):
        raise UserError(
            f"the codes were written by the tokenizer {data.info.tokenizer}, not by the one of this run, "
            f"{pipeline.identity}: encode again, or give --codes"
        )
    settings, tokenizer = run_images(run / "tokenizer"), pipeline.tokenizer
    images = open_run_images(run / "tokenizer", tokenizer.config)
    tell_of_other_codes(codes.codes_fingerprint(data), pipeline.prior.config)
    if data.info.source.get("fingerprint") != images.fingerprint:
        accelerator.print(
            f"the codes are of other images than {settings.source}, the run's: held-out ones are of the run's",
            file=sys.stderr,
        )
    split = held_out_split(images.splits, c.split)
    judged, eyes = samples_to_judge(c, split, accelerator), Extractors(None, None)
    if judged:
        eyes = open_extractors(c.features, images, settings, split, features_cache(run), accelerator)
    names, theirs = pipeline.condition.class_names, images.class_names
    if names is not None and theirs not in (None, names) and not tokenizer.condition.told:
        accelerator.print(
            f"the run's images have the classes {', '.join(theirs[:4])}{', ...' if theirs[4:] else ''}, and the prior "
            f"draws {', '.join(names[:4])}{', ...' if names[4:] else ''}: images of other names count as of no class, "
            "and what a classifier says of classes is left out",
            file=sys.stderr,
        )
        images, eyes = of_classes(images, names), Extractors(eyes.features, None)
        split = held_out_split(images.splits, c.split)
    plan = {
        "code": code_version(),
        "tokenizer": pipeline.identity.whole,
        "prior": pipeline.prior_sha256,
        "images": images.fingerprint,
        "source": settings.source,
        "split": split.name,
        "codes": codes.codes_fingerprint(data),
        "features": eyes.features.identity if eyes.features else None,
        "batch_size": c.batch_size,
        "precision": c.precision,
    }
    return EvaluationBench(c, run, pipeline, data, images, split, judged, settings.binarize, eyes, plan, accelerator)


def of_classes(images: ImageSet, names: tuple[str, ...]) -> ImageSet:
    """Return images with the numbers of these classes as labels, by their names; -1 for those of other names."""
    places = {name: number for number, name in enumerate(names)}
    number = np.array([*(places.get(name, -1) for name in images.class_names or ()), -1])  # last: unlabelled
    splits = {name: copy.copy(split) for name, split in images.splits.items()}
    for split in splits.values():
        split.labels = number[split.labels]
    return images._replace(splits=splits, class_names=names)


def samples_to_judge(c: Settings, split: ImageSplit, accelerator: Accelerator) -> int:
    """Return how many samples are drawn and judged: as asked, or by default as many as are held out, if enough are."""
    number = min(len(split), 10_000) if c.images is None else c.images
    if c.images is None and number < FEWEST:
        line = f"{number} held-out images are too few to judge samples by: only their bits are measured"
        accelerator.print(line, file=sys.stderr)
        return 0
    if number and min(number, len(split)) < FEWEST:
        raise UserError(
            f"samples are judged by at least {FEWEST} images on either side, got {number} to draw and {len(split)} "
            "held out; --images 0 leaves them out"
        )
    return number


def priced_positions(bench: EvaluationBench) -> Tensor:
    """Return the positions of the held-out images whose bits are measured."""
    return evenly_spaced(bench.c.priced or bench.c.images or len(bench.split), len(bench.split))


def features_of(bench: EvaluationBench, features: Features, split: ImageSplit, positions: Tensor) -> Tensor:
    """Return the features (n, D) of images of a split."""
    return real_features(features, bench.images, split, positions, features_cache(bench.run), bench.accelerator)


class LabelledImages(NamedTuple):
    images: Tensor  # (n, C, H, W) uint8
    labels: Tensor  # (n,), -1 where unlabelled


def read_images(split: ImageSplit, positions: Tensor) -> LabelledImages:
    """Return images of a split and their labels."""
    found, bar = [], passing_bar(len(positions), f"read {split.name}")
    for some in positions.split(READ):
        found.append(split.read(some))
        bar.update(len(some))
    bar.close()
    return LabelledImages(torch.cat([each.images for each in found]), torch.cat([each.labels for each in found]))


def codes_of(bench: EvaluationBench, split: ImageSplit, positions: Tensor, images: LabelledImages) -> Tensor:
    """Return the codes (n, T) of the images at positions of a split: those on the disk, or where these are of other
    images, encoded now."""
    written = written_codes(bench, split, positions) if len(images.images) == len(positions) else None
    return bench.pipeline.encode_pixels(*images) if written is None else written


def written_codes(bench: EvaluationBench, split: ImageSplit, positions: Tensor) -> Tensor | None:
    """Return the codes (n, T) of the plain views at positions of a split, from the disk; None if they are not there."""
    data, pipeline = bench.data, bench.pipeline
    layout, there = data.info.layout, data.splits.get(split.name)
    if there is None or data.info.source.get("fingerprint") != bench.images.fingerprint:
        return None
    wanted, rows = split.rows[positions.numpy()], there.rows[:: data.info.views]
    places = np.searchsorted(rows, wanted).clip(max=len(rows) - 1)
    if not np.array_equal(rows[places], wanted):
        return None
    latents = torch.from_numpy(
        there.codes[places * data.info.views].astype(np.int64 if layout.discrete else np.float32)
    )
    if layout == pipeline.tokenizer.config.layout:
        return latents
    return pipeline.from_prior(latents) if layout == pipeline.prior.config.layout else None

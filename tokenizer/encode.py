"""Turn a dataset of images into a dataset of codes, with the tokenizer of a run.

    accelerate launch tokenizer/encode.py runs/cifar10 --views 2

Reads RUN/tokenizer/{config.yaml, model/} and the images named there (or in --source), and writes every split into
RUN/codes (or --output), a folder that `datasets.load_dataset` reads: see `common/codes.py`. Each process writes whole
shards; interrupted, the same command goes on at the first shard that is not whole. At the end codes are read back from
the disk and decoded, and their PSNR against the images is printed.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from smalti.common.starting import answer_signals

    answer_signals()

from smalti.common import config
from smalti.common.choices import Precision
from smalti.common.command_line import answer_at_once, is_command
from smalti.tokenizer.config import EncodeConfig


class Settings(EncodeConfig):
    """Encode a dataset of images."""

    run: str = "runs/digits"
    """folder of the experiment: its tokenizer is used, its codes are written to the subfolder codes/"""
    output: str | None = None
    """another folder for the codes"""
    source: str | None = None
    """another dataset than the tokenizer was trained on: a Hub id or a folder"""
    precision: Precision = "auto"
    """auto is bf16 where the hardware computes it; distances are fp32 always"""


def read_settings(argv: Sequence[str]) -> Settings:
    options: dict[str, Any] = {"positional": "run", "positional_help": "folder of the experiment"}
    trained = Path(config.parse(Settings, __doc__, argv, **options).run) / "tokenizer" / "config.yaml"
    base = config.read_yaml(trained)["encode"] if trained.exists() else {}
    return config.parse(Settings, __doc__, argv, base=base, **options)


if is_command(__name__):  # --help and a wrong setting are answered before torch is imported
    answer_at_once(read_settings)

import numpy as np
import torch
from accelerate import Accelerator
from einops import rearrange

from smalti.common import codes
from smalti.common.codes import CodesSplit
from smalti.common.codes_info import CodesInfo
from smalti.common.commands import as_typed
from smalti.common.condition import condition_of
from smalti.common.data.config import ImagesConfig
from smalti.common.data.images import ImageSet, tell_of_images
from smalti.common.data.pixels import to_float, to_uint8
from smalti.common.data.run_images import ANOTHER, open_run_images, run_images
from smalti.common.data.split import ImageSplit
from smalti.common.data.views import default_views, different_views, image_view
from smalti.common.errors import UserError
from smalti.common.latent_statistics import LatentStatistics, latent_statistics
from smalti.common.launch import check_agree, make_accelerator, run_command
from smalti.common.layout import Layout
from smalti.common.progress import passing_bar, progress_bar
from smalti.common.session import session, tell_of_training
from smalti.metrics.similarity import psnr_of, squared_error_each
from smalti.tokenizer.base import EmbedsCodes, ImageTokenizer
from smalti.tokenizer.codebooks.usage import count, perplexity, usage
from smalti.tokenizer.labels import check_labels
from smalti.tokenizer.model import load_identified, trained

CHECKED = 1_000  # images a split that are decoded back, evenly spaced: to 0.1 dB; decoding costs more than encoding
# Kinds of priors over several grids or over one, and what to take where the codes lie otherwise
OF_ONE_GRID, OF_SEVERAL = {"nextscale": "masked", "levels": "transformer"}, {"nextset": "nextscale"}


def codes_folder(c: Settings) -> Path:
    return Path(c.output or Path(c.run) / "codes")


def encode(c: Settings, accelerator: Accelerator) -> Path:
    """Write the codes dataset, or what is missing of it, and return its folder."""
    run = Path(c.run) / "tokenizer"
    name = f"{Path(c.run).resolve().name}/tokenizer"
    tokenizer, identity = load_identified(trained(run), name)
    check_agree(identity.whole, str(run / "model"))
    tokenizer.to(accelerator.device)
    images_config = run_images(run, c.source)
    images = open_run_images(run, tokenizer.config, c.source, otherwise=ANOTHER)
    check_labels(tokenizer.condition, images)
    tell_of_images(images, accelerator)
    folder = codes_folder(c)
    views = chosen_views(c, images, images_config, accelerator)
    info = CodesInfo(
        layout=chosen_layout(c, tokenizer),
        views=views,
        condition=condition_of(images.class_names),
        tokenizer=identity,
        source={**images_config.model_dump(mode="json"), "fingerprint": images.fingerprint},
        shard_size=c.shard_size,
        moments=tokenizer.has_moments,
    )
    codes.check_plan(folder, info)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        codes.begin_codes(folder, info)
        for path in codes.remove_damaged_codes(folder):
            print(f"{path} was damaged and is written again", file=sys.stderr)
    accelerator.wait_for_everyone()

    if codes.is_whole(folder):
        accelerator.print(f"{folder} is whole already")
        return folder
    for name, split in images.splits.items():
        encode_split(tokenizer, split, name, info, images_config, folder, c.batch_size, accelerator)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        splits = {
            name: check_split(folder, name, split, info, tokenizer, c.batch_size, accelerator)
            for name, split in images.splits.items()
        }
        statistics = None if info.layout.discrete else training_statistics(folder, info)
        codes.finish(folder, info.model_copy(update={"statistics": statistics}), splits)
    accelerator.wait_for_everyone()
    return folder


def chosen_layout(c: Settings, tokenizer: ImageTokenizer) -> Layout:
    """Return the layout of what is written. Raises `UserError` where vectors are asked of codes that have none."""
    layout = tokenizer.config.layout
    if not c.vectors or not layout.discrete:
        return layout
    if not isinstance(tokenizer, EmbedsCodes):
        raise UserError(
            f"vectors true needs codes that each stand for a vector of one grid, and those of a tokenizer of kind "
            f"{tokenizer.config.name()} ({layout}) do not; leave it out"
        )
    return tokenizer.vector_layout


def as_written(tokenizer: ImageTokenizer, latents: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Return latents (B, T) of the tokenizer in a layout that `chosen_layout` gives."""
    if layout == tokenizer.config.layout:
        return latents
    assert isinstance(tokenizer, EmbedsCodes)  # `chosen_layout` has asked
    return tokenizer.embed(latents)


def as_read(tokenizer: ImageTokenizer, written: np.ndarray, layout: Layout) -> torch.Tensor:
    """Return latents (B, T) of the tokenizer from those on the disk: the inverse of `as_written`."""
    latents = torch.from_numpy(written.astype(np.int64 if layout.discrete else np.float32))
    if layout == tokenizer.config.layout:
        return latents
    assert isinstance(tokenizer, EmbedsCodes)  # `chosen_layout` has asked
    return tokenizer.nearest(latents.to(next(tokenizer.parameters()).device)).cpu()


def chosen_views(c: Settings, images: ImageSet, how: ImagesConfig, accelerator: Accelerator) -> int:
    """Return how many views an image gets, printed where no setting says. Raises `UserError` for too many."""
    if c.views is None:
        number = len(images.splits["train"])
        views = default_views(number, how)
        accelerator.print(f"{views} view{'s' * (views > 1)} an image, as fits {number:,} training images (--views)")
        return views
    if c.views > (different := different_views(how)):
        raise UserError(
            f"views {c.views} would repeat images: with shift {how.shift} there are {different} different "
            f"ones; give --views {different}, or train the tokenizer with a larger images.shift"
        )
    return c.views


def shards_of(split: ImageSplit, info: CodesInfo) -> int:
    return -(-len(split) // info.shard_size)


def encode_split(
    tokenizer: ImageTokenizer,
    split: ImageSplit,
    name: str,
    info: CodesInfo,
    images: ImagesConfig,
    folder: Path,
    batch_size: int,
    accelerator: Accelerator,
) -> None:
    """Write this process's shards of a split: shard k belongs to rank k mod world."""
    shards = shards_of(split, info)
    bar = progress_bar(accelerator, len(split), f"encode {name}", unit="image")
    for shard in range(shards):
        positions = torch.arange(shard * info.shard_size, min((shard + 1) * info.shard_size, len(split)))
        path = codes.shard_path(folder, name, shard, shards)
        if shard % accelerator.num_processes == accelerator.process_index and not path.exists():
            parts = []
            for batch in positions.split(batch_size):
                parts.append(encode_batch(tokenizer, split, batch, info, images, accelerator))
                bar.update(len(batch) if accelerator.num_processes == 1 else 0)
            codes.write_shard(path, info, joined(parts))
        elif accelerator.num_processes == 1:
            bar.update(len(positions))
        if accelerator.num_processes > 1:
            bar.update(len(positions))
    bar.close()


def joined(parts: Sequence[CodesSplit]) -> CodesSplit:
    """Return the rows of several batches as one."""
    told = [part.condition for part in parts if part.condition is not None]
    scales = [np.asarray(part.scale) for part in parts if part.scale is not None]
    return CodesSplit(
        np.concatenate([part.codes for part in parts]),
        np.concatenate(told) if told else None,
        np.concatenate([part.rows for part in parts]),
        np.concatenate(scales) if scales else None,
    )


def encode_batch(
    tokenizer: ImageTokenizer,
    split: ImageSplit,
    positions: torch.Tensor,
    info: CodesInfo,
    images: ImagesConfig,
    accelerator: Accelerator,
) -> CodesSplit:
    """Return the codes or vectors of images, the views of an image side by side."""
    batch = split.read(positions)
    for row, reason in batch.corrupt:
        print(f"left out row {row} of {split.name}: {reason}", file=sys.stderr)
    found, scales = [], []
    if not len(batch.images):  # all of them are damaged
        none = np.zeros((0, info.layout.length), info.dtype)
        return CodesSplit(none, batch.labels.numpy(), batch.rows.numpy(), none if info.moments else None)
    for index in range(info.views):
        pixels = to_float(image_view(batch.images, 0, batch.rows, index, images).to(accelerator.device))
        with accelerator.autocast():
            found.append(as_written(tokenizer, tokenizer.encode(pixels, batch.labels), info.layout).cpu())
            scale = tokenizer.deviation(pixels, batch.labels)
        scales += [] if scale is None else [scale.cpu()]
    beside = lambda parts: rearrange(torch.stack(parts), "v b t -> (b v) t").numpy()  # noqa: E731
    repeat = lambda column: column.repeat_interleave(info.views).numpy()  # noqa: E731
    return CodesSplit(beside(found), repeat(batch.labels), repeat(batch.rows), beside(scales) if scales else None)


def training_statistics(folder: Path, info: CodesInfo) -> LatentStatistics:
    """Return mean and deviation of the vectors' channels over the training rows on the disk."""
    shards = (codes.read_shard(path, info) for path in codes.shard_paths(folder, "train"))
    return latent_statistics(((shard.codes, shard.scale) for shard in shards), info.layout)


@torch.no_grad()
def check_split(
    folder: Path,
    name: str,
    split: ImageSplit,
    info: CodesInfo,
    tokenizer: ImageTokenizer,
    batch_size: int,
    accelerator: Accelerator,
) -> dict[str, Any]:
    """Return the figures of a split on the disk: rows, use of the codebook, PSNR of some decoded images."""
    layout, errors, rows = tokenizer.config.layout, list[torch.Tensor](), 0
    counts = torch.zeros(layout.codebooks, layout.codebook_size, dtype=torch.int64) if layout.discrete else None
    digest = codes.Digest()
    bar = passing_bar(len(split), f"check {name}")
    for path in codes.shard_paths(folder, name):
        shard = codes.read_shard(path, info)
        rows += len(shard.rows)
        digest.update(shard)
        if counts is not None:
            found = as_read(tokenizer, np.asarray(shard.codes), info.layout)
            counts += count(found, layout)
        plain = np.arange(0, len(shard.rows), info.views)
        wanted = max(1, CHECKED * len(plain) // max(1, len(split)))
        chosen = plain[:: max(1, -(-len(plain) // wanted))]
        for part in np.split(chosen, range(batch_size, len(chosen), batch_size)):
            errors.append(decoding_errors(tokenizer, split, shard, part, info.layout, accelerator))
            bar.set_postfix(psnr=f"{psnr_of(errors[-1].mean()):.2f} dB", refresh=False)
        bar.update(len(plain))
    bar.close()
    squared_error = torch.cat(errors)
    return {
        "rows": rows,
        "sha256": digest.hexdigest(),
        "images": rows // info.views,
        "skipped": len(split.corrupt) + len(split) - rows // info.views,
        "psnr_pooled": psnr_of(squared_error.mean()).item(),
        "psnr": psnr_of(squared_error).mean().item(),
        "psnr_images": len(squared_error),
        **({} if counts is None else {"usage": usage(counts), "perplexity": perplexity(counts)}),
    }


def decoding_errors(
    tokenizer: ImageTokenizer,
    split: ImageSplit,
    shard: codes.CodesSplit,
    places: np.ndarray,
    layout: Layout,
    accelerator: Accelerator,
) -> torch.Tensor:
    """Return the squared errors (b,) between the images at places (b,) of a shard and their codes, decoded."""
    batch = split.read_rows(shard.rows[places])
    latents = as_read(tokenizer, shard.codes[places], layout)
    with accelerator.autocast():
        decoded = tokenizer.decode(latents.to(accelerator.device), batch.labels)
    return squared_error_each(batch.images, to_uint8(decoded).cpu())


def psnr_text(split: Mapping[str, Any]) -> str:
    """Return the PSNR of a split of codes in words; older codes have the mean over images alone."""
    pooled = f"{split['psnr_pooled']:.2f} dB pooled, " if "psnr_pooled" in split else ""
    return f"{pooled}{split['psnr']:.2f} dB mean over images,"


def next_command(c: Settings, layout: Layout) -> str:
    """Return what is to be done with codes or vectors of a layout, as the end of a line that begins with `next`."""
    if c.vectors:
        given = ("--run", "ANOTHER_RUN", "--codes", codes_folder(c), "--model.kind", "diffusion")
        copied = Path(c.run) / "tokenizer"
        return f", in a run of its own that has a copy of {copied}: {as_typed('prior/train.py', *given)}"
    output = ["--codes", Path(c.output)] if c.output else []
    script, beside = "prior/train.py", config.config_beside(c.run, "prior")
    if not layout.discrete and (beside == "CONFIG" or config.config_beside(c.run, "fit") != "CONFIG"):
        script, beside = "prior/fit.py", config.config_beside(c.run, "fit")
    another = another_kind(beside, layout) if layout.discrete else []
    return f": {as_typed(script, Path(beside), '--run', Path(c.run), *output, *another)}"


def another_kind(prior_config: str, layout: Layout) -> list[str]:
    """Return the option that a prior's config needs where its kind is of several grids, and the codes lie on one, or
    the other way round."""
    if prior_config == "CONFIG":
        return []
    try:
        model = config.read_yaml(Path(prior_config)).get("model")
    except UserError:  # the next command says what is wrong with it
        return []
    others = OF_ONE_GRID if len(layout.grids) == 1 else OF_SEVERAL
    instead = others.get(str(model.get("kind"))) if isinstance(model, Mapping) else None
    return ["--model.kind", instead] if instead else []


def main(argv: Sequence[str]) -> None:
    c = read_settings(argv)
    codes.check_begun(codes_folder(c))  # before it is locked, too
    accelerator = make_accelerator(c.precision)
    tell_of_training("these codes", accelerator, Path(c.run) / "tokenizer")
    with session(codes_folder(c), accelerator):
        folder = encode(c, accelerator)
    if accelerator.is_main_process:
        info, splits = codes.read_info(folder)
        for name, split in splits.items():
            print(
                f"{name}: {split['images']} images, {split['rows']} rows, {split['skipped']} images left out; "
                f"decoded back from disk {psnr_text(split)} of {split['psnr_images']} images"
                + (
                    f"; codes used {split['usage']:.1%}, perplexity {split['perplexity']:.1f}"
                    if "usage" in split
                    else ""
                )
            )
        print(f"the {'codes' if info.layout.discrete else 'vectors'} are in {folder}")
        print(f"next{next_command(c, info.layout)}")


if __name__ == "__main__":
    run_command(main)

"""Compress images to bytes with both stages, and expand them again, exactly: it shows that bits per dimension are bits.

    python pipeline/compress.py runs/digits                                       # images of the held-out split
    python pipeline/compress.py runs/digits --files a.png b.png --output two.tess
    python pipeline/compress.py runs/digits --expand two.tess --output folder

Reads RUN/tokenizer/model and RUN/prior/model. Writes a file of bytes after it has expanded and compared them; with
--expand it writes a folder of PNG files. Lossless for images of the tokenizer's size; it refuses others. See
pipeline/coder.py.
"""

import io
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from smalti.common.starting import answer_signals

    answer_signals()

from pydantic import Field

from smalti.common import config
from smalti.common.command_line import answer_at_once, is_command
from smalti.common.config import Settings as BaseSettings


class Settings(BaseSettings):
    """Compress images, or expand what was compressed."""

    run: str = "runs/digits"
    """folder of the experiment"""
    files: tuple[str, ...] | None = None
    """pictures to compress, of the tokenizer's size; images of the held-out split when null"""
    images: int = Field(16, ge=1)
    """how many of the held-out split, where no files are given"""
    expand: str | None = None
    """a compressed file to expand instead"""
    output: str | None = None
    """the file to write, or with expand the folder; when null compressed.tess or expanded/ in the run"""


def read_settings(argv: Sequence[str]) -> Settings:
    return config.parse(Settings, __doc__, argv, positional="run", positional_help="folder of the experiment")


if is_command(__name__):  # --help and a wrong setting are answered before torch is imported
    answer_at_once(read_settings)

import numpy as np
import torch
from torch import Tensor

from smalti.common import folder
from smalti.common.commands import as_typed
from smalti.common.data.images import held_out_split
from smalti.common.data.pixels import MODES, from_pil, to_pil
from smalti.common.data.run_images import open_vouched_images
from smalti.common.ends import pass_on
from smalti.common.errors import Refused, UserError
from smalti.common.launch import make_accelerator, run_command
from smalti.common.raster import open_picture
from smalti.common.reading import open_regular_file, read_file
from smalti.common.session import logged
from smalti.common.spacing import evenly_spaced
from smalti.pipeline.coder import FIRST_MAGIC, MAGIC, Compressed, batch_size, compress, expand_in_batches
from smalti.pipeline.image_pipeline import ImagePipeline
from smalti.prior.sampling_config import SamplingConfig


class Pictures(NamedTuple):
    """The images to compress."""

    images: Tensor  # (N, C, H, W) uint8
    labels: Tensor | None  # (N,) class numbers, if each has one
    what: str  # words for the report


def read_pictures(c: Settings, pipeline: ImagePipeline) -> Pictures:
    """Return the files as images, or images evenly spaced in the held-out split with their labels."""
    t, classes = pipeline.tokenizer.config, pipeline.condition.num_classes
    if c.files is None:
        split = held_out_split(open_vouched_images(Path(c.run) / "tokenizer", t).splits)
        batch = split.read(evenly_spaced(c.images, len(split)))
        labelled = classes > 0 and bool((batch.labels >= 0).all())
        return Pictures(batch.images, batch.labels if labelled else None, f"images of {split.name}")
    return Pictures(torch.cat([read_exact_picture(name, pipeline) for name in c.files]), None, "pictures")


def read_exact_picture(name: str, pipeline: ImagePipeline) -> Tensor:
    """Return a picture as (1, C, H, W) uint8, unchanged. Raises `UserError` for other files, sizes and modes."""
    t = pipeline.tokenizer.config
    try:
        with open_picture(Path(name)) as picture:
            if picture.size == t.image_size[::-1]:
                pixels = from_pil(
                    [picture], t.image_size, t.image_channels, black_and_white=pipeline.tokenizer.black_and_white
                )
                mode, wanted = picture.mode, MODES[t.image_channels]
                if mode != wanted or not np.array_equal(np.asarray(to_pil(pixels)[0]), np.asarray(picture)):
                    raise UserError(
                        f"{name} (mode {mode}) would be changed when it is read as the tokenizer's images are "
                        f"({wanted}); what comes back must be what was given: convert it first"
                    )
                return pixels
    except UserError:
        raise
    except Exception as error:  # damaged files raise nearly anything in PIL
        pass_on(error)
        raise UserError(f"{name} cannot be read as a picture: {str(error) or type(error).__name__}") from None
    (w, h), (height, width) = picture.size, t.image_size
    raise UserError(f"{name} is {h} x {w} pixels and the tokenizer's images are {height} x {width}; resize it first")


def size_report(pictures: Pictures, made: Compressed) -> str:
    """Return lines on the size of the file, beside what the models say and the size as PNG files."""
    images, bits = pictures.images, 8 * len(made.data)
    png = 0
    for image in to_pil(images):
        file = io.BytesIO()
        image.save(file, format="PNG", optimize=True)
        png += 8 * len(file.getvalue())
    per = images.numel()
    return (
        f"{len(images)} {pictures.what}, {per} numbers, in {len(made.data)} bytes with the file's header: "
        f"{bits / per:.4f} bits per dimension\n"
        f"the models say {(made.rate + made.distortion) / per:.4f}: {made.rate / per:.4f} "
        f"for the codes + {made.distortion / per:.4f} for the pixels; as PNG files {png / per:.4f}"
    )


def main(argv: Sequence[str]) -> None:
    c = read_settings(argv)
    if c.expand and c.files:
        raise UserError("give --files to compress or --expand, not both")
    with logged(Path(c.output or Path(c.run) / "compressed")):
        compress_or_expand(c, Path(c.run))


def output_path(c: Settings, run: Path) -> Path:
    """Return the path to write. Raises `Refused` if something else is there, before any work is done."""
    if c.expand:
        path = Path(c.output or run / "expanded")
        if os.path.lexists(path) and not (path.is_dir() and folder.is_empty(path)):
            raise Refused(f"{path} holds something already; give another --output")
        return path
    path = Path(c.output or run / "compressed.tess")
    if os.path.lexists(path) and not is_compressed(path):
        raise Refused(f"{path} holds something else than a compressed file of ours; give another --output")
    return path


def compress_or_expand(c: Settings, run: Path) -> None:
    """Compress images to a file, or expand a file to a folder, as the settings say."""
    path = output_path(c, run)
    pipeline = ImagePipeline.from_run(run, SamplingConfig()).to(make_accelerator().device)
    if c.expand:
        write_pictures(expand_in_batches(pipeline, read_bytes(Path(c.expand))), path)
        return
    pictures = read_pictures(c, pipeline)
    made = compress(pipeline, pictures.images, pictures.labels)
    again = zip(expand_in_batches(pipeline, made.data), pictures.images.split(batch_size(pipeline)), strict=True)
    if not all(torch.equal(expanded, given) for expanded, given in again):
        raise UserError("what was compressed does not expand to the same images on this machine; nothing is written")
    # A file that was named may be the only copy of other pictures.
    if c.output is not None and path.exists() and read_bytes(path) != made.data:
        raise Refused(f"{path} holds other compressed pictures; give another --output, or remove it")
    folder.mend(path)
    with folder.replacing(path) as aside:
        aside.write_bytes(made.data)
    print(f"{size_report(pictures, made)}\nexpanded again and compared: the same pixels\nthe bytes are in {path}")
    print(f"next: {as_typed('pipeline/compress.py', Path(c.run), '--expand', path)}")


def is_compressed(path: Path) -> bool:
    """Return whether a file begins as our compressed files do."""
    try:
        with open_regular_file(path) as file:
            return file.read(len(MAGIC)) in (MAGIC, FIRST_MAGIC)
    except (OSError, ValueError) as error:
        pass_on(error)
        return False


def read_bytes(path: Path) -> bytes:
    """Return the bytes of a compressed file. Raises `UserError` that names it if it cannot be read."""
    try:
        return read_file(path)
    except OSError as error:
        pass_on(error)
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def write_pictures(batches: Iterator[Tensor], path: Path) -> None:
    """Write a folder of PNG files, all or none."""
    folder.mend(path)
    with folder.replacing(path) as aside:
        aside.mkdir()
        number = 0
        for number, picture in enumerate((picture for images in batches for picture in to_pil(images)), 1):
            picture.save(aside / f"{number - 1:06d}.png")
    print(f"{number} images are in {path}")


if __name__ == "__main__":
    run_command(main)

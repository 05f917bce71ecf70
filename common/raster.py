"""Picture files: the formats that are read, and the one way to open one.

PIL would also open formats that start another program (EPS runs Ghostscript) or hold no raster of their own. All code
opens pictures here, so that a file named `.png` is a raster whatever it holds.
"""

import functools
import io
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import PIL.Image

from smalti.common.ends import pass_on
from smalti.common.errors import UserError
from smalti.common.reading import MOST_BYTES, open_regular_file, read_file

FORMATS = (  # JPEG opens MPO as well, the two pictures in one file that phones write
    "PNG",
    "JPEG",
    "WEBP",
    "AVIF",
    "BMP",
    "DIB",
    "GIF",
    "ICNS",
    "ICO",
    "JPEG2000",
    "PCX",
    "PPM",
    "QOI",
    "SGI",
    "SUN",
    "TGA",
    "TIFF",
    "XBM",
)
SURE = {"GIF", "JPEG", "JPEG2000", "PNG", "QOI", "TIFF", "WEBP"}  # whose first bytes are nobody else's
MOST_PIXELS = 178_956_970  # where a caller says no less: PIL's own bound


def looks_like_a_picture(path: Path) -> bool:
    """Return whether a regular file begins like a format that is read; where the first bytes are unsure, read its head.

    TGA is not among them: it begins like anything.
    """
    try:
        with open_regular_file(path) as file:
            return os.fstat(file.fileno()).st_size <= MOST_BYTES and _begins_as_one(file)
    except ValueError:  # no regular file
        return False


def _begins_as_one(file: io.BufferedReader) -> bool:
    prefix = file.read(16)
    accepting = {format for format, accepts in _first_bytes() if _accepted(accepts, prefix)}
    if not accepting or accepting & SURE:
        return bool(accepting)
    file.seek(0)
    try:
        with warnings.catch_warnings(action="ignore"):
            PIL.Image.open(file, formats=sorted(accepting)).close()
    except PIL.Image.DecompressionBombError:
        return True
    except Exception:  # damaged heads raise nearly anything
        return False
    return True


@functools.cache
def _first_bytes() -> list[tuple[str, Callable[[bytes], bool | str]]]:
    """Return each format with the test of its first bytes."""
    PIL.Image.init()
    known = ((format, PIL.Image.OPEN[format][1]) for format in FORMATS if format in PIL.Image.OPEN)
    return [(format, accepts) for format, accepts in known if accepts is not None]


def _accepted(accepts: Callable[[bytes], bool | str], prefix: bytes) -> bool:
    """Return whether PIL would try to read such a file; its test returns a text where it cannot."""
    try:
        return accepts(prefix) is True
    except Exception:  # of too few bytes
        return False


def open_picture(
    file: Path | bytes, max_pixels: int = MOST_PIXELS, formats: tuple[str, ...] = FORMATS
) -> PIL.Image.Image:
    """Return a picture whose pixels are not decoded yet, to be used as a context.

    Raises:
        ValueError, OSError: no file that can be read, no raster format, or more than `max_pixels` pixels. (Decoding it
            raises nearly anything else.)
    """
    data = file if isinstance(file, bytes) else read_file(file)
    try:
        picture = PIL.Image.open(io.BytesIO(data), formats=formats)
    except PIL.UnidentifiedImageError:
        raise ValueError("it is no picture of a format that is read") from None
    if picture.width * picture.height > max_pixels:
        size = f"{picture.width} x {picture.height}"
        picture.close()
        raise ValueError(f"{size} pixels are more than {max_pixels:,}")
    return picture


def whole_picture(path: Path, hint: str) -> PIL.Image.Image:
    """Return a picture of ours, decoded. Raises `UserError` that ends in `hint` where the file is damaged."""
    try:
        with open_picture(path) as picture:
            picture.load()
            return picture
    except Exception as error:  # damaged files raise nearly anything in PIL
        pass_on(error)
        raise UserError(f"{path} must be a whole picture: {str(error) or type(error).__name__}; {hint}") from None

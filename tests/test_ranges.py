"""Pictures with 16 bits a channel: their whole range, the part that a camera uses, and a message where they would be
black."""

import io
import struct
import zlib

import numpy as np
import PIL.Image
import pytest

from smalti.common.data.config import ImagesConfig
from smalti.common.data.images import ImageSet, open_images
from smalti.common.errors import UserError

SIZE, PNG = (4, 5), b"\x89PNG\r\n\x1a\n"


def png(values: np.ndarray, clear: list[int] | None = None) -> bytes:
    """Return values (h, w, C), of which `clear` is transparent, as a PNG of 16 bits a channel; PIL writes only grey."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    h, w, channels = values.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", w, h, 16, kind, 0, 0, 0)
    transparent = [] if clear is None else [(b"tRNS", struct.pack(f">{channels}H", *clear))]
    chunks = [(b"IHDR", header), *transparent, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return PNG + b"".join(chunk(*each) for each in chunks)


def tiff(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(values).save(file, "TIFF")
    return file.getvalue()


def in_strips(values: np.ndarray, photometric: int = 2, planes: bool = False) -> bytes:
    """Return values (h, w, C) as an uncompressed TIFF with 16 bits a channel and two rows a strip; PIL writes none."""
    h, w, channels = values.shape
    layers = np.moveaxis(values, 2, 0) if planes else [values]
    strips = [layer[y : y + 2].astype("<u2").tobytes() for layer in layers for y in range(0, h, 2)]
    sizes = [len(strip) for strip in strips]
    *starts, end = np.cumsum([8, *sizes]).tolist()
    tags = {
        256: [w],
        257: [h],
        258: [16] * channels,
        262: [photometric],
        273: starts,
        277: [channels],
        278: [2],
        279: sizes,
    }
    tags |= {284: [1 + planes]}
    listed, beyond, after = b"", b"", end + 2 + 12 * len(tags) + 4
    for tag, numbers in tags.items():
        value = numbers if len(numbers) == 1 else [after + len(beyond)]
        listed += struct.pack("<HHII", tag, 4, len(numbers), *value)
        beyond += struct.pack(f"<{len(numbers)}I", *numbers) if len(numbers) > 1 else b""
    head = b"II" + struct.pack("<HI", 42, end)
    return head + b"".join(strips) + struct.pack("<H", len(tags)) + listed + bytes(4) + beyond


def drawn(most: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    """Return random values (h, w, C) up to `most`, which occurs."""
    values = np.random.default_rng(seed).integers(0, most + 1, (*SIZE, channels)).astype(np.uint16)
    values[0, 0] = most
    return values


def opened(folder, files, channels=1, **settings):
    folder.mkdir()
    for i, file in enumerate(files):
        (folder / f"{i}.{'png' if file.startswith(PNG) else 'tif'}").write_bytes(file)
    return open_images(ImagesConfig(source=str(folder), **settings), SIZE, channels)


def of_range(images: ImageSet) -> str:
    """Return the remarks about ranges."""
    return " ".join(remark for remark in images.remarks() if "16 bits" in remark)


@pytest.mark.parametrize("memory", [1.0, 0.0], ids=["in memory", "from disk"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("bits", [10, 12, 14])
def test_pictures_that_use_few_of_their_16_bits_are_named_with_the_setting_that_reads_them(
    bits, channels, memory, tmp_path
):
    """A microscope's 12 bits became 0 to 15 of 255 without a message: training saw black pictures."""
    files = [png(drawn(2**bits - 1, channels, seed)) for seed in range(4)]
    remarks = of_range(opened(tmp_path / "set", files, channels, memory=memory))
    assert (
        f"3 of 3 pictures of 16 bits{'' if memory else ' that were looked at'} use at most {2**bits:,} of 65,536"
        in remarks
    )
    assert f"give --images.white {2**bits - 1}" in remarks


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_white_is_the_value_that_the_setting_says(bits, channels, tmp_path):
    """PIL keeps only the upper byte of 16-bit colours, which leaves 16 levels of 12 bits; we read both."""
    white = 2**bits - 1
    values = drawn(white, channels)
    images = opened(tmp_path / "set", [png(values)] * 3, channels, white=white)
    expected = (values.astype(np.int64) * 255 / white).round() if bits < 16 or channels == 1 else values // 256
    assert np.array_equal(images.splits["train"].read([0]).images[0].permute(1, 2, 0), expected)
    assert not of_range(images)


def test_white_is_the_same_in_every_strip_of_a_tiff(tmp_path):
    """The lower bytes of the first strip alone were read; in the others the upper bytes stood for them."""
    values = drawn(4095, 3)
    images = opened(tmp_path / "set", [in_strips(values)] * 3, 3, white=4095)
    expected = (values.astype(np.int64) * 255 / 4095).round()
    assert np.array_equal(images.splits["train"].read([0]).images[0].permute(1, 2, 0), expected)


def test_integers_of_32_bits_have_the_same_range(tmp_path):
    values = drawn(4095)[..., 0].astype(np.int32)
    images = opened(tmp_path / "set", [tiff(values)] * 3)
    assert "2 of 2 pictures of 16 bits use at most 4,096" in of_range(images)
    white = opened(tmp_path / "other", [tiff(values)] * 3, white=4095).splits["train"].read([0])
    assert np.array_equal(white.images[0, 0], (values * 255 / 4095).round())


REFUSED = {
    "beyond white": (lambda: png(drawn(5000)), r"must lie in 0\.\.4095 \(images.white\), got \d+\.\.5000"),
    "colours beyond white": (lambda: png(drawn(5000, 3)), r"must lie in 0\.\.4095"),
    "below black": (lambda: tiff(drawn(9)[..., 0].astype(np.int32) - 20), r"must lie in 0\.\.4095 .*got -\d+"),
    "transparency": (lambda: png(drawn(4095, 4)), "images.white is for grey and RGB of 16 bits; RGBA;16B is"),
    "floats": (lambda: tiff(drawn(9)[..., 0].astype(np.float32)), "float pixels have no agreed range"),
}


@pytest.mark.parametrize("make, message", REFUSED.values(), ids=REFUSED)
def test_values_that_have_no_place_in_the_range_are_refused_and_never_clipped(make, message, tmp_path):
    with pytest.raises(UserError, match=message):
        opened(tmp_path / "set", [make()] * 3, white=4095)


@pytest.mark.parametrize("white", [65_535, 4095])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_one_colour_of_16_bits_that_is_transparent_is_kept_for_four_channels(channels, white, tmp_path):
    """Of grey it was dropped; of colours PIL compared its lower bytes with the upper ones of the picture."""
    values = drawn(white, channels)
    clear = values[2, 3].tolist()
    read = opened(tmp_path / "set", [png(values, clear)] * 3, 4, white=white).splits["train"].read([0]).images[0]
    assert np.array_equal(read[3] == 0, (values == clear).all(-1)) and read[3].max() == 255
    expected = (values.astype(np.int64) * 255 / white).round()
    assert np.array_equal(read[:3].permute(1, 2, 0), np.broadcast_to(expected, (*SIZE, 3)))


def test_what_is_transparent_in_16_bits_is_laid_on_white_as_in_8(tmp_path):
    values = np.full((*SIZE, 1), 200 * 257)
    values[1:3] = 20 * 257
    read = opened(tmp_path / "set", [png(values, [20 * 257])] * 3).splits["train"].read([0]).images[0, 0]
    assert (read[1:3] == 255).all() and (read[3:] == 200).all()


@pytest.mark.parametrize("white", [65_535, 4095])
def test_a_grey_tiff_whose_zero_is_white_comes_as_the_one_whose_zero_is_black(white, tmp_path):
    """PIL inverts such pictures of 8 bits alone; those of 16 came as negatives."""
    values = drawn(white)
    for folder, file in {"zero is black": in_strips(values, 1), "zero is white": in_strips(white - values, 0)}.items():
        read = opened(tmp_path / folder, [file] * 3, white=white).splits["train"].read([0]).images[0, 0]
        assert np.array_equal(read, (values[..., 0].astype(np.int64) * 255 / white).round())


@pytest.mark.parametrize("channels, white", [(3, 65_535), (3, 4095), (1, 65_535)])
def test_planes_of_16_bits_are_refused_with_what_to_do(channels, white, tmp_path):
    """PIL takes them for planes of 8 bits: the picture was noise."""
    file = in_strips(drawn(4095, channels), 2 if channels == 3 else 1, planes=True)
    with pytest.raises(UserError, match=r"save it with the channels of a pixel side by side \(PlanarConfiguration 1\)"):
        opened(tmp_path / "set", [file] * 3, channels, white=white)


def test_a_turned_picture_of_16_bits_is_turned_whole(tmp_path):
    """EXIF rotation moves both bytes of a colour."""
    values = np.random.default_rng(0).integers(0, 4096, (SIZE[1], SIZE[0], 3)).astype(np.uint16)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # viewers turn it by 90 degrees clockwise
    plain = png(values)
    data = exif.tobytes()[6:] if exif.tobytes().startswith(b"Exif") else exif.tobytes()
    chunk = struct.pack(">I", len(data)) + b"eXIf" + data + struct.pack(">I", zlib.crc32(b"eXIf" + data))
    turned = plain[:33] + chunk + plain[33:]
    read = opened(tmp_path / "set", [turned] * 3, 3, white=4095).splits["train"].read([0]).images[0]
    assert np.array_equal(read.permute(1, 2, 0), (np.rot90(values, -1).astype(np.int64) * 255 / 4095).round())


def test_pictures_of_8_bits_and_bright_ones_of_16_are_passed_over_in_silence(tmp_path):
    dark = np.full((*SIZE, 1), 3, np.uint8)
    files = [png(drawn(60_000)), png(drawn(60_000, seed=1)), png(drawn(60_000, seed=2))]
    assert not of_range(opened(tmp_path / "bright", files))
    file = io.BytesIO()
    PIL.Image.fromarray(dark[..., 0]).save(file, "PNG")
    assert not of_range(opened(tmp_path / "dark", [file.getvalue()] * 3))

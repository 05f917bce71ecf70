"""Images from any source: every layout, every image mode, and the messages about unreadable images."""

import io
import json
import pickle
import shutil
import sys
import tarfile
import zlib
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from pydantic import ValidationError
from torch.utils.data import DataLoader

from smalti.common.codes_info import CodesInfo, TokenizerIdentity
from smalti.common.condition import Classes
from smalti.common.data.config import ImagesConfig
from smalti.common.data.images import ImageSet, open_images
from smalti.common.data.pixels import to_float, to_pil, to_uint8
from smalti.common.data.split import ImageBatch
from smalti.common.errors import UserError
from smalti.tokenizer.encode import encode_batch
from smalti.tokenizer.model import build_tokenizer
from smalti.tokenizer.vqvae.config import VQVAEConfig

SIZE = (6, 5)
NAMES = ["cat", "dog"]


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """Keep tests from writing into the user's cache and from asking the Hub."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def pixels(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def file_of(image: PIL.Image.Image | np.ndarray, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, PIL.Image.Image) else PIL.Image.fromarray(image)).save(buffer, format, **options)
    return buffer.getvalue()


FILES = [file_of(pixels(i)) for i in range(10)]
LABELS = [i % 2 for i in range(10)]


def table(files=FILES, labels=LABELS, label=ClassLabel(names=NAMES)) -> Dataset:  # noqa: B008
    images = [{"bytes": file, "path": None} for file in files]
    columns = {"image": images} if labels is None else {"image": images, "label": labels}
    features = {"image": Image()} if labels is None else {"image": Image(), "label": label}
    return Dataset.from_dict(columns, Features(features))


def parquet(folder: Path, **splits: Dataset) -> Path:
    folder.mkdir(parents=True)
    for name, split in splits.items():
        split.to_parquet(folder / f"{name}-00000-of-00001.parquet")
    return folder


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def opened(source: Path | str, size: tuple[int, int] = SIZE, channels: int = 3, **settings) -> ImageSet:
    return open_images(ImagesConfig(source=str(source), **settings), size, channels)


def whole(images: ImageSet, *names: str) -> ImageBatch:
    """Return all the rows of one or more splits, in the order of the source's rows."""
    batches = [images.splits[name].read(range(len(images.splits[name]))) for name in names or ("train", "validation")]
    rows = torch.cat([batch.rows for batch in batches])
    order = rows.argsort()
    parts = [torch.cat([getattr(batch, field) for batch in batches])[order] for field in ("images", "labels", "epochs")]
    return ImageBatch(parts[0], parts[1], rows[order], parts[2], [row for batch in batches for row in batch.corrupt])


def one(image: PIL.Image.Image | np.ndarray, size=SIZE, channels=3, format="PNG", tmp_path=None, **settings):
    """Return the picture as the model receives it: (C, H, W) uint8."""
    file = image if isinstance(image, bytes) else file_of(image, format)
    folder = write(tmp_path / f"one{len(list(tmp_path.iterdir()))}", {"a.png": file, "b.png": file})
    return opened(folder, size, channels, **settings).splits["train"].read([0]).images[0]


# ------------------------------------------------------------------------------------------------------ the digits


def test_digits_need_no_datasets_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)  # importing it fails
    assert len(opened("digits", (8, 8), 1).splits["test"]) == 297


def test_digits_are_1797_with_the_last_297_as_test_and_their_pixels_span_0_to_255():
    digits = opened("digits", (8, 8), 1)
    assert {name: len(split) for name, split in digits.splits.items()} == {"train": 1419, "validation": 81, "test": 297}
    assert digits.class_names == tuple("0123456789")
    batch = whole(digits, "train", "validation")
    assert batch.rows.tolist() == list(range(1500)) and batch.labels[:10].tolist() == list(range(10))
    assert batch.images[0, 0, 0].tolist() == [round(value * 255 / 16) for value in (0, 0, 5, 13, 9, 1, 0, 0)]
    assert (batch.images.min(), batch.images.max()) == (0, 255)


# --------------------------------------------------------------------------------------------------- one file's pixels


@pytest.mark.parametrize("channels, expected", [(1, [102]), (3, [102] * 3), (4, [102] * 3 + [255])])
@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I"])
def test_every_mode_of_file_becomes_the_same_grey(mode, channels, expected, tmp_path):
    grey = PIL.Image.new("L", (5, 6), 102)
    if mode.startswith("I"):
        sixteen = np.full(SIZE, 102 * 257, np.uint16 if mode == "I;16" else np.int32)
        image = PIL.Image.fromarray(sixteen)
        assert image.mode == mode
    else:
        image = grey.convert("RGB").quantize() if mode == "P" else grey.convert("RGB").convert(mode)
    pixels = one(image, channels=channels, format="TIFF" if mode in ("CMYK", "I") else "PNG", tmp_path=tmp_path)
    assert pixels.tolist() == torch.tensor(expected)[:, None, None].expand(-1, *SIZE).tolist()


def test_a_one_bit_picture_becomes_black_and_white(tmp_path):
    bits = PIL.Image.fromarray(np.eye(6, 5, dtype=np.uint8) * 255).convert("1")
    assert torch.equal(one(bits, channels=1, tmp_path=tmp_path)[0], torch.eye(6, 5, dtype=torch.uint8) * 255)


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path):
    ramp = np.linspace(0, 65535, 30).astype(np.uint16).reshape(SIZE)
    assert one(ramp, channels=1, tmp_path=tmp_path)[0].tolist() == np.rint(ramp / 257).astype(int).tolist()


def test_float_pixels_are_refused_for_want_of_a_range(tmp_path):
    with pytest.raises(UserError, match="float pixels have no agreed range"):
        one(file_of(np.zeros(SIZE, np.float32), "TIFF"), tmp_path=tmp_path)


def palette_with_a_hole() -> PIL.Image.Image:
    image = PIL.Image.new("P", (5, 6), 1)
    image.putpalette([10, 20, 30, 200, 100, 0])
    image.info["transparency"] = 1
    return image


@pytest.mark.parametrize("image", [PIL.Image.new("RGBA", (5, 6), (200, 100, 0, 0)), palette_with_a_hole()])
def test_transparency_is_laid_on_white_for_three_channels_and_kept_for_four(image, tmp_path):
    assert (one(image, channels=3, tmp_path=tmp_path) == 255).all()
    assert (one(image, channels=1, tmp_path=tmp_path) == 255).all()
    assert one(image, channels=4, tmp_path=tmp_path)[:, 0, 0].tolist() == [200, 100, 0, 0]


def test_the_colour_of_transparent_pixels_does_not_bleed_when_resized(tmp_path):
    image = PIL.Image.new("RGBA", (16, 16), (0, 255, 0, 0))  # green, but transparent
    image.paste((255, 0, 0, 255), (0, 0, 7, 16))
    resized = one(image, (8, 8), 4, tmp_path=tmp_path).int()
    seen = resized[3] > 0
    assert 0 < resized[3, 0, 3] < 255
    assert (resized[1][seen] <= 1).all() and (resized[0][seen] >= 254).all()


def test_a_photograph_is_turned_as_its_exif_says(tmp_path):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # viewers turn it by 90 degrees clockwise
    file = file_of(pixels(0), exif=exif)
    assert np.array_equal(one(file, (5, 6), tmp_path=tmp_path).permute(1, 2, 0), np.rot90(pixels(0), -1))


# --------------------------------------------------------------------------------------------------------- its size


def test_crop_keeps_the_shape_of_things_and_stretch_keeps_all_of_them(tmp_path):
    stripes = np.zeros((8, 16, 3), np.uint8)
    stripes[:, :4], stripes[:, 12:] = 255, 255  # white edges, outside the central square
    assert (one(stripes, (8, 8), tmp_path=tmp_path) == 0).all()
    stretched = one(stripes, (8, 8), resize="stretch", tmp_path=tmp_path)[0, 0]
    assert stretched[0] == 255 and stretched[-1] == 255 and stretched[4] == 0


@pytest.mark.parametrize("have", [(20, 30), (3, 2), (1, 60_000), (6, 5)])
@pytest.mark.parametrize("resize", ["crop", "stretch"])
def test_an_image_of_any_size_comes_out_at_the_size_wanted(have, resize, tmp_path):
    assert one(np.full((*have, 3), 77, np.uint8), resize=resize, tmp_path=tmp_path).tolist() == [[[77] * 5] * 6] * 3


def test_a_small_image_grows_smoothly():
    grown = whole(opened("digits", (32, 32), 1)).images.int()
    small = whole(opened("digits", (8, 8), 1)).images.int()
    steepest = lambda x: x.diff(dim=-1).abs().amax()  # noqa: E731
    assert steepest(grown) <= steepest(small) / 3


# -------------------------------------------------------------------------------------------------- damaged images


def with_row_3(file: bytes, tmp_path: Path) -> Path:
    return parquet(tmp_path / "set", train=table([*FILES[:3], file, *FILES[4:]]), val=table(FILES[:1], [0]))


DAMAGED = {"cut": FILES[3][:60], "text": b"not an image", "empty": b""}


@pytest.mark.parametrize("memory", [1.0, 0.0])
@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_image_is_refused_by_source_split_and_row(damage, memory, tmp_path):
    folder = with_row_3(DAMAGED[damage], tmp_path)
    with pytest.raises(UserError, match=rf"split train of {folder}, row 3: .* cannot be decoded .*corrupt: skip"):
        whole(opened(folder, memory=memory))


def test_damaged_images_kept_in_memory_leave_the_split_and_are_remembered(tmp_path):
    folder = with_row_3(b"x", tmp_path)
    train = opened(folder, corrupt="skip").splits["train"]
    assert len(train) == 9 and [row for row, _ in train.corrupt] == [3]
    batch = train.read(range(9))
    assert batch.rows.tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 9] and batch.corrupt == []
    assert batch.labels.tolist() == [LABELS[row] for row in batch.rows]


def test_damaged_images_read_from_disk_are_left_out_of_the_batch_that_asked_for_them(tmp_path):
    folder = with_row_3(b"x", tmp_path)
    train = opened(folder, corrupt="skip", memory=0.0).splits["train"]
    batch = train.read([5, 3, 1], epochs=[7, 8, 9])
    assert len(train) == 10 and len(batch.images) == 2
    assert (batch.rows.tolist(), batch.epochs.tolist(), batch.labels.tolist()) == ([5, 1], [7, 9], [1, 1])
    assert batch.corrupt[0].row == 3 and str(batch.corrupt[0]).startswith("row 3: ")


def test_a_batch_of_damaged_images_alone_has_no_codes_and_does_not_end_the_encoding(tmp_path, accelerator):
    """Where the last batch of a split has one image, it may be the damaged one."""
    images = ImagesConfig(source=str(with_row_3(b"x", tmp_path)), corrupt="skip", memory=0.0)
    config = VQVAEConfig(image_size=(8, 8), image_channels=3, channels=(8, 16))
    split = open_images(images, (8, 8), 3).splits["train"]
    info = CodesInfo(
        layout=config.layout,
        views=2,
        condition=Classes(names=tuple(NAMES)),
        tokenizer=TokenizerIdentity(name="t", sha256="0" * 64),
        source={},
        shard_size=1,
    )
    tokenizer = build_tokenizer(config)
    for position, rows in ((3, 0), (4, 2)):
        found = encode_batch(tokenizer, split, torch.tensor([position]), info, images, accelerator)
        assert found.codes.shape == (rows, config.layout.length) and len(found.rows) == len(found.condition) == rows


@pytest.mark.parametrize("side", [11, 20_000])  # PIL itself refuses the second before it reads a pixel
def test_an_image_of_more_pixels_than_the_limit_counts_as_damaged(side, tmp_path):
    """A PNG's header may claim any size: 400 million pixels in 60 bytes."""
    size = side.to_bytes(4, "big") * 2
    head = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", size + b"\x08\x02\x00\x00\x00")
        + chunk(b"IDAT", b"")
        + chunk(b"IEND", b"")
    )
    with pytest.raises(
        UserError, match=r"cannot be decoded.*(11 x 11 pixels are more than images.max_pixels 100|bomb)"
    ):
        one(head, tmp_path=tmp_path, max_pixels=100)


def chunk(kind: bytes, data: bytes) -> bytes:
    """Return a chunk of a PNG."""
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def gif(*seeds: int) -> bytes:
    first, *others = (PIL.Image.fromarray(pixels(seed)) for seed in seeds)
    return file_of(first, "GIF", save_all=True, append_images=others)


def test_of_an_animation_the_first_frame_is_taken_and_it_is_counted(tmp_path):
    folder = write(tmp_path / "set", {"a.gif": gif(0, 1, 2), "b.gif": gif(3), "c.png": FILES[0]})
    images = opened(folder, validation_share=0.34)
    assert sum(split["animated"] for split in images.counts().values()) == 1
    first = one(gif(0), tmp_path=tmp_path)
    assert torch.equal(whole(images).images[0], first)
    assert any("animated, the first frame taken: row 0: 3 frames" in remark for remark in images.remarks())


@pytest.mark.parametrize("memory", [1.0, 0.0])
def test_an_animation_is_left_out_or_refused_where_that_is_set(memory, tmp_path):
    animated = [file if i != 3 else gif(0, 1) for i, file in enumerate(FILES)]
    folder = parquet(tmp_path / "set", train=table(animated), validation=table())
    train = opened(folder, animated="skip", memory=memory).splits["train"]
    left = train.corrupt if memory else train.read_rows([3]).corrupt
    assert [str(row) for row in left] == ["row 3: an animation of 2 frames"]
    with pytest.raises(UserError, match=r"row 3: the image is an animation of 2 frames; .*animated: skip"):
        whole(opened(folder, animated="refuse", memory=memory))


def repeating(tmp_path: Path) -> Path:
    """Write a dataset in which row 7 of train repeats its row 2, row 4 of train repeats row 1 of test, and row 0 of
    validation repeats row 0 of test."""
    again = [*FILES[:4], b"", *FILES[5:7], FILES[2], *FILES[8:]]
    held_out = [file_of(pixels(i)) for i in range(20, 24)]
    again[4] = held_out[1]
    chosen_by = [held_out[0], file_of(pixels(30))]
    return parquet(
        tmp_path / "set", train=table(again), test=table(held_out, [0, 1, 0, 1]), validation=table(chosen_by, [0, 1])
    )


def test_repeated_rows_are_counted_and_named(tmp_path):
    images = opened(repeating(tmp_path))
    counts = {name: split["repeated"] for name, split in images.counts().items()}
    assert counts == {"train": 2, "validation": 1, "test": 0} and len(images.splits["train"]) == 10
    remarks = list(images.remarks())
    assert "train, repeated and kept: row 4: the same file as row 1 of test" in remarks
    assert "train, repeated and kept: row 7: the same file as row 2 of train" in remarks


@pytest.mark.parametrize("memory", [1.0, 0.0])
def test_a_picture_that_is_held_out_too_is_left_out_of_train(memory, tmp_path):
    images = opened(repeating(tmp_path), duplicates="skip", memory=memory, validation_share=0.1)
    assert len(images.splits["test"]) == 4 and 4 not in images.splits["train"].rows
    assert images.splits["train"].rows.tolist() == [0, 1, 2, 3, 5, 6, 8, 9]
    with pytest.raises(UserError, match=r"row 0: the same file as row 0 of test; .*duplicates: skip"):
        opened(tmp_path / "set", duplicates="refuse", memory=memory)


def test_a_label_that_is_none_of_the_classes_is_refused_by_its_row_or_left_out(tmp_path):
    """Such a label was read as a row without one; −1, with which test splits hide labels, still is."""
    folder = parquet(tmp_path / "set", train=table(), test=table(FILES[:4], [0, 1, -1, 0]))
    path = folder / "train-00000-of-00001.parquet"
    rows = pq.read_table(path)
    labels = pa.array([0, 1, 0, 1, 0, 7, 0, 1, None, -1], pa.int64())
    pq.write_table(rows.set_column(rows.schema.get_field_index("label"), "label", labels), path)
    with pytest.raises(UserError, match=r"row 5: its label 7 is none of the 2 classes; .*corrupt: skip"):
        opened(folder)
    images = opened(folder, corrupt="skip")
    assert images.counts()["train"]["left_out"] + images.counts()["validation"]["left_out"] == 1
    assert whole(images).rows.tolist() == [0, 1, 2, 3, 4, 6, 7, 8, 9] and whole(images).labels.tolist()[-2:] == [-1, -1]


@pytest.mark.parametrize(
    "change", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes() + b"x")]
)
def test_a_file_that_changes_while_the_set_is_read_is_refused_by_name(change, tmp_path):
    folder = write(tmp_path / "set", {f"{i}.png": file for i, file in enumerate(FILES)})
    images = opened(folder, memory=0.0, corrupt="skip")
    change(folder / "3.png")
    with pytest.raises(UserError, match=r"row 3: .*3\.png, had \d+ bytes when the set was opened, has \d+ now"):
        whole(images)


def test_a_link_to_a_folder_above_it_is_named_and_one_to_another_is_followed(tmp_path):
    """Such a link was followed forty folders deep, until the system stopped it."""
    folder = write(tmp_path / "set", {"a/0.png": FILES[0], "a/1.png": FILES[1]})
    write(tmp_path / "elsewhere", {"2.png": FILES[2], "3.png": FILES[3]})
    (folder / "b").symlink_to(tmp_path / "elsewhere")
    assert len(whole(opened(folder, reach="anywhere")).rows) == 4
    (folder / "a/loop").symlink_to(folder)
    with pytest.raises(UserError, match=r"a/loop is a link to a folder that it stands in"):
        opened(folder, reach="anywhere")


@pytest.mark.parametrize("name", ["../secret.png", "/etc/hostname.png", "a/../../secret.png"])
def test_a_metadata_file_reaches_nothing_outside_its_folder(name, tmp_path):
    write(tmp_path, {"secret.png": FILES[0]})
    folder = write(tmp_path / "set", {"a.png": FILES[1], "b.png": FILES[2]})
    (folder / "metadata.jsonl").write_text(f'{{"file_name": "a.png"}}\n{{"file_name": "{name}"}}\n')
    with pytest.raises(UserError, match=r"metadata\.jsonl, line 2: file_name must stay inside the folder, got '.*'"):
        opened(folder)


@pytest.mark.parametrize("elsewhere", ["../other/train-00000-of-00001.parquet", "https://example.org/train.parquet"])
def test_a_readme_reaches_no_data_outside_its_folder(elsewhere, tmp_path):
    parquet(tmp_path / "other", train=table())
    folder = parquet(tmp_path / "set", train=table())
    (folder / "README.md").write_text(
        f"---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: {elsewhere}\n---\n"
    )
    with pytest.raises(UserError, match=rf"README\.md: data files must stay inside the folder, got '{elsewhere}'"):
        opened(folder)


def test_a_split_of_nothing_but_damaged_images_is_refused(tmp_path):
    with pytest.raises(UserError, match="none of 10 images can be decoded"):
        opened(write(tmp_path / "set", {f"{i}.png": b"x" for i in range(10)}), corrupt="skip", validation_share=0.1)


# ------------------------------------------------------------------------------------------------ reading in batches


@pytest.fixture
def folder(tmp_path):
    return parquet(tmp_path / "set", train=table(), test=table(FILES[:4], [-1] * 4))


def test_a_set_read_from_disk_equals_the_set_kept_in_memory(folder):
    for kept, read in zip(whole(opened(folder)), whole(opened(folder, memory=0.0)), strict=True):
        assert kept == [] == read or torch.equal(kept, read)


def test_positions_may_be_a_tensor_an_array_or_a_list_and_keep_their_order(folder):
    train = opened(folder).splits["train"]
    for positions in ([4, 0, 4], np.array([4, 0, 4]), torch.tensor([4, 0, 4])):
        assert train.read(positions).rows.tolist() == train.rows[[4, 0, 4]].tolist()


def test_rows_of_the_source_are_found_again(folder):
    train = opened(folder).splits["train"]
    rows = train.rows[[3, 1]]
    assert torch.equal(train.read_rows(rows).images, train.read([3, 1]).images)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("memory", [1.0, 0.0])
def test_a_data_loader_reads_the_batches_its_sampler_asks_for(folder, memory, workers):
    train = opened(folder, memory=memory, corrupt="skip").splits["train"]
    asked = [(torch.tensor([5, 1]), torch.tensor([0, 1])), (torch.tensor([0, 2, 4]), torch.tensor([2, 2, 2]))]
    loader = DataLoader(train, batch_size=None, sampler=asked, num_workers=workers)
    for batch, (positions, epochs) in zip(loader, asked, strict=True):
        expected = train[positions, epochs]
        assert isinstance(batch, ImageBatch) and batch.epochs.tolist() == epochs.tolist()
        assert all(torch.equal(a, b) for a, b in zip(batch[:4], expected[:4], strict=True))


@pytest.mark.parametrize("memory", [1.0, 0.0])
def test_a_split_can_be_sent_to_another_process(folder, memory):
    train = opened(folder, memory=memory).splits["train"]
    assert torch.equal(pickle.loads(pickle.dumps(train)).read([3, 1]).images, train.read([3, 1]).images)


def test_the_reason_of_a_damaged_row_comes_through_a_worker_process(tmp_path):
    train = opened(with_row_3(b"x", tmp_path), corrupt="skip", memory=0.0).splits["train"]
    (batch,) = DataLoader(train, batch_size=None, sampler=[(torch.tensor([3, 1]), torch.tensor([0, 0]))], num_workers=1)
    assert batch.corrupt[0].row == 3 and "no picture of a format" in batch.corrupt[0].reason


# ----------------------------------------------------------------------------------------------------------- splits


def test_held_out_rows_are_the_same_every_time_and_in_no_other_split(folder):
    first, again = (opened(folder, validation_share=0.3).splits for _ in range(2))
    assert first["validation"].rows.tolist() == again["validation"].rows.tolist()
    assert sorted([*first["train"].rows, *first["validation"].rows]) == list(range(10))


@pytest.mark.parametrize("name", ["validation", "val", "valid", "dev"])
def test_a_split_for_validation_is_taken_by_any_of_its_names(name, tmp_path):
    saved = DatasetDict({"train": table(), name: table(FILES[:3], [1, 1, 1]), "extra": table(FILES[:2], [0, 0])})
    saved.save_to_disk(tmp_path / "set")
    splits = opened(tmp_path / "set").splits
    assert {name: len(split) for name, split in splits.items()} == {"train": 10, "validation": 3, "extra": 2}


# ----------------------------------------------------------------------------------------------------------- formats


def save_parquet(folder: Path) -> None:
    parquet(folder, train=table(), test=table(FILES[:3], LABELS[:3]))
    write(folder, {"preview.png": FILES[0], "README.md": b"words"})


def save_dict_to_disk(folder: Path) -> None:
    DatasetDict(train=table(), test=table(FILES[:3], LABELS[:3])).with_format("torch").save_to_disk(folder)


def save_arrow(folder: Path) -> None:
    for name, split in (("train", table()), ("test", table(FILES[:3], LABELS[:3]))):
        split.save_to_disk(folder.parent / name)
        write(folder, {f"{name}.arrow": next((folder.parent / name).glob("*.arrow")).read_bytes()})


def save_class_folders(folder: Path) -> None:
    for name, count in (("train", 10), ("test", 3)):
        write(folder / name, {f"{NAMES[LABELS[i]]}/deep/{i}.PNG": FILES[i] for i in range(count)})
    write(folder / "train", {".hidden/x.png": FILES[0], "cat/.x.png": FILES[0], "cat/notes.txt": b"words"})


def save_metadata(folder: Path) -> None:
    for name, count in (("train", 10), ("test", 3)):
        lines = [{"file_name": f"i/{i}.png", "label": NAMES[LABELS[i]], "seed": i} for i in range(count)]
        write(folder / name, {f"i/{i}.png": FILES[i] for i in range(count)})
        (folder / name / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
        write(folder / name, {"grid.png": FILES[0]})


@pytest.mark.parametrize("save", [save_parquet, save_dict_to_disk, save_arrow, save_class_folders, save_metadata])
def test_the_same_images_and_labels_come_out_of_every_format(save, tmp_path):
    save(tmp_path / "set")
    images = opened(tmp_path / "set")
    assert images.class_names == tuple(NAMES) and set(images.splits) == {"train", "validation", "test"}
    for names, count in ((("train", "validation"), 10), (("test",), 3)):
        batch = whole(images, *names)
        found = {image.permute(1, 2, 0).numpy().tobytes(): label for image, label in zip(*batch[:2], strict=True)}
        assert found == {pixels(i).tobytes(): LABELS[i] for i in range(count)}


def test_a_single_saved_dataset_is_the_train_split(tmp_path):
    table().save_to_disk(tmp_path / "set")
    assert whole(opened(tmp_path / "set")).labels.tolist() == LABELS


def test_webdataset_shards_are_read_with_their_cls_as_label(tmp_path):
    for shard in range(2):
        (tmp_path / "set").mkdir(exist_ok=True)
        with tarfile.open(tmp_path / "set" / f"train-{shard}.tar", "w") as tar:
            for i in range(5 * shard, 5 * shard + 5):
                for name, content in ((f"{i}.png", FILES[i]), (f"{i}.cls", str(LABELS[i]).encode())):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    batch = whole(images := opened(tmp_path / "set", label_column="cls"))
    assert images.class_names == ("0", "1") and batch.labels.tolist() == LABELS
    assert np.array_equal(batch.images[4].permute(1, 2, 0), pixels(4))
    assert opened(tmp_path / "set").class_names is None


def test_a_folder_may_have_the_name_of_a_format(tmp_path, monkeypatch):
    """`load_dataset("parquet")` means the format and asks for data files."""
    parquet(tmp_path / "parquet", train=table())
    monkeypatch.chdir(tmp_path)
    assert whole(opened("parquet")).labels.tolist() == LABELS


def test_a_folder_of_images_without_class_folders_is_unlabelled(tmp_path):
    images = opened(write(tmp_path / "set", {f"{i}.png": FILES[i] for i in range(4)}))
    assert images.class_names is None and whole(images).labels.tolist() == [-1] * 4


def test_a_class_may_be_called_train(tmp_path):
    images = opened(write(tmp_path / "set", {f"{name}/0.png": FILES[0] for name in ("bus", "train", "car")}))
    assert images.class_names == ("bus", "car", "train") and set(images.splits) == {"train", "validation"}


def test_a_test_folder_without_class_folders_hides_its_labels(tmp_path):
    files = {"train/cat/0.png": FILES[0], "train/dog/1.png": FILES[1], "test/2.png": FILES[2]}
    assert whole(opened(write(tmp_path / "set", files)), "test").labels.tolist() == [-1]


def test_images_beside_class_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"images of no class, such as preview\.png"):
        opened(write(tmp_path / "set", {"cat/0.png": FILES[0], "preview.png": FILES[1]}))


def test_metadata_may_number_its_classes(tmp_path):
    write(tmp_path / "set", {f"{i}.png": FILES[i] for i in range(3)})
    lines = [json.dumps({"file_name": f"{i}.png", "label": label}) for i, label in enumerate((2, 0, None))]
    (tmp_path / "set/metadata.jsonl").write_text("\n".join(lines))
    assert opened(tmp_path / "set").class_names == ("0", "1", "2")
    assert whole(opened(tmp_path / "set")).labels.tolist() == [2, 0, -1]


# ----------------------------------------------------------------------------------------------------------- labels


def test_a_named_column_of_numbers_or_text_gives_the_class_names(tmp_path):
    numbers = parquet(tmp_path / "numbers", train=table(labels=[0, 3] * 5, label=Value("int32")))
    texts = parquet(tmp_path / "texts", train=table(labels=["b", "a"] * 5, label=Value("string")))
    images = opened(numbers, label_column="label")
    assert images.class_names == ("0", "1", "2", "3") and whole(images).labels.tolist() == [0, 3] * 5
    images = opened(texts, label_column="label")
    assert images.class_names == ("a", "b") and whole(images).labels.tolist() == [1, 0] * 5
    assert opened(texts).class_names is None


@pytest.mark.parametrize("label, values", [("float32", [0.5] * 10), ("int64", [10**12] * 10)])
def test_a_named_column_that_holds_no_classes_is_refused(label, values, tmp_path):
    folder = parquet(tmp_path / "set", train=table(labels=values, label=Value(label)))
    with pytest.raises(UserError, match="label_column label: expected class numbers from 0"):
        opened(folder, label_column="label")


def test_hidden_labels_and_splits_without_the_column_are_minus_one(folder, tmp_path):
    assert whole(opened(folder), "test").labels.tolist() == [-1] * 4
    DatasetDict(train=table(), test=table(FILES[:2], None)).save_to_disk(tmp_path / "saved")
    assert whole(opened(tmp_path / "saved"), "test").labels.tolist() == [-1] * 2


@pytest.mark.parametrize("save", [parquet, lambda folder, **splits: DatasetDict(splits).save_to_disk(folder)])
def test_splits_whose_class_names_disagree_are_refused(save, tmp_path):
    """`load_dataset` names the classes of all Parquet splits after the first: the dogs of test silently became cats."""
    save(tmp_path / "set", train=table(), test=table(label=ClassLabel(names=["dog", "cat"])))
    with pytest.raises(UserError, match=r"expected the class names of .* train; got dog in place of cat"):
        opened(tmp_path / "set")


def test_a_class_that_train_has_not_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"split test of .*got bird"):
        opened(write(tmp_path / "set", {f"{name}/0.png": FILES[0] for name in ("train/cat", "train/dog", "test/bird")}))


# ----------------------------------------------------------------------------------------------------- refusals


def several(tmp_path: Path) -> Path:
    one = {"bytes": FILES[0], "path": None}
    kinds = {"front": Image(), "back": Image(), "coarse": ClassLabel(names=NAMES), "fine": ClassLabel(names=NAMES)}
    rows = {"front": [one] * 2, "back": [one] * 2, "coarse": [0, 1], "fine": [1, 1]}
    return parquet(tmp_path / "set", train=Dataset.from_dict(rows, Features(kinds)))


def test_one_of_several_columns_must_be_named(tmp_path):
    folder = several(tmp_path)
    with pytest.raises(UserError, match="image_column must name one of several Image columns: front, back"):
        opened(folder)
    with pytest.raises(UserError, match="label_column must name one of several ClassLabel columns: coarse, fine"):
        opened(folder, image_column="front")
    assert whole(opened(folder, image_column="front", label_column="fine")).labels.tolist() == [1, 1]


REFUSED = {
    "no column": ({"image_column": "img"}, "image_column img: there is no such column; there are image, label"),
    "not images": ({"image_column": "label"}, "expected images in the column label; got ClassLabel"),
    "no subset": ({"subset": "small"}, "subset small: .*README.md names no such subset; it names none"),
}


@pytest.mark.parametrize("settings, message", REFUSED.values(), ids=REFUSED)
def test_a_setting_the_source_does_not_fit_is_refused_in_one_line(settings, message, folder):
    with pytest.raises(UserError, match=message) as raised:
        opened(folder, **settings)
    assert "\n" not in str(raised.value)


def corrupt_parquet(path: Path) -> Path:
    return write(path / "set", {"train.parquet": b"PAR1 and nothing more"})


SOURCES = {
    "missing folder": (lambda path: path / "set", "no such folder here"),
    "a file": (lambda path: write(path, {"a.png": FILES[0]}) / "a.png", "is a file: expected a folder"),
    "an unreachable name": (lambda path: "somebody/something", "no such folder here, and the Hub has or reaches no"),
    "an empty folder": (lambda path: write(path / "set", {".x": b""}), "holds no images: expected Parquet"),
    "no images": (lambda path: write(path / "set", {"a.txt": b""}), "holds no images: .*got 1 other files"),
    "corrupt Parquet": (corrupt_parquet, "cannot be read; expected .*Parquet magic bytes not found"),
    "no rows": (lambda path: parquet(path / "set", train=table([], [])), "an image in every split .*no data"),
    "one image": (lambda path: write(path / "set", {"a.png": FILES[0]}), "has 1 image; at least 2 are needed"),
    "no train": (lambda path: parquet(path / "set", test=table()), "has no split train; its splits are test"),
    "bad metadata": (lambda path: write(path / "set", {"a.png": b"", "metadata.jsonl": b"{}"}), "line 1: expected a"),
}


@pytest.mark.parametrize("make, message", SOURCES.values(), ids=SOURCES)
def test_a_source_that_is_none_is_refused_in_one_line(make, message, tmp_path):
    (tmp_path / "set").mkdir() if message.startswith("holds") else None
    with pytest.raises(UserError, match=message) as raised:
        opened(make(tmp_path))
    assert "\n" not in str(raised.value)


def test_an_empty_split_beside_a_full_one_is_refused(tmp_path):
    DatasetDict(train=table(), test=table([], [])).save_to_disk(tmp_path / "saved")
    with pytest.raises(UserError, match=r"saved: .* an image in every split"):
        opened(tmp_path / "saved")
    files = {"train/0.png": FILES[0], "train/1.png": FILES[1], "test/0.png": FILES[2], "test/metadata.jsonl": b""}
    with pytest.raises(UserError, match=r"split test of .* is empty"):
        opened(write(tmp_path / "set", files))


@pytest.mark.parametrize(
    "key, value", [("shift", -1), ("white", 65_536), ("validation_share", 0.0), ("validation_share", 0.6)]
)
def test_a_setting_out_of_range_is_refused(key, value):
    with pytest.raises(ValidationError, match=key):
        ImagesConfig(**{key: value})


# ------------------------------------------------------------------------------------------------------- fingerprint


def test_the_fingerprint_of_the_digits_is_the_same_on_every_machine():
    assert opened("digits", (8, 8), 1).fingerprint.startswith("3a93d3acd846")


def test_the_fingerprint_is_of_the_content_and_not_of_the_place_or_the_time(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)
    assert opened(folder).fingerprint == opened(tmp_path / "copy").fingerprint == opened(folder, memory=0.0).fingerprint


OTHERS = [table([FILES[1], *FILES[1:]]), table(labels=LABELS[::-1]), table(FILES[:9], LABELS[:9])]


@pytest.mark.parametrize("other", OTHERS, ids=["image", "label", "row"])
def test_the_fingerprint_changes_with_an_image_a_label_or_a_row(other, folder, tmp_path):
    changed = parquet(tmp_path / "other", train=other, test=table(FILES[:4], [-1] * 4))
    assert opened(folder).fingerprint != opened(changed).fingerprint


# ------------------------------------------------------------------------------------------------- bytes and numbers


def test_to_uint8_is_the_inverse_of_to_float_and_clamps():
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_float(every)), every)
    assert (to_float(every).min(), to_float(every).max()) == (-1, 1)
    assert to_uint8(torch.tensor([-1.5, 1.5])).tolist() == [0, 255]


@pytest.mark.parametrize("channels, mode", [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_pictures_hold_the_same_bytes(channels, mode):
    images = torch.randint(0, 256, (2, channels, *SIZE), dtype=torch.uint8)
    for image, picture in zip(images, to_pil(images), strict=True):
        assert picture.mode == mode
        assert np.array_equal(np.asarray(picture).reshape(*SIZE, channels), image.permute(1, 2, 0))

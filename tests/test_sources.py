"""Every file of a source is read, or named and counted; no file outside the source is read."""

import io
import json
import os
import random
import shutil
import socket
import tarfile
import unicodedata
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value

from smalti.common.config import parse
from smalti.common.data.config import DataFiles, ImagesConfig, SplitNames
from smalti.common.data.sources import Source, file_of, open_source
from smalti.common.data.sources.files import IMAGE_SUFFIXES, SIDE_FILES, SIDE_FOLDERS
from smalti.common.data.sources.splits import KEYWORDS, split_files, split_names, split_of
from smalti.common.errors import UserError
from smalti.common.raster import FORMATS
from tests.hub_server import serving


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """Keep tests from writing into the user's cache and from asking the Hub."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def picture(seed: int = 0, format: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, format)
    return buffer.getvalue()


PICTURE = picture()


def write(folder: Path, *names: str, **contents: bytes | str) -> Path:
    """Write pictures of these names, and other files with their contents."""
    for name, content in {**dict.fromkeys(names, PICTURE), **contents}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def rows(count: int, first: int = 0) -> Dataset:
    return Dataset.from_dict(
        {"image": [{"bytes": picture(first + i), "path": None} for i in range(count)]}, Features(image=Image())
    )


def opened(folder: Path | str, **settings) -> Source:
    return open_source(ImagesConfig(source=str(folder), **settings))


def files(source: Source) -> dict[str, list[str]]:
    """Return the image files of each split, in order."""
    return {name: sorted(part.column.files) for name, part in source.parts.items()}


def sizes(source: Source) -> dict[str, int]:
    return {name: len(part.labels) for name, part in source.parts.items()}


def named(source: Source) -> dict[str, int]:
    return {kind: number for kind, number, _ in source.unread}


def labels(source: Source, split: str = "train") -> dict[str, str | None]:
    part, names = source.parts[split], source.class_names or ()
    return {
        file: names[label] if label >= 0 else None for file, label in zip(part.column.files, part.labels, strict=True)
    }


# ------------------------------------------------------------------------------------------------- splits of folders

SPLIT_FOLDERS = [
    ("Train", "Test"),
    ("training", "testing"),
    ("TRAIN", "EVAL"),
    ("train2017", "evaluation"),
    ("train_01", "test-0-of-1"),
]


@pytest.mark.parametrize("train, test", SPLIT_FOLDERS)
def test_a_split_folder_is_known_in_any_case_and_by_any_name_that_datasets_knows(train, test, tmp_path):
    """`Train/` and `Test/` became two classes, and training saw the images to hold out."""
    source = opened(write(tmp_path / "s", f"{train}/cat/0.png", f"{train}/dog/1.png", f"{test}/cat/2.png"))
    assert files(source) == {"train": [f"{train}/cat/0.png", f"{train}/dog/1.png"], "test": [f"{test}/cat/2.png"]}
    assert source.class_names == ("cat", "dog")


def test_the_names_of_splits_are_those_of_datasets():
    known = {word: str(split) for split, words in datasets.data_files.SPLIT_KEYWORDS.items() for word in words}
    assert known == KEYWORDS


@pytest.mark.parametrize(
    "name", ["protest", "latest", "blood_test", "my_test_shots", "test_shots", "retrain", "dev kit", "train-a"]
)
def test_a_word_in_a_longer_name_names_no_split(name):
    assert split_of(name, KEYWORDS) is None


@pytest.mark.parametrize(
    "name",
    ["train", "Train_0001", "train-00000-of-00005", "train0", "TRAIN.7", "train-00000-of-00001-a09b74b3ef9c3b56"],
)
def test_a_shard_is_of_the_split_before_its_number(name):
    assert split_of(name, KEYWORDS) == "train"


def test_a_lone_folder_around_the_others_is_entered_and_said(tmp_path):
    source = opened(write(tmp_path / "a", "pictures/old/cat/0.png", "pictures/old/dog/1.png", **{"notes.txt": "words"}))
    assert source.class_names == ("cat", "dog") and "pictures/old/ around all others" in source.notes[0]
    source = opened(write(tmp_path / "b", "all/train/cat/0.png", "all/train/dog/1.png", "all/test/cat/1.png"))
    assert sizes(source) == {"train": 2, "test": 1} and source.class_names == ("cat", "dog")
    source = opened(write(tmp_path / "c", "train/images/cat/0.png", "train/images/dog/1.png", "test/images/cat/1.png"))
    assert sizes(source) == {"train": 2, "test": 1} and source.class_names == ("cat", "dog")


def test_a_lone_folder_of_images_is_said_to_be_their_class(tmp_path):
    source = opened(write(tmp_path / "s", "pictures/0.png", "pictures/1.png"))
    assert source.class_names == ("pictures",) and "the one folder pictures" in source.notes[0]


def test_images_beside_the_folders_of_splits_or_classes_are_named_and_counted(tmp_path):
    source = opened(write(tmp_path / "a", "train/cat/0.png", "test/cat/1.png", "2.png", "3.png", "extra/cat/4.png"))
    assert sizes(source) == {"train": 1, "test": 1} and named(source) == {"images beside the folders of the splits": 3}
    source = opened(write(tmp_path / "b", "cat/0.png", "dog/1.png", "preview.png"))
    assert source.unread == (("images of no class beside the class folders", 1, ("preview.png",)),)
    with pytest.raises(
        UserError, match=r"holds 1 images in class folders and beside them 2 images of no class, such as 1\.png"
    ):
        opened(write(tmp_path / "c", "cat/0.png", "1.png", "2.png"))


def test_images_in_folders_inside_class_folders_are_of_the_outer_class_and_that_is_said(tmp_path):
    source = opened(write(tmp_path / "s", "cat/0.png", "cat/tabby/1.png", "dog/2.png"))
    assert labels(source) == {"cat/0.png": "cat", "cat/tabby/1.png": "cat", "dog/2.png": "dog"}
    assert source.notes == ("1 images in folders inside class folders are of the outer class, such as cat/tabby/1.png",)


def test_a_folder_that_may_be_a_split_or_a_class_is_asked_about_or_said(tmp_path):
    source = opened(write(tmp_path / "vehicles", "bus/0.png", "car/1.png", "train/2.png"))
    assert source.class_names == ("bus", "car", "train") and "the folder train is taken for a class" in source.notes[0]
    with pytest.raises(
        UserError, match=r"folder train beside extra may be a split or a class; say .*--images\.split\.train"
    ):
        opened(write(tmp_path / "a", "train/cat/0.png", "train/dog/1.png", "extra/2.png"))
    with pytest.raises(UserError, match="folder test beside cat, dog may be a split or a class"):
        opened(write(tmp_path / "b", "cat/0.png", "dog/1.png", "test/cat/2.png"))


def test_two_folders_of_one_split_are_read_together(tmp_path):
    source = opened(write(tmp_path / "s", "train/cat/0.png", "Train/dog/1.png", "val/cat/2.png", "valid/dog/3.png"))
    assert sizes(source) == {"train": 2, "validation": 2} and source.class_names == ("cat", "dog")


# ---------------------------------------------------------------------------------------------- splits of data files


def save_parquet(dataset: Dataset, path: Path) -> None:
    dataset.to_parquet(path.with_suffix(".parquet"))


def save_arrow(dataset: Dataset, path: Path) -> None:
    dataset.save_to_disk(path.parent / "aside")
    shutil.move(next((path.parent / "aside").glob("*.arrow")), path.with_suffix(".arrow"))
    shutil.rmtree(path.parent / "aside")


def save_tar(dataset: Dataset, path: Path) -> None:
    with tarfile.open(path.with_suffix(".tar"), "w") as tar:
        for i, row in enumerate(dataset.cast_column("image", Image(decode=False))):
            member = tarfile.TarInfo(f"{i}.png")
            member.size = len(row["image"]["bytes"])
            tar.addfile(member, io.BytesIO(row["image"]["bytes"]))


@pytest.mark.parametrize("save", [save_parquet, save_arrow, save_tar])
def test_data_files_that_name_no_split_are_read_as_train_and_that_is_said(save, tmp_path):
    """From cars, planes and train `datasets` takes train only; it calls blood_test a test split, beside xray."""
    for folder, names in {"vehicles": ("cars", "planes", "train"), "lab": ("blood_test", "xray", "Test")}.items():
        (tmp_path / folder).mkdir()
        for i, name in enumerate(names):
            save(rows(2, 2 * i), tmp_path / folder / name)
    vehicles, lab = opened(tmp_path / "vehicles"), opened(tmp_path / "lab")
    assert sizes(vehicles) == {"train": 6} and vehicles.notes[0].startswith(
        "2 data files whose whole name is no split's"
    )
    assert sizes(lab) == {"train": 4, "test": 2} and "such as blood_test" in lab.notes[0]
    _, _, (note,) = split_files(["my_test_shots.parquet"], KEYWORDS, "train")
    assert note.startswith(
        "1 data file whose whole name is no split's is read as train: my_test_shots.parquet; to change that"
    )


def test_a_file_and_its_folder_that_name_different_splits_are_refused():
    with pytest.raises(
        UserError, match=r"train/test\.parquet names several splits, test and train; .*images\.data_files"
    ):
        split_files(["train/test.parquet"], KEYWORDS)
    splits, _, notes = split_files(["x/train/0.parquet", "data/test-00000-of-00001.parquet"], KEYWORDS)
    assert splits == {"train": ["x/train/0.parquet"], "test": ["data/test-00000-of-00001.parquet"]} and not notes


def test_every_data_file_of_300_random_lists_is_in_a_split():
    draw = random.Random(0)
    words = ["cars", "train", "Test", "val", "blood_test", "é", "data", "0", "of", "eval", "x-y"]
    for _ in range(300):
        stems = {
            "-".join(draw.choices(words, k=draw.randint(1, 3))) + draw.choice(["", "-00000-of-00002", "_1"])
            for _ in range(6)
        }
        names = sorted(f"{draw.choice(['', 'data/', 'a b/'])}{stem}.parquet" for stem in stems)
        splits, silent, _ = split_files(names, split_names({}), draw.choice(["train", None]))
        read = [file for several in splits.values() for file in several]
        assert sorted({*read, *silent}) == names and len(read) == len(set(read))


def test_data_files_of_several_formats_and_images_among_data_files_are_named_or_refused(tmp_path):
    folder = write(tmp_path / "s", "preview.png", **{"notes.txt": "words"})
    for name in ("train", "more"):
        rows(2).to_parquet(folder / f"{name}.parquet")
    source = opened(folder)
    assert sizes(source) == {"train": 4}
    assert named(source) == {"images beside the data files": 1, "files of other formats (1 .txt)": 1}
    write(folder, "a.png", "b.png")
    with pytest.raises(
        UserError, match=r"holds 2 data files, such as more\.parquet, and, more of them, 3 loose images"
    ):
        opened(folder)
    assert sizes(opened(folder, data_files=DataFiles(train=("*.png",)))) == {"train": 3}
    (folder / "train.parquet").rename(folder / "train.arrow")
    with pytest.raises(UserError, match=r"data files of several formats, \.arrow, \.parquet; say which"):
        opened(write(folder, **{"a.parquet": b"", "b.parquet": b""}))


def test_a_folder_of_brackets_is_no_pattern(tmp_path):
    folder = tmp_path / "[2024] photos*?"
    folder.mkdir()
    rows(3).to_parquet(folder / "train [a].parquet")
    assert sizes(opened(folder)) == {"train": 3}
    assert sizes(opened(folder, data_files=DataFiles(train=("train [[]a].parquet",)))) == {"train": 3}
    loose = write(tmp_path / "{x} [y]", "cat[1]/0.png", "dog/[0-9].png")
    assert opened(loose).class_names == ("cat[1]", "dog")
    assert files(opened(loose, data_files=DataFiles(train=("dog/[0-9].png",)))) == {"train": ["dog/[0-9].png"]}


def test_shards_of_one_split_whose_class_names_disagree_are_refused(tmp_path):
    """Only the first file of each split was checked."""
    (tmp_path / "s").mkdir()
    for i, names in enumerate((["cat", "dog"], ["dog", "cat"])):
        labelled = rows(2).add_column("label", [0, 1]).cast_column("label", ClassLabel(names=names))
        labelled.to_parquet(tmp_path / f"s/train-0000{i}-of-00002.parquet")
    with pytest.raises(
        UserError, match=r"train-00001.*expected the class names of the split train; got dog in place of cat"
    ):
        opened(tmp_path / "s")


# ---------------------------------------------------------------------------------------------------- kinds of files


def test_the_image_suffixes_are_those_of_the_formats_that_are_read():
    PIL.Image.init()
    assert {suffix for suffix, format in PIL.Image.EXTENSION.items() if format in {*FORMATS, "MPO"}} == IMAGE_SUFFIXES


def test_what_can_be_decoded_is_read_whatever_its_suffix(tmp_path):
    """`.jfif`, `.jpe`, `.dib` and files without a suffix were silently left out, once a whole class of them."""
    folder = write(tmp_path / "s", "dog/0.png", "dog/1.JPG")
    pictures = {"cat/2.jfif": "JPEG", "cat/3": "WEBP", "cat/4.jpe": "JPEG", "dog/5.dib": "DIB", "dog/6.dat": "GIF"}
    pictures |= {"dog/7.upload": "PPM", "cat/8.old": "BMP", "cat/9.backup": "AVIF", "dog/10.TGA": "TGA"}
    write(folder, **{name: picture(0, format) for name, format in pictures.items()})
    write(
        folder,
        **{
            "dog/a.heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
            "dog/b.heic": b"x",
            "cat/notes.txt": "words",
            "cat/x": "",
        },
    )
    source = opened(folder)
    assert files(source)["train"] == sorted([*pictures, "dog/0.png", "dog/1.JPG"]) and source.class_names == (
        "cat",
        "dog",
    )
    assert named(source) == {"files of other formats (2 .heic, 1 .txt, 1 without a suffix)": 4}


def test_a_text_that_begins_as_some_picture_does_is_none(tmp_path):
    chance = {
        "a.txt": "P1 is a road",
        "b.h": "#define WIDTH 3",
        "c.md": "BMW and others",
        "d.py": "Py = 3\n",
        "e.bin": b"\x0a\x02\0",
    }
    source = opened(write(tmp_path / "s", "0.png", **chance, **{"f.bin": b"\x28\0\0\0", "g.bin": b"\0\0\1\0"}))
    assert files(source) == {"train": ["0.png"]} and sum(named(source).values()) == 7


def test_a_run_and_drawn_pictures_inside_the_folder_of_images_are_named_and_not_read(tmp_path):
    """Curves and samples became a class, and the metadata of drawn pictures left out all others."""
    folder = write(tmp_path / "s", "cat/0.png", "runs/mine/tokenizer/curves.png", "runs/mine/samples/000000.png")
    (folder / "runs/mine/tokenizer/images.json").write_text("{}")
    write(folder / "more", "000000.png", "grid.png")
    for name in (".request.json", "metadata.jsonl"):
        (folder / "more" / name).write_text("{}")
    source = opened(folder)
    assert files(source) == {"train": ["cat/0.png"]}
    assert named(source) == {"folders of runs or of drawn pictures": 2}


def test_a_class_may_be_called_as_a_file_that_describes_a_data_set(tmp_path):
    """A class folder `License` was left out without a word."""
    folder = write(tmp_path / "s", "License/0.png", "ticket/1.png", ".git/2.png", **{"ticket/LICENSE": "words"})
    source = opened(folder)
    assert source.class_names == ("License", "ticket") and not source.unread


def test_hidden_files_pipes_and_links_to_nowhere_are_named_and_never_opened(tmp_path):
    """A FIFO among the images blocked the reader for ever, and a link to /dev/zero filled the memory."""
    folder = write(tmp_path / "s", "cat/0.png", ".hidden/x.png", ".hidden/y.png", "cat/._0.png", "cat/.DS_Store")
    os.mkfifo(folder / "cat/pipe.png")
    os.mkfifo(folder / "metadata.jsonl")
    os.mkfifo(folder / "README.md")
    (folder / "endless.parquet").symlink_to("/dev/zero")
    (folder / "broken.png").symlink_to("nowhere")
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(os.path.relpath(folder / "sock.png"))
    source = opened(folder)
    assert files(source) == {"train": ["cat/0.png"]}
    assert named(source) == {
        "hidden files or folders": 2,
        "pipes, devices, sockets or links that lead nowhere": 5,
    }


def test_a_name_that_is_no_utf8_is_named(tmp_path):
    folder = write(tmp_path / "s", "0.png")
    Path(os.fsdecode(bytes(folder) + b"/\xff.png")).write_bytes(PICTURE)
    assert opened(folder).unread == (("files or folders whose names are not UTF-8", 1, ("\\udcff.png",)),)


@pytest.mark.parametrize("name", ["metadata.jsonl", "README.md", ".huggingface.yaml"])
def test_a_file_beside_the_images_has_a_bound_on_its_bytes(name, tmp_path):
    folder = write(tmp_path / "s", "0.png")
    with open(folder / name, "wb") as file:
        file.truncate(2**33)
    with pytest.raises(UserError, match=rf"{name} cannot be read as UTF-8 text: it has 8,589,934,592 bytes"):
        opened(folder)


# ---------------------------------------------------------------------------------------------------------- metadata

CSV = "file_name,label\r\n0.png,cat\r\nin/1.png,dog\r\n"
JSONL = '{"file_name": "0.png", "label": "cat"}\n{"file_name": "in/1.png", "label": "dog"}\n'


def as_parquet(*lines: dict) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(lines)), buffer)
    return buffer.getvalue()


TABLES = {
    "metadata.csv": CSV.encode(),
    "metadata.jsonl": JSONL.encode(),
    "metadata.parquet": as_parquet({"file_name": "0.png", "label": "cat"}, {"file_name": "in/1.png", "label": "dog"}),
}


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("folder", ["", "pics/", "train/"])
def test_labels_stand_in_metadata_of_three_formats_at_any_depth(name, folder, mark, tmp_path):
    """metadata.csv was ignored, as was metadata.jsonl in a subfolder, and a byte-order mark broke the first line."""
    table = TABLES[name] if name.endswith("parquet") else mark + TABLES[name]
    source = opened(write(tmp_path / "s", f"{folder}0.png", f"{folder}in/1.png", **{folder + name: table}))
    assert labels(source) == {f"{folder}0.png": "cat", f"{folder}in/1.png": "dog"} and not source.unread


def test_images_that_metadata_does_not_name_are_counted(tmp_path):
    source = opened(write(tmp_path / "s", "0.png", "in/1.png", "2.png", "3.png", "x.heic", **{"metadata.csv": CSV}))
    assert sizes(source) == {"train": 2} and named(source) == {"images that no metadata file names": 3}


def test_metadata_above_split_folders_labels_each(tmp_path):
    """With a metadata.jsonl at the top, training saw the images of test/."""
    table = {"train/0.png": 0, "train/1.png": 1, "test/2.png": 1}
    lines = "".join(json.dumps({"file_name": name, "label": label}) + "\n" for name, label in table.items())
    source = opened(write(tmp_path / "s", "train/0.png", "train/1.png", "test/2.png", **{"metadata.jsonl": lines}))
    assert sizes(source) == {"train": 2, "test": 1} and labels(source, "test") == {"test/2.png": "1"}


def test_a_test_folder_beside_others_under_metadata_is_asked_about_and_never_trained_on_unasked(tmp_path):
    """A table named all images of images/ and test/, and training saw both without a word."""
    names = ("images/0.png", "images/1.png", "test/2.png")
    folder = write(tmp_path / "s", *names, **{"metadata.csv": "file_name,label\n" + ",a\n".join((*names, ""))})
    with pytest.raises(
        UserError, match=r"folder test beside images may be a split or not; say .*--images\.split\.train"
    ):
        opened(folder)
    assert sizes(opened(folder, split=SplitNames(train="images", test="test"))) == {"train": 2, "test": 1}
    assert sizes(opened(folder, data_files=DataFiles(train=("**",)))) == {"train": 3}


def test_a_train_folder_beside_others_under_metadata_is_read_with_them_and_that_is_said(tmp_path):
    names = ("train/0.png", "extra/1.png")
    source = opened(write(tmp_path / "s", *names, **{"metadata.csv": "\n".join(("file_name", *names))}))
    assert sizes(source) == {"train": 2} and "the folder train is read as train like the others" in source.notes[0]


WRONG_METADATA = {
    "a missing file": (
        {"metadata.csv": "file_name\n0.png\n9.png\n"},
        r"metadata\.csv, line 3: there is no file 9\.png",
    ),
    "one in jsonl": ({"metadata.jsonl": '{"file_name": "9.png"}'}, r"metadata\.jsonl, line 1: there is no file 9\.png"),
    "one in parquet": (
        {"metadata.parquet": as_parquet({"file_name": "9.png"})},
        r"metadata\.parquet, row 0: there is no file",
    ),
    "a way out": (
        {"metadata.csv": "file_name\n../x.png\n"},
        r"line 2: file_name must stay inside the folder, got '\.\./x",
    ),
    "an absolute path": (
        {"metadata.parquet": as_parquet({"file_name": "/x.png"})},
        r"row 0: file_name must stay inside",
    ),
    "no such column": ({"metadata.csv": "file;label\n0.png;a\n"}, "line 1: expected columns file_name and"),
    "a short line": ({"metadata.csv": "file_name,label\n0.png\n"}, "line 2: expected 2 columns as in line 1; got 1"),
    "two of them": (
        {"metadata.csv": CSV, "metadata.jsonl": JSONL},
        r"holds metadata\.csv and metadata\.jsonl: which one",
    ),
    "no text": ({"metadata.csv": b"\xff\xfe\0"}, r"metadata\.csv cannot be read as UTF-8 text"),
    "no Parquet": ({"metadata.parquet": b"PAR1"}, r"metadata\.parquet cannot be read"),
    "a list for a label": (
        {"metadata.jsonl": '{"file_name": "0.png", "label": [1]}'},
        "line 1: expected a label of text or a",
    ),
}


@pytest.mark.parametrize("tables, message", WRONG_METADATA.values(), ids=WRONG_METADATA)
def test_wrong_metadata_is_refused_by_its_line(tables, message, tmp_path):
    with pytest.raises(UserError, match=message) as raised:
        opened(write(tmp_path / "s", "0.png", "in/1.png", **tables))
    assert "\n" not in str(raised.value)


def test_labels_may_stand_in_another_column_of_metadata(tmp_path):
    folder = write(tmp_path / "s", "0.png", "1.png", **{"metadata.csv": "file_name,breed\n0.png,tabby\n1.png,\n"})
    assert labels(opened(folder, label_column="breed")) == {"0.png": "tabby", "1.png": None}
    assert opened(folder).class_names is None
    with pytest.raises(UserError, match=r"label_column colour: no metadata file of .* has a label in such a column"):
        opened(folder, label_column="colour")
    assert opened(write(tmp_path / "classes", "cat/0.png", "dog/1.png"), label_column="label").class_names == (
        "cat",
        "dog",
    )


# ----------------------------------------------------------------------------------------------------------- classes

NFC, NFD = unicodedata.normalize("NFC", "café"), unicodedata.normalize("NFD", "café")


def test_a_class_whose_name_is_no_line_is_refused_with_its_source(tmp_path):
    with pytest.raises(UserError, match=r"source .*: a class's name must be one line .*, got 'a\\nb'; rename it"):
        opened(write(tmp_path / "a", "a\nb/0.png", "cat/1.png"))


def test_two_spellings_of_a_name_are_one_class(tmp_path):
    source = opened(write(tmp_path / "a", f"{NFC}/0.png", f"{NFD}/1.png", "thé/2.png"))
    assert source.class_names == (NFC, unicodedata.normalize("NFC", "thé"))
    source = opened(write(tmp_path / "b", f"train/{NFC}/0.png", f"test/{NFD}/1.png"))
    assert labels(source, "test") == {f"test/{NFD}/1.png": NFC}
    table = json.dumps({"file_name": f"{NFC}.png", "label": NFD})
    assert labels(opened(write(tmp_path / "c", f"{NFD}.png", **{"metadata.jsonl": table}))) == {f"{NFD}.png": NFC}


def test_classes_that_are_whole_numbers_stand_in_the_order_of_their_values(tmp_path):
    """0 to 11 were sorted as 0, 1, 10, 11, 2, ..., so class number 2 was the tens."""
    numbers = tuple(map(str, range(12)))
    assert opened(write(tmp_path / "a", *(f"{n}/0.png" for n in numbers))).class_names == numbers
    table = "file_name,label\n" + "".join(f"{n}.png,{n}\n" for n in numbers)
    assert (
        opened(write(tmp_path / "b", *(f"{n}.png" for n in numbers), **{"metadata.csv": table})).class_names == numbers
    )
    (tmp_path / "c").mkdir()
    texts = Features(image=Image(), label=Value("string"))
    rows(12).add_column("label", list(numbers)).cast(texts).to_parquet(tmp_path / "c/train.parquet")
    assert opened(tmp_path / "c", label_column="label").class_names == numbers
    assert opened(write(tmp_path / "d", "10/0.png", "9/0.png", "x/0.png")).class_names == ("10", "9", "x")


# -------------------------------------------------------------------------------------------- to say it oneself


def test_the_splits_of_a_source_may_be_named(tmp_path):
    folder = write(tmp_path / "a", "fit/cat/0.png", "fit/dog/1.png", "keep/cat/2.png", "other/cat/3.png")
    source = opened(folder, split=SplitNames(train="fit", test="keep"))
    assert sizes(source) == {"train": 2, "test": 1} and named(source) == {"images beside the folders of the splits": 1}
    DatasetDict(full=rows(3), part=rows(1)).save_to_disk(tmp_path / "b")
    assert sizes(opened(tmp_path / "b", split=SplitNames(train="full", validation="part"))) == {
        "train": 3,
        "validation": 1,
    }
    (tmp_path / "c").mkdir()
    for name in ("full", "holdout", "old"):
        rows(2).to_parquet(tmp_path / f"c/{name}.parquet")
    source = opened(tmp_path / "c", split=SplitNames(train="full", test="holdout"))
    assert sizes(source) == {"train": 2, "test": 2} and named(source) == {
        "data files of no split that images.split names": 1
    }
    for each in "abc":
        with pytest.raises(UserError, match=r"images\.split\.train nowhere: "):
            opened(tmp_path / each, split=SplitNames(train="nowhere"))


def test_the_files_of_each_split_may_be_given_as_patterns(tmp_path):
    folder = write(tmp_path / "a", "x/cat/0.png", "x/dog/1.png", "y/2.png", "z.png")
    source = opened(folder, data_files=DataFiles(train=("x/**",), test=("y/*.png",)))
    assert files(source) == {"train": ["x/cat/0.png", "x/dog/1.png"], "test": ["y/2.png"]}
    assert source.class_names == ("cat", "dog")
    assert named(source) == {"files that images.data_files does not name": 1}
    (tmp_path / "b").mkdir()
    for name in ("cars", "planes", "test"):
        rows(2).to_parquet(tmp_path / f"b/{name}.parquet")
    source = opened(tmp_path / "b", data_files=DataFiles(train=("cars.parquet", "test.*")))
    assert sizes(source) == {"train": 4} and source.unread[0].examples == ("planes.parquet",)


@pytest.mark.parametrize("pattern", ["../*.png", "/etc/*", "https://example.org/x.parquet", "zip://a::b", "nothing*"])
def test_a_pattern_that_leads_elsewhere_or_nowhere_is_refused(pattern, tmp_path):
    with pytest.raises(UserError, match=r"must stay inside the folder|matches none of its 1 files"):
        opened(write(tmp_path / "s", "0.png"), data_files=DataFiles(train=(pattern,)))


def test_splits_and_files_are_given_on_the_command_line_and_in_yaml(tmp_path):
    words = ["--split.train", "fit", "--data_files.train", "*.parquet", "b/*", "--data_files.test", "t.parquet"]
    given = parse(ImagesConfig, "", words)
    assert given.split == SplitNames(train="fit") and given.data_files == DataFiles(
        train=("*.parquet", "b/*"), test=("t.parquet",)
    )
    (tmp_path / "c.yaml").write_text("data_files:\n  train: '*.parquet'\n  test: [a, b]\n")
    assert parse(ImagesConfig, "", [str(tmp_path / "c.yaml")]).data_files == DataFiles(
        train=("*.parquet",), test=("a", "b")
    )


def head(*lines: str) -> str:
    return "---\n" + "\n".join(lines) + "\n---\n"


def test_a_readme_says_which_files_are_of_which_split(tmp_path):
    folder = write(tmp_path / "a", "x/cat/0.png", "x/dog/1.png", "y/cat/2.png", "z.png")
    lines = (
        "configs:",
        "- config_name: default",
        "  data_files:",
        "  - split: train",
        "    path: x/**",
        "  - split: test",
        "    path: [y/**]",
    )
    source = opened(write(folder, **{"README.md": "\ufeff" + head(*lines)}))
    assert sizes(source) == {"train": 2, "test": 1} and source.unread == (
        ("files that the README does not name", 1, ("z.png",)),
    )
    (tmp_path / "b").mkdir()
    for name in ("one", "two"):
        rows(2).to_parquet(tmp_path / f"b/{name}.parquet")
    text = "configs: [{config_name: big, data_files: one.parquet}, {config_name: small, data_files: two.parquet}]"
    write(tmp_path / "b", **{".huggingface.yaml": text})
    assert sizes(opened(tmp_path / "b", subset="small")) == {"train": 2}
    with pytest.raises(UserError, match=r"several subsets: big, small; name one with images\.subset"):
        opened(tmp_path / "b")
    with pytest.raises(UserError, match=r"subset tiny: .* names no such subset; it names big, small"):
        opened(tmp_path / "b", subset="tiny")


def test_a_readme_may_say_which_folder_is_meant_and_metadata_is_read_with_files_that_are_named(tmp_path):
    lines = ("configs:", "- config_name: default", "  data_dir: ./in", "  data_files: '*.png'")
    table = "file_name,label\n0.png,cat\n"
    folder = write(tmp_path / "s", "in/0.png", "in/1.png", "in/x/2.png", "3.png", **{"in/metadata.csv": table})
    source = opened(write(folder, **{"README.md": b"\xff\n" + head(*lines).encode()}))
    # The YAML head is invalid
    assert sizes(source) == {"train": 1} and named(source) == {"images that no metadata file names": 3}
    source = opened(write(folder, **{"README.md": head(*lines).encode() + b"caf\xe9"}))
    assert labels(source) == {"0.png": "cat"} and named(source) == {
        "images that no metadata file names": 1,
        "files outside in/, of which the README speaks": 1,
        "files that the README does not name": 1,
    }


def test_a_readme_names_the_classes_of_a_table_that_does_not(tmp_path):
    (tmp_path / "s").mkdir()
    table = pa.table({"image": [{"bytes": picture(i), "path": None} for i in range(2)], "label": [0, 1]})
    pq.write_table(table, tmp_path / "s/train.parquet")
    features = [
        "dataset_info:",
        "  features:",
        "  - name: image",
        "    dtype: image",
        "  - name: label",
        "    dtype:",
        "      class_label:",
    ]
    write(
        tmp_path / "s", **{"README.md": head(*features, "        names:", "          '0': cat", "          '1': dog")}
    )
    assert opened(tmp_path / "s").class_names == ("cat", "dog")


# --------------------------------------------------------------------------------------------------- strangers' files

ELSEWHERE = [
    "/etc/secret.parquet",
    "../secret.parquet",
    "https://example.org/x.parquet",
    "hf://datasets/a/b/x.parquet",
    "zip://a::b",
]


@pytest.mark.parametrize("elsewhere", ELSEWHERE)
@pytest.mark.parametrize("where", ["README.md", ".huggingface.yaml", "cut"])
def test_no_yaml_reaches_data_outside_its_folder(where, elsewhere, tmp_path):
    """Only a README was checked, up to a line that begins with `---`; `datasets` reads on to a line that is exactly
    that."""
    rows(2).to_parquet(tmp_path / "secret.parquet")
    (tmp_path / "s").mkdir()
    rows(2).to_parquet(tmp_path / "s/train.parquet")
    lines = ("configs:", "- config_name: default", f"  data_files: '{elsewhere}'")
    texts = {
        "README.md": head(*lines),
        ".huggingface.yaml": "\n".join(lines),
        "cut": head("a: |", "  b", "---foo: 1", *lines),
    }
    write(tmp_path / "s", **{"README.md" if where == "cut" else where: texts[where]})
    with pytest.raises(UserError, match="data files must stay inside the folder"):
        opened(tmp_path / "s")


WRONG_HEADS = [head("a: &a 1", "b: *a"), head("- 1"), head("configs: 3"), head("configs: [{data_files: [{split: x}]}]")]


def test_aliases_and_other_yaml_in_a_readme_are_refused(tmp_path):
    for text in WRONG_HEADS:
        with pytest.raises(UserError, match=r"README\.md.* cannot be read"):
            opened(write(tmp_path / "s", "0.png", **{"README.md": text}))


@pytest.mark.parametrize(
    "name", ["../../secret.arrow", "/etc/secret.arrow", "https://example.org/x.arrow", "a::b", 3, None]
)
def test_saved_state_names_files_in_its_folder_alone(name, tmp_path):
    rows(2).save_to_disk(tmp_path / "s")
    state = json.loads((tmp_path / "s/state.json").read_text())
    state["_data_files"] = [{"filename": name}]
    (tmp_path / "s/state.json").write_text(json.dumps(state))
    with pytest.raises(UserError, match=r"state\.json: expected a name in its folder, got "):
        opened(tmp_path / "s")


def test_saved_splits_and_links_lead_nowhere_else_and_other_files_are_named(tmp_path):
    rows(3).save_to_disk(tmp_path / "private")
    DatasetDict(train=rows(2)).save_to_disk(tmp_path / "s")
    write(tmp_path / "s", "preview.png")
    assert opened(tmp_path / "s").unread == (("files that the saved data set does not name", 1, ("preview.png",)),)
    dictionary = tmp_path / "s/dataset_dict.json"
    dictionary.write_text('{"splits": ["train", "../private"]}')
    with pytest.raises(UserError, match=r"dataset_dict\.json: expected a name in its folder, got '\.\./private'"):
        opened(tmp_path / "s")
    dictionary.write_text('{"splits": ["train"]}')
    (shard,) = (tmp_path / "s/train").glob("*.arrow")
    shard.unlink()
    shard.symlink_to(next((tmp_path / "private").glob("*.arrow")))
    with pytest.raises(UserError, match="leads out of the folder"):
        opened(tmp_path / "s")
    assert sizes(opened(tmp_path / "s", reach="anywhere")) == {"train": 3}


def table_of(*paths: str) -> bytes:
    schema = Features(image=Image()).arrow_schema
    table = pa.table(
        {"image": pa.array([{"bytes": None, "path": path} for path in paths], schema.field("image").type)},
        schema=schema,
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("save", ["parquet", "saved"])
def test_a_row_names_files_in_its_folder_alone(save, tmp_path, monkeypatch):
    """A stranger's table named /home/you/private.png, and training read it."""
    write(tmp_path, "secret.png")
    folder = write(tmp_path / "s", "in/0.png", "in/1.png") if save == "parquet" else tmp_path / "s"
    monkeypatch.chdir(tmp_path)

    def put(*paths: str) -> Path:
        if save == "parquet":
            return write(folder, **{"train.parquet": table_of(*paths), "more/train.parquet": table_of(*paths)})
        shutil.rmtree(folder, ignore_errors=True)
        rows(2).save_to_disk(folder)  # save_to_disk would embed the files
        table = pq.read_table(io.BytesIO(table_of(*paths)))
        with pa.ipc.new_stream(next(folder.glob("*.arrow")), table.schema) as stream:
            stream.write_table(table)
        return write(folder, "in/0.png", "in/1.png")

    source = opened(put("in/0.png", str(folder / "in/1.png")))
    assert [file_of(encoded) for encoded in source.parts["train"].column[np.array([0, 1])]] == [PICTURE, PICTURE]
    for path in (str(tmp_path / "secret.png"), "../secret.png", "in/../../secret.png"):
        with pytest.raises(
            UserError, match=r"row 1: its path .*secret\.png' leads out of the folder, .*images\.reach: anywhere"
        ):
            opened(put("in/0.png", path))
        assert sum(sizes(opened(folder, reach="anywhere")).values()) >= 2
    for path in ("https://example.org/0.png", "zip://0.png::x.zip"):
        with pytest.raises(UserError, match=r"row 1: its path .* nothing is fetched from elsewhere"):
            opened(put("in/0.png", path), reach="anywhere")


def test_a_link_out_of_the_folder_is_refused_unless_that_is_set(tmp_path):
    write(tmp_path / "private", "cat/0.png", "1.png")
    for name, target in {"a": "private/cat", "dog/b.png": "private/1.png"}.items():
        folder = write(tmp_path / target.replace("/", "_"), "dog/0.png")
        (folder / name).symlink_to(tmp_path / target)
        with pytest.raises(UserError, match=r"the link .* leads out of the folder, to .*private"):
            opened(folder)
        assert sizes(opened(folder, reach="anywhere")) == {"train": 2}


@pytest.mark.parametrize("name", ["README.md", "state.json", "dataset_dict.json", ".huggingface.yaml"])
def test_a_file_about_a_data_set_is_no_link_out_of_it_either(name, tmp_path):
    write(tmp_path, **{"secret": "---\nkey: value\n"})
    (write(tmp_path / "s", "0.png") / name).symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match=rf"the link .*{name} leads out of the folder"):
        opened(tmp_path / "s")


def test_what_save_to_disk_says_of_a_data_set_has_a_bound_on_its_bytes(tmp_path):
    rows(2).save_to_disk(tmp_path / "s")
    os.truncate(tmp_path / "s/dataset_info.json", 2**33)
    with pytest.raises(UserError, match=r"dataset_info\.json cannot be read as UTF-8 text: it has 8,589,934,592 bytes"):
        opened(tmp_path / "s")


def test_a_snapshot_in_the_cache_of_the_hub_is_read_through_its_links(tmp_path):
    folder = tmp_path / "datasets--me--x/snapshots/abc"
    write(tmp_path / "datasets--me--x/blobs", "0", "1")
    folder.mkdir(parents=True)
    for name in "01":
        (folder / f"{name}.png").symlink_to(f"../../blobs/{name}")
    assert sizes(opened(folder)) == {"train": 2}


# ------------------------------------------------------------------------------------------ what fails is named


def test_a_cache_that_cannot_be_written_is_named_and_not_the_source(tmp_path, monkeypatch):
    (tmp_path / "s").mkdir()
    rows(2).to_parquet(tmp_path / "s/train.parquet")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", "/dev/null/hf")
    with pytest.raises(
        UserError,
        match=r"cache of `datasets`, /dev/null/hf, cannot be written \(Not a directory\); .*HF_DATASETS_CACHE",
    ):
        opened(tmp_path / "s")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets, "load_dataset", full)
    with pytest.raises(UserError, match=r"cache, cannot be written \(No space left on device\)"):
        opened(tmp_path / "s")


def full(*_, **__) -> None:
    """Raise the error of a full disk."""
    with open("/dev/full", "wb", buffering=0) as file:
        file.write(b"x")


@pytest.mark.parametrize("name", ["nowhere", "some body/some thing", "parquet", "imagefolder", "a..b"])
def test_a_name_that_is_nowhere_is_refused_in_one_line_and_without_asking_again(name, capfd):
    with pytest.raises(UserError, match=rf"source {name}: no such folder here, and ") as raised:
        opened(name)
    assert "\n" not in str(raised.value) and "Retry" not in capfd.readouterr().err


# ---------------------------------------------------------------------------------------------------------- the Hub


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with serving() as hub:
        constants = huggingface_hub.constants
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, hub.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.url)
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", str(tmp_path / "cache/downloads"))
        huggingface_hub.HfFileSystem.clear_instance_cache()
        yield hub


def shard(count: int, first: int = 0) -> bytes:
    buffer = io.BytesIO()
    rows(count, first).to_parquet(buffer)
    return buffer.getvalue()


VEHICLES = {"cars.parquet": shard(2), "planes.parquet": shard(2, 2), "train.parquet": shard(2, 4)}


def test_on_the_hub_the_same_rule_holds_and_files_that_are_not_read_are_named(hub):
    beside = {"README.md": b"words", "notes.txt": b"words", "preview.png": PICTURE, ".gitattributes": b""}
    hub.repositories["datasets/me/vehicles"] = {"main": [{**VEHICLES, **beside}]}
    source = opened("me/vehicles")
    assert sizes(source) == {"train": 6} and "such as cars.parquet" in source.notes[0] and source.place is None
    assert source.unread == (("files of the Hub that are in none of the splits", 2, ("notes.txt", "preview.png")),)
    source = opened("me/vehicles", split=SplitNames(train="cars", test="planes"))
    assert sizes(source) == {"train": 2, "test": 2} and source.unread[0].number == 3
    source = opened("me/vehicles", data_files=DataFiles(train=("*s.parquet",)))
    assert sizes(source) == {"train": 4} and source.unread[0].number == 3


def test_on_the_hub_the_names_of_images_say_no_split_but_their_folders_do(hub):
    files = {f"{name}/{i}.png": picture(i) for i, name in enumerate(("Train/cat", "Train/dog", "Test/cat"))}
    hub.repositories["datasets/me/pets"] = {"main": [{**files, "Train/cat/test_1.png": picture(9), "x.heic": b"x"}]}
    source = opened("me/pets")
    assert sizes(source) == {"train": 3, "test": 1} and source.class_names == ("cat", "dog")
    assert source.unread[0].examples == ("x.heic",)


def test_on_the_hub_a_readme_says_which_files_are_read_and_reaches_no_others(hub, monkeypatch):
    lines = head("configs:", "- config_name: default", "  data_files: [{split: train, path: cars.parquet}]").encode()
    hub.repositories["datasets/me/named"] = {"main": [{**VEHICLES, "README.md": lines}]}
    source = opened("me/named")
    assert sizes(source) == {"train": 2} and source.unread[0].examples == ("planes.parquet", "train.parquet")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)  # what was downloaded once is read from the cache
    assert sizes(opened("me/named")) == {"train": 2}
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    for elsewhere in ELSEWHERE:
        lines = head("configs:", "- config_name: default", f"  data_files: '{elsewhere}'").encode()
        hub.repositories["datasets/me/stranger"] = {"main": [{**VEHICLES, "README.md": lines}]}
        with pytest.raises(UserError, match="source me/stranger: data files must stay inside the folder"):
            opened("me/stranger")


def test_without_the_hub_the_files_of_each_split_cannot_be_chosen(hub, monkeypatch):
    """All files that were kept were read, without a word on the patterns."""
    hub.repositories["datasets/me/vehicles"] = {"main": [VEHICLES]}
    assert sizes(opened("me/vehicles")) == {"train": 6}
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"data_files of me/vehicles: the Hub is not reached, .* give that FOLDER"):
        opened("me/vehicles", data_files=DataFiles(train=("cars.parquet",)))


# ------------------------------------------------------------------------------------------------------------- fuzz

NAMES = [
    "0.png",
    "a b.PNG",
    "e\u0301.jpg",
    "\u00e9.jpg",
    "x.jfif",
    "scan",
    "日本.webp",
    "[1].png",
    "test_1.png",
    "w.tga",
    "-x.gif",
    "{a}.bmp",
]
OTHERS = [
    "notes.txt",
    "photo.heic",
    "x.tar.gz",
    ".hidden.png",
    "README.md",
    "Thumbs.db",
    "data.json",
    "Makefile",
    ".DS_Store",
    "a.csv",
]
FOLDERS = [
    "cat",
    "dog",
    "Train",
    "train",
    "training",
    "TEST",
    "val",
    "valid",
    "eval",
    "0",
    "10",
    "deep/er",
    "é",
    "e\u0301",
    ".git",
    ".x",
    "data",
]


def random_folder(root: Path, draw: random.Random) -> Path:
    """Write a folder of ten to twenty files, as a user might have it."""
    tops = draw.sample(FOLDERS, draw.randint(0, 4))
    wrapper = draw.choice(["", "", "", "pictures/", "a/b/"])
    spread = [
        *tops,
        *(f"{top}/{draw.choice(FOLDERS)}" for top in tops),
        *([""] if draw.random() < 0.4 or not tops else []),
    ]
    places = [f"{wrapper}{place}" for place in spread]
    root.mkdir()
    for _ in range(draw.randint(5, 15)):
        write(root, f"{draw.choice(places)}/{draw.choice(NAMES)}".lstrip("/"))
    for _ in range(draw.randint(0, 4)):
        write(root, **{f"{draw.choice(places)}/{draw.choice(OTHERS)}".lstrip("/"): "words"})
    there = sorted(
        path for path in root.rglob("*.png") if not any(part.startswith(".") for part in path.relative_to(root).parts)
    )
    if there and draw.random() < 0.3:
        some = draw.sample(there, draw.randint(1, len(there)))
        at = draw.choice([root, some[0].parent])
        lines = [path.relative_to(at) for path in some if path.is_relative_to(at)]
        if draw.random() < 0.5:
            write(
                at,
                **{
                    "metadata.jsonl": "".join(
                        json.dumps({"file_name": str(line), "label": "x"}) + "\n" for line in lines
                    )
                },
            )
        else:
            write(
                at,
                **{"metadata.csv": "file_name,label\n" + "".join(f'"{line}",{len(str(line)) % 2}\n' for line in lines)},
            )
    if draw.random() < 0.1:
        os.mkfifo(root / "pipe.png")
    if draw.random() < 0.1:
        (root / "link.png").symlink_to("nowhere")
    return root


def lie_there(folder: Path) -> int:
    """Count the files, and each hidden folder as one; files that describe a data set do not count."""
    count = 0
    for entry in os.scandir(folder):
        if entry.name.lower() not in SIDE_FILES | SIDE_FOLDERS:
            count += lie_there(Path(entry)) if entry.is_dir() and not entry.name.startswith(".") else 1
    return count


def test_of_300_random_folders_every_file_is_read_or_named(tmp_path):
    draw, refused = random.Random(15), 0
    for i in range(300):
        folder = random_folder(tmp_path / str(i), draw)
        try:
            source = opened(folder)
        except UserError as error:  # the folder is ambiguous, so none of it is read
            assert any(
                word in str(error)
                for word in (
                    "may be a split or",
                    "no split train",
                    "of no class",
                    "which it has not",
                    "no images",
                )
            )
            refused += 1
            continue
        read = {file for part in source.parts.values() for file in part.column.files}
        tables = [
            path
            for path in folder.rglob("metadata.*")
            if not any(p.startswith(".") for p in path.relative_to(folder).parts)
        ]
        assert len(read) + len(tables) + sum(named(source).values()) == lie_there(folder), (
            i,
            named(source),
            sorted(read),
        )
        assert all(number >= len(examples) > 0 for _, number, examples in source.unread)
    assert refused < 100

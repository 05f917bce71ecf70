"""The codes dataset: the prior reads what the tokenizer writes."""

import json

import numpy as np
import pytest

from smalti.common import codes
from smalti.common.codes_info import CodesInfo, TokenizerIdentity
from smalti.common.condition import Classes, Nothing
from smalti.common.errors import UserError
from smalti.common.layout import Layout, of_format_1
from smalti.common.mapped import MappedRows
from smalti.tokenizer.config import EncodeConfig

INFO = CodesInfo(
    layout=Layout.of(2, 3, factors=(300,)),
    views=1,
    condition=Classes(names=("cat", "dog")),
    source={"source": "test"},
    shard_size=4,
    tokenizer=TokenizerIdentity(name="one/tokenizer", sha256="1" * 64),
)
CODES = np.random.default_rng(0).integers(0, 300, (7, 6))
LABELS = np.array([0, 1, 1, 0, -1, 1, 0])


def write(folder, info=INFO):
    codes.begin_codes(folder, info)
    labels = None if info.condition.class_names is None else LABELS
    for shard, some in enumerate((slice(0, 4), slice(4, 7))):
        path = codes.shard_path(folder, "train", shard, 2)
        told = None if labels is None else labels[some]
        codes.write_shard(path, info, codes.CodesSplit(CODES[some], told, np.arange(7)[some]))
    codes.finish(folder, info, {"train": {"rows": 7}})


def test_codes_survive_the_disk_in_the_smallest_type(tmp_path):
    write(tmp_path / "codes")
    info, splits = codes.load_codes(tmp_path / "codes")
    assert info == INFO
    assert np.array_equal(splits["train"].codes, CODES) and splits["train"].codes.dtype == np.uint16
    assert np.array_equal(splits["train"].condition, LABELS) and np.array_equal(splits["train"].rows, np.arange(7))


def test_datasets_reads_the_folder_as_it_is(tmp_path):
    from datasets import load_dataset

    write(tmp_path / "codes")
    read = load_dataset(str(tmp_path / "codes"), cache_dir=str(tmp_path / "cache"))["train"]
    assert read["codes"] == CODES.tolist() and read.features["label"].names == ["cat", "dog"]


def test_a_large_split_stays_on_the_disk_and_is_the_same(tmp_path, monkeypatch):
    """Eight processes held eight copies of ImageNet's codes in memory."""
    write(tmp_path / "codes")
    whole = codes.load_codes(tmp_path / "codes")
    monkeypatch.setattr(codes, "MAPPED", 0)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    mapped = codes.load_codes(tmp_path / "codes")
    found = mapped.splits["train"].codes
    assert isinstance(found, MappedRows) and not any(chunk.flags.owndata for chunk in found.chunks)
    assert np.array_equal(np.asarray(found), CODES) and np.array_equal(found[np.array([5, 0, -1])], CODES[[5, 0, -1]])
    assert np.array_equal(found[1:6:2], CODES[1:6:2]) and codes.codes_fingerprint(mapped) == codes.codes_fingerprint(
        whole
    )
    with pytest.raises(IndexError, match=r"rows must lie in \[0, 7\)"):
        found[np.array([7])]


def test_unlabelled_codes_have_no_label_column(tmp_path):
    write(tmp_path / "codes", INFO.model_copy(update={"condition": Nothing()}))
    assert codes.load_codes(tmp_path / "codes").splits["train"].condition is None


@pytest.mark.parametrize("K, kind", [(256, "uint8"), (257, "uint16"), (65536, "uint16"), (65537, "uint32")])
def test_the_type_is_the_smallest_that_holds_the_codes(K, kind):
    assert INFO.model_copy(update={"layout": Layout.of(2, 3, factors=(K,))}).dtype == kind


def test_a_place_may_have_several_codes(tmp_path):
    """T = h·w·Q, with the Q codes of a place side by side; a reader that ignores the depth still reads the row
    unchanged."""
    info = INFO.model_copy(update={"layout": Layout.of(1, 3, depth=2, factors=(20, 15))})
    assert info.layout.length == 6
    write(tmp_path / "codes", info)
    read, splits = codes.load_codes(tmp_path / "codes")
    assert read == info and np.array_equal(splits["train"].codes, CODES)
    assert "An image is 1 x 3 x 2 codes of 300, in raster order" in (tmp_path / "codes/README.md").read_text()


def test_codes_written_before_there_were_depths_still_load(tmp_path):
    write(tmp_path / "codes")
    path = tmp_path / "codes/codes.json"
    body = {key: value for key, value in json.loads(path.read_text()).items() if key != "layout"}
    path.write_text(json.dumps({**body, "format": 1, "codebook_size": 300, "grid": [2, 3]}))
    assert codes.load_codes(tmp_path / "codes").info == INFO


def test_the_digits_of_a_code_must_make_up_the_codebook():
    with pytest.raises(ValueError, match=r"factors \[2, 2\] must multiply to codebook_size 300"):
        of_format_1({"codebook_size": 300, "grid": [2, 3], "factors": [2, 2]})


def test_a_shape_that_is_not_the_shards_is_refused(tmp_path):
    write(tmp_path / "codes")
    path = tmp_path / "codes/codes.json"
    deep = INFO.layout.model_copy(update={"grids": Layout.of(2, 3, depth=2, factors=(300,)).grids})
    path.write_text(json.dumps({**json.loads(path.read_text()), "layout": deep.model_dump()}))
    with pytest.raises(UserError, match=r"a row must have 12 codes, as codes\.json says, got 6; give the command"):
        codes.load_codes(tmp_path / "codes")


@pytest.mark.parametrize(
    "layout, told",
    [
        (Layout.of(3, 2, factors=(300,)), r"shape \[3, 2\] and \[2, 3\]"),
        (Layout.of(2, 3, factors=(20, 15)), r"factors \[20, 15\] and \[300\]"),
    ],
)
def test_a_layout_that_fits_the_shards_and_is_not_what_was_encoded_is_refused(tmp_path, layout, told):
    """A prior was trained to its end on it, and the pipeline then refused the two."""
    write(tmp_path)
    change(tmp_path, layout=layout.model_dump(mode="json"))
    with pytest.raises(UserError, match=rf"were encoded, which differ in {told}: codes\.json was changed"):
        codes.load_codes(tmp_path)
    (tmp_path / codes.PLAN).unlink()  # published codes have no plan
    assert codes.load_codes(tmp_path).info.layout == layout


def test_codes_of_another_tokenizer_are_refused_with_both_names(tmp_path):
    write(tmp_path / "codes")
    other = INFO.model_copy(update={"tokenizer": TokenizerIdentity(name="two/tokenizer", sha256="2" * 64)})
    with pytest.raises(UserError, match=r"tokenizer one/tokenizer .*, not of two/tokenizer"):
        codes.begin_codes(tmp_path / "codes", other)


def test_going_on_with_other_settings_is_refused_by_name(tmp_path):
    write(tmp_path / "codes")
    codes.begin_codes(tmp_path / "codes", INFO)
    with pytest.raises(UserError, match="other settings: views differ"):
        codes.begin_codes(tmp_path / "codes", INFO.model_copy(update={"views": 2}))


def test_a_folder_that_is_not_whole_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(UserError, match="there is no codes dataset"):
        codes.load_codes(tmp_path / "none")
    codes.begin_codes(tmp_path / "begun", INFO)
    with pytest.raises(UserError, match=r"was begun and not finished: run tokenizer/encode\.py again"):
        codes.load_codes(tmp_path / "begun")


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda f: (f / "train-00001-of-00002.parquet").unlink(), "must have 7 rows, got 4"),
        (
            lambda f: (f / "train-00001-of-00002.parquet").write_bytes(b"PAR1"),
            "train-00001-of-00002.parquet is damaged",
        ),
        (
            lambda f: change(f, layout=Layout.of(2, 3, factors=(290,)).model_dump()),
            r"codes must be integers in \[0, 290\)",
        ),
        (
            lambda f: change(f, condition={"kind": "class", "names": ["cat"], "absent": []}),
            r"labels must lie in \[0, 1\), got 0 to 1",
        ),
        (lambda f: change(f, format=9), "format 9"),
        (lambda f: change(f, views=2), "split train must have 2 rows an image, as views says, got 7 rows"),
        (lambda f: change(f, views=7), "split train must have 7 rows an image, as views in codes.json says"),
        (
            lambda f: change(f, layout={"grids": [{"shape": [2, 3], "depth": 1, "factors": [10**18]}]}),
            r"factors\.0 should be less than or equal to 16777216, got 1000000000000000000",
        ),
        (
            lambda f: change(f, condition={"kind": "class", "names": ["cat", "dog"], "absent": [1]}),
            r"absent must be classes without a training row, got \[1\], which have some",
        ),
        (
            lambda f: change(f, condition={"kind": "class", "names": ["cat", "cat"], "absent": []}),
            "each class must have a name of its own, got 'cat' for class 0 and class 1",
        ),
    ],
)
def test_damage_is_named(tmp_path, damage, message):
    write(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=message):
        codes.load_codes(tmp_path)


def test_views_of_an_image_that_are_said_to_be_images_are_refused(tmp_path):
    """codes.json that said 1 where each image has 2 rows gave independent codes the nats of other images."""
    codes.begin_codes(tmp_path, INFO)
    twice = codes.CodesSplit(CODES[:6], LABELS[:6], np.arange(6) // 2)
    codes.write_shard(codes.shard_path(tmp_path, "train", 0, 1), INFO, twice)
    codes.finish(tmp_path, INFO.model_copy(update={"views": 2}), {"train": {"rows": 6}})
    assert len(codes.load_codes(tmp_path).splits["train"].rows) == 6
    change(tmp_path, views=1)
    with pytest.raises(UserError, match=r"split train must have 1 rows an image, as views in codes\.json says"):
        codes.load_codes(tmp_path)


@pytest.mark.parametrize("name, most", [("views", 2**20), ("shard_size", 2**40)])
def test_what_encoding_takes_codes_json_takes(name, most):
    """A larger --shard-size was found out by the file's own check, as a fault of ours."""
    EncodeConfig(**{name: most}), CodesInfo(**{**dict(INFO), name: most})
    for settings in (EncodeConfig, CodesInfo):
        with pytest.raises(ValueError, match=f"less than or equal to {most}"):
            settings(**{**(dict(INFO) if settings is CodesInfo else {}), name: most + 1})


def change(folder, **settings):
    path = folder / "codes.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def test_a_split_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    write(tmp_path)
    with pytest.raises(UserError, match="has no split 'test'; it has train"):
        codes.load_codes(tmp_path, ["test"])


def test_a_split_without_a_shard_is_refused(tmp_path):
    """codes.json says that a split has no rows, and no file contradicts it; reading it raised an IndexError."""
    write(tmp_path / "codes")
    codes.finish(tmp_path / "codes", INFO, {"train": {"rows": 7}, "test": {"rows": 0}})
    with pytest.raises(UserError, match="split test of no rows has no shards; give the command that wrote it again"):
        codes.load_codes(tmp_path / "codes")

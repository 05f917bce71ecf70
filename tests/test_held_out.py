"""The images that are held out for validation, and the classes with no image left to train on."""

import warnings

import numpy as np
import pytest
import torch

from smalti.common.codes import Codes, CodesSplit
from smalti.common.codes_info import CodesInfo, TokenizerIdentity
from smalti.common.condition import Classes
from smalti.common.data.fingerprint import digest, uniform
from smalti.common.data.validation import held_out_rows
from smalti.common.layout import Layout
from smalti.pipeline.image_pipeline import ImagePipeline
from smalti.prior.base import Prior
from smalti.prior.config import PriorConfig
from smalti.prior.model import build_prior, load_prior
from smalti.prior.sampling_config import SamplingConfig
from smalti.prior.transformer.config import TransformerConfig
from smalti.tokenizer.vqvae.model import VQVAE
from tests.conftest import tokenizer_training
from tests.test_images import FILES, file_of, opened, pixels, write

MANY = np.array([digest(str(i).encode()) for i in range(10_000)], dtype="S16")


def unlabelled(digests: np.ndarray) -> np.ndarray:
    return np.full(len(digests), -1)


def files_of(images, name: str) -> set[bytes]:
    return set(images.splits[name].digests().tolist())


def test_the_number_held_out_is_about_the_share():
    assert 425 < held_out_rows(MANY, unlabelled(MANY), 0.05).sum() < 575  # 500 expected, ± 3.4 deviations of 22


def test_an_image_stays_on_its_side_when_others_are_added_removed_or_reordered():
    """A hash of the row's index decided: ten new files at the front of a folder moved other images between the
    sides."""
    before = dict(zip(MANY.tolist(), held_out_rows(MANY, unlabelled(MANY), 0.1).tolist(), strict=True))
    for others in (MANY[:5000], MANY[::-1], np.concatenate([MANY[9000:], MANY[:100]])):
        after = dict(zip(others.tolist(), held_out_rows(others, unlabelled(others), 0.1).tolist(), strict=True))
        assert after == {file: before[file] for file in after}


def test_ten_new_files_leave_every_image_of_a_folder_on_its_side(tmp_path):
    folder = write(tmp_path / "set", {f"{i:02d}.png": file_of(pixels(i)) for i in range(40)})
    before = opened(folder, validation_share=0.3)
    write(folder, {f"00new{i}.png": file_of(pixels(100 + i)) for i in range(10)})
    after = opened(folder, validation_share=0.3)
    for name in ("train", "validation"):
        assert files_of(before, name) <= files_of(after, name)


def test_the_same_images_are_held_out_of_a_set_in_memory_and_of_one_on_the_disk(tmp_path):
    folder = write(tmp_path / "set", {f"{i:02d}.png": file_of(pixels(i)) for i in range(40)})
    here, there = opened(folder, validation_share=0.3), opened(folder, validation_share=0.3, memory=0.0)
    assert here.splits["validation"].rows.tolist() == there.splits["validation"].rows.tolist()


def test_copies_of_a_file_stand_on_one_side():
    twice = np.concatenate([MANY[:500], MANY[:500]])
    out = held_out_rows(twice, unlabelled(twice), 0.3)
    assert np.array_equal(out[:500], out[500:])


@pytest.mark.parametrize("share", [1e-9, 0.3, 0.9])
def test_copies_stand_on_one_side_of_a_small_set_too_and_its_classes_keep_an_image(share):
    """Where a class would have been held out whole, or nothing at all, one row changed sides and its copies did not."""
    rng = np.random.default_rng(0)
    for start in range(0, 2000, 10):
        digests, labels = MANY[start + rng.integers(0, 4, 8)], rng.integers(-1, 2, 8)
        digests[:4], labels[:4] = MANY[start + 4 : start + 8], [0, 1, 0, 1]  # each class has two files
        out = held_out_rows(digests, labels, share)
        assert not set(digests[out]) & set(digests[~out]) and 0 < out.sum() < 8
        assert set(labels[labels >= 0]) == set(labels[~out & (labels >= 0)])


@pytest.mark.parametrize("share", [1e-9, 0.05, 0.5])
@pytest.mark.parametrize("rows", [2, 3, 10])
def test_there_is_an_image_to_train_on_and_one_to_validate_with(rows, share):
    for start in range(0, 600, rows):
        digests = MANY[start : start + rows]
        for labels in (unlabelled(digests), np.zeros(rows, np.int64), np.arange(rows), np.arange(rows) % 2):
            assert 0 < held_out_rows(digests, labels, share).sum() < rows


def test_identical_images_alone_are_on_both_sides_all_the_same():
    for file in MANY[:50]:
        assert held_out_rows(np.repeat(file, 4), np.full(4, -1), 0.5).sum() in (1, 3)


def test_no_class_loses_its_last_image_to_validation():
    """The only image of a class was held out by chance, and a prior that had never seen the class drew it."""
    rng = np.random.default_rng(0)
    for start in range(0, 9000, 30):
        labels = rng.integers(0, 12, 30)
        labels[:2] = 0  # one class can spare an image
        out = held_out_rows(MANY[start : start + 30], labels, 0.5)
        assert set(labels[~out]) == set(labels)


def test_of_a_class_whose_images_would_all_be_held_out_one_is_kept():
    low = MANY[uniform(MANY) < 0.1]
    out = held_out_rows(
        np.concatenate([low[:3], MANY[uniform(MANY) > 0.5][:5]]), np.array([1, 1, 1, 0, 0, 0, 0, 0]), 0.2
    )
    assert out[:3].sum() == 2 and not out[3:].any()


def test_where_every_class_has_one_image_the_class_that_lost_it_is_named(tmp_path):
    images = opened(write(tmp_path / "set", {f"c{i}/a.png": FILES[i] for i in range(3)}))
    (lost,) = images.absent_classes()
    assert f"class c{lost} has no training image: what is drawn of it is untrained" in list(images.remarks())


def a_file(number: int) -> bytes:
    """Return one of many pictures of 8 x 8."""
    return file_of(pixels(number, (8, 8))[..., 0])


def test_classes_without_a_held_out_image_are_counted_and_one_is_named(tmp_path):
    """A small set's held-out images were all of one class, and its figures were read as those of all."""
    files = {f"train/c{i}/{n}.png": FILES[2 * i + n] for i in range(3) for n in range(2)}
    images = opened(write(tmp_path / "set", files | {"val/c1/a.png": FILES[6]}))
    (told,) = [remark for remark in images.remarks() if remark.startswith("validation has")]
    assert told.startswith("validation has 1 images, and none of 2 of the 3 classes, such as c0")
    whole = files | {f"val/c{i}/{n}.png": a_file(6 + 4 * i + n) for i in range(3) for n in range(4)}
    assert not [told for told in opened(write(tmp_path / "whole", whole)).remarks() if told.startswith("validation")]


def test_a_validation_split_of_few_images_is_told_of(tmp_path):
    """One image of forty chose the best weights, and nothing said so."""
    images = opened(write(tmp_path / "set", {f"{number}.png": a_file(number) for number in range(20)}))
    held_out = len(images.splits["validation"])
    (told,) = [remark for remark in images.remarks() if remark.startswith("validation has")]
    assert held_out < 10 and told.startswith(f"validation has {held_out} of 20 images: its figures say little")


def test_a_class_that_only_another_split_has_is_named(tmp_path):
    folder = write(tmp_path / "set", {f"train/a/{i}.png": FILES[i] for i in range(4)} | {"train/b/x.png": b"damaged"})
    images = opened(folder, corrupt="skip")
    assert images.absent_classes() == (1,)
    assert any("class b has no training image" in remark for remark in images.remarks())


# -------------------------------------------------------------------------------------------- the prior and its classes


def three_classes(labels: list[int]) -> Codes:
    info = CodesInfo(
        layout=Layout.of(4, 4, factors=(16,)),
        views=1,
        condition=Classes(names=("a", "b", "zrare")),
        tokenizer=TokenizerIdentity(name="t", sha256="0" * 64),
        source={},
        shard_size=8,
    )
    rows = len(labels)
    return Codes(info, {"train": CodesSplit(np.zeros((rows, 16), np.uint8), np.array(labels), np.arange(rows))})


def prior_of(data: Codes) -> Prior:
    small = TransformerConfig(depth=1, dim=16, heads=2)
    condition = data.info.condition.seen(data.splits["train"].condition)
    return build_prior(PriorConfig.over(data.info, small, condition=condition)).eval()


def test_a_prior_remembers_the_classes_it_had_no_row_of(tmp_path):
    prior_of(three_classes([0, 1, 0, -1])).save_pretrained(tmp_path / "prior")
    assert load_prior(tmp_path / "prior").config.condition.absent == (2,)
    assert prior_of(three_classes([0, 1, 2])).config.condition.absent == ()


def test_a_class_that_was_not_learnt_is_named_when_it_is_asked_for(tmp_path):
    data = three_classes([0, 1, 0, 1])
    tokenizer = VQVAE(tokenizer_training(tmp_path).model).eval()
    pipeline = ImagePipeline(tokenizer, prior_of(data), SamplingConfig(precision="fp32"), data.info.tokenizer)
    with pytest.warns(UserWarning, match="class zrare has no training image"):
        pipeline(labels=["a", "zrare"], seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(pipeline(labels="a", seed=0).codes, pipeline(labels=0, seed=0).codes)


def test_absent_classes_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match=r"absent \(7,\) must be numbers of the 3 classes"):
        Classes(names=("a", "b", "zrare"), absent=(7,))

"""The pipeline that comes with the package is found by its name, draws digits, and stands behind what is here."""

import json
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from smalti import ImagePipeline, load_prior, load_tokenizer
from smalti.common import bundled
from smalti.common.errors import UserError
from smalti.common.origin import find_model_folder, read_origin
from smalti.pipeline.app import load_pipeline
from smalti.pipeline.generate import Settings, generate, output_folder

NAME = "smalti/digits"


@pytest.fixture(scope="module")
def digits() -> ImagePipeline:
    return ImagePipeline.from_pretrained(NAME)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch) -> Path:
    """Go to an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_it_is_found_by_its_name_whole_and_in_parts(elsewhere, digits):
    parts = load_tokenizer(NAME, subfolder="tokenizer"), load_prior(NAME, subfolder="prior")
    assert [part.config for part in parts] == [digits.tokenizer.config, digits.prior.config]
    assert bundled.names() == [NAME]


@pytest.mark.parametrize("stage", ["tokenizer", "prior"])
def test_a_training_begins_from_it_by_its_name(elsewhere, stage):
    assert find_model_folder(NAME, stage) == find_model_folder("digits", stage) == bundled.PRETRAINED / "digits" / stage


def test_a_training_that_begins_from_it_says_so_by_its_full_name(elsewhere, digits):
    origin = read_origin("digits", [f"smalti.{digits.tokenizer.config.name()}"], load_tokenizer, "tokenizer")
    assert origin.change.after == NAME


def test_it_is_found_in_a_checkout_too_where_a_folder_has_the_first_part_of_its_name(monkeypatch, digits):
    """There `smalti` is a folder, and a name that begins with a folder is looked for in it alone."""
    monkeypatch.chdir(bundled.PRETRAINED.parent)
    assert Path("smalti").is_dir() and ImagePipeline.from_pretrained(NAME).config == digits.config


def test_a_folder_of_its_name_wins(elsewhere, finished_run):
    shutil.copytree(finished_run / "tokenizer/model", elsewhere / NAME)
    assert load_tokenizer(NAME).config.image_size == (8, 8)
    with pytest.raises(UserError, match=r"smalti/digits/model_index.json"):
        ImagePipeline.from_pretrained(NAME)


def test_a_revision_of_it_is_refused(elsewhere):
    with pytest.raises(UserError, match="comes with the package and has no revisions"):
        ImagePipeline.from_pretrained(NAME, revision="main")


def test_commands_take_its_short_name_and_write_here(elsewhere, accelerator):
    path = generate(Settings(run="digits", num_images=10, seed=1), accelerator)
    assert path == Path("digits-samples") and (path / "grid.png").exists() and len(list(path.glob("0*.png"))) == 10
    assert {each.name for each in elsewhere.iterdir()} <= {"digits-samples", ".digits-samples.lock"}
    assert load_pipeline("digits").class_names == tuple("0123456789")


def test_a_folder_of_the_short_name_wins_too(elsewhere, accelerator):
    (elsewhere / "digits").mkdir()
    assert output_folder(Settings(run="digits")) == Path("digits/samples")
    with pytest.raises(UserError, match="there is no trained model in digits/tokenizer/model"):
        generate(Settings(run="digits"), accelerator)


def test_it_draws_the_digits_that_are_asked_for(digits):
    """A linear classifier of scikit-learn's scans, reads most of 100 drawn ones as their labels."""
    scans, targets = load_digits(return_X_y=True)
    reader = LogisticRegression(max_iter=200).fit(scans[:1500] / 16, targets[:1500])
    drawn = digits(num_images=100, seed=0)
    small = [np.asarray(image.resize((8, 8), PIL.Image.Resampling.BOX)) for image in drawn.images]
    right = reader.predict(np.stack(small).reshape(100, 64) / 255) == np.asarray(drawn.labels)
    assert right.mean() > 0.75


def test_it_is_small_and_its_card_says_what_it_is(digits):
    folder = bundled.PRETRAINED / "digits"
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 1_000_000
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\n") and "license: apache-2.0" in card and NAME in card
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    assert index["_class_name"] == "ImagePipeline"
    assert not any(torch.isnan(weight).any() for weight in digits.prior.state_dict().values())


def test_its_card_says_nothing_of_it_that_is_not_so():
    """The drawn images that it measured had the sampling settings that are kept, and the drawing command has them."""
    folder = bundled.PRETRAINED / "digits"
    card = (folder / "README.md").read_text(encoding="utf-8")
    kept = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    assert "other sampling settings" not in card
    assert f"--temperature {kept['temperature']} --guidance {kept['guidance']}" in card
    for name in ("temperature", "guidance"):
        assert f"{name}: {kept[name]}" in card[card.index("sampling:") :]

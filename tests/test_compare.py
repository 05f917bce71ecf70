"""A tokenizer beside the one that its training began from: on the images it was trained on, and on the other's."""

import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from smalti.common import folder
from smalti.common.data.config import ImagesConfig
from smalti.common.errors import UserError
from smalti.pipeline.reporting.markup import join
from smalti.pipeline.reporting.run_contents import gather
from smalti.pipeline.reporting.training_section import comparisons, training_section
from smalti.tokenizer.compare import Settings, compare, lines
from smalti.tokenizer.evaluate import Settings as EvaluateSettings
from smalti.tokenizer.evaluate import evaluate
from smalti.tokenizer.model import build_tokenizer
from smalti.tokenizer.train import train
from smalti.tokenizer.vqvae.config import VQVAEConfig
from tests.conftest import NO_FEATURES, QUICK, tokenizer_training

WHEN = ("before", "after")


@pytest.fixture(scope="module")
def there(finished_run, runs) -> Path:
    """Return a tokenizer's run on the digits, beside runs that share a classifier of theirs."""
    return shutil.copytree(finished_run, runs / "compared")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Return a folder of two classes of pictures that are no digits."""
    data, draw = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number in range(120):
        kind = ("dark", "light")[number % 2]
        (data / kind).mkdir(exist_ok=True)
        low = 128 * (number % 2)
        PIL.Image.fromarray(draw.integers(low, low + 128, (8, 8), dtype=np.uint8)).save(data / kind / f"{number}.png")
    return data


@pytest.fixture(scope="module")
def run(there, runs, pictures, accelerator) -> Path:
    """Return the run of its decoder, trained on those pictures."""
    settings = {"start_from": str(there), "train": "decoder", "lr": 1e-2, "images": ImagesConfig(source=str(pictures))}
    train(tokenizer_training(runs / "adapted", **settings), accelerator)
    return runs / "adapted"


def compared(run: Path, accelerator, **settings) -> dict:
    found: dict = folder.read_json(compare(Settings(**{"run": str(run), "features": QUICK, **settings}), accelerator))
    return found


def test_figures_are_those_that_an_evaluation_has_of_each_tokenizer_on_each_set_of_images(
    run, there, pictures, accelerator, capsys
):
    found = compared(run, accelerator)["figures"]
    own = {"new": {"before": (there, pictures), "after": (run, None)},
           "old": {"before": (there, None), "after": (run, "digits")}}  # fmt: skip
    for domain, each in own.items():
        for when, (evaluated, source) in each.items():
            c = EvaluateSettings(
                run=str(evaluated), source=None if source is None else str(source), features=QUICK, seed=0
            )
            told = folder.read_json(evaluate(c, accelerator))["figures"]
            assert {"psnr_pooled", "distortion", "usage", "accuracy_reconstructions"} <= told.keys()
            assert found[domain][when] == told, (domain, when)
    assert found["old"]["before"]["fd_classifier"] != found["old"]["after"]["fd_classifier"]


def test_what_is_printed_and_on_the_report_are_the_figures_of_the_file(run, accelerator):
    path = compare(Settings(run=str(run), features=QUICK), accelerator)
    figures, printed = folder.read_json(path)["figures"], "\n".join(lines(path))
    page = str(training_section(gather(run)).body)
    for domain in ("new", "old"):
        for name in ("psnr_pooled", "ssim", "distortion"):
            for when in WHEN:
                assert f"{figures[domain][when][name]:.4f}" in printed
        assert f"{figures[domain]['after']['psnr_pooled']:.2f}" in page
    assert "images with the same codes: 100.0%" in printed and "On the images of this run" in page


def test_codes_are_equal_where_the_decoder_alone_was_trained_and_not_where_all_was(
    run, there, runs, pictures, accelerator
):
    assert {each["codes_equal"] for each in compared(run, accelerator)["figures"].values()} == {1.0}
    settings = {"start_from": str(there), "lr": 1e-2, "images": ImagesConfig(source=str(pictures))}
    train(tokenizer_training(runs / "whole", **settings), accelerator)
    found = compared(runs / "whole", accelerator, features=NO_FEATURES)["figures"]
    assert found["new"]["codes_equal"] < 1


def test_images_of_both_are_measured_once_where_they_are_the_same(there, runs, accelerator, capsys):
    train(tokenizer_training(runs / "further", start_from=str(there), steps=3), accelerator)
    found = compared(runs / "further", accelerator, features=NO_FEATURES)
    assert found["figures"].keys() == {"new"} and "both were trained on the images of digits" in capsys.readouterr().err


def test_a_model_folder_does_not_say_its_images_and_a_source_names_them(run, there, tmp_path, accelerator, capsys):
    model = shutil.copytree(there / "tokenizer/model", tmp_path / "alone")
    found = compared(run, accelerator, before=str(model), features=NO_FEATURES)
    assert found["figures"].keys() == {"new"}
    assert "does not say which images it was trained on, so what they lost is not measured" in capsys.readouterr().err
    named = compared(run, accelerator, before=str(model), source="digits", features=NO_FEATURES)
    assert named["figures"]["old"] == compared(run, accelerator, features=NO_FEATURES)["figures"]["old"]


def test_another_tokenizer_than_the_training_began_from_is_refused(run, there, runs, tmp_path, accelerator):
    with pytest.raises(UserError, match="began from no given weights: give the other one as --before"):
        compared(there, accelerator)
    away = shutil.move(there, tmp_path / "away")
    with pytest.raises(UserError, match=r"Give the tokenizer to compare with as --before"):
        compared(run, accelerator)
    train(tokenizer_training(there, steps=1), accelerator)
    with pytest.raises(UserError, match=r"is not what .* began from any more .*: it was trained on or replaced"):
        compared(run, accelerator)
    shutil.rmtree(there)
    shutil.move(away, there)


def test_tokenizers_of_other_images_are_refused(run, tmp_path, accelerator):
    build_tokenizer(VQVAEConfig(image_size=(16, 16))).save_pretrained(tmp_path / "larger")
    with pytest.raises(UserError, match=r"take other images, \(16, 16, 1\) .* and \(8, 8, 1\)"):
        compared(run, accelerator, before=str(tmp_path / "larger"))


def test_a_report_without_a_comparison_has_no_table_of_one(finished_run):
    assert not str(join(*comparisons(gather(finished_run))))

"""A tokenizer beside the one that its training began from: on the images it was trained on, and on the other's."""

import re
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from safetensors.torch import load_file, save_file

from smalti.common import folder
from smalti.common.data.config import ImagesConfig
from smalti.common.data.images import open_images
from smalti.common.errors import UserError
from smalti.pipeline.reporting.comparisons import comparisons
from smalti.pipeline.reporting.markup import number
from smalti.pipeline.reporting.model_card import measured
from smalti.pipeline.reporting.run_contents import gather, outdated
from smalti.pipeline.reporting.training_section import training_section
from smalti.tokenizer.compare import Settings, compare, lines
from smalti.tokenizer.criterion.likelihood.bernoulli import BernoulliConfig
from smalti.tokenizer.evaluate import Settings as EvaluateSettings
from smalti.tokenizer.evaluate import evaluate
from smalti.tokenizer.model import build_tokenizer
from smalti.tokenizer.reconstruction import Measuring, plan_of
from smalti.tokenizer.run_features import Extractors
from smalti.tokenizer.train import train
from smalti.tokenizer.vae.config import VAEConfig
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
    for name in range(120):
        kind = ("dark", "light")[name % 2]
        (data / kind).mkdir(exist_ok=True)
        low = 128 * (name % 2)
        PIL.Image.fromarray(draw.integers(low, low + 128, (8, 8), dtype=np.uint8)).save(data / kind / f"{name}.png")
    return data


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> Path:
    """Return a folder of unlabelled pictures that are twice as wide as high."""
    data, draw = tmp_path_factory.mktemp("wide"), np.random.default_rng(1)
    for name in range(24):
        PIL.Image.fromarray(draw.integers(0, 256, (8, 16), dtype=np.uint8)).save(data / f"{name}.png")
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


def test_what_is_printed_and_on_the_report_are_the_figures_of_the_file(run, there, accelerator):
    path = compare(Settings(run=str(run), features=QUICK), accelerator)
    figures, printed = folder.read_json(path)["figures"], "\n".join(lines(path))
    page = str(training_section(gather(run)).body)
    for domain in ("new", "old"):
        psnr = [figures[domain][when]["psnr_pooled"] for when in WHEN]
        assert psnr[0] != psnr[1]
        assert re.search(rf"PSNR, dB, pooled +{psnr[0]:.4f} +{psnr[1]:.4f}\n", printed)
        cells = [f'<td class="number">{number(each)}</td>' for each in psnr]
        assert f"<td>PSNR, dB</td>{cells[0]}{cells[1]}" in page
    assert "images with the same codes: 100.0%" in printed
    assert "Beside the weights it began from (before), on the images of this run (.../" in page


def test_a_comparison_with_another_tokenizer_is_a_file_of_its_own_and_named_on_the_report(
    run, runs, there, accelerator, tmp_path
):
    other = shutil.copytree(there / "tokenizer/model", tmp_path / "third")
    paths = [compare(Settings(run=str(run), before=before, features=NO_FEATURES), accelerator)
             for before in (None, str(other))]  # fmt: skip
    names = ["compare-validation.json", f"compare-validation-to-{tmp_path.name}-third.json"]
    assert [path.name for path in paths] == names
    copied = shutil.copytree(run, tmp_path / "copied")
    (copied / "evaluation" / paths[0].name).unlink()
    written = folder.read_json(copied / "evaluation" / paths[1].name)
    written["protocol"]["before"] = "0" * 64
    folder.write_json(copied / "evaluation" / paths[1].name, written)
    assert "which it did not begin from (before), on" in str(training_section(gather(copied)).body)
    with pytest.raises(UserError, match="are one tokenizer: give another --before"):
        compare(Settings(run=str(run), before=str(run), features=NO_FEATURES), accelerator)


def test_the_report_and_the_card_show_every_comparison(run, accelerator, wide, tmp_path, capsys):
    """With a plain one beside it, that with the old images was left out of the report, and the card had none."""
    copied = shutil.copytree(run, tmp_path / "copied", ignore=shutil.ignore_patterns("evaluation"))
    for source in (None, str(wide)):
        compare(Settings(run=str(copied), source=source, features=NO_FEATURES), accelerator)
    assert re.search(r"of the 24 images of .*wide\d* the \d+ of validation are measured", capsys.readouterr().err)
    evaluate(EvaluateSettings(run=str(copied), source=str(wide), features=NO_FEATURES), accelerator)
    assert re.search(r"of the 24 images of .*wide\d* the \d+ of validation are measured", capsys.readouterr().err)
    evaluate(EvaluateSettings(run=str(copied), features=NO_FEATURES), accelerator)
    assert "of validation are measured" not in capsys.readouterr().err
    contents = gather(copied)
    tables = list(comparisons(contents))
    assert [table.caption.partition(", ")[0] for table in tables] == ["Beside the weights it began from (before)"] * 4
    assert sum(wide.name in table.caption for table in tables) == 1
    page, card = str(training_section(contents).body), "".join(measured(contents, "tokenizer"))
    for table in tables:
        psnr = next(row for row in table.rows if row[0] == "PSNR, dB")
        assert f'<td class="number">{psnr[1]}</td><td class="number">{psnr[2]}</td>' in page
        assert f"| {psnr[1]} | {psnr[2]} |" in card
    assert "Its decoder alone was trained" in page


def test_a_report_says_that_a_comparison_is_missing_damaged_or_of_weights_of_before(run, accelerator, tmp_path):
    copied = shutil.copytree(run, tmp_path / "copied", ignore=shutil.ignore_patterns("evaluation"))
    assert "tokenizer/compare.py" in str(training_section(gather(copied)).body)
    path = compare(Settings(run=str(copied), features=NO_FEATURES), accelerator)
    weights = load_file(copied / "tokenizer/model/model.safetensors")
    save_file({name: each + 1 for name, each in weights.items()}, copied / "tokenizer/model/model.safetensors")
    (stale,) = (line for line in outdated(gather(copied)) if "compare" in line)
    assert "python tokenizer/compare.py" in stale and "measures them anew" in stale
    folder.write_json(
        path, folder.read_json(path) | {"figures": {"new": 3, "old": {"before": [], "after": {"ssim": 1}}}}
    )
    assert [*comparisons(gather(copied))] == []


def test_old_images_are_read_as_the_other_tokenizer_read_them(runs, pictures, wide, accelerator):
    """They were read by the settings of the new run where a source named them, and parts of one reading were taken for
    the other's."""
    there = runs / "of-wide"
    stretched = ImagesConfig(source=str(wide), resize="stretch", validation_share=0.5)
    train(tokenizer_training(there, steps=1, batch_size=8, images=stretched), accelerator)
    settings = {"start_from": str(there), "steps": 1, "images": ImagesConfig(source=str(pictures))}
    train(tokenizer_training(runs / "from-wide", **settings), accelerator)
    own = compared(runs / "from-wide", accelerator, features=NO_FEATURES)["figures"]["old"]
    named = compared(runs / "from-wide", accelerator, features=NO_FEATURES, source=str(wide))["figures"]["old"]
    assert own["before"]["psnr_pooled"] == pytest.approx(named["before"]["psnr_pooled"], abs=1e-9)
    c = EvaluateSettings(run=str(there), features=NO_FEATURES)
    assert folder.read_json(evaluate(c, accelerator))["figures"]["psnr_pooled"] == own["before"]["psnr_pooled"]


def test_the_plan_of_a_measurement_knows_how_images_are_read(wide):
    plans = []
    for resize, share in (("stretch", 0.5), ("crop", 0.5), ("crop", 0.2)):
        images = open_images(ImagesConfig(source=str(wide), resize=resize, validation_share=share), (8, 8), 1)
        split = images.splits["validation"]
        plans.append(plan_of(Measuring(8, "fp32"), "0" * 64, images, split, Extractors(None, None)))
    assert len({str(plan) for plan in plans}) == 3 and len({plan["images"] for plan in plans}) == 1


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
    assert found["figures"].keys() == {"new"} and "the images of digits are those of" in capsys.readouterr().err


def test_a_model_folder_does_not_say_its_images_and_a_source_names_them(run, there, tmp_path, accelerator, capsys):
    model = shutil.copytree(there / "tokenizer/model", tmp_path / "alone")
    found = compared(run, accelerator, before=str(model), features=NO_FEATURES)
    assert found["figures"].keys() == {"new"}
    assert "does not say which images it was trained on, so what they lost is not measured" in capsys.readouterr().err
    named = compared(run, accelerator, before=str(model), source="digits", features=NO_FEATURES)
    assert named["figures"]["old"] == compared(run, accelerator, features=NO_FEATURES)["figures"]["old"]


def test_images_that_a_converted_tokenizer_was_given_are_not_those_it_was_trained_on(
    there, pictures, tmp_path, accelerator, capsys
):
    converted = shutil.copytree(there, tmp_path / "converted")
    with open(converted / "tokenizer/config.yaml", "a") as file:
        file.write("checkpoint: theirs.pt\n")  # as convert.py writes it
    train(tokenizer_training(tmp_path / "mine", start_from=str(converted), steps=1), accelerator)
    assert compared(tmp_path / "mine", accelerator, features=NO_FEATURES)["figures"].keys() == {"new"}
    assert "converted does not say which images it was trained on" in capsys.readouterr().err


def test_old_images_that_are_gone_are_said_and_the_new_ones_measured(runs, pictures, accelerator, tmp_path, capsys):
    gone = shutil.copytree(pictures, tmp_path / "gone")
    train(tokenizer_training(tmp_path / "there", steps=1, images=ImagesConfig(source=str(gone))), accelerator)
    settings = {"start_from": str(tmp_path / "there"), "steps": 1, "images": ImagesConfig(source="digits")}
    train(tokenizer_training(tmp_path / "here", **settings), accelerator)
    shutil.rmtree(gone)
    assert compared(tmp_path / "here", accelerator, features=NO_FEATURES)["figures"].keys() == {"new"}
    assert re.search(r"there lost is not measured: .*gone.*--source names them", capsys.readouterr().err)


def test_another_tokenizer_than_the_training_began_from_is_refused(run, there, tmp_path, accelerator):
    with pytest.raises(UserError, match="names no weights that its training began from: give the other"):
        compared(there, accelerator)
    first = shutil.copytree(there, tmp_path / "first")
    train(tokenizer_training(tmp_path / "second", start_from=str(first), steps=1), accelerator)
    weights = load_file(first / "tokenizer/model/model.safetensors")
    save_file({name: each + 1 for name, each in weights.items()}, first / "tokenizer/model/model.safetensors")
    with pytest.raises(UserError, match=r"is not what .* began from any more .*: it was trained on or replaced"):
        compared(tmp_path / "second", accelerator)
    shutil.rmtree(first)
    with pytest.raises(
        UserError, match=r"began from .*first, which is not there: bring it back, or give it as --before"
    ):
        compared(tmp_path / "second", accelerator)


def test_weights_are_found_from_another_working_directory(there, tmp_path, accelerator, monkeypatch):
    """A folder's name was asked of the Hub."""
    shutil.copytree(there, tmp_path / "first")
    monkeypatch.chdir(tmp_path)
    train(tokenizer_training(tmp_path / "second", start_from="first", steps=1), accelerator)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert compared(tmp_path / "second", accelerator, features=NO_FEATURES)["protocol"]["before_name"] == "first"


def test_a_tokenizer_of_black_and_white_images_is_refused_on_grey_ones(run, tmp_path, accelerator):
    binary = VAEConfig(image_size=(8, 8), likelihood=BernoulliConfig())
    build_tokenizer(binary).save_pretrained(tmp_path / "binary")
    with pytest.raises(UserError, match=r"is of black and white images, and those of .* are grey"):
        compared(run, accelerator, before=str(tmp_path / "binary"))


def test_codes_of_other_grids_are_not_compared(run, tmp_path, accelerator):
    """The same codes by number would be a coincidence."""
    build_tokenizer(VAEConfig(image_size=(8, 8))).save_pretrained(tmp_path / "vectors")
    found = compared(run, accelerator, before=str(tmp_path / "vectors"), features=NO_FEATURES)["figures"]["new"]
    assert "codes_equal" not in found and "rate" in found["before"] and "rate" not in found["after"]


def test_too_few_images_for_a_distance_are_named(run, accelerator, capsys):
    """It left without a word."""
    found = compared(run, accelerator)["figures"]["new"]["after"]
    assert not any(name.startswith("fd_") for name in found)
    told = capsys.readouterr().err
    assert re.search(r"new images: no Fréchet distance on classifier: .* 7 images and \d+ features", told)


def test_tokenizers_of_other_images_are_refused(run, tmp_path, accelerator):
    build_tokenizer(VQVAEConfig(image_size=(16, 16))).save_pretrained(tmp_path / "larger")
    with pytest.raises(UserError, match=r"take other images, \(16, 16, 1\) .* and \(8, 8, 1\)"):
        compared(run, accelerator, before=str(tmp_path / "larger"))


def test_a_report_of_a_run_that_began_from_nothing_asks_for_no_comparison(there):
    assert "compare.py" not in str(training_section(gather(there)).body)

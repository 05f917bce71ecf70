"""The whole chain by one command: settings of its stages on its command line, and what is wrong told at once."""

import PIL.Image
import pytest

from smalti.common.data.config import ImagesConfig
from smalti.common.errors import Refused, UserError
from smalti.common.folder import write_json
from smalti.pipeline.run import (
    ROOT,
    RunSettings,
    check_samples_are_ours,
    check_stages,
    gather_pictures,
    main,
    of_stages,
    read_settings,
    stages,
)
from smalti.tokenizer.train import train
from tests.conftest import tokenizer_training


def lines(*argv: str) -> dict[str, list[str]]:
    return stages(RunSettings(), "runs/x", of_stages(argv)[1])


def test_a_setting_with_a_stages_name_before_it_reaches_that_stage_alone():
    words = ["configs/digits", "--tokenizer.model.image-size", "8", "8", "--seed", "1", "--prior.steps=4", "--run", "a"]
    own, given = of_stages(words)
    assert own == ["configs/digits", "--seed", "1", "--run", "a"]
    assert given == {
        "tokenizer": ["--model.image-size", "8", "8"],
        "encode": [],
        "prior": ["--steps=4"],
        "generate": [],
    }
    assert read_settings(words).seed == 1
    found = lines(*words)
    assert found["tokenizer"][-3:] == given["tokenizer"] and found["prior"][-1] == "--steps=4"


def test_settings_of_every_stage_are_read_by_it():
    check_stages(
        lines("--tokenizer.batch_size", "8", "--encode.views", "2", "--prior.lr", "0.1", "--generate.seed", "3")
    )


@pytest.mark.parametrize("name", sorted(path.parent.name for path in (ROOT / "configs").glob("*/generate.yaml")))
def test_every_shipped_config_is_read_by_all_stages_and_goes_together(name):
    check_stages(stages(RunSettings(configs=f"configs/{name}"), "runs/x", of_stages([])[1]))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--tokenizer.batch_sise", "8"], "tokenizer: unknown option --batch_sise; did you mean --batch_size"),
        (["--prior.steps", "0"], "prior: .*steps should be greater"),
        (["--encode.views", "many"], "encode: .*views"),
        (["--generate.temperature", "0"], "generate: .*give top_k 1"),
        (["--prior.model.kind", "diffusion"], r"model.kind diffusion is over vectors, and a sample is 4 x 4 codes"),
    ],
)
def test_a_wrong_setting_of_a_later_stage_is_told_before_the_first_begins(words, told, tmp_path):
    """A wrong word for the prior was told after the tokenizer had been trained."""
    run = tmp_path / "run"
    with pytest.raises(UserError, match=told):
        main([str(ROOT / "configs/digits_small"), "--run", str(run), *words])
    assert not run.exists()


def test_a_wrong_config_of_a_later_stage_is_told_before_the_first_begins(tmp_path):
    for name in ("tokenizer", "generate"):
        (tmp_path / f"{name}.yaml").write_text((ROOT / f"configs/digits_small/{name}.yaml").read_text())
    (tmp_path / "prior.yaml").write_text("stepps: 10\n")
    with pytest.raises(UserError, match=r"prior: .*stepps"):
        main([str(tmp_path), "--run", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_a_run_may_not_be_the_folder_of_its_images(tmp_path, accelerator):
    """It trained, and its own files were images of another set to every command after it."""
    for number in range(4):
        PIL.Image.new("L", (8, 8), 9 * number).save(tmp_path / f"{number}.png")
    c = tokenizer_training(tmp_path, images=ImagesConfig(source=str(tmp_path)), batch_size=2)
    with pytest.raises(UserError, match=r"is the folder of the images, .*; give another --run"):
        train(c, accelerator)


def test_a_picture_at_the_name_of_one_that_is_written_at_the_end_is_kept(tmp_path):
    for name in ("samples/grid.png", "tokenizer/reconstructions.png", "tokenizer/curves.png", "prior/curves.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        PIL.Image.new("L", (8, 8)).save(tmp_path / name)
    gather_pictures(tmp_path)
    (tmp_path / "samples.png").write_bytes(b"mine")
    gather_pictures(tmp_path)
    assert (tmp_path / "samples.png.found").read_bytes() == b"mine"
    assert not (tmp_path / "curves.png.found").exists()


def test_images_that_another_command_drew_into_the_run_are_not_replaced_unasked(tmp_path):
    asked = {"format": "png", "labels": [0], "seeds": [0]}
    write_json(tmp_path / "samples/.request.json", asked)
    write_json(tmp_path / ".samples.json", asked)
    check_samples_are_ours(tmp_path, [])  # its own
    write_json(tmp_path / "samples/.request.json", asked | {"seeds": [1]})
    with pytest.raises(Refused, match=r"samples holds images that another command drew.*--generate.overwrite true"):
        check_samples_are_ours(tmp_path, ["--num_images", "3"])
    check_samples_are_ours(tmp_path, ["--overwrite", "true"])


def test_an_option_of_no_stage_is_told_how_a_stage_is_named():
    with pytest.raises(UserError, match=r"unknown option --batch_size; .*--tokenizer.KEY, --encode.KEY, --prior.KEY"):
        read_settings(["--batch_size", "8"])


def test_stages_have_one_folder():
    with pytest.raises(UserError, match=r"--prior.run: all stages have one folder; give --run"):
        read_settings(["--prior.run", "elsewhere"])

"""The messages about mistyped commands, and the hints about which command comes next."""

import ast
import os
import re
import shlex
from pathlib import Path

import pytest

from smalti.common import config
from smalti.common.commands import BY_NAME, COMMANDS, as_typed, quoted
from smalti.common.errors import UserError
from smalti.pipeline.doctor import configs_of
from smalti.pipeline.generate import Settings as Generation
from smalti.pipeline.publish import Settings as Publication
from smalti.pipeline.run import first_config
from smalti.pipeline.terminal import meant
from smalti.prior.config import TrainConfig as PriorTraining
from smalti.tokenizer.config import TrainConfig as TokenizerTraining
from smalti.tokenizer.patches.cluster_config import ClusterConfig

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv(BY_NAME, raising=False)


def refused(cls: type, *words: str, **options) -> str:
    """Return the message with which a command line is refused."""
    with pytest.raises(UserError) as raised:
        config.parse(cls, "", words, **options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


STAGES = {"tokenizer": TokenizerTraining, "prior": PriorTraining, "generate": Generation, "cluster": ClusterConfig}


@pytest.mark.parametrize("name, cls", STAGES.items())
def test_a_folder_given_as_a_config_is_answered_with_the_file_in_it_that_fits(name, cls):
    folder = "configs/digits_kmeans" if name == "cluster" else "configs/digits"
    assert f"{folder} is a folder, expected a config file; did you mean {folder}/{name}.yaml?" == refused(
        cls, "--config", folder
    )


def test_a_folder_without_configs_is_said_to_have_none(tmp_path):
    assert refused(PriorTraining, str(tmp_path)).endswith(
        "is a folder, expected a config file, and there is none in it"
    )


@pytest.mark.parametrize(
    "cls, file, script",
    [
        (TokenizerTraining, "digits/prior.yaml", "prior/train.py"),
        (PriorTraining, "emoji/tokenizer.yaml", "tokenizer/train.py"),
        (TokenizerTraining, "digits_kmeans/cluster.yaml", "tokenizer/cluster.py"),
        (PriorTraining, "digits/generate.yaml", "pipeline/generate.py"),
    ],
)
def test_a_config_of_another_command_is_said_to_be_its(cls, file, script):
    assert f"configs/{file} is a config for {script}: " in refused(cls, f"configs/{file}")


def test_a_mistake_in_ones_own_config_is_not_taken_for_anothers(tmp_path):
    """A prior's config with a mistake is still a prior's, whatever its name."""
    text = (ROOT / "configs/digits/prior.yaml").read_text().replace("dropout", "dropuot")
    (tmp_path / "tokenizer.yaml").write_text(text)
    assert "unknown setting model.dropuot; did you mean model.dropout?" in refused(
        PriorTraining, str(tmp_path / "tokenizer.yaml")
    )


def test_a_mistyped_name_of_ones_own_config_is_answered_with_what_lies_there(tmp_path):
    (tmp_path / "prior.yaml").write_text("steps: 3")
    assert refused(PriorTraining, str(tmp_path / "pior.yaml")).endswith(f"did you mean {tmp_path}/prior.yaml?")


@pytest.mark.parametrize("which", [first_config, configs_of])
def test_a_mistyped_folder_of_configs_is_answered_with_the_nearest(which):
    with pytest.raises(UserError, match=r"there is no .*configs/digit; did you mean configs/digits\?"):
        which(config.find_config("configs/digit"))


def test_one_file_where_the_folder_of_both_is_wanted_is_answered_with_the_folder():
    with pytest.raises(
        UserError, match=r"is a file; give its folder, which has the configs of both stages: configs/digits$"
    ):
        first_config(Path("configs/digits/tokenizer.yaml"))


def test_a_file_given_as_a_run_is_refused_by_name(tmp_path):
    """The message was `cannot write: Not a directory`."""
    (tmp_path / "notes.txt").write_text("")
    told = refused(Generation, str(tmp_path / "notes.txt"), positional="run")
    assert told == f"run must be the folder of an experiment, got the file {tmp_path}/notes.txt"


@pytest.mark.parametrize("given, shown", [(["32"], "32 32"), (["[32]"], "32 32"), (["8", "8", "8"], "VALUE VALUE")])
def test_another_number_of_values_is_answered_with_how_many_there_are(given, shown):
    told = refused(TokenizerTraining, "--model.image_size", *given)
    assert "model.image_size takes 2 values, got " in told and f"--model.image_size {shown}, or in a file [" in told


def test_one_value_in_a_file_is_answered_as_one_on_the_command_line(tmp_path):
    (tmp_path / "a.yaml").write_text("model: {image_size: 32}")
    assert "model.image_size takes 2 values, got 32; for the same one each --model.image_size 32 32" in refused(
        TokenizerTraining, str(tmp_path / "a.yaml")
    )
    (tmp_path / "a.yaml").write_text("model: {channels: 64}")
    assert "model.channels takes a list of values, got 64; write --model.channels 64, or in a file [64]" in refused(
        TokenizerTraining, str(tmp_path / "a.yaml")
    )


@pytest.mark.parametrize("option", ["--device", "--gpu", "--num-processes=2", "--cuda"])
def test_a_device_is_answered_with_how_devices_are_chosen(option):
    told = refused(TokenizerTraining, option)
    assert f"unknown option {option.partition('=')[0].replace('-p', '_p')}; devices are no setting" in told
    assert "CUDA_VISIBLE_DEVICES" in told and "accelerate launch" in told


@pytest.mark.parametrize(
    "option, meant",
    [
        ("--learning-rate", "--lr"),
        ("--epochs", "--steps"),
        ("--output_dir", "--run"),
        ("--fp16", "--precision"),
        ("--resolution", "--model.image_size"),
        ("--Steps", "--steps"),
    ],
)
def test_an_option_of_other_programs_is_answered_with_ours(option, meant):
    assert refused(TokenizerTraining, option, "3").endswith(f"did you mean {meant}?")


def test_resuming_is_answered_with_the_same_command():
    assert "the same command goes on" in refused(PriorTraining, "--resume")


@pytest.mark.parametrize(
    "words", [["--overwrite"], ["--overwrite", "runs/a"], ["--overwrite", "--seed", "3"], ["--overwrite=true"]]
)
def test_a_bare_flag_is_a_yes(words):
    c = config.parse(Generation, "", words, positional="run")
    assert c.overwrite and c.run == ("runs/a" if "runs/a" in words else Generation().run)


def test_a_flag_may_still_be_told_what_it_is():
    assert not config.parse(Generation, "", ["runs/a", "--overwrite", "false"], positional="run").overwrite
    assert config.parse(Publication, "", ["--private", "null", "--create-pr"], positional="run").private is None
    assert config.parse(Publication, "", ["--private", "--create-pr"], positional="run").private is True


@pytest.mark.parametrize(
    "words, near",
    [
        (["--model.preset", "38M"], "38m"),
        (["--precision", "FP32"], "fp32"),
        (["--model.preset", "112m"], "111m"),
        (["--order", "Raster"], "raster"),
    ],
)
def test_one_of_several_words_in_another_case_or_mistyped_is_answered_with_the_nearest(words, near):
    told = refused(PriorTraining, *words)
    assert told.endswith(f"got '{words[1]}'; did you mean {near}?") and f" {words[0][2:]} must be '" in told


def test_a_kind_in_another_case_is_answered_with_it():
    assert refused(TokenizerTraining, "--model.quantizer.kind", "VQ").endswith("got 'VQ'; did you mean vq?")


@pytest.mark.parametrize(
    "word, wanted",
    [
        ("train", ["train-tokenizer", "train-prior"]),
        ("tokenizer", ["train-tokenizer", "evaluate-tokenizer"]),
        ("Prior", ["train-prior", "fit-prior", "evaluate-prior"]),
        ("prior/train.py", ["train-prior"]),
        ("pipeline/run", ["run"]),
        ("trian-prior", ["train-prior"]),
        ("xyzzy", []),
    ],
)
def test_a_word_that_is_no_command_is_answered_with_those_it_may_mean(word, wanted):
    assert meant(word) == wanted


# ---------------------------------------------------------------------------------------------------- what to type next

AWKWARD = ["my run", "it's", 'a "b"', "-x", "$HOME", "a;b", "~", "a*b", "ü"]


@pytest.mark.parametrize("name", AWKWARD)
def test_a_shell_reads_the_run_back_from_a_hint(name):
    """For a run with a space in its name the hint was `encode.py my run`, which encoded `my`."""
    for script in (command.script for command in COMMANDS.values()):
        words = shlex.split(as_typed(script, Path(name), "--run", Path(name) / "more"))
        at = next(place for place, word in enumerate(words) if word.endswith(script))
        assert [Path(words[at + 1]), Path(words[at + 3])] == [Path(name), Path(name) / "more"]
        assert not words[at + 1].startswith("-") and os.path.normpath(words[at + 1]) == name


def test_a_hint_works_in_the_folder_where_it_is_read(monkeypatch, tmp_path):
    """A script started outside the checkout named the next one `tokenizer/encode.py`, which is not there. A user's file
    of that name is not the script."""
    monkeypatch.delenv(BY_NAME, raising=False)
    for folder in (ROOT, ROOT / "docs", tmp_path):
        monkeypatch.chdir(folder)
        for script in (command.script for command in COMMANDS.values()):
            (word,) = (word for word in shlex.split(as_typed(script, "x")) if word.endswith(".py"))
            assert os.path.samefile(word, ROOT / script) and (word == script) == (folder == ROOT)
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer/encode.py").write_text("print('mine')")
    assert as_typed("tokenizer/encode.py").endswith(str(ROOT / "tokenizer/encode.py"))


def test_a_hint_by_name_is_the_names(monkeypatch):
    monkeypatch.setenv(BY_NAME, "1")
    assert as_typed("tokenizer/encode.py", Path("my run")) == "smalti encode 'my run'"


def test_every_hint_and_remedy_in_the_code_is_quoted():
    """A run or a path after a script's name passes through `as_typed` or `quoted`."""
    scripts = "|".join(re.escape(command.script) for command in COMMANDS.values())
    plain = re.compile(
        rf"(?:{scripts}) \{{(?!quoted)|--(?:run|output|codes|config|to|expand) \{{(?!quoted|self\.shown)"
    )
    code = [
        p for package in ("common", "tokenizer", "prior", "pipeline", "metrics") for p in (ROOT / package).rglob("*.py")
    ]
    found = [
        f"{p.relative_to(ROOT)}: {line.strip()}"
        for p in code
        for line in p.read_text().splitlines()
        if plain.search(line)
    ]
    assert not [line for line in found if "self.shown" not in line and "found.shown" not in line]


def test_a_plain_word_is_left_as_it_is():
    assert quoted(Path("runs/digits")) == "runs/digits" and quoted("--seed") == "--seed" and quoted(1) == "1"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_by_name_shows_no_script_which_a_wheel_has_not(name, monkeypatch):
    """`smalti encode --help` named `python tokenizer/encode.py`, a path that no installation has."""
    monkeypatch.setenv(BY_NAME, "1")
    description = ast.get_docstring(ast.parse((ROOT / COMMANDS[name].script).read_text())) or ""
    shown = config.parser(Generation, description, "run", "").description or ""
    assert description and not re.search(r"(python|accelerate launch)\s+(-q )?\w+/\w+\.py", shown)

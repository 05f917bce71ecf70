"""The terminal command: `smalti NAME` runs the script of that name with its options, and its messages use the names."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from smalti.common.commands import BY_NAME, COMMANDS, typed
from smalti.common.config import read_yaml
from smalti.common.errors import UserError
from smalti.common.launch import check_alone
from smalti.common.starting import UNHEARD
from smalti.pipeline.configs import copy, main, shipped
from tests.test_imports import is_script

ROOT = Path(__file__).resolve().parents[1]


def smalti(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "smalti.pipeline.terminal", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment)


def test_every_script_has_a_name():
    files = [path for package in ("tokenizer", "prior", "pipeline") for path in (ROOT / package).glob("*.py")]
    scripts = {str(path.relative_to(ROOT)) for path in files if is_script(path)}
    assert {command.script for command in COMMANDS.values()} == scripts - {"pipeline/terminal.py"}


def test_the_overview_imports_nothing_that_takes_long():
    """`smalti --help` takes less than a second; importing torch takes more."""
    code = (
        "import sys; from smalti.pipeline.terminal import run; run(['--help']); print('heavy', 'torch' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert "heavy False" in told.stdout
    assert all(name in told.stdout for name in COMMANDS)


def test_an_unknown_name_is_refused_with_the_nearest():
    told = smalti("trian-prior")
    assert told.returncode == 2
    assert told.stderr == "error: there is no command trian-prior; did you mean train-prior?\n"


def test_a_command_by_name_answers_as_its_script_does_and_speaks_of_names(tmp_path):
    told = smalti("encode", "nowhere", cwd=tmp_path)
    assert told.returncode == 2
    assert (
        "smalti train-tokenizer with --run nowhere makes one (smalti cluster, one of K-means or a mixture of Gaussians"
        in told.stderr
    )


def test_what_to_type_next_is_a_name_only_for_who_types_names(monkeypatch):
    text = "next: accelerate launch -q tokenizer/encode.py runs/a; see tokenizer/encode.pyx, python pipeline/run.py"
    monkeypatch.delenv(BY_NAME, raising=False)
    assert typed(text) == text
    monkeypatch.setenv(BY_NAME, "1")
    assert typed(text) == "next: smalti encode runs/a; see tokenizer/encode.pyx, smalti run"


def test_a_shipped_config_is_found_where_there_is_no_checkout(tmp_path, monkeypatch):
    wanted = read_yaml(ROOT / "configs/digits/prior.yaml")
    monkeypatch.chdir(tmp_path)
    assert read_yaml(Path("configs/digits/prior.yaml")) == wanted
    with pytest.raises(
        UserError, match=r"there is no config file configs/digit/prior.yaml; did you mean configs/digits/prior.yaml"
    ):
        read_yaml(Path("configs/digit/prior.yaml"))


def test_a_file_of_the_users_own_goes_before_a_shipped_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs/digits").mkdir(parents=True)
    (tmp_path / "configs/digits/prior.yaml").write_text("steps: 7\n")
    assert read_yaml(Path("configs/digits/prior.yaml")) == {"steps": 7}


def test_every_shipped_config_is_listed_with_what_it_is_for():
    assert shipped().keys() == {
        p.parent.name for n in ("tokenizer", "cluster") for p in (ROOT / "configs").glob(f"*/{n}.yaml")
    }
    assert all(shipped().values())


def test_a_copied_config_is_whole_and_never_replaces_anything(tmp_path):
    copy("imagefolder", tmp_path / "mine")
    originals = sorted((ROOT / "configs/imagefolder").glob("*.yaml"))
    assert [(tmp_path / "mine" / path.name).read_text() for path in originals] == [
        path.read_text() for path in originals
    ]
    with pytest.raises(UserError, match="mine exists already; give another folder"):
        copy("imagefolder", tmp_path / "mine")
    with pytest.raises(UserError, match="there is no shipped config imagefolders; they are cifar10, "):
        copy("imagefolders", tmp_path / "other")


@pytest.mark.parametrize(
    "name, images",
    [("digits", ""), ("digits_kmeans", ""), ("cifar10", ""), ("imagefolder_small", " --images FOLDER")],
)
def test_a_copied_config_asks_for_images_only_where_it_names_none(name, images, tmp_path, monkeypatch, capsys):
    """`next: ... --images FOLDER` stood after a copy of the digits too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(BY_NAME, "1")
    main([name, "--to", "configs/mine"])
    assert capsys.readouterr().out.endswith(f"next: smalti run configs/mine{images} --run runs/mine\n")


@pytest.mark.parametrize("words", ["--help", "configs"])
def test_whoever_stops_reading_is_told_nothing(words):
    """`smalti configs | head -1` ended in a traceback and "a fault of smalti"."""
    reading, writing = os.pipe()
    os.close(reading)  # as `head` does when it has read enough
    told = subprocess.run(
        [sys.executable, "-m", "smalti.pipeline.terminal", words],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    os.close(writing)
    assert (told.returncode, told.stderr) == (UNHEARD, "")


def test_a_terminal_without_letters_beyond_ascii_gets_question_marks():
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    told = subprocess.run(
        [sys.executable, "-m", "smalti.pipeline.terminal"], capture_output=True, text=True, cwd=ROOT, env=environment
    )
    assert told.returncode == 0 and "Fr?chet" in told.stdout


def test_a_command_of_one_process_refuses_a_launcher_of_several(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="this command is one process"):
        check_alone()

"""The installed package works outside the checkout, has one name, and does not collide with others' code."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests import processes

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("common", "configs", "metrics", "pipeline", "pretrained", "prior", "tokenizer")


def run(*command: str, cwd: Path, path: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(path), "OMP_NUM_THREADS": "1"}
    told = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=cwd, env=environment)
    assert told.returncode == 0, told.stderr[-2000:]
    return told.stdout


def test_every_package_of_the_rooms_is_installed():
    """setuptools cannot find mapped packages: pyproject.toml lists them."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    there = [path.parent.relative_to(ROOT) for room in ROOMS for path in (ROOT / room).rglob("__init__.py")]
    assert sorted(listed) == sorted(["smalti", *(f"smalti.{'.'.join(path.parts)}" for path in there)])


def test_the_wheel_has_every_module_config_and_the_licence(wheel):
    ours = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    ours += [path for listed in tool["package-data"]["smalti.configs"] for path in (ROOT / "configs").glob(listed)]
    ours += [path for path in (ROOT / "pretrained/digits").rglob("[!.]*") if path.is_file()]
    missing = [path for path in ours if not (wheel / "smalti" / path.relative_to(ROOT)).exists()]
    assert len(ours) > 100
    assert missing == []
    assert list(wheel.glob("smalti-*.dist-info/licenses/LICENSE"))


def test_every_shipped_config_is_listed_for_the_wheel():
    """A user's own, as of `cp -r configs/imagefolder_small configs/mine` in a checkout, is not listed."""
    told = subprocess.run(["git", "ls-files", "configs/*/*"], capture_output=True, text=True, cwd=ROOT)
    if told.returncode != 0 or not told.stdout:
        pytest.skip("no checkout that says what is shipped")
    wanted = {str(Path(*path.parts[1:-1], f"*{path.suffix}")) for path in map(Path, told.stdout.splitlines())}
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert wanted == set(tool["package-data"]["smalti.configs"])


def test_a_config_of_the_users_own_is_not_in_the_wheel(wheel):
    assert (wheel / "smalti/configs/digits/tokenizer.yaml").exists()
    assert not (wheel / "smalti/configs/mine").exists()


def test_the_wheel_has_one_name(wheel):
    """It installed `common`, `metrics`, `tokenizer` and others: such common names collide with others' code."""
    assert {path.name for path in wheel.iterdir() if not path.name.endswith(".dist-info")} == {"smalti"}


def test_an_installed_package_takes_in_nothing_beside_it(wheel, tmp_path):
    """In a checkout `smalti` includes the folders beside it; in site-packages these would be others' packages."""
    code = "import smalti; print(len(smalti.__path__)); import smalti.tokenizer; print(smalti.tokenizer.__file__)"
    number, where = run("-c", code, cwd=tmp_path, path=wheel).split()
    assert number == "1" and Path(where).is_relative_to(wheel)


def test_code_of_others_stands_beside_the_installed_package_unharmed(wheel, tmp_path):
    """LlamaGen's `from tokenizer.tokenizer_image...` and a user's own common.py, metrics/ and pipeline.py found
    ours."""
    for name in ("tokenizer/tokenizer_image", "metrics/__init__", "common", "pipeline"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.py").write_text(f"MINE = {name!r}\n")
    code = (
        "import common, metrics, pipeline\nfrom tokenizer.tokenizer_image import MINE\n"
        "from smalti.common.errors import UserError\nfrom smalti.pipeline.terminal import main\n"
        "print(MINE, common.MINE, metrics.MINE, pipeline.MINE, UserError.__module__, main.__module__)"
    )
    told = run("-c", code, cwd=tmp_path, path=wheel)
    expected = (
        "tokenizer/tokenizer_image common metrics/__init__ pipeline smalti.common.errors smalti.pipeline.terminal"
    )
    assert told.split() == expected.split()


def test_a_command_of_the_wheel_runs_in_any_folder(wheel, tmp_path):
    """It runs the first stage of the demo outside a checkout, by its name and with a shipped config."""
    small = ["--steps", 2, "--evaluate-every", 2, "--model.channels", 8, "--run", "runs/mine"]
    command = ["train-tokenizer", "configs/digits/tokenizer.yaml", *small]
    told = processes.finish(processes.installed(wheel, "smalti.pipeline.terminal", *command, cwd=tmp_path))
    assert told.endswith("next: smalti encode runs/mine\n")
    assert (tmp_path / "runs/mine/tokenizer/model/model.safetensors").exists()


def test_a_digit_is_drawn_by_the_wheel_alone(wheel, tmp_path, monkeypatch):
    """The command needs no training and no network: nothing answers at the address that it has of the Hub."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    command = ["-m", "smalti.pipeline.terminal", "generate", "digits", "--labels", "3", "--num-images", "1"]
    assert "digits-samples/grid.png" in run(*command, cwd=tmp_path, path=wheel)
    assert (tmp_path / "digits-samples/000000.png").exists()


def test_the_long_description_reads_without_what_only_a_checkout_has(wheel):
    """A package index shows pictures and follows links of absolute addresses alone."""
    (metadata,) = wheel.glob("smalti-*.dist-info/METADATA")
    head, _, text = metadata.read_text(encoding="utf-8").partition("\n\n")
    assert "Description-Content-Type: text/markdown" in head
    assert text.startswith("# Smalti\n\nImages into tiles") and "smalti generate digits" in text
    assert not re.search(r"!\[|\]\((?!https?://)|\|\s*\|\s*\|\n", text)
    lines = [line for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines() if line.startswith("## ")]
    assert all(line in text for line in lines)


def test_a_command_of_the_wheel_that_is_started_as_a_module_names_commands(wheel, tmp_path):
    """`python -m smalti.pipeline.doctor` said to type the path of a script in site-packages."""
    arguments = ["smalti.pipeline.configs", "digits", "--to", "mine"]
    told = processes.finish(processes.installed(wheel, *arguments, cwd=tmp_path))
    assert told.endswith("next: smalti run mine --run runs/mine\n")
    told = processes.finish(processes.installed(wheel, "smalti.pipeline.doctor", cwd=tmp_path))
    assert "next: smalti doctor configs/digits" in told


@pytest.mark.parametrize("name", ["ImagePipeline", "load_prior", "load_tokenizer"])
def test_the_public_face_is_what_the_package_says(name):
    import smalti

    assert name in dir(smalti) and getattr(smalti, name).__name__ == name


def test_the_package_alone_imports_nothing_heavy(tmp_path):
    """Importing torch takes seconds, and a program that asks for the version must not wait."""
    code = "import sys, smalti; print([name for name in ('torch', 'datasets', 'accelerate') if name in sys.modules])"
    assert run("-c", code, cwd=tmp_path, path=ROOT) == "[]\n"


def test_a_name_that_the_package_has_not_is_an_attribute_error():
    import smalti

    with pytest.raises(AttributeError, match="no attribute 'Pipeline'"):
        smalti.Pipeline  # noqa: B018 - the access itself raises


def test_type_checkers_and_editors_find_every_room():
    """`typings/smalti` links to the rooms for tools that do not run Python."""
    assert {path.name for path in (ROOT / "typings/smalti").iterdir()} == {"__init__.py", *ROOMS}
    assert all((ROOT / "typings/smalti" / room).resolve() == ROOT / room for room in ROOMS)

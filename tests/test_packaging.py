"""What is installed works outside the checkout: the wheel has everything that the commands read."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The wheel, built from the sdist, unpacked: what pip would put into site-packages."""
    build = pytest.importorskip("build", reason="needs build, of the extra test")
    assert build
    folder = tmp_path_factory.mktemp("built")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]  # sdist, and wheel from it
    told = subprocess.run(command, capture_output=True, text=True)
    assert told.returncode == 0, told.stdout[-2000:] + told.stderr[-2000:]
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder / "site")
    return folder / "site"


def run(installed: Path, *command: str, cwd: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    told = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=cwd, env=environment)
    assert told.returncode == 0, told.stderr[-2000:]
    return told.stdout


def test_the_wheel_has_every_module_config_and_the_licence(installed):
    packages = ("common", "metrics", "tokenizer", "prior", "pipeline", "configs")
    ours = [path for package in packages for suffix in ("py", "yaml", "sh") for path in (ROOT / package).rglob(f"*.{suffix}")]
    missing = [path for path in ours if not (installed / path.relative_to(ROOT)).exists()]
    assert len(ours) > 100
    assert missing == []
    assert list(installed.glob("tesserae-*.dist-info/licenses/LICENSE"))


def test_nothing_else_is_installed(installed):
    """Not tests, not benchmarks: names as common as these would stand in everybody's way."""
    assert {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")} == {
        "common", "metrics", "tokenizer", "prior", "pipeline", "configs",
    }  # fmt: skip


def test_a_command_of_the_wheel_runs_in_any_folder(installed, tmp_path):
    """The first stage of the demo, from a folder without a checkout, by its name and with a shipped config."""
    where = run(installed, "-c", "import tokenizer; print(tokenizer.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(installed)
    options = ["--steps", "2", "--evaluate-every", "2", "--run", "runs/mine"]
    told = run(installed, "-m", "pipeline.terminal", "train-tokenizer", "configs/digits/tokenizer.yaml", *options, cwd=tmp_path)
    assert told.endswith("next: tesserae encode runs/mine\n")
    assert (tmp_path / "runs/mine/tokenizer/model/model.safetensors").exists()

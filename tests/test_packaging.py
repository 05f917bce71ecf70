"""What is installed works outside the checkout: the wheel has everything that the commands read."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run(wheel: Path, *command: str, cwd: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(wheel), "OMP_NUM_THREADS": "1"}
    told = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=cwd, env=environment)
    assert told.returncode == 0, told.stderr[-2000:]
    return told.stdout


def test_the_wheel_has_every_module_config_and_the_licence(wheel):
    packages = ("common", "metrics", "tokenizer", "prior", "pipeline", "configs")
    ours = [path for package in packages for suffix in ("py", "yaml", "sh") for path in (ROOT / package).rglob(f"*.{suffix}")]
    missing = [path for path in ours if not (wheel / path.relative_to(ROOT)).exists()]
    assert len(ours) > 100
    assert missing == []
    assert list(wheel.glob("tesserae_images-*.dist-info/licenses/LICENSE"))


def test_nothing_else_is_installed(wheel):
    """Not tests, not benchmarks: names as common as these would stand in everybody's way."""
    assert {path.name for path in wheel.iterdir() if not path.name.endswith(".dist-info")} == {
        "common", "metrics", "tokenizer", "prior", "pipeline", "configs",
    }  # fmt: skip


def test_a_command_of_the_wheel_runs_in_any_folder(wheel, tmp_path):
    """The first stage of the demo, from a folder without a checkout, by its name and with a shipped config."""
    where = run(wheel, "-c", "import tokenizer; print(tokenizer.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(wheel)
    options = ["--steps", "2", "--evaluate-every", "2", "--run", "runs/mine"]
    told = run(wheel, "-m", "pipeline.terminal", "train-tokenizer", "configs/digits/tokenizer.yaml", *options, cwd=tmp_path)
    assert told.endswith("next: tesserae encode runs/mine\n")
    assert (tmp_path / "runs/mine/tokenizer/model/model.safetensors").exists()

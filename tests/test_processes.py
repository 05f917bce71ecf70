"""The commands as a user starts them: in their own processes, on one or two, interrupted and started again."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TINY = [
    "--model.image_size",
    "8",
    "8",
    "--model.channels",
    "8",
    "16",
    "--model.quantizer.codebook_size",
    "16",
    "--model.quantizer.code_dim",
    "4",
    "--images.shift",
    "1",
    "--batch_size",
    "16",
    "--precision",
    "fp32",
    "--model.patch",
    "1",
]
ONE = [sys.executable]
TWO = [
    sys.executable,
    "-m",
    "accelerate.commands.launch",
    "--multi_gpu",
    "--num_processes",
    "2",
    "--main_process_port",
    "0",
]


def start(launch: list[str], *arguments: object) -> subprocess.Popen:
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [*launch, *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)


def finish(process: subprocess.Popen) -> str:
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err[-3000:]
    return out


def test_ctrl_c_saves_and_the_same_command_goes_on_to_the_same_weights(tmp_path):
    """Interrupted at any step, it ends bit for bit where an uninterrupted run ends."""
    settings = [*TINY, "--steps", 300, "--log_every", 1, "--save_every", 100, "--evaluate_every", 150]

    def command(run: str) -> list[object]:
        return ["tokenizer/train.py", "--run", tmp_path / run, *settings]

    whole = start(ONE, *command("whole"))
    interrupted = start(ONE, *command("interrupted"))
    metrics = tmp_path / "interrupted/tokenizer/metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count("\n") > 20):
        assert interrupted.poll() is None, interrupted.communicate()[1]
        time.sleep(0.01)
    interrupted.send_signal(signal.SIGINT)
    _, err = interrupted.communicate(timeout=60)
    assert interrupted.returncode == 130 and "the same command goes on from there" in err and "Traceback" not in err
    out = finish(start(ONE, *command("interrupted")))
    assert "next: accelerate launch -q tokenizer/encode.py" in out
    finish(whole)
    weights = [(tmp_path / run / "tokenizer/model/model.safetensors").read_bytes() for run in ("whole", "interrupted")]
    assert weights[0] == weights[1]


def test_two_processes_train_encode_and_draw_as_one_does(tmp_path):
    """Two CPU processes run both stages; one process then gives the same codes and images. Only the main process writes
    to a tracker."""
    run = tmp_path / "two"
    short = ["--steps", 12, "--batch_size", 16, "--precision", "fp32"]
    track = ["--track", "tensorboard"] if find_spec("tensorboard") else []
    finish(start(TWO, "tokenizer/train.py", "--run", run, *TINY, "--steps", 12, "--evaluate_every", 6, *track))
    assert len(list((run / "tokenizer").rglob("events.out.*"))) == len(track) // 2
    finish(start(TWO, "tokenizer/encode.py", run, "--shard_size", 200, "--views", 2, "--precision", "fp32"))
    finish(
        start(TWO, "prior/train.py", "--run", run, *short, "--model.depth", 1, "--model.dim", 16, "--model.heads", 1)
    )
    two = start(TWO, "pipeline/generate.py", run, "--num-images", 40, "--batch_size", 8)
    one = start(
        ONE,
        "tokenizer/encode.py",
        run,
        "--shard_size",
        200,
        "--views",
        2,
        "--precision",
        "fp32",
        "--output",
        run / "c1",
    )
    finish(two)
    finish(one)
    finish(start(ONE, "pipeline/generate.py", run, "--num-images", 40, "--batch_size", 8, "--output", run / "s1"))
    for pair in (("codes", "c1", "*.parquet"), ("samples", "s1", "*.png")):
        files = {path.name: path.read_bytes() for path in (run / pair[0]).glob(pair[2])}
        assert len(files) > 5 and files == {path.name: path.read_bytes() for path in (run / pair[1]).glob(pair[2])}


def test_two_processes_measure_what_one_does(finished_run, tmp_path):
    """Each process computes its parts of the bits and samples; the figures agree to the last digit."""
    ignored, figures = shutil.ignore_patterns("state", "evaluation"), []
    for launch, name in ((TWO, "two"), (ONE, "one")):
        run = shutil.copytree(finished_run, tmp_path / name, ignore=ignored)
        finish(start(launch, "pipeline/evaluate.py", run, "--images", 600, "--neighbours", 20))
        figures.append(json.loads((run / "evaluation/pipeline-test.json").read_text())["figures"])
        shutil.rmtree(
            tmp_path / ".cache" / next(p.name for p in (tmp_path / ".cache").iterdir() if "features" in p.name)
        )
    assert figures[0] == figures[1] and "fd_classifier" in figures[0]


def test_codebooks_do_not_drift_apart_between_processes():
    """Each process has other data and revivals for 200 steps; `codebooks_on_two_processes.py` prints what it
    compared."""
    out = finish(start(TWO, "tests/codebooks_on_two_processes.py"))
    assert out.splitlines() == [f"{kind} equal" for kind in ("vq", "vq_ema", "simvq", "gumbel", "residual")]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["tokenizer/train.py", "--stepz", "3"], "error: unknown option --stepz; did you mean --steps?"),
        (["tokenizer/encode.py", "nowhere"], "error: there is no trained tokenizer in nowhere/tokenizer/model"),
        (["pipeline/generate.py", "nowhere"], "error: there is no trained model in nowhere/tokenizer/model"),
        (
            ["pipeline/run.py", "configs/none"],
            "error: there is no folder configs/none; did you mean",
        ),
    ],
)
def test_what_a_user_can_mend_is_one_line_and_status_2(arguments, message):
    process = start(ONE, *arguments)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2 and out == "" and err.startswith(message) and err.count("\n") == 1


def test_processes_that_cannot_find_each_other_are_one_line():
    process = subprocess.run(
        [*ONE, "pipeline/generate.py"],
        cwd=ROOT,
        env={**os.environ, "WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert process.returncode == 2 and process.stderr.startswith("error: accelerate cannot start its processes")
    assert process.stderr.count("\n") == 1

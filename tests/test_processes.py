"""The commands as a user starts them: in their own processes, on one or two, interrupted and started again."""

import json
import shutil
import signal
import time
from importlib.util import find_spec
from itertools import chain
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest

from smalti.common.data.config import ImagesConfig
from smalti.common.data.images import open_images
from smalti.common.launch import make_accelerator, run_command
from smalti.common.parts import share_of
from smalti.tokenizer.model import build_tokenizer, identity_of
from smalti.tokenizer.split_evaluation import evaluate_split
from smalti.tokenizer.vae.config import VAEConfig
from smalti.tokenizer.vqvae.config import VQVAEConfig
from tests import processes

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


def test_ctrl_c_saves_and_the_same_command_goes_on_to_the_same_weights(tmp_path):
    """Interrupted at any step, it ends bit for bit where an uninterrupted run ends."""
    settings = [*TINY, "--steps", 60, "--log_every", 1, "--save_every", 25, "--evaluate_every", 30]

    def begin(run: str) -> processes.Process:
        return processes.command("tokenizer/train.py", "--run", tmp_path / run, *settings)

    whole, interrupted = begin("whole"), begin("interrupted")
    metrics = tmp_path / "interrupted/tokenizer/metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count("\n") > 10):
        assert interrupted.poll() is None, interrupted.communicate()[1]
        time.sleep(0.01)
    interrupted.send_signal(signal.SIGINT)
    _, err = interrupted.communicate()
    assert interrupted.returncode == 130 and "the same command goes on from there" in err and "Traceback" not in err
    out = processes.finish(begin("interrupted"))
    assert "next: accelerate launch -q tokenizer/encode.py" in out
    processes.finish(whole)
    weights = [(tmp_path / run / "tokenizer/model/model.safetensors").read_bytes() for run in ("whole", "interrupted")]
    assert weights[0] == weights[1]


def test_two_processes_train_encode_and_draw_as_one_does(tmp_path):
    """Two CPU processes run both stages; one process then gives the same codes and images. Only the main process writes
    to a tracker."""
    run = tmp_path / "two"
    short = ["--steps", 12, "--batch_size", 16, "--precision", "fp32"]
    track = ["--track", "tensorboard"] if find_spec("tensorboard") else []
    training = ["--run", run, *TINY, "--steps", 12, "--evaluate_every", 6, *track]
    encoding = ["tokenizer/encode.py", run, "--shard_size", 200, "--views", 2, "--precision", "fp32"]
    drawing = ["pipeline/generate.py", run, "--num-images", 40, "--batch_size", 8]
    small = ["--model.depth", 1, "--model.dim", 16, "--model.heads", 1]
    processes.finish(processes.command_of_two("tokenizer/train.py", *training))
    assert len(list((run / "tokenizer").rglob("events.out.*"))) == len(track) // 2
    processes.finish(processes.command_of_two(*encoding))
    processes.finish(processes.command_of_two("prior/train.py", "--run", run, *short, *small))
    processes.finish(processes.command_of_two(*drawing))
    processes.finish(processes.command(*encoding, "--output", run / "c1"))
    processes.finish(processes.command(*drawing, "--output", run / "s1"))
    processes.finish(processes.command_of_two("prior/redraw.py", run))
    processes.finish(processes.command("prior/redraw.py", run, "--output", run / "r1"))
    for pair in (("codes", "c1", "*.parquet"), ("samples", "s1", "*.png"), ("redrawn", "r1", "*.parquet")):
        files = {path.name: path.read_bytes() for path in (run / pair[0]).glob(pair[2])}
        assert len(files) > 5 and files == {path.name: path.read_bytes() for path in (run / pair[1]).glob(pair[2])}
    on_draws = ["--start_from", run, "--train", "decoder", "--replace_codes", 1, "--replace_by", "drawn", *short]
    tuning = ["tokenizer/train.py", *on_draws, "--drawn_codes", run / "redrawn", "--run", tmp_path / "tuned"]
    assert "codes are replaced by draws of the prior" in processes.finish(processes.command_of_two(*tuning))
    identities = [identity_of(each / "tokenizer/model", "") for each in (run, tmp_path / "tuned")]
    assert identities[0].sha256 == identities[1].sha256 and identities[0].whole != identities[1].whole


def test_two_processes_measure_what_one_does(finished_run, tmp_path):
    """Each process computes its parts of the bits and samples; the figures agree to the last digit."""
    ignored, figures = shutil.ignore_patterns("state", "evaluation"), []
    settings = ["--images", 200, "--neighbours", 20, "--features.classifier.width", 8]
    settings += ["--features.classifier.least_steps", 100]
    for start_command, name in ((processes.command_of_two, "two"), (processes.command, "one")):
        run = shutil.copytree(finished_run, tmp_path / name, ignore=ignored)
        processes.finish(start_command("pipeline/evaluate.py", run, *settings))
        figures.append(json.loads((run / "evaluation/pipeline-test.json").read_text())["figures"])
        shutil.rmtree(
            tmp_path / ".cache" / next(p.name for p in (tmp_path / ".cache").iterdir() if "features" in p.name)
        )
    assert figures[0] == figures[1] and "fd_classifier" in figures[0]


@pytest.mark.parametrize("total", [1, 5])
def test_the_shares_of_processes_are_the_whole_though_some_have_none(total):
    """`torch.arange` refused a share that begins beyond the end."""
    shares = [
        [place for batch in share_of(total, 2, SimpleNamespace(process_index=rank, num_processes=3)) for place in batch]
        for rank in range(3)
    ]
    assert sorted(map(int, chain(*shares))) == list(range(total))


@pytest.mark.parametrize("config", [VQVAEConfig(image_size=(8, 8)), VAEConfig(image_size=(8, 8))], ids=["vqvae", "vae"])
def test_a_split_of_fewer_images_than_processes_is_evaluated(config, tmp_path):
    """The third process raised, and the others waited for it."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)

    def work(_: object) -> None:
        split = open_images(ImagesConfig(source=str(tmp_path / "set")), (8, 8), 1).splits["train"]
        accelerator, alone = make_accelerator(), split.of_rows("train", np.arange(2) == split.rows[0])
        print(evaluate_split(build_tokenizer(config).eval(), alone, accelerator).images)

    for number in range(2):
        (tmp_path / "set").mkdir(exist_ok=True)
        PIL.Image.fromarray(pixels + np.uint8(number)).save(tmp_path / f"set/{number}.png")
    assert processes.finish(processes.together(lambda: run_command(work), 3)).split() == ["1"] * 3


def test_codebooks_do_not_drift_apart_between_processes():
    """Each process has other data and revivals for 60 steps; `codebooks_on_two_processes.py` prints what it
    compared."""
    out = processes.finish(processes.command_of_two("tests/codebooks_on_two_processes.py"))
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
    process = processes.command(*arguments)
    out, err = process.communicate()
    assert process.returncode == 2 and out == "" and err.startswith(message) and err.count("\n") == 1


def test_processes_that_cannot_find_each_other_are_one_line(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    process = processes.command("pipeline/generate.py")
    out, err = process.communicate()
    assert process.returncode == 2 and out == "" and err.startswith("error: accelerate cannot start its processes")
    assert err.count("\n") == 1

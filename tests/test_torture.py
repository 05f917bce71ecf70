"""In short what `benchmarks/torture` tries at length: kills, a full disk, a dead process of two, and damaged files."""

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from benchmarks.torture.artefacts import artefacts, difference, half_written
from benchmarks.torture.mutate import flipped, reshaped
from common import codes, config, state
from common.errors import UserError
from prior.config import TrainConfig as PriorTraining
from prior.model import Prior
from tests.test_processes import ONE, ROOT, TINY, TWO, finish, start
from tokenizer.config import ImagesConfig
from tokenizer.config import TrainConfig as TokenizerTraining
from tokenizer.images import open_images
from tokenizer.model import load_tokenizer

SHORT = [*TINY, "--steps", 40, "--log_every", 1, "--save_every", 5, "--evaluate_every", 20]


def until(there, process: subprocess.Popen) -> None:
    while not there():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.005)


def test_a_training_killed_again_and_again_leaves_what_an_undisturbed_one_leaves(tmp_path):
    """By SIGKILL after its first and its fifth state."""

    def command(name: str) -> list[object]:
        (tmp_path / name).mkdir(exist_ok=True)
        return [ROOT / "tokenizer/train.py", "--run", "run", *SHORT]

    def begin(name: str) -> subprocess.Popen:
        line = [*ONE, *map(str, command(name))]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(line, cwd=tmp_path / name, env=environment, **pipes)

    whole = begin("whole")
    for number, step in enumerate((5, 25)):
        killed = begin("killed")
        until(lambda step=step: (tmp_path / f"killed/run/tokenizer/state/step_{step:08d}").exists(), killed)
        time.sleep(0.01 * number)
        killed.kill()
        killed.communicate()
        assert not half_written(tmp_path / "killed")
    finish(begin("killed"))
    finish(whole)
    assert difference(artefacts(tmp_path / "whole"), artefacts(tmp_path / "killed")) == []


def test_when_one_of_two_processes_dies_the_job_ends_and_names_it(tmp_path):
    process = start(TWO, "tokenizer/train.py", "--run", tmp_path / "run", *TINY, "--steps", 100_000, "--save_every", 5)
    until(lambda: any((tmp_path / "run/tokenizer").glob("state/step_*")), process)
    os.kill(worker(tmp_path, rank=1), signal.SIGKILL)
    began = time.monotonic()
    _, err = process.communicate(timeout=60)  # a hang would last for gloo's half hour
    assert process.returncode == 1 and time.monotonic() - began < 60
    assert "rank      : 1 (local_rank: 1)\n  exitcode  : -9" in err
    assert err.count("Traceback") == 1, "the launcher's own; the other process says in a line that one is gone"


def worker(run: Path, rank: int) -> int:
    """The process of this rank whose command line names the folder."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            environment = path.joinpath("environ").read_bytes().split(b"\0")
            if str(run).encode() in path.joinpath("cmdline").read_bytes() and f"RANK={rank}".encode() in environment:
                return int(path.name)
        except OSError:
            continue
    raise AssertionError(f"there is no process of rank {rank}")


def test_a_disk_that_fills_loses_nothing_that_was_whole(tmp_path):
    """No file may grow beyond 20 kB, which a state's first does: one line, and what stands there can be read."""

    def small_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    line = [*ONE, "tokenizer/train.py", "--run", str(tmp_path / "run"), *map(str, SHORT)]
    full = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, preexec_fn=small_disk, timeout=120)
    assert full.returncode == 1 and full.stderr.splitlines()[-1].startswith("error: cannot write: File too large")
    assert "Traceback" not in full.stderr and not half_written(tmp_path)
    assert not any((tmp_path / "run/tokenizer").glob("state/*"))
    finish(start(ONE, *line[1:]))


def readers(run: Path, pictures: Path, accelerator):
    images = ImagesConfig(source=str(pictures), corrupt="skip", validation_share=0.2)
    return {
        "tokenizer/model/*": lambda: load_tokenizer(run / "tokenizer/model"),
        "prior/model/*": lambda: Prior.from_pretrained(run / "prior/model"),
        "codes/*": lambda: codes.read(run / "codes"),
        "prior/state/*/*": lambda: state.latest(run / "prior", accelerator),
        "../pictures/*/*": lambda: open_images(images, (8, 8), 1),
    }


@pytest.mark.parametrize("where", ["tokenizer/model/*", "prior/model/*", "codes/*", "prior/state/*/*", "../pictures/*/*"])
def test_a_damaged_file_is_read_or_refused_and_nothing_else(finished_run, tmp_path, accelerator, where):
    """Forty of each kind, damaged in ten ways; anything but a UserError fails."""
    import PIL.Image

    run, pictures, draw = shutil.copytree(finished_run, tmp_path / "run"), tmp_path / "pictures", random.Random(where)
    for number, suffix in enumerate(["png", "jpg", "gif", "webp", "tiff", "bmp", "png", "jpg"]):
        (pictures / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        PIL.Image.new("RGB", (20, 20), (number * 30, 0, 9)).save(pictures / "ab"[number % 2] / f"{number}.{suffix}")
    read = readers(run, pictures, accelerator)[where]
    read()
    whole = {path: path.read_bytes() for path in sorted(run.glob(where)) if path.is_file() and path.name[0] != "."}
    for _ in range(40):
        path = draw.choice(list(whole))
        path.write_bytes(flipped(whole[path], draw, list(whole.values())))
        with contextlib.suppress(UserError):
            read()
        for damaged in run.glob("prior/state/*.damaged"):
            damaged.rename(damaged.with_suffix(""))
        path.write_bytes(whole[path])
    read()


@pytest.mark.parametrize("cls", [TokenizerTraining, PriorTraining])
def test_a_config_of_any_shape_is_read_or_refused(cls, finished_run, tmp_path):
    """One place at any depth is another value, or gone."""
    stage = "tokenizer" if cls is TokenizerTraining else "prior"
    whole, path = yaml.safe_load((finished_run / stage / "config.yaml").read_text()), tmp_path / "config.yaml"

    @settings(max_examples=60, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(st.data())
    def read(data):
        path.write_text(yaml.safe_dump(json.loads(json.dumps(reshaped(whole, data)))), encoding="utf-8", errors="surrogatepass")
        with contextlib.suppress(UserError):
            config.parse(cls, "", [str(path)])

    read()


@pytest.mark.parametrize("name", ["node.yaml", "nodes.yaml"])
def test_accelerate_reads_the_launch_configs(name):
    from accelerate.commands.config.config_args import load_config_from_file

    found = load_config_from_file(str(ROOT / "configs/launch" / name))
    assert found.distributed_type == "MULTI_GPU" and found.num_machines == (1 if name == "node.yaml" else 2)


def test_the_slurm_script_is_one_that_bash_reads():
    subprocess.run(["bash", "-n", str(ROOT / "configs/launch/slurm.sh")], check=True)

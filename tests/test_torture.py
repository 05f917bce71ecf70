"""Short versions of the trials in `benchmarks/torture`."""

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from benchmarks.torture import belongings, changes, heads, limits, overlap, strange, visitors
from benchmarks.torture.__main__ import try_all
from benchmarks.torture.artefacts import artefacts, difference, half_written
from benchmarks.torture.forks import command, fault, prepare, run, tiny
from benchmarks.torture.kill import remove_written
from benchmarks.torture.mutate import flipped, reshaped
from smalti.common import codes, config, state
from smalti.common.data.config import ImagesConfig
from smalti.common.data.images import open_images
from smalti.common.errors import UserError
from smalti.pipeline.coder import compress
from smalti.pipeline.image_pipeline import ImagePipeline
from smalti.prior.config import TrainConfig as PriorTraining
from smalti.prior.model import load_prior
from smalti.prior.sampling_config import SamplingConfig
from smalti.tokenizer.config import TrainConfig as TokenizerTraining
from smalti.tokenizer.model import load_tokenizer
from tests import processes
from tests.test_processes import TINY

ROOT = processes.ROOT
SHORT = [*TINY, "--steps", 20, "--log_every", 1, "--save_every", 5, "--evaluate_every", 10]


def until(there, process: processes.Process | subprocess.Popen) -> None:
    while not there():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.005)


def test_a_training_killed_again_and_again_leaves_what_an_undisturbed_one_leaves(tmp_path):
    """SIGKILL comes after its first and its third state."""

    def begin(name: str) -> processes.Process:
        (tmp_path / name).mkdir(exist_ok=True)
        return processes.Process(command("tokenizer/train.py", "--run", "run", *SHORT), tmp_path / name)

    whole = begin("whole")
    for number, step in enumerate((5, 15)):
        killed = begin("killed")
        until(lambda step=step: (tmp_path / f"killed/run/tokenizer/state/step_{step:08d}").exists(), killed)
        time.sleep(0.01 * number)
        killed.kill()
        killed.wait()
        assert not half_written(tmp_path / "killed")
    processes.finish(begin("killed"))
    processes.finish(whole)
    assert difference(artefacts(tmp_path / "whole"), artefacts(tmp_path / "killed")) == []


def test_when_one_of_two_processes_dies_the_job_ends_and_names_it(tmp_path):
    training = ["tokenizer/train.py", "--run", tmp_path / "run", *TINY, "--steps", 100_000, "--save_every", 5]
    process = processes.launched(["--multi_gpu"], *training)
    until(lambda: any((tmp_path / "run/tokenizer").glob("state/step_*")), process)
    os.kill(worker(tmp_path, rank=1), signal.SIGKILL)
    began = time.monotonic()
    _, err = process.communicate(timeout=60)  # a hang would last gloo's half hour
    assert process.returncode == 1 and time.monotonic() - began < 60
    assert "rank      : 1 (local_rank: 1)\n  exitcode  : -9" in err
    assert err.count("Traceback") == 1, "the launcher's own; the other process says in a line that one is gone"


def worker(run: Path, rank: int) -> int:
    """Return the process of this rank whose command line names the folder."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            environment = path.joinpath("environ").read_bytes().split(b"\0")
            if str(run).encode() in path.joinpath("cmdline").read_bytes() and f"RANK={rank}".encode() in environment:
                return int(path.name)
        except OSError:
            continue
    raise AssertionError(f"there is no process of rank {rank}")


def test_a_disk_that_fills_loses_nothing_that_was_whole(tmp_path):
    """No file may exceed 20 kB, which the first state does: the command ends in one line, and earlier files can be
    read."""

    line = ["tokenizer/train.py", "--run", tmp_path / "run", *SHORT]

    def on_a_small_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        command(*line)()

    full = processes.Process(on_a_small_disk)
    _, err = full.communicate(timeout=120)
    assert full.returncode == 1 and err.splitlines()[-1].startswith("error: cannot write: File too large")
    assert "Traceback" not in err and not half_written(tmp_path)
    assert not any((tmp_path / "run/tokenizer").glob("state/*"))
    processes.finish(processes.command(*line))


def readers(run: Path, pictures: Path, accelerator):
    images = ImagesConfig(source=str(pictures), corrupt="skip", validation_share=0.2)
    return {
        "tokenizer/model/*": lambda: load_tokenizer(run / "tokenizer/model"),
        "prior/model/*": lambda: load_prior(run / "prior/model"),
        "codes/*": lambda: codes.load_codes(run / "codes"),
        "prior/state/*/*": lambda: state.latest(run / "prior", accelerator),
        "../pictures/*/*": lambda: open_images(images, (8, 8), 1),
    }


@pytest.mark.parametrize(
    "where", ["tokenizer/model/*", "prior/model/*", "codes/*", "prior/state/*/*", "../pictures/*/*"]
)
def test_a_damaged_file_is_read_or_refused_and_nothing_else(finished_run, tmp_path, accelerator, where):
    """Forty files of each kind are damaged in ten ways; anything but a UserError fails."""
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
    """One value at any depth is changed or removed."""
    stage = "tokenizer" if cls is TokenizerTraining else "prior"
    whole, path = yaml.safe_load((finished_run / stage / "config.yaml").read_text()), tmp_path / "config.yaml"

    @settings(
        max_examples=25,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def read(data):
        path.write_text(
            yaml.safe_dump(json.loads(json.dumps(reshaped(whole, data)))), encoding="utf-8", errors="surrogatepass"
        )
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


# ----------------------------------------------------------------------------- users' folders, and two commands at once


@pytest.fixture(scope="module")
def chain(finished_run, tmp_path_factory):
    """Return a small version of the torture's folder: a finished run, beside a checkpoint of another project."""
    folder = tmp_path_factory.mktemp("torture") / "reference"
    prepare(folder)
    shutil.copytree(finished_run, folder / "run", ignore=shutil.ignore_patterns("evaluation"))
    ImagePipeline.from_run(folder / "run", SamplingConfig()).save_pretrained(folder / "run/pipeline")
    return folder


@pytest.mark.parametrize("name", ["publish prior", "generate over it", "encode", "save a prior", "save a pipeline"])
def test_a_command_aimed_at_a_users_folder_leaves_every_byte_of_it(chain, tmp_path, name):
    folder = shutil.copytree(chain, tmp_path / "reference")
    everything = {path: content for files in belongings.BELONGINGS.values() for path, content in files.items()}
    status, wrong = belongings.attempt(folder, belongings.aims_at_the_users()[name], everything, tmp_path / "out")
    assert status == 2 and not wrong


def test_what_a_user_put_beside_a_published_model_is_there_after_the_next_publish(chain, tmp_path):
    folder = shutil.copytree(chain, tmp_path / "reference")
    line = ["pipeline/publish.py", "run", "--what", "prior"]
    assert run(command(*line), folder, tmp_path / "out").status == 0
    aim = belongings.Aim("run/hub/prior", command(*line))
    files = belongings.BELONGINGS["a card"] | belongings.BELONGINGS["pictures"] | belongings.BELONGINGS["hidden drafts"]
    _, wrong = belongings.attempt(folder, aim, files, tmp_path / "out")
    assert not wrong


@pytest.fixture(scope="module")
def undisturbed(chain, tmp_path_factory):
    folder = tmp_path_factory.mktemp("overlap")
    return overlap.alone(folder / "folder", chain, "tokenizer", folder / "out")


@pytest.mark.parametrize("name", ["generate into a part of it", "by another name"])
def test_a_second_command_is_refused_and_the_first_leaves_what_it_would_have_left(chain, undisturbed, tmp_path, name):
    folder, pair = overlap.prepared(tmp_path / "folder", chain), overlap.pairs()[name]
    remove_written(folder, pair.first)
    status, wrong = overlap.attempt(folder, pair, 0.4, tmp_path / "out")
    assert status == 2 and not wrong and difference(undisturbed, artefacts(folder)) == []


# ------------------------------------------------------------------------------------------------- what is written down


def test_a_result_appears_when_all_parts_have_ended_and_not_before(tmp_path):
    """One part's result in the checkout made the commit `-dirty`; evaluations name the commit, so they differed from
    the reference."""
    path = tmp_path / "torture.json"
    path.write_text('{"protocol": "of before", "disk": {"wrong": []}, "heads": {"wrong": ["something"]}}')
    before = path.read_bytes()

    def part() -> dict[str, bool]:
        return {"undisturbed": path.read_bytes() == before}

    def failing() -> dict[str, bool]:
        raise MemoryError

    with pytest.raises(MemoryError):
        try_all({"heads": part, "page": part, "limits": failing}, path, {"seed": 0}, {"commit": "abc"})
    found = json.loads(path.read_text())
    assert found["heads"].items() >= {"undisturbed": True, "seed": 0, "record": {"commit": "abc"}}.items()
    assert found["page"]["undisturbed"] and "limits" not in found and found["disk"] == {"wrong": []}
    assert found["protocol"].startswith("Try what must survive: kills, full disks, little memory")


# --------------------------------------------------------------------------------- little memory, and data that changes


@pytest.mark.parametrize(
    ("limited", "statuses"),
    [(partial(limits.with_memory, 1), (0, 1, 2)), (partial(limits.with_descriptors, 1), (1, 2))],
)
def test_too_little_memory_or_too_few_descriptors_end_in_one_line(chain, tmp_path, limited, statuses):
    """If the process has freed memory before, this much may be enough; if it has freed none, one more is too much."""
    folder = shutil.copytree(chain, tmp_path / "reference")
    shutil.rmtree(folder / "run/codes")
    ended = run(limited(command(*tiny()["encode"])), folder, tmp_path / "out")
    assert fault(ended, *statuses) is None and not half_written(folder)


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    folder = tmp_path_factory.mktemp("changes") / "chain"
    changes.prepare(folder, folder.parent / "out", ["half tokenizer", "half prior"])
    return folder, changes.taken(folder)


@pytest.mark.parametrize(
    ("name", "change"), [("half tokenizer", "a byte"), ("half tokenizer", "one more"), ("half prior", "zeroed")]
)
def test_a_killed_command_does_not_go_on_with_other_data_and_writes_nothing(halves, tmp_path, name, change):
    folder, whole = halves
    changes.restore(folder, whole)
    (changes.IMAGES | changes.CODES)[change](folder)
    assert changes.attempt(folder, name, True, tmp_path / "out") == (2, [])


@pytest.mark.parametrize("change", ["zeroed", "in another order", "a shard less"])
def test_settings_are_not_chosen_on_other_codes_than_were_written(halves, tmp_path, change):
    """Torture changed only the codes of train, which tune does not read, and called its silence a fault."""
    folder, whole = halves
    changes.restore(folder, whole)
    changes.CODES[change](folder)
    assert changes.attempt(folder, "tune", True, tmp_path / "out") == (2, [])


# ---------------------------------------------------------------------------------------- strangers' files and requests


@pytest.mark.parametrize(
    "name",
    [
        "source, a/x.png: a pipe",
        "source, a/x.png: zeros without end",
        "source, a/x.png: a link that leads out",
        "metadata.jsonl names ../secret.png",
        "rows name HOME/secret.png",
        "a saved set names another",
        "run/prior/model/model.safetensors: a pipe",
        "run/codes/codes.json: zeros without end",
        "a tar's member of type 2",
    ],
)
def test_what_is_no_file_of_a_folder_is_refused_or_named_in_seconds(chain, tmp_path, name):
    case = (strange.of_sources() | strange.of_models())[name]
    strange.prepare(tmp_path / "copy", chain)
    case.plant(tmp_path / "copy")
    assert strange.judged(case, run(case.read, tmp_path / "copy", tmp_path / "out", strange.SECONDS)) == []


def test_a_forged_compressed_file_is_refused_in_little_memory(chain, tmp_path):
    pipeline, draw = ImagePipeline.from_run(chain / "run", SamplingConfig()), random.Random(0)
    images = torch.zeros(3, 1, 8, 8, dtype=torch.uint8)
    whole = compress(pipeline, images).data
    for _ in range(60):
        assert heads.examine(pipeline, whole, images, heads.forged(whole, draw)) is None


def test_a_page_answers_its_own_visitors_alone_and_outlives_the_others(chain, tmp_path):
    """Strangers visit thirty times. One visit in an unnamed session made Gradio's queue print a traceback."""
    pytest.importorskip("gradio")
    (tmp_path / "secret.txt").write_text(visitors.SECRET)
    page, draw = visitors.serve(chain, tmp_path / "secret.txt", tmp_path / "out"), random.Random(0)
    try:
        visitors.ask(page.port, visitors.join(min(page.functions), [], ""))
        wrong = [said for _ in range(30) for said in draw.choice(visitors.VISITS)(page, draw)]
        assert wrong + list(visitors.state(page)) == []
    finally:
        visitors.stop(page)

"""TensorBoard, Weights & Biases and trackio receive the figures of metrics.jsonl, each step once; none may stop a
run."""

import io
import json
import struct
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from smalti.common import config, folder
from smalti.common.errors import UserError
from smalti.common.launch import make_accelerator
from smalti.common.run_folder import read_metrics
from smalti.pipeline.run import RunSettings, of_stages, stages
from smalti.prior.config import TrainConfig as PriorTraining
from smalti.prior.train import train as train_prior
from smalti.tokenizer.cluster import cluster
from smalti.tokenizer.encode import Settings as EncodeSettings
from smalti.tokenizer.encode import encode
from smalti.tokenizer.kmeans.config import KMeansConfig
from smalti.tokenizer.patches.cluster_config import ClusterConfig
from smalti.tokenizer.train import train as train_tokenizer
from tests.conftest import prior_training, tokenizer_training

TRACKERS = ("tensorboard", "wandb", "trackio")
PICTURES = {"tokenizer": "validation/reconstructions", "prior": "validation/nll_by_place"}
each_stage = pytest.mark.parametrize("stage", ["tokenizer", "prior"])


@pytest.fixture(scope="module")
def tracked(tmp_path_factory) -> Iterator[Path]:
    """Return a run tracked by all three; each stage was killed after step 6 of 6, before its state was saved, and
    resumed."""
    run = tmp_path_factory.mktemp("tracked") / "digits"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("TRACKIO_DIR", str(run / "trackio"))  # trackio reads it when it is imported
        for name in TRACKERS:
            pytest.importorskip(name)
        settings = {"tokenizer": tokenizer_training(run), "prior": prior_training(run)}
        for stage, train in (("tokenizer", train_tokenizer), ("prior", train_prior)):
            for _ in range(2):
                folder.remove(run / stage / "state/step_00000006")
                train(settings[stage], make_accelerator("fp32", TRACKERS, run / stage))
            if stage == "tokenizer":
                encode(EncodeSettings(run=str(run), precision="fp32"), make_accelerator("fp32"))
        yield run


def expected(run: Path, stage: str) -> dict[tuple[int, str], float]:
    """Return the figures of metrics.jsonl, by step and by their tracker's name."""
    found = {}
    for line in read_metrics(run / stage / "metrics.jsonl"):
        split = "train" if "lr" in line else "validation"
        found |= {
            (line["step"], f"{split}/{name.removeprefix('validation_')}"): line[name] for name in line.keys() - {"step"}
        }
    return found


def events(run: Path, stage: str):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(run / stage / "tensorboard/smalti"), {"scalars": 0, "images": 0}).Reload()


def trackio_rows(run: Path, stage: str) -> list[tuple[int, str, object]]:
    from trackio.sqlite_storage import SQLiteStorage

    name = f"digits-{stage}-{folder.read_json(run / stage / '.tracked.json')['id']}"
    rows = SQLiteStorage.get_logs("smalti", name)
    return [(row["step"], key, value) for row in rows for key, value in row.items() if "/" in key]


def wandb_records(path: Path) -> Iterator:
    """Yield the records of a .wandb file: a header of 7 bytes, then LevelDB's log format in blocks of 32 KiB."""
    from wandb.proto import wandb_internal_pb2

    data, at, part = path.read_bytes(), 7, b""
    while at < len(data):
        if 2**15 - at % 2**15 < 7:
            at += 2**15 - at % 2**15
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        part, at = part + data[at + 7 : at + 7 + length], at + 7 + length
        if kind in (1, 4):  # a complete record, or the last part of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(part)
            yield record
            part = b""


@each_stage
def test_tensorboard_has_every_figure_of_metrics_jsonl_and_each_step_once(tracked, stage):
    """The figures agree up to the fp32 rounding of its files."""
    found, wanted = events(tracked, stage), expected(tracked, stage)
    told = [(event.step, tag, event.value) for tag in found.Tags()["scalars"] for event in found.Scalars(tag)]
    assert Counter((step, tag) for step, tag, _ in told) == Counter(wanted.keys()) and len(wanted) > 10
    for step, tag, value in told:
        assert value == pytest.approx(wanted[step, tag], rel=1e-6)


@each_stage
def test_tensorboard_has_a_picture_of_every_evaluation(tracked, stage):
    pictures = events(tracked, stage).Images(PICTURES[stage])
    assert [picture.step for picture in pictures] == [3, 6]


def test_the_picture_of_an_evaluation_is_reconstructions_png(tracked):
    last = events(tracked, "tokenizer").Images(PICTURES["tokenizer"])[-1]
    shown, kept = PIL.Image.open(io.BytesIO(last.encoded_image_string)), tracked / "tokenizer/reconstructions.png"
    assert np.array_equal(shown.convert("RGB"), PIL.Image.open(kept).convert("RGB"))


@each_stage
def test_trackio_has_every_figure_and_picture_once(tracked, stage):
    rows, wanted = trackio_rows(tracked, stage), expected(tracked, stage)
    pictures = [(step, name) for step, name, value in rows if isinstance(value, dict)]
    assert pictures == [(3, PICTURES[stage]), (6, PICTURES[stage])]
    figures = [(step, name) for step, name, value in rows if not isinstance(value, dict)]
    assert Counter(figures) == Counter(wanted.keys())
    assert {(step, name): value for step, name, value in rows if not isinstance(value, dict)} == wanted


@each_stage
def test_wandb_offline_keeps_a_run_that_can_be_sent_later(tracked, stage):
    """Each start writes a folder of the same run; together they hold every figure."""
    files, told = sorted((tracked / stage / "wandb").glob("offline-run-*/*.wandb")), {}
    assert len(files) == 2
    for file in files:
        records = list(wandb_records(file))
        begun = next(record.run for record in records if record.HasField("run"))
        assert begun.run_id == folder.read_json(tracked / stage / ".tracked.json")["id"]
        assert (begun.project, begun.display_name, begun.run_group, begun.job_type) == (
            "smalti",
            f"digits-{stage}",
            "digits",
            stage,
        )
        settings = {item.key: json.loads(item.value_json) for item in begun.config.update}
        assert (settings["steps"], settings["precision"]) == (6, "fp32")
        for record in records:
            items = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
            told |= {(record.history.step.num, name): value for name, value in items.items()}
    for (step, name), value in expected(tracked, stage).items():
        assert told[step, name] == value
    assert all((step, f"{PICTURES[stage]}/filenames") in told for step in (3, 6))


def test_a_run_begun_anew_is_a_new_run_of_its_trackers(tmp_path):
    """A run killed before its first state may begin with other settings."""
    pytest.importorskip("tensorboard")
    found = []
    for steps in (1, 2):
        for name in ("state", "model"):
            folder.remove(tmp_path / "tokenizer" / name)
        accelerator = make_accelerator("fp32", ["tensorboard"], tmp_path / "tokenizer")
        train_tokenizer(tokenizer_training(tmp_path, steps=steps, log_every=1, evaluate_every=9), accelerator)
        found.append((folder.read_json(tmp_path / "tokenizer/.tracked.json")["id"], events(tmp_path, "tokenizer")))
    assert found[0][0] != found[1][0]
    assert [event.step for event in found[1][1].Scalars("train/loss")] == [1, 2]


def test_k_means_is_tracked_too(tmp_path):
    pytest.importorskip("tensorboard")
    c = ClusterConfig(run=str(tmp_path), model=KMeansConfig(image_size=(8, 8), codebook_size=8), iterations=2)
    cluster(c, make_accelerator("fp32", ["tensorboard"], tmp_path / "tokenizer"))
    found = events(tmp_path, "tokenizer")
    assert [event.step for event in found.Scalars("train/objective")] == [1, 2]
    assert [event.step for event in found.Images("validation/reconstructions")] == [2]


def test_without_trackers_nothing_is_left_but_metrics_jsonl(finished_run):
    for stage in ("tokenizer", "prior"):
        names = {path.name for path in (finished_run / stage).iterdir()}
        assert "metrics.jsonl" in names and not names & {"tensorboard", "wandb", ".tracked.json"}


def test_trackers_may_change_where_a_run_goes_on(finished_run, accelerator):
    train_tokenizer(tokenizer_training(finished_run, track=("wandb",), track_project="other"), accelerator)
    train_tokenizer(tokenizer_training(finished_run), accelerator)  # other tests find it like this


def test_a_tracker_that_fails_is_named_once_and_training_goes_on(finished_run, tmp_path, capsys, monkeypatch):
    tensorboard = pytest.importorskip("torch.utils.tensorboard")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensorboard.SummaryWriter, "add_scalar", full)
    train_tokenizer(tokenizer_training(tmp_path), make_accelerator("fp32", ["tensorboard"], tmp_path / "tokenizer"))
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("track:")]
    assert told == ["track: tensorboard failed (OSError: [Errno 28] No space left on device); training goes on"]
    weights = [run / "tokenizer/model/model.safetensors" for run in (finished_run, tmp_path)]
    assert weights[0].read_bytes() == weights[1].read_bytes(), "trackers change nothing"


def test_a_tracker_that_cannot_start_is_an_error_before_the_first_step(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    pytest.importorskip("trackio")
    c = tokenizer_training(tmp_path, track_project="registry-of-tiles")  # trackio reserves names of this form
    with pytest.raises(
        UserError, match=r"track: trackio cannot start \(ValueError: .*registry-.*; mend that, or leave it out"
    ):
        train_tokenizer(c, make_accelerator("fp32", ["trackio"], tmp_path / "tokenizer"))
    assert not (tmp_path / "tokenizer/metrics.jsonl").exists()


@pytest.mark.parametrize("name", TRACKERS)
def test_a_tracker_that_is_not_installed_is_an_error_with_the_line_that_installs_it(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)  # Python then refuses to import the module
    with pytest.raises(UserError, match=rf"{name} is not installed; pip install {name}, or"):
        make_accelerator("fp32", [name])


def test_trackers_are_given_like_other_lists_and_reach_both_trainings_of_a_run(tmp_path):
    c = config.parse(PriorTraining, "", ["--track", "tensorboard", "trackio", "--track-project", "tiles"])
    assert (c.track, c.track_project) == (("tensorboard", "trackio"), "tiles")
    with pytest.raises(UserError, match=r"track"):
        config.parse(PriorTraining, "", ["--track", "clearml"])
    commands = stages(RunSettings(track=("tensorboard", "wandb")), str(tmp_path), of_stages([])[1])
    for name, command in commands.items():
        assert (command[-3:] == ["--track", "tensorboard", "wandb"]) == (name in ("tokenizer", "prior"))


def test_what_no_run_of_ours_wrote_is_not_removed_for_event_files(tmp_path):
    pytest.importorskip("tensorboard")
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer/tensorboard").write_text("mine")
    with pytest.raises(UserError, match="holds something that no training wrote"):
        train_tokenizer(
            tokenizer_training(tmp_path, steps=1), make_accelerator("fp32", ["tensorboard"], tmp_path / "tokenizer")
        )
    assert (tmp_path / "tokenizer/tensorboard").read_text() == "mine"

"""States and folders are complete or absent, and nothing in them can run code."""

import json
import os
import stat

import pytest
import torch

from smalti.common import folder, process, state
from smalti.common.errors import UserError
from smalti.common.schedule import warmup_cosine
from smalti.prior.model import load_prior

LEFT = f".{process.label()}9.writing"  # the suffix of a file that an ended process of this machine was writing


def test_an_optimizer_survives_the_disk(tmp_path, accelerator):
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-2)
    for _ in range(3):
        layer(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()
    state.save_state(tmp_path, 3, {"optimizer": state.optimizer_tensors(optimizer)}, {}, accelerator)
    again = torch.optim.AdamW(layer.parameters(), lr=1e-2)
    state.load_optimizer(again, state.latest(tmp_path, accelerator).tensors["optimizer"])
    before, after = optimizer.state_dict()["state"], again.state_dict()["state"]
    assert all(torch.equal(before[i][name], after[i][name]) for i in before for name in before[i])


def write(run, step, accelerator, keep=2):
    state.save_state(run, step, {"a": {"x": torch.tensor([step])}}, {"note": step}, accelerator, keep)


@pytest.mark.parametrize("keep", [1, 3])
def test_the_last_states_are_kept_and_the_latest_is_read(tmp_path, accelerator, keep):
    for step in (1, 20, 300, 4000):
        write(tmp_path, step, accelerator, keep)
    assert len(list((tmp_path / "state").iterdir())) == keep
    assert state.latest(tmp_path, accelerator) == (4000, {"a": {"x": torch.tensor([4000])}}, {"note": 4000})


def test_a_state_that_a_kill_left_beyond_those_to_keep_is_forgotten(tmp_path, accelerator):
    for step in (1, 2, 3):
        write(tmp_path, step, accelerator, keep=3)
    assert state.latest(tmp_path, accelerator, keep=2).step == 3
    assert [path.name for path in sorted((tmp_path / "state").iterdir())] == ["step_00000002", "step_00000003"]


def test_a_half_written_state_is_never_seen(tmp_path, accelerator):
    write(tmp_path, 1, accelerator)
    with pytest.raises(TypeError):
        state.save_state(tmp_path, 2, {"a": {"x": torch.zeros(1)}}, {"unwritable": object()}, accelerator)
    assert state.latest(tmp_path, accelerator).step == 1
    assert [p.name for p in (tmp_path / "state").iterdir()] == ["step_00000001"]


def flipped(path):
    """Flip one bit of the last byte, which belongs to a tensor: safetensors reads the file as before."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage, reason",
    [
        (lambda s: flipped(s / "a.safetensors"), "a.safetensors is not what was written"),
        (lambda s: (s / "a.safetensors").write_bytes(b"\x80\x04pickle"), "a.safetensors is not what was written"),
        (lambda s: (s / "a.safetensors").unlink(), "a.safetensors is not there"),
        (lambda s: (s / "state.json").write_text("{"), "cannot be read as JSON"),
        (lambda s: (s / "state.json").unlink(), "there is no"),
        (lambda s: (s / "state.json").write_text('{"kind": "smalti.state", "format": 1}'), "step must be of type int"),
    ],
)
def test_a_damaged_state_is_set_aside_by_name_and_the_one_before_is_taken(
    tmp_path, accelerator, capsys, damage, reason
):
    write(tmp_path, 1, accelerator)
    write(tmp_path, 2, accelerator)
    damage(tmp_path / "state/step_00000002")
    assert state.latest(tmp_path, accelerator).step == 1
    told = capsys.readouterr().err
    assert "step_00000002 is damaged" in told and reason in told and "set aside as step_00000002.damaged" in told
    assert {p.name for p in (tmp_path / "state").iterdir()} == {"step_00000001", "step_00000002.damaged"}


def test_a_run_none_of_whose_states_is_whole_is_refused_and_kept(tmp_path, accelerator):
    """To begin anew would overwrite a model that may be all that is left of the run."""
    write(tmp_path, 1, accelerator)
    flipped(tmp_path / "state/step_00000001/a.safetensors")
    for _ in range(2):
        with pytest.raises(UserError, match=r"no state in .* is whole"):
            state.latest(tmp_path, accelerator)
    assert (tmp_path / "state/step_00000001.damaged/a.safetensors").exists()


@pytest.mark.parametrize(
    ("key", "value", "others"),
    [
        ("processes", 4, "rounding, noise and micro-batches: processes 4 then, 1 now"),
        ("device", "tpu", "rounding and noise: device tpu then, cpu now"),
        ("precision", "bf16", "rounding: precision bf16 then, no now"),
    ],
)
def test_a_run_that_goes_on_elsewhere_says_what_differs(key, value, others, tmp_path, accelerator, capsys):
    """Of other processes it said that only rounding differs, whatever the loss."""
    write(tmp_path, 1, accelerator)
    path = tmp_path / "state/step_00000001/state.json"
    head = json.loads(path.read_text())
    path.write_text(json.dumps(head | {"job": head["job"] | {key: value}}))
    assert state.latest(tmp_path, accelerator).step == 1
    assert f"goes on with the same images in the same steps, but other {others}" in capsys.readouterr().err


def test_a_state_that_does_not_fit_is_refused(tmp_path):
    layer = torch.nn.Linear(2, 2)
    for tensors in ({"weight": torch.zeros(3, 2), "bias": torch.zeros(2)}, {"weight": torch.zeros(2, 2)}):
        with (
            pytest.raises(UserError, match=r"does not fit this run \(RuntimeError.*it was changed"),
            state.restoring(tmp_path),
        ):
            layer.load_state_dict(tensors)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_kill_left_beside_and_in_a_folder_is_swept_away(tmp_path, kind):
    run = tmp_path / "run"
    (run / "state").mkdir(parents=True)
    (run / "kept.json").write_text("whole")
    for half in (tmp_path / f".run{LEFT}", run / f".kept.json{LEFT}", run / f"state/.step_00000001{LEFT}"):
        half.write_text("half") if kind == "file" else (half / "sub").mkdir(parents=True)
    folder.sweep(run)
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")) == ["run", "run/kept.json", "run/state"]


def test_a_folder_whose_successor_never_took_its_place_comes_back(tmp_path):
    """A kill between the two renames that replace a folder left it without its name, and a prior without its best
    weights."""
    old = LEFT.replace("writing", "old")
    for name, kept in ((f".model{old}", "before"), (f".lost{old}", "before"), ("model", "after")):
        (tmp_path / "run" / name).mkdir(parents=True)
        (tmp_path / "run" / name / "config.json").write_text(kept)
    folder.sweep(tmp_path / "run")
    found = {str(p.relative_to(tmp_path / "run")): p.read_text() for p in (tmp_path / "run").rglob("*.json")}
    assert found == {"model/config.json": "after", "lost/config.json": "before"}


def test_every_draw_of_a_step_is_a_function_of_seed_step_and_rank():
    def draw(*place: int) -> torch.Tensor:
        state.seed_step(*place)
        return torch.rand(3)

    assert torch.equal(draw(0, 5, 0), draw(0, 5, 0))
    others = [draw(1, 5, 0), draw(0, 6, 0), draw(0, 5, 1)]
    assert not any(torch.equal(draw(0, 5, 0), other) for other in others)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    folder.write_json(tmp_path / "a.json", {"old": 1})
    with pytest.raises(RuntimeError), folder.replacing(tmp_path / "a.json") as aside:
        aside.write_text("half")
        raise RuntimeError
    assert json.loads((tmp_path / "a.json").read_text()) == {"old": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_model_survives_the_disk_and_others_may_read_it(prior, tmp_path):
    prior.save_pretrained(tmp_path / "model")
    again = load_prior(tmp_path / "model")
    assert again.config == prior.config
    assert all(torch.equal(a, b) for a, b in zip(prior.state_dict().values(), again.state_dict().values(), strict=True))
    for name in ("config.json", "model.safetensors"):
        assert stat.S_IMODE((tmp_path / "model" / name).stat().st_mode) == 0o644


@pytest.mark.parametrize(
    "change, message",
    [
        ({"kind": "smalti.tokenizer"}, "must be of kind 'smalti.prior', got 'smalti.tokenizer'"),
        ({"format": 99}, "format 99.*update"),
        ({"layout": {"grids": [{"shape": [3, 3], "depth": 1, "factors": [32]}]}}, "does not fit its config.json"),
        ({"conditoin": None}, "unknown setting conditoin; did you mean condition"),
    ],
)
def test_a_model_folder_that_is_not_what_it_says_is_refused(prior, tmp_path, change, message):
    prior.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=message):
        load_prior(tmp_path)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_missing_file_of_a_model_is_named(prior, tmp_path, missing):
    prior.save_pretrained(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(UserError, match=f"there is no .*{missing}"):
        load_prior(tmp_path)


def test_the_learning_rate_warms_up_to_its_peak_and_ends_at_nothing():
    rates = [warmup_cosine(step, peak=2.0, warmup=4, total=10) for step in range(11)]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0] and max(rates) == 2.0
    assert rates[4:] == sorted(rates[4:], reverse=True) and rates[10] == 0

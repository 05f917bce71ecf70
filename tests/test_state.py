"""States and folders: whole or not there, and nothing in them that could run code."""

import json
import os
import stat

import pytest
import torch

from common import folder, state
from common.errors import UserError
from common.schedule import warmup_cosine
from prior.model import Prior


def test_an_optimizer_survives_the_disk(tmp_path):
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-2)
    for _ in range(3):
        layer(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()
    state.save(tmp_path, 3, {"optimizer": state.optimizer_tensors(optimizer)}, {})
    again = torch.optim.AdamW(layer.parameters(), lr=1e-2)
    state.load_optimizer(again, state.latest(tmp_path).tensors["optimizer"])
    before, after = optimizer.state_dict()["state"], again.state_dict()["state"]
    assert all(torch.equal(before[i][name], after[i][name]) for i in before for name in before[i])


def test_the_last_states_are_kept_and_the_latest_is_read(tmp_path):
    for step in (1, 20, 300):
        state.save(tmp_path, step, {"a": {"x": torch.tensor([step])}}, {"note": step})
    assert len(list((tmp_path / "state").iterdir())) == state.KEPT
    assert state.latest(tmp_path) == (300, {"a": {"x": torch.tensor([300])}}, {"note": 300})


def test_a_half_written_state_is_never_seen(tmp_path):
    state.save(tmp_path, 1, {"a": {"x": torch.zeros(1)}}, {})
    with pytest.raises(TypeError):
        state.save(tmp_path, 2, {"a": {"x": torch.zeros(1)}}, {"unwritable": object()})
    assert state.latest(tmp_path).step == 1
    assert [p.name for p in (tmp_path / "state").iterdir()] == ["step_00000001"]


def test_a_damaged_state_is_named(tmp_path):
    state.save(tmp_path, 1, {"a": {"x": torch.zeros(1)}}, {})
    (tmp_path / "state/step_00000001/a.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(UserError, match="step_00000001 is damaged"):
        state.latest(tmp_path)


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
    again = Prior.from_pretrained(tmp_path / "model")
    assert again.config == prior.config
    assert all(torch.equal(a, b) for a, b in zip(prior.state_dict().values(), again.state_dict().values(), strict=True))
    for name in ("config.json", "model.safetensors"):
        assert stat.S_IMODE((tmp_path / "model" / name).stat().st_mode) == 0o644


@pytest.mark.parametrize(
    "change, message",
    [
        ({"kind": "tesserae.tokenizer"}, "must be of kind 'tesserae.prior', got 'tesserae.tokenizer'"),
        ({"format": 99}, "format 99.*update"),
        ({"codebook_size": 32}, "does not fit its config.json"),
        ({"codebook_sise": 32}, "unknown setting codebook_sise; did you mean codebook_size"),
    ],
)
def test_a_model_folder_that_is_not_what_it_says_is_refused(prior, tmp_path, change, message):
    prior.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=message):
        Prior.from_pretrained(tmp_path)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_missing_file_of_a_model_is_named(prior, tmp_path, missing):
    prior.save_pretrained(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(UserError, match=f"there is no .*{missing}"):
        Prior.from_pretrained(tmp_path)


def test_the_learning_rate_warms_up_to_its_peak_and_ends_at_nothing():
    rates = [warmup_cosine(step, peak=2.0, warmup=4, total=10) for step in range(11)]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0] and max(rates) == 2.0
    assert rates[4:] == sorted(rates[4:], reverse=True) and rates[10] == 0

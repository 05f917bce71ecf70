"""What resuming needs: `state/step_N/` with safetensors and JSON, nothing that could run code when read.

    RUN/state/step_00001000/state.json            step, versions, and what the caller adds
    RUN/state/step_00001000/NAME.safetensors      one file for each named set of tensors

A state is written aside and renamed when whole; the last `KEPT` are kept. Random numbers need no saving: everything
random in training is a function of (seed, step), see `common.order` and `seed_step`.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate.utils import set_seed
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from common.errors import UserError
from common.folder import FORMAT, check_format, read_json, remove, replacing
from common.sharding import parts_like

KEPT = 2


class State(NamedTuple):
    step: int
    tensors: dict[str, dict[str, Tensor]]
    info: dict[str, Any]


def save(run: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], info: Mapping[str, Any]) -> None:
    """Write a whole state, then forget the oldest beyond `KEPT`. Called by the main process alone."""
    folder = run / "state" / f"step_{step:08d}"
    with replacing(folder) as aside:
        aside.mkdir()
        for name, named in tensors.items():
            whole = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in named.items()}
            save_file(whole, aside / f"{name}.safetensors")
        head = {"kind": "tesserae.state", "format": FORMAT, "step": step, "torch": torch.__version__}
        (aside / "state.json").write_text(json.dumps({**head, "info": dict(info)}, indent=2), encoding="utf-8")
    for old in _folders(run)[:-KEPT]:
        remove(old)


def latest(run: Path) -> State | None:
    """The last whole state of a run, or none when it never saved one."""
    folders = _folders(run)
    if not folders:
        return None
    head = read_json(folders[-1] / "state.json")
    check_format(head, "tesserae.state", folders[-1] / "state.json")
    try:
        tensors = {file.stem: load_file(file) for file in sorted(folders[-1].glob("*.safetensors"))}
    except (SafetensorError, OSError) as error:
        raise UserError(f"the state {folders[-1]} is damaged ({error}); remove it to go on from the one before") from None
    return State(head["step"], tensors, head["info"])


def check_same_data(saved: State, fingerprint: str, what: str, run: Path) -> None:
    """That a run goes on with the data it began with. `what` names them in the message."""
    if saved.info["data"] != fingerprint:
        raise UserError(
            f"{run} was trained on {what} {saved.info['data'][:12]} and these are {fingerprint[:12]}: they have changed "
            "since it began; give another --run, or remove the folder"
        )


def _folders(run: Path) -> list[Path]:
    return sorted(p for p in (run / "state").glob("step_*") if re.fullmatch(r"step_\d{8,}", p.name))


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as named tensors; learning rates are functions of the step and need no saving."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{name}": torch.as_tensor(value) for i, values in state.items() for name, value in values.items()}


def load_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`, on an optimizer over the same parameters, whole or in parts."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = parts_like(tensor, parameters[int(index)])
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def seed_step(seed: int, step: int, rank: int) -> None:
    """Make every random number of a training step a function of (seed, step, rank): there is no state to lose."""
    set_seed(int(np.random.SeedSequence((seed, step, rank)).generate_state(1)[0]))

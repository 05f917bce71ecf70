"""The state to resume from: `state/step_N/` with safetensors and JSON, which run no code when read.

    RUN/state/step_00001000/state.json            step, checksums, and what the caller adds
    RUN/state/step_00001000/NAME.safetensors      one file for each named set of tensors
    RUN/state/step_00001000.damaged               one that was found so, set aside

A state is written aside, brought to the disk and renamed when whole; the last few are kept. Each file's SHA-256 is
checked when it is read. Random numbers need no saving: which images a step sees is a function of (seed, step), see
`common.row_order`, and all else that is random of (seed, step, rank), see `seed_step`.
"""

import json
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from smalti.common.config import Settings
from smalti.common.errors import UserError
from smalti.common.folder import FORMAT, check_format, read_json, remove, replacing, sha256
from smalti.common.sharding import parts_like
from smalti.common.tensors import check_types, read_tensors

KIND = "smalti.state"


class State(NamedTuple):
    step: int
    tensors: dict[str, dict[str, Tensor]]
    info: dict[str, Any]


class Job(Settings):
    """The conditions of a run that may differ where it goes on; kept with each state.

    All of them change rounding, the device noise too. The number of processes also changes each one's noise, and the
    micro-batches, which some losses are of: entropies of lfq, MMD of wae and infovae.
    """

    processes: int
    precision: str
    device: str
    torch: str

    @classmethod
    def of(cls, accelerator: Accelerator) -> "Job":
        return cls(
            processes=accelerator.num_processes,
            precision=accelerator.mixed_precision,
            device=accelerator.device.type,
            torch=torch.__version__,
        )


def save_state(
    run: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    info: Mapping[str, Any],
    accelerator: Accelerator,
    keep: int = 2,
) -> None:
    """Write a whole state, then remove the oldest beyond the last `keep`. Only the main process calls this."""
    folder, digests = run / "state" / f"step_{step:08d}", {}
    with replacing(folder) as aside:
        aside.mkdir()
        for name, named in tensors.items():
            whole = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in named.items()}
            save_file(whole, aside / f"{name}.safetensors")
            digests[name] = sha256(aside / f"{name}.safetensors")
        head = {"kind": KIND, "format": FORMAT, "step": step, "sha256": digests}
        body = {"job": Job.of(accelerator).model_dump(), "info": dict(info)}
        (aside / "state.json").write_text(json.dumps(head | body, indent=2), encoding="utf-8")
    _forget(run, keep)


def latest(run: Path, accelerator: Accelerator, keep: int = 2) -> State | None:
    """Return the last whole state of a run; None if it never saved one. Every process must call this.

    States older than the last `keep`, which a kill may have left, are removed.

    A damaged state is set aside and named, and the one before it is taken. A line says where the run goes on under
    other conditions than it was saved under.

    Raises:
        UserError: there are states and none is whole.
    """
    if accelerator.is_main_process:
        _set_damaged_aside(run)
        _forget(run, keep)
    accelerator.wait_for_everyone()
    folders = _folders(run)
    if not folders:
        return None
    head = _head(folders[-1])
    if accelerator.is_main_process:
        _tell_differences(head["job"], Job.of(accelerator).model_dump())
    tensors = {name: read_tensors(folders[-1] / f"{name}.safetensors") for name in head["sha256"]}
    return State(head["step"], tensors, head["info"])


def last_step(run: Path) -> int | None:
    """Return the step of a run's last state, whole or not; None where it never saved one."""
    folders = _folders(run)
    return int(folders[-1].name.removeprefix("step_")) if folders else None


def _forget(run: Path, keep: int) -> None:
    for old in _folders(run)[:-keep]:
        remove(old)


def _set_damaged_aside(run: Path) -> None:
    for folder in reversed(_folders(run)):
        damage = _damage(folder)
        if damage is None:
            return
        aside = folder.with_name(f"{folder.name}.damaged")
        remove(aside)
        folder.rename(aside)
        print(f"the state {folder} is damaged ({damage}); it is set aside as {aside.name}", file=sys.stderr)
    if any((run / "state").glob("*.damaged")):
        raise UserError(
            f"no state in {run / 'state'} is whole. {run / 'model'}, if it is there, is as it was last saved: copy it "
            f"away, then remove {run} to begin anew; or give another --run"
        )


def _damage(folder: Path) -> str | None:
    """Return what is wrong with a state; None if nothing is."""
    try:
        head = _head(folder)
    except UserError as error:
        return str(error)
    if folder.name != f"step_{head['step']:08d}":
        return f"state.json says step {head['step']}"
    digests = head["sha256"]
    for name, digest in digests.items():
        path = folder / f"{name}.safetensors"
        if not path.is_file() or path.is_symlink():
            return f"{path.name} is not there"
        if sha256(path) != digest:
            return f"{path.name} is not what was written"
    return None


def _head(folder: Path) -> dict[str, Any]:
    """Return the content of state.json, each part checked for its type."""
    path = folder / "state.json"
    head = read_json(path)
    check_format(head, KIND, path)
    kinds = {"step": int, "sha256": dict, "job": dict, "info": dict}
    for key, kind in kinds.items():
        if not isinstance(head.get(key), kind):
            raise UserError(f"{path}: {key} must be of type {kind.__name__}, got {head.get(key)!r}")
    if not all(isinstance(digest, str) and re.fullmatch(r"\w+", name) for name, digest in head["sha256"].items()):
        raise UserError(f"{path}: sha256 must name each file's, got {head['sha256']!r}")
    return head


def _tell_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    differ = {
        key: f"{key} {before.get(key)} then, {value} now" for key, value in now.items() if before.get(key) != value
    }
    others = "rounding and noise" if "device" in differ else "rounding"
    others = "rounding, noise and micro-batches" if "processes" in differ else others
    if differ:
        told = "; ".join(differ.values())
        print(f"goes on with the same images in the same steps, but other {others}: {told}", file=sys.stderr)


@contextmanager
def restoring(run: Path) -> Iterator[None]:
    """Raise `UserError` where a state's tensors do not fit the places they are put back into in this context."""
    try:
        yield
    except (UserError, torch.OutOfMemoryError):  # they say themselves what is wrong, and it is not the state
        raise
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"the state in {run / 'state'} does not fit this run ({type(error).__name__}: {reason}): it was changed, "
            f"or another version of smalti wrote it; give another --run, or remove {run} to begin anew"
        ) from None


def restore(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put a state's weights back into a model. Raises ValueError or RuntimeError where they do not fit."""
    check_types(tensors, model.state_dict())
    model.load_state_dict(tensors)


def check_same_data(saved: State, fingerprint: str, what: str, run: Path) -> None:
    """Raise `UserError` unless a run goes on with the data it began with, which `what` names."""
    before = str(saved.info.get("data"))
    if before != fingerprint:
        raise UserError(
            f"{run} was trained on {what} {before[:12]} and these are {fingerprint[:12]}: they have changed since it "
            "began, or an earlier version began it, which held out others; give another --run, or remove the folder"
        )


def _folders(run: Path) -> list[Path]:
    return sorted(p for p in (run / "state").glob("step_*") if re.fullmatch(r"step_\d{8,}", p.name))


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """Return an optimizer's state as named tensors, without learning rates, which are functions of the step."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{name}": torch.as_tensor(value) for i, values in state.items() for name, value in values.items()}


def load_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Load the result of `optimizer_tensors` into an optimizer of the same parameters, whole or sharded."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if not tensor.is_floating_point():  # as all that our optimizers keep; torch would convert any
            raise ValueError(f"{key} of the optimizer must be of floating numbers, got {tensor.dtype}")
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = parts_like(tensor, parameters[int(index)])
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def seed_step(seed: int, step: int, rank: int) -> None:
    """Make every random number of a training step a function of (seed, step, rank): there is no state to lose."""
    set_seed(int(np.random.SeedSequence((seed, step, rank)).generate_state(1)[0]))

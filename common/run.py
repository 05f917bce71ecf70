"""A run folder: the settings it was started with, its metrics as JSON lines, and its progress on the screen."""

import json
import math
import sys
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from common.config import Settings, read_yaml, write_yaml
from common.errors import UserError
from common.folder import replacing


def open_run(folder: Path, settings: Settings, changeable: Set[str], accelerator: Accelerator) -> None:
    """Make the folder of a run, or take it up again.

    Args:
        changeable: settings that do not change what is computed and may differ from the first start's.
    Raises:
        UserError: the folder holds a run of other settings; it names them.
    """
    path, given = folder / "config.yaml", _flat(settings.model_dump(mode="json"))
    begun = any((folder / "state").glob("step_*")) or (folder / "model").exists()  # before there is nothing to lose
    if path.exists() and begun:
        before = _flat(read_yaml(path))
        differ = [k for k in before.keys() | given.keys() if before.get(k) != given.get(k) and k not in changeable]
        if differ:
            telling = sorted(differ, key=lambda k: (not k.endswith("kind"), k not in before or k not in given, k))  # first
            shown = "; ".join(f"{k} was {before.get(k)!r} and is {given.get(k)!r}" for k in telling[:4])
            raise UserError(
                f"{folder} is a run of other settings: {shown}. Give the same ones to go on with it, another --run "
                "for a new one, or remove the folder"
            )
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        with replacing(path) as aside:
            write_yaml(settings, aside)
    accelerator.wait_for_everyone()


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


class Metrics:
    """`metrics.jsonl`: one line an entry, written by the main process."""

    def __init__(self, folder: Path, accelerator: Accelerator, first_step: int):
        """Lines of steps after `first_step` are dropped: a resumed run takes those steps again."""
        self.path, self.accelerator = folder / "metrics.jsonl", accelerator
        if accelerator.is_main_process and self.path.exists():
            kept = [line for line in read_metrics(self.path) if line["step"] <= first_step]
            with replacing(self.path) as aside:
                aside.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")

    def log(self, step: int, **values: Any) -> None:
        if self.accelerator.is_main_process:
            with open(self.path, "a", encoding="utf-8") as file:
                print(json.dumps({"step": step, **values}), file=file)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; what is no line of one is left out, as a last line that a kill cut short."""
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict) and isinstance(found.get("step"), int):
            lines.append(found)
    return lines


class Means:
    """Means of named scalars over many micro-batches and all processes, without a host sync until they are read."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator, self._sums, self._count = accelerator, {}, 0

    def add(self, **values: Tensor) -> None:
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0) + value.detach().float()
        self._count += 1

    def take(self) -> dict[str, float]:
        """The means since the last call. Raises `UserError` when one is not finite."""
        sums = self.state_dict()
        values = {name: sums[name].item() / self._count for name in sorted(self._sums)}
        self._sums, self._count = {}, 0
        _check_finite(values)
        return values

    def check_finite(self) -> None:
        """Raises `UserError` when a mean so far is not finite; called on every process."""
        _check_finite({name: value.item() for name, value in self.state_dict().items()})

    def state_dict(self) -> dict[str, Tensor]:
        """The sums so far, averaged over processes, which all must call this."""
        if not self._sums:
            return {}
        sums = self.accelerator.reduce(torch.stack(list(self._sums.values())), "mean")
        return {**dict(zip(self._sums, sums, strict=True)), "count": torch.tensor(self._count)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._sums = {name: value.to(self.accelerator.device) for name, value in state.items() if name != "count"}
        self._count = int(state["count"]) if self._sums else 0


def _check_finite(values: Mapping[str, float]) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            raise UserError(f"{name} became {value}; the last saved state is whole: lower lr or take precision fp32")


class _Lines:
    """A log file's stand-in for the terminal: the bar's carriage returns become lines."""

    def write(self, text: str) -> None:
        if text.strip():
            sys.stderr.write(text.strip("\r\n ") + "\n")

    def flush(self) -> None:
        sys.stderr.flush()


def progress_bar(accelerator: Accelerator, total: int, what: str, *, initial: int = 0, unit: str = "step") -> tqdm:
    """A bar with rate and time left on a terminal, a line every ten seconds in a log file, nothing on other ranks."""
    terminal = sys.stderr.isatty()
    return tqdm(
        total=total, initial=initial, desc=what, unit=f" {unit}", disable=not accelerator.is_main_process,
        file=None if terminal else _Lines(), mininterval=0.2 if terminal else 10.0, dynamic_ncols=terminal,
        ncols=None if terminal else 0, smoothing=0.05,
    )  # fmt: skip

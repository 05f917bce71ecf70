"""A run folder: the settings it was started with, and its metrics as JSON lines, which trackers are told too."""

import json
import math
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any, Literal

import PIL.Image
import torch
from accelerate import Accelerator
from torch import Tensor

from common.config import Settings, read_yaml, write_yaml
from common.errors import Refused, UserError
from common.folder import is_empty, is_stage, replacing, sweep
from common.launch import Interrupted
from common.reading import read_file
from common.track import Trackers


def open_run(folder: Path, settings: Settings, changeable: Set[str], accelerator: Accelerator) -> None:
    """Make the folder of a run, or take it up again.

    Args:
        changeable: settings that do not change what is computed and may differ from the first start's.
    Raises:
        UserError: the folder holds a run of other settings; it names them.
        Refused: it holds something that is no run.
    """
    check_stage(folder)
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
        sweep(folder)
        with replacing(path) as aside:
            write_yaml(settings, aside)
    accelerator.wait_for_everyone()


def check_stage(folder: Path) -> None:
    """Raise `Refused` where a folder holds something else than what trainings write."""
    if not folder.is_dir() or is_empty(folder):
        return
    if (folder / "config.yaml").is_file():
        read_yaml(folder / "config.yaml")  # raises what names the damage
    if not is_stage(folder):
        raise Refused(f"{folder} holds something that no training wrote; give another --run, or move it away")


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


class Metrics:
    """`metrics.jsonl`: one line an entry, written by the main process. The trackers that the Accelerator was made with are told
    the same, and closed at the end of this context."""

    def __init__(self, folder: Path, accelerator: Accelerator, first_step: int, settings: Settings, project: str):
        """Lines of steps after `first_step` are dropped: a resumed run takes those steps again.

        Args:
            settings: of the run, for the trackers to show.
            project: that the trackers file it under.
        Raises:
            UserError: a tracker cannot start.
        """
        self.path, self.accelerator = folder / "metrics.jsonl", accelerator
        if accelerator.is_main_process and self.path.exists():
            kept = [line for line in read_metrics(self.path) if line["step"] <= first_step]
            with replacing(self.path) as aside:
                aside.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        self.trackers = Trackers(accelerator, folder, project, _flat(settings.model_dump(mode="json")), first_step)

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.trackers.close(failed=kind is not None and not issubclass(kind, Interrupted))

    def log(self, step: int, split: Literal["train", "validation"], **values: Any) -> None:
        """Figures of a split. Trackers show them as `train/loss`, `validation/psnr`."""
        if self.accelerator.is_main_process:
            with open(self.path, "a", encoding="utf-8") as file:
                print(json.dumps({"step": step, **values}), file=file)
            self.trackers.log(step, {f"{split}/{name.removeprefix(f'{split}_')}": value for name, value in values.items()})

    def picture(self, step: int, name: str, picture: PIL.Image.Image) -> None:
        """A picture of an evaluation, for the trackers alone."""
        self.trackers.picture(step, f"validation/{name}", picture)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; what is no line of one is left out, as a last line that a kill cut short."""
    lines: list[dict[str, Any]] = []
    if not path.exists():
        return lines
    try:
        text = read_file(path).decode("utf-8", errors="replace")
    except ValueError as error:
        raise UserError(f"{path} must hold JSON lines: {error}; remove it") from None
    for line in text.splitlines():
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
        self.accelerator, self._count = accelerator, 0
        self._sums: dict[str, Tensor] = {}

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
        sums = {name: value for name, value in state.items() if name != "count"}
        for name, value in sums.items():
            if value.shape or not value.is_floating_point():
                raise ValueError(f"the mean {name} must be one floating number, got {value.dtype} {tuple(value.shape)}")
        self._sums = {name: value.to(self.accelerator.device) for name, value in sums.items()}
        self._count = int(state["count"]) if self._sums else 0


def _check_finite(values: Mapping[str, float]) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            raise UserError(f"{name} became {value}; the last saved state is whole: lower lr or take precision fp32")

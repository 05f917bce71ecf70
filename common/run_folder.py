"""A run folder: the settings it was started with, and its metrics as JSON lines, also sent to trackers."""

import json
import math
from collections.abc import Callable, Mapping, Set
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, NoReturn, TypeVar

import PIL.Image
import torch
from accelerate import Accelerator
from torch import Tensor

from smalti.common import state
from smalti.common.commands import quoted
from smalti.common.config import Settings, build, read_yaml, write_yaml
from smalti.common.errors import Refused, UserError
from smalti.common.folder import is_empty, is_stage, replacing, sweep
from smalti.common.history import Change, describe_changes, describe_schedule_changes, write_history
from smalti.common.launch import Interrupted
from smalti.common.reading import read_file
from smalti.common.track import Trackers

S = TypeVar("S", bound=Settings)


class Leeway(NamedTuple):
    """The settings of a run that may differ where it goes on; all others must stay as they were."""

    free: Set[str]  # they change nothing that is computed
    length: str | None = None  # how many steps there are: any number above those that are done
    tunable: Set[str] = frozenset()  # they change the steps to come; taken where `change_settings` says so
    usual: Set[str] = frozenset()  # those of them whose null is a usual value; null of others is off, and stays so


class Reopened(NamedTuple, Generic[S]):
    """A run that may begin or go on."""

    before: S | None  # the settings it had, where it has begun
    changes: tuple[Change, ...]  # for its history; without their step


def has_begun(folder: Path) -> bool:
    """Return whether a run has something to lose."""
    return (folder / "config.yaml").exists() and (state.last_step(folder) is not None or (folder / "model").exists())


def settings_of(folder: Path, cls: type[S]) -> S | None:
    """Return the settings of a run that has begun, if they are of this class."""
    if not has_begun(folder):
        return None
    try:
        return build(cls, read_yaml(folder / "config.yaml"), str(folder / "config.yaml"))
    except UserError:  # of another kind of training, or changed by hand: to be held against the new ones as they are
        return None


def check_run(folder: Path, settings: S, leeway: Leeway) -> Reopened[S]:
    """Return what a run goes on with: its earlier settings, and the changes. Writes nothing.

    Raises:
        UserError: the folder holds a run of other settings, which it names, of another command, or one that has done
            more steps.
        Refused: it holds something that is no run.
    """
    check_stage(folder)
    if not has_begun(folder):
        return Reopened(None, ())
    found = settings_of(folder, type(settings))
    before = _flat(found.model_dump(mode="json") if found else read_yaml(folder / "config.yaml"))
    now = _flat(settings.model_dump(mode="json"))
    if leeway.length is not None and leeway.length not in before:
        raise UserError(
            f"{folder} is a run of another command: its settings have no {leeway.length}. Give another --run, or "
            "remove the folder"
        )
    differ = {k for k in before.keys() | now.keys() if before.get(k) != now.get(k)} - leeway.free
    on = {k for k in differ if before.get(k) is not None and now.get(k) is not None}  # what is off stays off
    given = on | (differ & leeway.usual)
    tuned = given & leeway.tunable
    fixed = differ - tuned - (given & {leeway.length})
    refused = tuned if tuned and not now["change_settings"] else frozenset[str]()
    if fixed or refused:
        _refuse(folder, before, now, fixed, refused)
    if leeway.length in differ:
        _check_length(folder, leeway.length, before, now)
    elif tuned and leeway.length is not None and (state.last_step(folder) or 0) >= before[leeway.length]:
        raise UserError(
            f"all {before[leeway.length]} {leeway.length} of {folder} are done, and {', '.join(sorted(tuned))} would "
            f"change nothing: give more {leeway.length} too, or leave the change away"
        )
    ordered = sorted(differ, key=lambda k: (k != leeway.length, k))
    return Reopened(found, tuple(Change(setting=k, before=before[k], after=now[k]) for k in ordered))


def _refuse(
    folder: Path, before: Mapping[str, Any], now: Mapping[str, Any], fixed: Set[str], tuned: Set[str]
) -> NoReturn:
    """Raise `UserError` that names the settings that differ, those that cannot change first."""
    order = {k: (k in tuned, not k.endswith("kind"), k not in before or k not in now, k) for k in fixed | tuned}
    telling = sorted(order, key=order.__getitem__)
    shown = "; ".join(f"{k} was {before.get(k)!r} and is {now.get(k)!r}" for k in telling[:4])
    if not fixed:
        raise UserError(
            f"{folder} is a run of other settings: {shown}. Give --change_settings true to go on with the new ones "
            "from here, the same ones to go on with those, or another --run for a new one"
        )
    never = f" ({', '.join(k for k in telling[:4] if k in fixed)} cannot change in a run)" if tuned else ""
    begun = "start_from" in now and (folder / "model").exists()
    weights = f" (with --start_from {quoted(folder)} it begins from these weights)" if begun else ""
    raise UserError(
        f"{folder} is a run of other settings: {shown}{never}. Give the same ones to go on with it, another --run for "
        f"a new one{weights}, or remove the folder"
    )


def _check_length(folder: Path, setting: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise `UserError` unless a run can become as long as the settings say."""
    done, was, wanted = state.last_step(folder), before[setting], now[setting]
    if done is None:
        another = f"give another --run with --start_from {folder}, or " if "start_from" in now else ""
        raise UserError(
            f"{folder} has a model and no state/ to go on from, so {setting} cannot become {wanted} from {was}: "
            f"{another}remove the folder to begin anew"
        )
    if wanted <= done:
        raise UserError(
            f"{setting} {wanted} is not more than the {done} that are done in {folder}, where it was {was}: give a "
            "larger number to go on, or another --run for a shorter training"
        )


def unscheduled(settings: Settings, step: int) -> dict[str, float]:
    """Return no values: the steps of such a training are all alike."""
    return {}


def enter_run(
    folder: Path,
    settings: S,
    step: int,
    reopened: Reopened[S],
    accelerator: Accelerator,
    *,
    schedule: Callable[[S, int], Mapping[str, float]] = unscheduled,
    began_from: Change | None = None,
) -> None:
    """Write the settings of a run that begins or goes on at `step`, and print what of them is new.

    Args:
        schedule: what a step takes from the settings by the number of steps.
        began_from: the line of the history for the weights that a run begins from.
    """
    accelerator.wait_for_everyone()  # every process has read the earlier ones
    if accelerator.is_main_process:
        sweep(folder)
        write_history(folder, step, [*reopened.changes, *([began_from] if began_from and step == 0 else [])])
        with replacing(folder / "config.yaml") as aside:
            write_yaml(settings, aside)
    accelerator.wait_for_everyone()
    if reopened.before is not None and reopened.changes:
        scheduled = describe_schedule_changes(schedule(reopened.before, step), schedule(settings, step))
        accelerator.print(
            f"from step {step} on: {describe_changes(reopened.changes)}{f' ({scheduled})' if scheduled else ''}"
        )


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
    """A context that writes `metrics.jsonl`, one line an entry, on the main process.

    The trackers of the Accelerator get the same entries, and are closed at the end.
    """

    def __init__(self, folder: Path, accelerator: Accelerator, first_step: int, settings: Settings, project: str):
        """Drop the lines of steps after `first_step`, which a resumed run takes again, and start the trackers.

        Args:
            settings: of the run, for the trackers to show.
            project: that the trackers file it under.
        Raises:
            UserError: a tracker cannot start.
        """
        self.path, self.accelerator = folder / "metrics.jsonl", accelerator
        if accelerator.is_main_process and self.path.exists():
            kept = [line for line in read_metrics(self.path) if first_step and line["step"] <= first_step]
            with replacing(self.path) as aside:
                aside.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        self.trackers = Trackers(accelerator, folder, project, _flat(settings.model_dump(mode="json")), first_step)

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.trackers.close(failed=kind is not None and not issubclass(kind, Interrupted))

    def log(self, step: int, split: Literal["train", "validation"], **values: Any) -> None:
        """Write figures of a split. Trackers show them as `train/loss`, `validation/psnr`."""
        if self.accelerator.is_main_process:
            with open(self.path, "a", encoding="utf-8") as file:
                print(json.dumps({"step": step, **values}), file=file)
            shown = {f"{split}/{name.removeprefix(f'{split}_')}": value for name, value in values.items()}
            self.trackers.log(step, shown)

    def picture(self, step: int, name: str, picture: PIL.Image.Image) -> None:
        """Send a picture of an evaluation to the trackers."""
        self.trackers.picture(step, f"validation/{name}", picture)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a metrics file; skip what is no such line, as a last one that a kill cut short."""
    return [line for line in read_lines(path) if isinstance(line.get("step"), int)]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects in a file of JSON lines, none where there is no file; skip what is no such line."""
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
        if isinstance(found, dict):
            lines.append(found)
    return lines


class Means:
    """Means of named scalars over micro-batches and processes, without a host sync until they are read."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator, self._count = accelerator, 0
        self._sums: dict[str, Tensor] = {}

    def add(self, **values: Tensor) -> None:
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0) + value.detach().float()
        self._count += 1

    def take(self) -> dict[str, float]:
        """Return the means since the last call. Raises `UserError` when one is not finite."""
        sums = self.state_dict()
        values = {name: sums[name].item() / self._count for name in sorted(self._sums)}
        self._sums, self._count = {}, 0
        _check_finite(values)
        return values

    def check_finite(self) -> None:
        """Raise `UserError` when a mean so far is not finite. Every process must call this."""
        _check_finite({name: value.item() for name, value in self.state_dict().items()})

    def state_dict(self) -> dict[str, Tensor]:
        """Return the sums so far, averaged over processes. Every process must call this."""
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
            raise UserError(
                f"{name} became {value}; the last saved state is whole: go on from it with --change_settings true and "
                "a lower lr or precision fp32"
            )

"""Trackers through Accelerate: TensorBoard, Weights & Biases and trackio get what `metrics.jsonl` gets, and pictures.

    RUN/tokenizer/tensorboard/     event files: tensorboard --logdir runs
    RUN/tokenizer/wandb/           what wandb keeps here (WANDB_DIR elsewhere): all, with WANDB_MODE=offline
    RUN/tokenizer/.tracked.json    by which name wandb and trackio know this run
trackio keeps the runs of all folders in one place (TRACKIO_DIR): trackio show --project smalti.

A run that goes on goes on in the same run of each tracker, and no step stands there twice: TensorBoard hides the steps
that are taken again, wandb's server and trackio have them already. (wandb offline, and trackio on a Space, cannot know:
after a kill they have the steps since the last state twice.) A tracker that cannot start is an error before the first
step; one that fails later is named once, and training goes on.
"""

import json
import os
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import PIL.Image
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker

from smalti.common.errors import UserError
from smalti.common.folder import read_json, remove, write_json


def check_installed(names: Sequence[str]) -> None:
    """Raise `UserError` with the line that installs a missing tracker; Accelerate would silently leave it out."""
    for name in names:
        if getattr(find_spec(name), "origin", None) is None:  # a folder ./wandb of runs is found too, and has no origin
            raise UserError(f"track: {name} is not installed; pip install {name}, or leave it out of --track")


class Trackers:
    """The trackers of an Accelerator, started for one run on the main process; without any nothing happens.

    Args:
        folder: of the run's stage.
        project: under which wandb and trackio file the run.
        settings: by their full names.
        first_step: the step the run goes on from; 0 begins a new run in every tracker.
    Raises:
        UserError: one of them cannot start.
    """

    def __init__(
        self, accelerator: Accelerator, folder: Path, project: str, settings: Mapping[str, Any], first_step: int
    ):
        self.accelerator, self._failed = accelerator, set[str]()
        self._told = frozenset[tuple[int, str]]()  # (step, name) that trackio has of a run that goes on
        if not accelerator.is_main_process or not accelerator.log_with:
            return
        plain = {name: v if isinstance(v, bool | int | float | str) else json.dumps(v) for name, v in settings.items()}
        options = _options(folder, plain, first_step)
        try:
            accelerator.init_trackers(project, init_kwargs=options)
            for tracker in accelerator.trackers:
                if tracker.name == "tensorboard":
                    _show_settings(tracker, plain)
                if tracker.name == "trackio":
                    self._told = _told(tracker)
        except Exception as error:
            names = ", ".join(map(str, accelerator.log_with))
            for tracker in accelerator.trackers:
                with suppress(Exception):  # one that has not started cannot be brought to an end
                    tracker.finish()
            accelerator.trackers.clear()
            raise UserError(f"track: {names} cannot start ({_one_line(error)}); {_advice(error)}") from None

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for tracker in self.accelerator.trackers:
            new = {name: value for name, value in values.items() if not self._has(tracker, step, name)}
            with self._unharmed(tracker):
                if new:
                    tracker.log(new, step=step)

    def picture(self, step: int, name: str, picture: PIL.Image.Image) -> None:
        if not self.accelerator.trackers:
            return
        pixels = picture.convert("RGBA")  # transparent pixels are shown on white, as in a browser
        shown = PIL.Image.alpha_composite(PIL.Image.new("RGBA", pixels.size, "white"), pixels).convert("RGB")
        for tracker in self.accelerator.trackers:
            with self._unharmed(tracker):
                if not self._has(tracker, step, name):
                    _log_picture(tracker, step, name, shown)

    def _has(self, tracker: GeneralTracker, step: int, name: str) -> bool:
        return tracker.name == "trackio" and (step, name) in self._told

    @contextmanager
    def _unharmed(self, tracker: GeneralTracker) -> Iterator[None]:
        """Report an error of a tracker once, and let training go on."""
        try:
            yield
        except Exception as error:
            if tracker.name not in self._failed:
                print(f"track: {tracker.name} failed ({_one_line(error)}); training goes on", file=sys.stderr)
            self._failed.add(tracker.name)

    def close(self, *, failed: bool = False) -> None:
        """Close all trackers. (Accelerate's `end_training` would also end the process group, which is still needed.)"""
        for tracker in self.accelerator.trackers:
            with self._unharmed(tracker):
                if tracker.name == "wandb" and failed:
                    tracker.tracker.finish(exit_code=1)
                else:
                    tracker.finish()
        self.accelerator.trackers.clear()


def _options(folder: Path, settings: Mapping[str, Any], first_step: int) -> dict[str, dict[str, Any]]:
    """Return the options that each tracker is started with."""
    path, stage = folder / ".tracked.json", folder.resolve()
    events = folder / "tensorboard"
    if first_step == 0 and path.exists():
        remove(events)  # of a run that was killed before there was anything to go on from
    elif os.path.lexists(events) and not path.exists() and not (events.is_dir() and not any(events.iterdir())):
        raise UserError(f"{events} holds something that no run of ours wrote; move it away, or give another --run")
    if first_step == 0 or not path.exists():
        write_json(path, {"id": secrets.token_hex(6)})
    name, identity = f"{stage.parent.name}-{stage.name}", read_json(path).get("id")
    same = {"group": stage.parent.name, "resume": "allow", "config": dict(settings)}
    return {
        "tensorboard": {"purge_step": first_step + 1},
        "wandb": {
            **same,
            "id": identity,
            "name": name,
            "job_type": stage.name,
            "allow_val_change": True,
            "dir": os.environ.get("WANDB_DIR", str(folder)),
        },
        "trackio": {**same, "name": f"{name}-{identity}"},
    }


def _show_settings(tensorboard: Any, settings: Mapping[str, Any]) -> None:
    """Show settings in this run; Accelerate's `store_init_configuration` would add two runs at every start."""
    from torch.utils.tensorboard.summary import hparams

    for summary in hparams(dict(settings), {}):
        tensorboard.tracker.file_writer.add_summary(summary)


def _told(trackio: Any) -> frozenset[tuple[int, str]]:
    """Return (step, name) of everything that a run of trackio has."""
    from trackio.sqlite_storage import SQLiteStorage

    run = trackio.tracker
    rows = SQLiteStorage.get_logs(run.project, run.name, run_id=run.id)
    return frozenset((row["step"], name) for row in rows for name in row)


def _log_picture(tracker: Any, step: int, name: str, picture: PIL.Image.Image) -> None:
    if tracker.name == "tensorboard":
        import numpy as np

        tracker.log_images({name: np.asarray(picture)[None]}, step=step, dataformats="NHWC")
        tracker.tracker.flush()  # else it would wait two minutes for it, or be lost
    elif tracker.name == "trackio":  # Accelerate has no `log_images` of it
        import trackio

        tracker.tracker.log({name: trackio.Image(picture)}, step=step)
    else:
        tracker.log_images({name: [picture]}, step=step)


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def _advice(error: Exception) -> str:
    if type(error).__module__.startswith("wandb"):
        return "`wandb login` once, or WANDB_MODE=offline, which keeps it on the disk for `wandb sync`; or leave it out"
    return "mend that, or leave it out of --track"

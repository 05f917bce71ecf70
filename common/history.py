"""The history of a run: the settings that changed and at which step, and the weights it began from.

    RUN/tokenizer/history.jsonl    {"step": 6, "setting": "steps", "before": 6, "after": 12, "date": "2026-01-31"}
                                   {"step": 0, "setting": "start_from", "after": "me/digits", "sha256": "...", ...}

A run that was neither changed nor begun from given weights has no such file.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

from pydantic import Field

from smalti.common.bundled import bundled_name
from smalti.common.codes_info import TokenizerIdentity
from smalti.common.config import Settings, build
from smalti.common.errors import UserError
from smalti.common.folder import replacing
from smalti.common.record import private

START = "start_from"  # the setting whose line says what a run began from


def today() -> str:
    return datetime.now(UTC).date().isoformat()


class Change(Settings):
    """A setting that changed, and from which step on."""

    step: int = Field(0, ge=0)
    """steps that were done before"""
    setting: str
    """its full name"""
    before: Any = None
    after: Any
    sha256: str | None = None
    """of the weights, where a run began from given ones"""
    place: str | None = None
    """the folder that they were given as, absolute; none of the Hub and of what comes with the package"""
    identity: TokenizerIdentity | None = None
    """of the tokenizer that they are of"""
    losses: tuple[str, ...] | None = None
    """beside the likelihood, that it was trained with, where its run said so"""
    date: str = Field(default_factory=today)


def history_path(folder: Path) -> Path:
    return folder / "history.jsonl"


def read_history(folder: Path) -> list[Change]:
    """Return the lines of a run's history; skip what is no such line, as `common.run_folder.read_metrics` does."""
    path, found = history_path(folder), []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            found.append(build(Change, json.loads(line), path))
        except (ValueError, RecursionError, UserError):
            continue
    return found


def write_history(folder: Path, step: int, new: Iterable[Change]) -> None:
    """Add changes that hold from `step` on; before the first step there is no history.

    Earlier changes of a later step hold from this one: the states after it were lost, and its steps are taken again.
    """
    there = read_history(folder)
    lines = [each.model_copy(update={"step": min(each.step, step)}) for each in there] if step else []
    for change in (each.model_copy(update={"step": step}) for each in new):
        if change not in lines:  # it is there where a kill came before config.yaml was written
            lines.append(change)
    if lines == there:
        return
    with replacing(history_path(folder)) as aside:
        aside.write_text("".join(f"{each.model_dump_json(exclude_none=True)}\n" for each in lines), encoding="utf-8")


def describe_changes(changes: Sequence[Change]) -> str:
    """Return changes in words: "steps 12 instead of 6, lr 0.002 instead of 0.001"."""
    return ", ".join(f"{each.setting} {each.after} instead of {each.before}" for each in changes)


def sentences(history: Sequence[Change]) -> Iterator[str]:
    """Yield the sentences of a run's history: the weights it began from, and the changes by step."""
    for change in history:
        if change.setting == START:
            name = str(change.after)
            where = ", which come with the package" if bundled_name(name) else ""
            yield f"It began from the weights of {private(name)}{where}, SHA-256 {change.sha256}."
    for step, some in groupby((each for each in history if each.setting != START), key=lambda each: each.step):
        yield f"From step {step} on it was trained with {describe_changes(list(some))}."


def steps_by_batch(history: Sequence[Change], steps: int, batch_size: int) -> Iterator[tuple[int, int]]:
    """Yield how many steps were taken with each batch size, `batch_size` last."""
    done = 0
    for change in (each for each in history if each.setting == "batch_size" and isinstance(each.before, int)):
        yield change.step - done, change.before
        done = change.step
    yield steps - done, batch_size


def rows_dealt(folder: Path, steps: int, batch_size: int) -> int:
    """Return how many rows the first steps of a run took, each step as many as its batch had then."""
    return sum(taken * size for taken, size in steps_by_batch(read_history(folder), steps, batch_size))


def describe_schedule_changes(before: Mapping[str, float], now: Mapping[str, float]) -> str:
    """Return in words which values of a schedule differ from what they would have been at a step."""
    differ = [name for name in now if before[name] != now[name]]
    return ", ".join(f"{name} {now[name]:.4g} instead of {before[name]:.4g}" for name in differ)

"""The JSON file of an evaluation: its figures, the protocol they were measured by and how to repeat it.

RUN/evaluation/STAGE-SPLIT.json    figures, protocol, and the record: date, command, commit, versions, machine
RUN/evaluation/.parts/...          numbers of each image, by which an interrupted evaluation goes on
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from smalti.common.errors import Refused
from smalti.common.folder import FORMAT, check_format, kind_in, mend, read_json, write_json
from smalti.common.record import record

KIND = "smalti.evaluation"


def evaluation_path(run: Path, stage: str, split: str) -> Path:
    return run / "evaluation" / f"{stage}-{split}.json"


def parts_path(run: Path, what: str) -> Path:
    return run / "evaluation/.parts" / what


def write_evaluation(
    run: Path,
    stage: str,
    split: str,
    *,
    figures: Mapping[str, Any],
    protocol: Mapping[str, Any],
    arguments: Sequence[str],
    script: str | None = None,
) -> Path:
    """Write the figures of a script, `STAGE/evaluate.py` unless named, started with these arguments, and return the
    file."""
    path = evaluation_path(run, stage, split)
    head = {"kind": KIND, "format": FORMAT, "stage": stage, "split": split}
    body = {"figures": dict(figures), "protocol": dict(protocol)}
    check_evaluation(path)
    mend(path)
    write_json(path, head | body | record(script or f"{stage}/evaluate.py", arguments=arguments))
    return path


def check_evaluation(path: Path) -> None:
    """Raise `Refused` where something else stands at the path than the figures of an earlier evaluation."""
    if path.is_dir() or (path.is_file() and kind_in(read_json(path)) != KIND):
        raise Refused(f"{path} is none of our evaluations; move it away")


def read_evaluations(run: Path) -> list[dict[str, Any]]:
    """Return all evaluations of a run, each checked to be one."""
    found = []
    for path in sorted((run / "evaluation").glob("*.json")):
        value = read_json(path)
        check_format(value, KIND, path)
        found.append(value)
    return found


def tell(path: Path, following: str) -> None:
    """Print the figures of a file, where it is, and the command that comes next."""
    print(f"{path.stem}:\n{figure_lines(read_json(path)['figures'])}\nthe figures are in {path}\nnext: {following}")


def figure_lines(figures: Mapping[str, Any], indent: str = "  ") -> str:
    """Return figures as lines to print: names and numbers, without tables."""
    flat = {name: value for name, value in figures.items() if isinstance(value, int | float | str)}
    width = max(map(len, flat), default=0)
    return "\n".join(f"{indent}{name:<{width}}  {_number(value)}" for name, value in flat.items())


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)

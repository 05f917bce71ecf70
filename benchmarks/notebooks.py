"""Run the notebooks of docs/notebooks, and write what their cells show into them, as Jupyter does.

    python -m benchmarks.notebooks

Each runs in an empty folder and without Jupyter: its cells in order, one after the other, in this process. What a cell
prints and the value of its last line are kept, pictures as PNG. tests/test_notebooks.py runs them by the same function.
"""

import ast
import base64
import contextlib
import io
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import PIL.Image

FOLDER = Path(__file__).resolve().parents[1] / "docs/notebooks"


def read(path: Path) -> dict[str, Any]:
    notebook: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return notebook


def code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def run(notebook: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a notebook with the outputs of its cells, run in the current folder. Raises what a cell raises."""
    names: dict[str, Any] = {"__name__": "__main__"}
    ran = json.loads(json.dumps(notebook))
    for number, cell in enumerate(code_cells(ran), start=1):
        cell["execution_count"] = number
        cell["outputs"] = list(outputs("".join(cell["source"]), names, f"{name}, cell {number}", number))
    return dict(ran)


def outputs(source: str, names: dict[str, Any], name: str, number: int) -> Iterator[dict[str, Any]]:
    """Run a cell among these names, and yield what it printed and the value of its last line, if it has one."""
    tree = ast.parse(source, name)
    last, asked = tree.body[-1], None
    if isinstance(last, ast.Expr):
        tree.body.pop()
        asked = ast.Expression(last.value)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(tree, name, "exec"), names)
        value = None if asked is None else eval(compile(asked, name, "eval"), names)
    if printed.getvalue():
        yield {"name": "stdout", "output_type": "stream", "text": printed.getvalue().splitlines(keepends=True)}
    if value is not None:
        yield {"data": shown(value), "execution_count": number, "metadata": {}, "output_type": "execute_result"}


def shown(value: object) -> dict[str, Any]:
    """Return a value as Jupyter keeps it, by type of content."""
    if not isinstance(value, PIL.Image.Image):
        return {"text/plain": repr(value).splitlines(keepends=True)}
    with io.BytesIO() as file:
        value.save(file, format="PNG", optimize=True)
        picture = base64.b64encode(file.getvalue()).decode()
    return {"image/png": picture, "text/plain": [f"<a picture of {value.width} x {value.height} pixels>"]}


def main() -> None:
    for path in sorted(FOLDER.glob("*.ipynb")):
        with tempfile.TemporaryDirectory() as empty, contextlib.chdir(empty):
            ran = run(read(path), path.stem)
        path.write_text(json.dumps(ran, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"{path.relative_to(os.getcwd()) if path.is_relative_to(os.getcwd()) else path} is run")


if __name__ == "__main__":
    main()

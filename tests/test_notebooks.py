"""The notebooks of docs/ run without a network, and what they show is of this code and of no machine."""

import json
import re
import socket

import pytest

from benchmarks import notebooks

PATHS = sorted(notebooks.FOLDER.glob("*.ipynb"))


@pytest.fixture
def offline(monkeypatch):
    """Let no connection be made."""

    def refuse(*_):
        raise OSError("a notebook asked for a network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def kinds(notebook: dict) -> list[list[str]]:
    """Return what each cell shows, by its kind."""
    return [
        [output["output_type"] + "".join(sorted(output.get("data", ()))) for output in cell["outputs"]]
        for cell in notebooks.code_cells(notebook)
    ]


@pytest.mark.filterwarnings("ignore:this prior was trained in raster order")
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_what_is_written_in_it(path, offline, tmp_path, monkeypatch):
    """Its pictures and numbers may differ by rounding; a training is shortened to 3 steps."""
    monkeypatch.chdir(tmp_path)
    written = notebooks.read(path)
    short = json.dumps(written).replace(
        'STEPS, accelerator = \\"runs/mine\\", 400,', 'STEPS, accelerator = \\"runs/mine\\", 3,'
    )
    assert ("train_prior(" in short) == (short != json.dumps(written))
    ran = notebooks.run(json.loads(short), path.stem)
    assert kinds(ran) == kinds(written)
    assert [cell["source"] for cell in ran["cells"]] == [cell["source"] for cell in json.loads(short)["cells"]]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_notebook_says_nothing_of_the_machine_that_ran_it(path):
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"/(?:home|root|tmp|work|Users|usr|mnt)/|\\[A-Z]:", text)
    assert len(text) < 400_000 and "Traceback" not in text


def test_the_lecture_has_twelve_cells_and_its_identities_hold():
    """Each of its checks by hand against the library shows True, as it does wherever it runs."""
    cells = notebooks.code_cells(notebooks.read(notebooks.FOLDER / "lecture_in_twelve_cells.ipynb"))
    shown = ["".join(output["data"]["text/plain"]) for cell in cells for output in cell["outputs"] if "data" in output]
    assert len(cells) == 12
    assert [each for each in shown if "True" in each] == ["True", "(True, True)", "True"]

"""The time of a benchmark's command: all of it, also where it was interrupted."""

import subprocess
import sys

import pytest

from benchmarks.timing import commits_of, once, spent
from smalti.common.folder import read_json, write_json
from smalti.common.record import commit

WORK = "import time\nend = time.process_time() + 0.25\nwhile time.process_time() < end: pass\n"


def python(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def test_a_command_that_ended_is_not_run_again(tmp_path):
    ended, command = tmp_path / "ended.json", python(f"{WORK}open({str(tmp_path / 'ran')!r}, 'x')")
    first = once(command, ended)
    assert first >= 0.2 and once(command, ended) == first  # a second time the file would be there


def test_what_another_command_left_is_not_taken_for_this_ones(tmp_path):
    """A board of 2,000 images reported the figures of 5,000."""
    once(python("2"), tmp_path / "ended.json")
    with pytest.raises(SystemExit, match="holds the results of another command: -c 2"):
        once(python("3"), tmp_path / "ended.json")


def test_what_ended_says_at_which_commit(tmp_path):
    once(python("2"), tmp_path / "ended.json")
    write_json(tmp_path / "older.json", {"cpu_seconds": 1.0})
    found = commits_of([tmp_path / "ended.json", tmp_path / "older.json"])
    assert found == ([] if commit() is None else [commit()])


def test_the_seconds_of_a_command_that_failed_and_goes_on_are_added_up(tmp_path):
    """A training that was interrupted and resumed was said to have taken what was left of it."""
    ended = tmp_path / "ended.json"
    with pytest.raises(subprocess.CalledProcessError):
        once(python(f"{WORK}raise SystemExit(1)"), ended)
    assert not ended.exists() and once(python(WORK), ended) >= 0.4
    assert read_json(ended)["wall_seconds"] >= 0.4 and [path.name for path in tmp_path.iterdir()] == ["ended.json"]


def test_what_was_killed_is_not_taken_for_the_whole(tmp_path):
    write_json(tmp_path / "ended.json.part", {"cpu_seconds": None, "wall_seconds": None})
    with pytest.raises(SystemExit, match="what that took is lost"):
        once(python(WORK), tmp_path / "ended.json")


def test_the_seconds_of_a_checkouts_command_are_its_own(tmp_path):
    (tmp_path / "work.py").write_text(WORK)
    (tmp_path / "fails.py").write_text("raise SystemExit(1)")
    took = spent(("work.py",), tmp_path, tmp_path)
    assert 0.2 <= took.cpu < 5 and took.system <= took.cpu and took.bytes > 2**20
    with pytest.raises(subprocess.CalledProcessError):
        spent(("fails.py",), tmp_path, tmp_path)

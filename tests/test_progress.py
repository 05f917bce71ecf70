"""Progress in a log file: one line an interval, with the work done, the rate, the time left and the figures."""

import re
import time

import pytest

from smalti.common import progress
from smalti.common.progress import advance, passing_bar, passing_word, progress_bar
from smalti.tokenizer.train import train
from tests.conftest import tokenizer_training


@pytest.fixture
def often(monkeypatch):
    """Write lines five times a second instead of every ten seconds, and show even the shortest bar."""
    monkeypatch.setattr(progress, "INTERVAL", 0.2)
    monkeypatch.setattr(progress, "SHORT", 0.0001)


def test_a_log_file_has_a_line_each_interval(often, accelerator, capsys):
    """Each change of the figures wrote a line, dozens between two intervals."""
    bar = progress_bar(accelerator, 50, "work")
    for step in range(50):
        time.sleep(0.02)
        bar.set_postfix(loss=step, refresh=False)
        bar.update()
    bar.close()
    said = capsys.readouterr().err
    lines = said.splitlines()
    assert "\r" not in said and "\x1b" not in said
    assert 4 <= len(lines) <= 8, "a second or a little more of work, its beginning and its end"
    for line in lines[1:-1]:
        assert re.fullmatch(r"work: +\d+% \d+/50 \[\d\d:\d\d<\d\d:\d\d, +[\d.]+ step/s, loss=\d+\]", line)
    assert lines[-1].startswith("work: 100% 50/50") and lines[-1].endswith("loss=49]")


def test_a_bar_inside_another_is_lines_as_well(often, accelerator, capsys):
    """On a terminal the inner bar stands below and moves the cursor, which a log file cannot show."""
    with progress_bar(accelerator, 1, "outer") as outer:
        with passing_bar(30, "inner") as inner:
            for _ in range(30):
                time.sleep(0.02)
                inner.update()
        outer.update()
    said = capsys.readouterr().err
    assert "\r" not in said and "\x1b" not in said
    names = [line.partition(":")[0] for line in said.splitlines()]
    assert names[0] == names[-1] == "outer" and 1 <= names.count("inner") <= 4


def test_what_is_done_at_once_has_no_passing_bar(capsys):
    with passing_bar(1000, "evaluate") as bar:
        for _ in range(1000):
            bar.update()
    assert capsys.readouterr().err == ""


def test_only_the_main_process_shows_a_passing_bar(often, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with passing_bar(20, "evaluate") as bar:
        for _ in range(20):
            time.sleep(0.02)
            bar.update()
    assert capsys.readouterr().err == ""


def test_a_training_in_a_log_file_is_lines_with_its_figures(tmp_path, accelerator, capsys):
    """It logs, evaluates and saves several times, and writes a line only at its intervals: here at the beginning and
    the end."""
    train(tokenizer_training(tmp_path, log_every=1), accelerator)
    said = capsys.readouterr().err
    assert "\r" not in said and "\x1b" not in said
    first, last = (line for line in said.splitlines() if line.startswith("tokenizer:"))
    assert " 0/6 [" in first
    figures = r"distortion=[\d.]+ bits/dim, loss=[\d.]+, psnr=[\d.]+ dB pooled, [\d.]+ mean, usage=[\d.]+%"
    assert re.search(rf" 6/6 \[.*step/s, {figures}\]", last)


def test_a_bar_does_not_go_beyond_its_end(accelerator):
    """One process counts for all of them, and their last batch is not always full."""
    with progress_bar(accelerator, 10, "work") as bar:
        for _ in range(3):
            advance(bar, 4)
        assert bar.n == 10


def test_what_has_no_measure_is_said_once_if_it_lasts(often, capsys):
    with passing_word("reading a source"):
        time.sleep(0.1)
    assert capsys.readouterr().err == "reading a source\n"


def test_what_has_no_measure_is_not_said_if_it_is_short(capsys):
    with passing_word("reading a source"):
        pass
    assert capsys.readouterr().err == ""

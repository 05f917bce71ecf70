"""One command at a time writes to a folder; a command ends with a clear status and logs its error."""

import os
import platform
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from smalti.common.errors import Refused, UserError
from smalti.common.lock import Lock
from smalti.common.session import at_work, log_path, session, tell_of_training
from tests import processes

ROOT = Path(__file__).resolve().parents[1]


def start(code: str) -> processes.Process:
    """Start a command whose `main` is this code."""
    lines = "".join(f"    {line}\n" for line in code.splitlines())
    whole = (
        "import os, sys, time\nfrom pathlib import Path\nfrom accelerate import Accelerator\n"
        "from smalti.common.launch import Interrupt, Interrupted, run_command\n"
        "from smalti.common.session import session\n"
        f"def main(argv):\n{lines}run_command(main)\n"
    )
    return processes.Process(lambda: exec(whole, {}))


HOLD = """
with session(Path({folder!r}), Accelerator(cpu=True)):
    print("at work", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Start another process that is at work on tmp_path/run."""
    process = start(HOLD.format(folder=str(tmp_path / "run")))
    assert process.first_line() == "at work"
    yield process
    process.kill()
    process.wait()


def test_the_second_command_on_a_folder_is_refused_with_the_first_ones_host_and_process(holder, tmp_path, accelerator):
    named = rf"run is being written by process {holder.pid} on {platform.node()} \(.*\): wait for it, stop it"
    with pytest.raises(UserError, match=named), session(tmp_path / "run", accelerator):
        pass
    with session(tmp_path / "other", accelerator):  # the folder beside it is free
        pass


def test_the_lock_of_a_killed_command_holds_nobody_up(holder, tmp_path, accelerator):
    holder.kill()
    holder.wait()
    assert (tmp_path / ".run.lock").exists()
    with session(tmp_path / "run", accelerator):
        pass
    assert not list(tmp_path.iterdir()), "neither the lock nor anything else stays"


def test_a_command_may_wait_for_the_folder(holder, tmp_path):
    began = time.monotonic()
    waiting = start(HOLD.format(folder=str(tmp_path / "run")).replace("cpu=True))", "cpu=True), wait=True)"))
    time.sleep(0.5)
    holder.kill()
    assert waiting.first_line() == "at work" and time.monotonic() - began > 0.5
    waiting.kill()
    waiting.wait()


def test_where_files_cannot_be_locked_the_process_the_file_names_is_looked_for(tmp_path, monkeypatch):
    monkeypatch.setattr("smalti.common.lock.fcntl", None)  # as on Windows
    path = Lock(tmp_path / "run").path
    with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:  # two commands, each in a thread
        first.submit(Lock(tmp_path / "run").take).result()
        with pytest.raises(Refused, match=f"process {os.getpid()}"):
            Lock(tmp_path / "run").take()
        began = path.read_text()
        path.write_text(began.replace('"began": "', '"began": "9'))  # a later process with the same number
        second.submit(Lock(tmp_path / "run").take).result()
        path.write_text(began.replace(platform.node(), "elsewhere"))  # processes of another host cannot be checked
        with pytest.raises(Refused, match="on elsewhere"):
            Lock(tmp_path / "run").take()


def test_what_nobody_expected_is_one_line_with_its_traceback_in_the_log(tmp_path):
    process = start(f"with session(Path({str(tmp_path / 'run')!r}), Accelerator(cpu=True)):\n    [][1]")
    out, err = process.communicate(timeout=60)
    log = log_path(tmp_path / "run")
    assert process.returncode == 70 and out == "" and err.count("\n") == 1
    assert err.startswith("error: IndexError: list index out of range; this is a fault of smalti. The traceback is in ")
    told = log.read_text()
    assert "Traceback" in told and "in main\n" in told and "\nIndexError" in told and str(log) in err


def test_what_a_user_can_mend_stands_in_the_log_as_one_line(tmp_path, accelerator):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text("")
    with pytest.raises(UserError), session(tmp_path / "run", accelerator):
        raise UserError("lr must be positive, got -1")
    assert log_path(tmp_path / "run").read_text().endswith("UserError: lr must be positive, got -1\n")


def test_a_command_refused_before_it_wrote_anything_leaves_nothing(tmp_path, accelerator):
    with pytest.raises(UserError), session(tmp_path / "new/run", accelerator):
        raise UserError("there is no source")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
@pytest.mark.parametrize("asked", [True, False])
def test_a_preemption_and_ctrl_c_have_exit_statuses_of_their_own(number, status, asked):
    """A loop that checks for a signal finishes its step; other code ends at once."""
    loop = """
with Interrupt(Accelerator(cpu=True)) as interrupt:
    print("at work", flush=True)
    while not interrupt.stopped:
        time.sleep(0.01)
    raise Interrupted("saved at step 3; the same command goes on from there")
"""
    process = start(loop if asked else 'print("at work", flush=True)\ntime.sleep(60)')
    assert process.first_line() == "at work"
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == status
    loop_told, told = (
        "saved at step 3; the same command goes on from there",
        "the same command goes on from what was saved",
    )
    assert err == (f"interrupted: {loop_told}\n" if asked else f"interrupted: {told}, if anything was\n")


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_in_the_first_seconds_is_one_line_too(number, status):
    """A signal while torch was imported gave a traceback of torch or of numpy's recursion, and status 1."""
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", "tokenizer/train.py"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stderr:
        if "smalti.common.starting" in line:  # this module is imported; torch is next
            break
    time.sleep(0.2)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    said = [line for line in err.splitlines() if not line.startswith("import time:")]
    assert process.returncode == status
    assert said == ["interrupted: nothing was begun yet; the same command begins again"]


def test_a_reader_can_ask_whether_a_folder_is_being_written(holder, tmp_path):
    assert at_work(tmp_path / "run") == f"process {holder.pid} on {platform.node()}"
    holder.kill()
    holder.wait()
    assert at_work(tmp_path / "run") is None and at_work(tmp_path / "other") is None


def test_what_is_measured_of_weights_in_training_is_told(holder, tmp_path, accelerator, capsys):
    """compare and the evaluations said nothing, and their figures were of a model that nobody has any more."""
    tell_of_training("the figures", accelerator, tmp_path / "run", tmp_path / "other")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{tmp_path / 'run'} is being trained by process {holder.pid}")
    assert line.endswith("the figures are of its weights as last saved")


def test_a_full_disk_is_one_line_and_status_1():
    process = start('with open("/dev/full", "w") as file:\n    file.write("x")')
    _, err = process.communicate(timeout=60)
    assert (
        process.returncode == 1
        and err.startswith("error: cannot write: No space left on device")
        and err.count("\n") == 1
    )


def test_the_folder_a_command_stands_in_can_be_locked_and_the_root_cannot(tmp_path, monkeypatch):
    """`--to .` and `--to /` ended in "a fault of smalti", because neither path has a name."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert Lock(Path(".")).path == tmp_path / ".here.lock"
    with pytest.raises(UserError, match="is the root of the disk"):
        Lock(Path("/"))

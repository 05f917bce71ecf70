"""Commands in processes of their own: most begin at once, forked from this one, which has imported torch already.

A forked command finds what a user's finds: its arguments, signals, exit status and streams. It imports nothing anew,
and two processes find each other by the variables that `accelerate launch` sets. `launched` is that launcher itself.
"""

import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from accelerate.state import AcceleratorState

from benchmarks.torture import forks

ROOT = Path(__file__).resolve().parents[1]


class Process:
    """A process that does some work, with those methods of `subprocess.Popen` that tests call."""

    def __init__(self, work: Callable[[], None], folder: Path = ROOT):
        self._kept = tempfile.TemporaryDirectory(prefix="forked-")
        self._said = Path(self._kept.name) / "said"
        self._ended: forks.Ended | None = None
        self._began = time.monotonic()
        self.pid = forks.start(_beginning(work), folder, self._said)

    @property
    def stderr(self) -> Path:
        """Return the file of what it writes to stderr."""
        return self._said.with_suffix(".err")

    @property
    def returncode(self) -> int | None:
        """Return the exit status as a shell tells it, or None while it is at work."""
        return None if self._ended is None else self._ended.status

    def poll(self) -> int | None:
        if self._ended is None:
            self._ended = forks.poll(self.pid, self._said, self._began)
        return self.returncode

    def wait(self, timeout: float = 60) -> None:
        if self._ended is None:
            self._ended = forks.wait(self.pid, self._said, timeout)

    def communicate(self, timeout: float = 60) -> tuple[str, str]:
        """Return what it has written to stdout and stderr, once it has ended; it is killed after `timeout` seconds."""
        self.wait(timeout)
        return self._read("out"), self._read("err")

    def first_line(self, timeout: float = 60) -> str:
        """Return the first line on stdout as soon as it is whole; what there is if the process ends before."""
        end = time.monotonic() + timeout
        while "\n" not in (said := self._read("out")) and self.poll() is None and time.monotonic() < end:
            time.sleep(0.005)
        return said.partition("\n")[0]

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        if self.poll() is None:
            self.send_signal(signal.SIGKILL)

    def _read(self, stream: str) -> str:
        return self._said.with_suffix(f".{stream}").read_text(errors="replace")


def command(script: str, *arguments: object) -> Process:
    """Start a script as `python SCRIPT ARGUMENTS` does."""
    return Process(forks.command(script, *arguments))


def installed(folder: Path, module: str, *arguments: object, cwd: Path) -> Process:
    """Start a module of the package that is installed in a folder, as `python -m MODULE ARGUMENTS` does."""

    def work() -> None:
        import_from(folder)
        sys.argv = [module, *map(str, arguments)]
        runpy.run_module(module, run_name="__main__", alter_sys=True)

    return Process(work, cwd)


def import_from(folder: Path) -> None:
    """Let this process import what stands in a folder, and nothing of this checkout."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "smalti"]:
        del sys.modules[name]
    sys.path.insert(0, str(folder))


def command_of_two(script: str, *arguments: object) -> Process:
    """Start a script on two processes, and return the one that waits for both."""
    return together(forks.command(script, *arguments))


def together(work: Callable[[], None], number: int = 2) -> Process:
    """Start some work on several processes, and return the one that waits for all."""
    return Process(_on_several(work, number))


def launched(options: Sequence[object], script: str, *arguments: object) -> subprocess.Popen:
    """Start a script with `accelerate launch OPTIONS`, as a user does."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", *options, "--num_processes", 2]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    words = map(str, [*launcher, "--main_process_port", 0, script, *arguments])
    return subprocess.Popen(list(words), cwd=ROOT, env=environment, **pipes)


def finish(process: Process | subprocess.Popen, timeout: float = 240) -> str:
    """Return what a process writes to stdout; it must end well."""
    out, err = process.communicate(timeout)
    assert process.returncode == 0, err[-3000:]
    return out


def _beginning(work: Callable[[], None]) -> Callable[[], None]:
    def begun() -> None:
        os.environ |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        AcceleratorState._reset_state(True)  # of the process that forked this one
        work()

    return begun


def _on_several(work: Callable[[], None], number: int) -> Callable[[], None]:
    """Return the work of several processes, which know each other by the variables that a launcher sets."""

    def all_of_them() -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        os.environ |= {"WORLD_SIZE": str(number), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        children = []
        for rank in map(str, range(number)):
            if not (child := os.fork()):
                os.environ |= {"RANK": rank, "LOCAL_RANK": rank}
                return work()
            children.append(child)
        sys.exit(max(abs(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])) for child in children))

    return all_of_them

"""One of two processes is killed while both train: the job must end within a minute, and say which it was."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from benchmarks.torture.forks import ROOT, tiny
from benchmarks.torture.kill import TWO


def torture(work: Path, times: int) -> dict[str, Any]:
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    script, *arguments = map(str, tiny()["tokenizer"])
    found = []
    for number in range(times):
        rank, folder = number % 2, work / "rank"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        line = [*TWO, str(ROOT / script), *arguments]
        line[line.index("--steps") + 1] = "100000"
        with open(work / "rank.err", "w") as err:
            process = subprocess.Popen(
                line, cwd=folder, env=environment, stdout=err, stderr=err, start_new_session=True
            )
            while not list((folder / "run/tokenizer").glob("state/step_*")):
                assert process.poll() is None, (work / "rank.err").read_text()[-2000:]
                time.sleep(0.1)
            os.kill(_worker(folder, rank), signal.SIGKILL)
            began = time.monotonic()
            status = process.wait(timeout=120)
        said = (work / "rank.err").read_text()
        named = f"rank      : {rank} (local_rank: {rank})\n  exitcode  : -9" in said
        ours = "error: another process of this job has ended" in said
        seconds = round(time.monotonic() - began, 2)
        found.append({"rank": rank, "seconds": seconds, "status": status, "named": named, "told_by_the_other": ours})
        print(f"rank {found[-1]}", flush=True)
    return {"kills": found, "slowest_seconds": max(each["seconds"] for each in found)}


def _worker(folder: Path, rank: int) -> int:
    """Return the process of this rank at work in a folder."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            environment = path.joinpath("environ").read_bytes().split(b"\0")
            if path.joinpath("cwd").resolve() == folder.resolve() and f"RANK={rank}".encode() in environment:
                return int(path.name)
        except OSError:
            continue
    raise RuntimeError(f"there is no process of rank {rank}")

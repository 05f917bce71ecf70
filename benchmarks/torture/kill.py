"""SIGKILL at random moments, then the same command again, until it ends: the result is an undisturbed run's.

Every one-process command is killed in turn, over and over; then commands on two processes, with their launcher; then
the whole chain.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from benchmarks.torture.artefacts import artefacts, difference, half_written
from benchmarks.torture.forks import ROOT, command, prepare, run, start, tiny, wait

WRITES = {  # what each command makes of its own, to be removed for the next round
    "tokenizer": ["run/tokenizer"],
    "encode": ["run/codes"],
    "prior": ["run/prior"],
    "generate": ["run/samples", "run/pipeline"],
    "generate codes": ["run/drawn"],
    "evaluate tokenizer": ["run/evaluation/tokenizer-test.json", "run/evaluation/.parts"],
    "evaluate prior": ["run/evaluation/prior-test.json", "run/evaluation/.parts"],
    "evaluate pipeline": ["run/evaluation/pipeline-test.json", "run/evaluation/.parts", ".cache"],
    "codebook": ["run/tokenizer/codebook", "run/tokenizer/codebook.json"],
    "compress": ["run/compressed.tess"],
    "tune": ["run/pipeline/tuning.json"],
    "publish": ["run/hub/pipeline"],
    "publish codes": ["run/hub/codes"],
    "report": ["run/report", "run/report.html"],
    "cluster": ["means/tokenizer"],
    "convert": ["converted/tokenizer"],
}

ALONE = ("publish", "publish codes", "report", "compress")  # are one process always


class Reference(NamedTuple):
    """The files and times of the undisturbed chain."""

    after: dict[str, dict[str, bytes]]  # of each command the artefacts there are when it has ended
    seconds: dict[str, float]  # that it took

    @property
    def whole(self) -> dict[str, bytes]:
        return list(self.after.values())[-1]


def reference(work: Path) -> Reference:
    """Run the chain in WORK/reference."""
    folder, found = work / "reference", Reference({}, {})
    shutil.rmtree(folder, ignore_errors=True)
    prepare(folder)
    for name, line in tiny().items():
        ended = run(command(*line), folder, work / "out" / name)
        assert ended.status == 0, f"{name}: {ended.err[-2000:]}"
        found.after[name], found.seconds[name] = artefacts(folder), ended.seconds
    return found


def remove_written(folder: Path, name: str) -> None:
    """Remove what a command of `tiny` has made."""
    for path in WRITES[name]:
        target = folder / path
        shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)


def torture_one(work: Path, undisturbed: Reference, kills: int, seed: int) -> dict[str, Any]:
    """Spread so many kills over all commands, one process each."""
    folder, draw = work / "killed", random.Random(seed)
    shutil.rmtree(folder, ignore_errors=True)
    prepare(folder)
    found: dict[str, Any] = {}
    each = -(-kills // len(tiny()))
    for name, line in tiny().items():
        done, rounds, bad = 0, 0, list[str]()
        while (done < each or rounds == 0) and not bad:
            remove_written(folder, name)
            ended = None
            while ended is None or ended.status == 128 + signal.SIGKILL:
                out, pid = work / "out/killed", start(command(*line), folder, work / "out/killed")
                moment = draw.uniform(0, 0.8 * undisturbed.seconds[name]) if done < each else 600
                ended = wait(pid, out, moment)  # which kills it when the moment comes
                done += ended.status == 128 + signal.SIGKILL
                bad += half_written(folder)
            if ended.status != 0:
                bad.append(f"status {ended.status}: {ended.err[-300:]}")
            rounds += 1
            bad += [f"differs: {path}" for path in difference(undisturbed.after[name], artefacts(folder))]
        found[name] = {"kills": done, "rounds": rounds, "wrong": bad[:5]}
        print(f"kill {name}: {found[name]}", flush=True)
    return {
        "kills": sum(each["kills"] for each in found.values()),
        "by_command": found,
        "final_artefacts": len(undisturbed.whole),
        "final_artefacts_that_differ": difference(undisturbed.whole, artefacts(folder)),
    }


def torture_two(work: Path, kills: int, seed: int) -> dict[str, Any]:
    """Kill every command on two CPU processes under the launcher, all processes at once, again and again."""
    draw, found = random.Random(seed), {}
    lines = {name: line for name, line in tiny().items() if name not in ALONE}
    lines["tokenizer"] = [*lines["tokenizer"], "--images.memory", 0]  # read from disk batch by batch
    folders = _fresh(work, "two")
    for name, (script, *arguments) in lines.items():
        line = [*TWO, str(ROOT / script), *map(str, arguments)]
        found[name] = _killed_until_it_ends(line, folders, kills, draw, work / "out/two")
        print(f"kill two processes, {name}: {found[name]}", flush=True)
    return {"kills": sum(each["kills"] for each in found.values()), "by_command": found}


def torture_chain(work: Path, kills: int, seed: int, launch: str = "python") -> dict[str, Any]:
    """Kill the whole chain in one command, pipeline/run.py, with its children."""
    folders, lines = _fresh(work, "chain"), tiny()
    configs = {
        "tokenizer.yaml": lines["tokenizer"],
        "prior.yaml": lines["prior"],
        "generate.yaml": ["", "--num_images", 20],
    }
    for folder in folders.values():
        (folder / "configs").mkdir()
        for name, (_, *arguments) in configs.items():
            (folder / "configs" / name).write_text(yaml.safe_dump(_nested([*arguments, "--run", "run"])))
    line = [sys.executable, str(ROOT / "pipeline/run.py"), "configs", "--launch", launch]
    found = _killed_until_it_ends(line, folders, kills, random.Random(seed), work / "out/chain")
    print(f"kill the chain: {found}", flush=True)
    return found


TWO = [
    sys.executable,
    "-m",
    "accelerate.commands.launch",
    "--multi_gpu",
    "--num_processes",
    "2",
    "--main_process_port",
    "0",
]


def _fresh(work: Path, what: str) -> dict[str, Path]:
    folders = {name: work / f"{what}-{name}" for name in ("whole", "killed")}
    for folder in folders.values():
        shutil.rmtree(folder, ignore_errors=True)
        prepare(folder)
    return folders


def _nested(arguments: list[object]) -> dict[str, Any]:
    """Return `--a.b x y` as a mapping, as a config file has it."""
    found: dict[str, Any] = {}
    for word in arguments:
        if isinstance(word, str) and word.startswith("--"):
            *parents, leaf = word[2:].split(".")
            inner = found
            for parent in parents:
                inner = inner.setdefault(parent, {})
            inner[leaf] = []
        else:
            inner[leaf].append(yaml.safe_load(str(word)))

    def unwrapped(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: unwrapped(each) for key, each in value.items()}
        return value[0] if len(value) == 1 else value

    return unwrapped(found)


def _killed_until_it_ends(
    line: list[str], folders: dict[str, Path], kills: int, draw: random.Random, out: Path
) -> dict[str, Any]:
    """Run a command undisturbed, and in another folder kill it so often first; return what differs between the two."""
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    out.parent.mkdir(parents=True, exist_ok=True)

    def begin(folder: Path) -> subprocess.Popen:
        with open(out, "w") as file:
            return subprocess.Popen(line, cwd=folder, env=environment, stdout=file, stderr=file, start_new_session=True)

    began = time.monotonic()
    assert begin(folders["whole"]).wait() == 0, out.read_text()[-2000:]
    whole, done, status, wrong = time.monotonic() - began, 0, None, list[str]()
    while status != 0 and not wrong:
        process = begin(folders["killed"])
        try:
            moment = draw.uniform(0.4 * whole, whole) if done < kills else None  # the first part is imports
            status = process.wait(timeout=moment)
            if status != 0:
                wrong.append(f"status {status}: {out.read_text()[-300:]}")
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            _kill_workers(folders["killed"])
            done += 1
            wrong += half_written(folders["killed"])
    wrong += difference(artefacts(folders["whole"]), artefacts(folders["killed"]))
    return {"kills": done, "wrong": wrong[:10]}


def _kill_workers(folder: Path) -> None:
    """Kill the processes at work in the folder: the launcher gives them sessions of their own."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if path.joinpath("cwd").resolve() == folder.resolve():
                os.kill(int(path.name), signal.SIGKILL)
        except (OSError, ValueError):
            continue

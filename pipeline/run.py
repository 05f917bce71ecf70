"""Run the whole chain: fit the tokenizer, encode, train the prior, generate.

    python pipeline/run.py configs/digits
    python pipeline/run.py configs/imagefolder --images ~/pictures --run runs/mine --launch "accelerate launch"
    python pipeline/run.py configs/digits --tokenizer.steps 400 --prior.batch_size 32

A setting of one stage is given with its name before it: --tokenizer.KEY, --encode.KEY, --prior.KEY, --generate.KEY.

Runs the four commands one after the other, each in its own process, and prints them. Writes into RUN, beside their
files, samples.png, reconstructions.png, curves.png and summary.json. After an interruption the same command goes on:
each of the four resumes where it was.
"""

import contextlib
import importlib
import io
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from smalti.common.starting import answer_signals

    answer_signals()

from pydantic import Field

from smalti.common import config
from smalti.common.choices import Tracker
from smalti.common.command_line import answer_at_once, is_command
from smalti.common.config import Settings
from smalti.common.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


class RunSettings(Settings):
    """Both stages, end to end."""

    configs: str = str(ROOT / "configs/digits")
    """folder with tokenizer.yaml (or cluster.yaml, for K-means), prior.yaml (or fit.yaml, for a mixture of Gaussians)
    and generate.yaml"""
    run: str | None = None
    """folder of the experiment, where it is not the one the configs name"""
    images: str | None = None
    """images.source, where it is not the one the configs name: a Hub dataset id or a folder"""
    seed: int | None = Field(None, ge=0, le=2**62)
    """of both trainings and the samples"""
    track: tuple[Tracker, ...] = ()
    """trackers of both trainings: tensorboard, wandb, trackio"""
    launch: str = "python"
    """what starts each command: `python`, or for several devices `accelerate launch ...`"""


STAGES = {"tokenizer": "tokenizer", "encode": "codes", "prior": "prior", "generate": "samples"}  # and their folders


def of_stages(argv: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Return the words of this command, and those of each stage, as that stage reads them."""
    own: list[str] = []
    given: dict[str, list[str]] = {name: [] for name in STAGES}
    into = own
    for word in argv:
        stage, _, key = word.removeprefix("--").partition(".")
        if word.startswith("--"):
            into = given[stage] if key and stage in given else own
        into.append(f"--{key}" if word.startswith("--") and into is not own else word)
    return own, given


def read_settings(argv: Sequence[str]) -> RunSettings:
    own, given = of_stages(argv)
    for name, words in given.items():
        if any(word.partition("=")[0] == "--run" for word in words):
            raise UserError(f"--{name}.run: all stages have one folder; give --run")
    try:
        return config.parse(RunSettings, __doc__, own, positional="configs", positional_help="folder of the configs")
    except UserError as error:
        if not str(error).startswith("unknown option"):
            raise
        ways = ", ".join(f"--{name}.KEY" for name in STAGES)
        raise UserError(f"{error}; a setting of one stage is given as {ways}") from None


if is_command(__name__):  # --help and a wrong setting are answered before torch is imported
    answer_at_once(read_settings)

import PIL.Image
import psutil
import torch

from smalti.common import codes, folder
from smalti.common.commands import WHOLE, as_typed
from smalti.common.ends import USER_ERROR
from smalti.common.errors import Refused
from smalti.common.launch import INTERRUPTED, PREEMPTED, check_alone, run_command
from smalti.common.raster import whole_picture
from smalti.common.record import cores
from smalti.common.written import replacing_ours
from smalti.pipeline.generation_config import GenerationConfig
from smalti.pipeline.image_pipeline import is_of_run
from smalti.pipeline.output import REQUEST, read_request
from smalti.prior.sampling_config import SamplingConfig

ENDED_BY_SIGNAL = (INTERRUPTED, PREEMPTED, -signal.SIGINT, -signal.SIGTERM)
PRINTED = ("psnr_pooled", "psnr", "usage", "perplexity")  # figures of the codes; older runs have no pooled PSNR
BUSY = 0.4  # share of the cores that others use
DRAWN = ".samples.json"  # the request of the images that this command drew last, as it stands beside them
AGAIN = "remove it, and run the stage that wrote it again"
PICTURES = ("samples.png", "reconstructions.png", "curves.png")  # written into the run's folder at the end
FIRST_STAGES = {"tokenizer.yaml": "tokenizer/train.py", "cluster.yaml": "tokenizer/cluster.py"}
SECOND_STAGES = {"prior.yaml": "prior/train.py", "fit.yaml": "prior/fit.py"}


def first_config(folder_: Path) -> Path:
    """Return the config of stage one. Raises `UserError` where there is none, or several."""
    if folder_.is_file():
        raise UserError(f"{folder_} is a file; give its folder, which has the configs of both stages: {folder_.parent}")
    found = [folder_ / name for name in FIRST_STAGES if (folder_ / name).exists()]
    if not folder_.exists() and (near := config.near_configs(folder_, "*")):
        raise UserError(f"there is no folder {folder_}; did you mean {near[0]}?")
    if len(found) != 1:
        there = sorted(
            {f"configs/{path.parent.name}" for name in FIRST_STAGES for path in config.SHIPPED.glob(f"*/{name}")}
        )
        raise UserError(
            f"{folder_} must hold either tokenizer.yaml or cluster.yaml, got {len(found)} of them; the shipped folders "
            f"are {', '.join(there)}"
        )
    return found[0]


def second_config(folder_: Path) -> Path:
    """Return the config of stage two. Raises `UserError` where there is none, or several."""
    found = [folder_ / name for name in SECOND_STAGES if (folder_ / name).exists()]
    if len(found) != 1:
        raise UserError(f"there must be either prior.yaml or fit.yaml in {folder_}, got {len(found)} of them")
    return found[0]


def stages(c: RunSettings, run: str, given: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return the command line of each stage, its own script first, in order.

    Args:
        given: the settings of each stage that the command line names.
    """
    folder_ = config.find_config(c.configs)
    first, second = first_config(folder_), second_config(folder_)
    seed = [] if c.seed is None else ["--seed", str(c.seed)]
    images = [] if c.images is None else ["--images.source", c.images]
    track = ["--track", *c.track] if c.track else []
    scripts = {
        "tokenizer": [FIRST_STAGES[first.name], str(first), "--run", run, *images, *seed, *track],
        "encode": ["tokenizer/encode.py", run],
        "prior": [SECOND_STAGES[second.name], str(second), "--run", run, *seed, *track],
        "generate": [
            "pipeline/generate.py",
            run,
            *generate_options(folder_ / "generate.yaml", Path(run)),
            "--overwrite",
            "true",
            *seed,
        ],
    }
    return {name: [*words, *given[name]] for name, words in scripts.items()}


def command_line(c: RunSettings, words: Sequence[str]) -> list[str]:
    """Return the command line that starts a stage."""
    launch = [sys.executable] if c.launch == "python" else shlex.split(c.launch)
    return [*launch, str(ROOT / words[0]), *words[1:]]


def check_stages(of_all: Mapping[str, Sequence[str]]) -> None:
    """Raise `UserError` for a wrong setting of any stage, before the first of them takes its hours.

    So is a prior over vectors told where stage one makes codes, and one over codes where it makes vectors.
    """
    read: dict[str, Any] = {}
    for name, (script, *arguments) in of_all.items():
        module = importlib.import_module(f"smalti.{script.removesuffix('.py').replace('/', '.')}")
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # what it has to say, it says when its turn comes
                read[name] = module.read_settings(arguments)
        except UserError as error:
            raise UserError(f"{name}: {error}") from None
    if not read["encode"].vectors:
        read["prior"].model.check_over(read["tokenizer"].model.layout)


def generate_options(path: Path, run: Path) -> list[str]:
    """Return the options of pipeline/generate.py: its config, or the rest of it if tune.py chose sampling settings.

    The chosen settings count only while the run's models are those that they were chosen for.
    """
    kept = GenerationConfig.of_run(run)
    if not (kept and kept.chosen and is_of_run(run / "pipeline", run)):
        return ["--config", str(path)]
    rest = {
        k: v
        for k, v in config.read_yaml(path).items()
        if k not in {*SamplingConfig.model_fields, "run"} and v is not None
    }
    return [word for k, v in rest.items() for word in (f"--{k}", *map(str, v if isinstance(v, list) else [v]))]


def run_stage(name: str, command: list[str]) -> None:
    """Run one command, and exit with its status if it fails. Ctrl-C reaches the command too, and is left to it."""
    print(f"\n=== {name}: {shlex.join(command)}", flush=True)
    process, asked = subprocess.Popen(command, env={**os.environ, WHOLE: str(os.getpid())}), []

    def ask(number: int, _frame: object) -> None:
        asked.append(number)
        if number == signal.SIGTERM:  # Ctrl-C is sent to the whole group by the terminal
            process.send_signal(number)

    mine = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    handlers = {number: signal.signal(number, ask) for number in mine}
    try:
        status = process.wait()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if asked and status in (0, *ENDED_BY_SIGNAL):  # also if the command ended well before it noticed
        print("interrupted: the same command goes on from what was saved", file=sys.stderr)
        sys.exit(PREEMPTED if signal.SIGTERM in asked else INTERRUPTED)
    if status == USER_ERROR:
        print(f"a setting of this stage is given to `run` as --{name}.KEY, or changed in its config", file=sys.stderr)
    if status:
        sys.exit(status if status > 0 else 128 - status)


def run_summary(run: Path, seconds: dict[str, float]) -> dict[str, Any]:
    """Return the figures of a finished run, on test, or on validation if the source has no test split."""
    _, splits = codes.read_info(run / "codes")
    figures = folder.read_json(run / "prior/figures.json")
    split = "test" if "test" in splits else "validation"
    summary: dict[str, Any] = {f"{name}_seconds": value for name, value in seconds.items()}
    if (run / "tokenizer/images.json").exists():
        images = folder.read_json(run / "tokenizer/images.json")["splits"].values()
        summary |= {
            f"images_{what}": sum(each[what] for each in images) for what in ("left_out", "repeated", "animated")
        }
    summary |= {"split": split}
    summary |= {f"{name}_{split}": splits[split][name] for name in PRINTED if name in splits[split]}
    names = {
        **{f"{measure}_{split}": f"{split}_{measure}" for measure in ("nll", "mse")},
        f"marginal_nll_{split}": f"{split}_marginal_nll",
        "uniform_nll": "uniform_nll",
    }
    return summary | {told: figures[name] for told, name in names.items() if name in figures}


def check_summary_is_ours(run: Path) -> None:
    """Raise `Refused` where a file written at the end stands in a folder that this command did not begin."""
    there = [name for name in ("summary.json", *PICTURES) if os.path.lexists(run / name)]
    if there and not (run / ".seconds.json").is_file():
        raise Refused(f"{run / there[0]} is not as this command wrote it; move it away, or give another --run")


def check_samples_are_ours(run: Path, given: Sequence[str]) -> None:
    """Raise `Refused` where another command drew the images in RUN/samples, which this one would replace.

    Args:
        given: the settings of `generate` that the command line names; with `overwrite` they are followed.
    """
    if not (run / DRAWN).is_file() or any(word.partition("=")[0] == "--overwrite" for word in given):
        return
    asked = read_request(run / STAGES["generate"])
    if asked is not None and asked != folder.read_json(run / DRAWN):
        raise Refused(
            f"{run / STAGES['generate']} holds images that another command drew since; move the folder away, or give "
            "--generate.overwrite true to replace them"
        )


def gather_pictures(run: Path) -> None:
    """Write samples.png, reconstructions.png and curves.png of both stages into the run's folder."""
    pictures = {
        "samples.png": whole_picture(run / "samples/grid.png", AGAIN),
        "reconstructions.png": whole_picture(run / "tokenizer/reconstructions.png", AGAIN),
    }
    above, below = (whole_picture(run / stage / "curves.png", AGAIN).convert("RGB") for stage in ("tokenizer", "prior"))
    both = PIL.Image.new("RGB", (max(above.width, below.width), above.height + below.height), "white")
    both.paste(above, (0, 0))
    both.paste(below, (0, above.height))
    pictures["curves.png"] = both
    for name in PICTURES:
        with replacing_ours(run / name) as aside:
            pictures[name].save(aside, format="PNG")


def main(argv: Sequence[str]) -> None:
    check_alone()
    c, given = read_settings(argv), of_stages(argv)[1]
    first = first_config(config.find_config(c.configs))
    second_config(first.parent)
    if not (first.parent / "generate.yaml").exists():
        raise UserError(f"there is no generate.yaml in {c.configs}")
    run = c.run or config.read_yaml(first).get("run", "runs/digits")
    check_summary_is_ours(Path(run))
    check_samples_are_ours(Path(run), given["generate"])
    check_stages(stages(c, run, given))
    busy = not torch.accelerator.is_available() and psutil.getloadavg()[0] > BUSY * cores()
    if busy and "OMP_NUM_THREADS" not in os.environ:
        print("this machine is busy: with OMP_NUM_THREADS=1 before the command, threads do not wait for taken cores")
    seconds = folder.read_json(Path(run) / ".seconds.json") if (Path(run) / ".seconds.json").exists() else {}
    for name in STAGES:
        command = command_line(c, stages(c, run, given)[name])  # the stages before it may have changed it
        started, before = time.perf_counter(), (Path(run) / STAGES[name]).exists()
        refused = False
        try:
            run_stage(name, command)
        except SystemExit as end:
            refused = end.code == 2
            raise
        finally:
            if Path(run).is_dir() and not refused:
                if name in seconds or not before:  # the time of a stage begun by another command is unknown
                    seconds[name] = round(seconds.get(name, 0) + time.perf_counter() - started, 1)
                folder.write_json(Path(run) / ".seconds.json", seconds)
            asked = Path(run) / STAGES["generate"] / REQUEST
            if name == "generate" and not refused and asked.is_file():
                folder.write_json(Path(run) / DRAWN, folder.read_json(asked))
    gather_pictures(Path(run))
    summary = run_summary(Path(run), seconds)
    with replacing_ours(Path(run) / "summary.json") as aside:
        folder.write_json(aside, summary)
    print("\n" + "\n".join(f"{name}: {value}" for name, value in summary.items()))
    print(f"\nlook at {run}/samples.png, {run}/reconstructions.png and {run}/curves.png")
    more = as_typed("pipeline/generate.py", Path(run), "--seed", 1, "--num-images", 20, "--output", Path(run) / "more")
    print(f"next: {more}\nor measure it: {as_typed('tokenizer/evaluate.py', Path(run))}")


if __name__ == "__main__":
    run_command(main)

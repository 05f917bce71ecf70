"""A user's folders as targets of commands, on purpose or by a slip: every foreign byte stays as it was.

This holds whether the command is refused or not. Targets are of two kinds: a folder of the user's, and a folder of ours
into which the user has put something.
"""

import io
import random
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import PIL.Image

from benchmarks.torture.forks import Line, command, fault, replaced, run, tiny
from smalti.common.launch import run_command
from smalti.pipeline.image_pipeline import ImagePipeline
from smalti.prior.model import load_prior
from smalti.tokenizer.model import load_tokenizer

Files = Mapping[str, bytes]  # by their path in the folder, in which NAME is the folder's own name


def picture() -> bytes:
    file = io.BytesIO()
    PIL.Image.new("RGB", (32, 32), (200, 30, 90)).save(file, "PNG")
    return file.getvalue()


BELONGINGS: dict[str, Files] = {
    "hidden drafts": {".x.writing": b"one", ".thesis.tex.old": b"two", "notes.writing": b"three"},
    "hidden folders": {".x.old/notes.txt": b"one", ".thesis.writing/a/notes.txt": b"two"},
    "hidden and deep": {"a/b/.x.writing": b"one", "a/.z.old/notes.txt": b"two", ".config/deep/.q.old": b"three"},
    "drafts beside it": {"../.NAME.writing": b"one", "../.NAME.old/notes.txt": b"two"},
    "a card": {"README.md": b"# My thesis\n"},
    "a model of transformers": {"config.json": b'{"model_type": "bert"}', "pytorch_model.bin": b"weights"},
    "a pipeline of diffusers": {"model_index.json": b'{"_class_name": "DDPMPipeline"}', "unet/config.json": b"{}"},
    "a git checkout": {".git/HEAD": b"ref: refs/heads/main\n", ".git/objects/aa/bb": b"history"},
    "pictures": {"logo.png": picture(), "holiday/beach.jpg": b"no picture of ours", "empty.txt": b""},
}
NAMESAKES: dict[str, Files] = {  # names that our commands write, in a folder that none of them wrote
    "drawn by hand": {
        "000000.png": picture(),
        "grid.png": picture(),
        "metadata.jsonl": b"{}\n",
        "samples.npz": b"mine",
    },
    "other codes": {"codes.json": b'{"airport": "CDG"}', "train-00000-of-00001.parquet": b"rows of mine"},
    "other settings": {"config.yaml": b"port: 80\n", "images.json": b"[]", "tokenizer/config.yaml": b"of a parser\n"},
    "other weights": {
        "model.safetensors": b"mine",
        "model/model.safetensors": b"mine",
        "tokenizer/model/merges.txt": b"mine",
    },
}


class Aim(NamedTuple):
    folder: str  # the user's, or one of ours in which the user has put something
    work: Callable[[], None]


def saving(what: str, folder: str) -> Callable[[], None]:
    """Return a call of the library that saves something of the run, ended as a command ends."""
    opened: dict[str, Callable[[], Any]] = {
        "tokenizer": lambda: load_tokenizer("run/tokenizer/model"),
        "prior": lambda: load_prior("run/prior/model"),
        "pipeline": lambda: ImagePipeline.from_pretrained("run/pipeline"),
    }
    return lambda: run_command(lambda _: opened[what]().save_pretrained(folder))


def aims_at_the_users() -> dict[str, Aim]:
    lines, folder, some = tiny(), "mine/V", ["--num-images", 6]
    found: dict[str, Line] = {
        "encode": [*lines["encode"], "--output", folder],
        **{
            f"generate {kind}": ["pipeline/generate.py", "run", *some, "--format", kind, "--output", folder]
            for kind in ("png", "npz", "codes")
        },
        "generate over it": ["pipeline/generate.py", "run", *some, "--output", folder, "--overwrite", "true"],
        **{
            f"publish {what}": ["pipeline/publish.py", "run", "--what", what, "--to", folder]
            for what in ("pipeline", "tokenizer", "prior", "codes")
        },
        "compress": ["pipeline/compress.py", "run", "--images", 4, "--output", f"{folder}/four.tess"],
        "expand": ["pipeline/compress.py", "run", "--expand", "run/compressed.tess", "--output", folder],
        "train a tokenizer": replaced(lines["tokenizer"], "--run", folder),
        "train a prior": [*replaced(lines["prior"], "--run", folder), "--codes", "run/codes"],
        "cluster": replaced(lines["cluster"], "--run", folder),
        "convert": replaced(lines["convert"], "--run", folder),
        "copy a config": ["pipeline/configs.py", "digits", "--to", folder],
    }
    saved = {f"save a {what}": Aim(folder, saving(what, folder)) for what in ("tokenizer", "prior", "pipeline")}
    return {name: Aim(folder, command(*line)) for name, line in found.items()} | saved


def aims_at_ours() -> dict[str, Aim]:
    lines = tiny()
    folders = {
        "tokenizer": "run/tokenizer",
        "codebook": "run/tokenizer",
        "encode": "run/codes",
        "prior": "run/prior",
        "generate": "run/samples",
        "generate codes": "run/drawn",
        "tune": "run/pipeline",
        "report": "run/report",
        "evaluate tokenizer": "run/evaluation",
        "evaluate prior": "run/evaluation",
        "evaluate pipeline": "run/evaluation",
        "publish": "run/hub/pipeline",
        "publish codes": "run/hub/codes",
        "cluster": "means/tokenizer",
        "convert": "converted/tokenizer",
    }
    again = {f"{name} again": Aim(folder, command(*lines[name])) for name, folder in folders.items()}
    others: dict[str, Line] = {
        "generate others": ["pipeline/generate.py", "run", "--num-images", 6, "--seed", 5, "--overwrite", "true"],
        "generate fewer codes": [*replaced(lines["generate codes"], "--num-images", "6"), "--overwrite", "true"],
    }
    places = {"generate others": "run/samples", "generate fewer codes": "run/drawn"}
    models = {"tokenizer": "run/tokenizer/model", "prior": "run/prior/model", "pipeline": "run/pipeline"}
    saved = {f"save the {what} again": Aim(folder, saving(what, folder)) for what, folder in models.items()}
    return again | {name: Aim(places[name], command(*line)) for name, line in others.items()} | saved


def plant(folder: Path, files: Files) -> dict[Path, bytes]:
    """Put files into a folder, and return them by path. Our own files there stay, but a card is edited."""
    planted = {}
    for name, content in files.items():
        path = (
            folder.parent / name.removeprefix("../").replace("NAME", folder.name)
            if name[:3] == "../"
            else folder / name
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            if path.name != "README.md":
                continue
            content = path.read_bytes() + b"\nEdited by hand.\n"
        path.write_bytes(content)
        planted[path] = content
    return planted


def changed(planted: Mapping[Path, bytes]) -> list[str]:
    """Return what happened to planted files that are not as they were."""
    gone = [f"{path.name} is gone" for path in planted if not path.is_file()]
    return gone + [
        f"{path.name} is another" for path, each in planted.items() if path.is_file() and path.read_bytes() != each
    ]


def trials() -> list[tuple[str, str, Aim, Files]]:
    """Yield every aim at everything that may lie there, and at all of it at once."""
    found = []
    everything = {
        name: content for files in BELONGINGS.values() for name, content in files.items() if ".git/" not in name
    }
    for name, aim in aims_at_the_users().items():
        found += [
            (name, what, aim, files) for what, files in [*(BELONGINGS | NAMESAKES).items(), ("everything", everything)]
        ]
    for name, aim in aims_at_ours().items():
        found += [(name, what, aim, files) for what, files in [*BELONGINGS.items(), ("everything", everything)]]
    return found


def attempt(folder: Path, aim: Aim, files: Files, out: Path) -> tuple[int, list[str]]:
    """Plant files, do the work in a copy of the chain, and return its status and what went wrong."""
    planted = plant(folder / aim.folder, files)
    ended = run(aim.work, folder, out)
    said = fault(ended, 0, 2)
    return ended.status, changed(planted) + ([said] if said else [])


def torture(work: Path, number: int, seed: int) -> dict[str, Any]:
    outcomes, wrong, folder = Counter[str](), list[str](), work / "belongings"
    chosen = random.Random(seed).sample(trials(), min(number, len(trials())))
    for name, what, aim, files in chosen:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(work / "reference", folder)
        status, bad = attempt(folder, aim, files, work / "out/belongings")
        outcomes["refused" if status == 2 else "done" if status == 0 else "WRONG"] += 1
        wrong += [f"{name}, {what}: {each}" for each in bad]
        for each in bad:
            print(f"wrong: {name}, {what}: {each}", flush=True)
    return {"commands": len(chosen), "outcomes": dict(outcomes), "wrong": wrong}

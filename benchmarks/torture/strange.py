"""Foreign things in folders and tables: pipes, sockets, devices without end, links and paths that lead out.

Each is refused, or named and left out, within seconds and little memory. Beside the folder lies a picture of one colour
that no image of the folder has: whatever is read, that colour is not in it.
"""

import io
import json
import os
import shutil
import socket
import sys
import tarfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import torch
from datasets import Dataset, Features, Image, Value, disable_progress_bars

from benchmarks.torture.forks import CHECKPOINT, Ended, command, fault, resident, run, tiny
from smalti.common import codes
from smalti.common.data.config import ImagesConfig
from smalti.common.data.images import open_images
from smalti.common.launch import run_command
from smalti.pipeline.image_pipeline import ImagePipeline
from smalti.prior.model import load_prior
from smalti.tokenizer.model import load_tokenizer

SECONDS, MEMORY = 30.0, 2**30  # of one file; and more than the process had before
SECRET, LEAKED = (255, 0, 255), 99
Plant = Callable[[Path], None]  # in a copy of the chain


class Case(NamedTuple):
    plant: Plant
    read: Callable[[], None]
    named: str = ""  # what must be said where it is read all the same


# --------------------------------------------------------------------------------------------------------------- things


def put(path: Path) -> Path:
    """Make room for something else at a path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    return path


def pipe(path: Path) -> None:
    os.mkfifo(put(path))


def plug(path: Path) -> None:
    here = os.getcwd()
    os.chdir(put(path).parent)  # a socket's address is short
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)
    os.chdir(here)


def zeros(path: Path) -> None:
    put(path).symlink_to("/dev/zero")


def terminal(path: Path) -> None:
    put(path).symlink_to("/dev/tty")


def out(path: Path) -> None:
    put(path).symlink_to(home_of(path) / f"secret{path.suffix if path.suffix in ('.png', '.json') else '.png'}")


def home_of(path: Path) -> Path:
    return next(parent for parent in path.parents if (parent / "secret.png").exists())


THINGS: dict[str, Plant] = {
    "a pipe": pipe,
    "a socket": plug,
    "zeros without end": zeros,
    "a terminal": terminal,
    "a link that leads out": out,
}


# -------------------------------------------------------------------------------------------------------------- readers


def look(source: str) -> None:
    """Open and read images as a tokenizer does, print what was not read, and exit with LEAKED if one is the secret."""

    def main(_: object) -> None:
        config = ImagesConfig(source=source, corrupt="skip", validation_share=0.2)
        images = open_images(config, (8, 8), 3)
        for remark in images.remarks():
            print(remark, file=sys.stderr)
        for split in images.splits.values():
            pixels = split.read(torch.arange(len(split))).images
            if (pixels.flatten(2).float().mean(2) - torch.tensor(SECRET)).abs().amax(1).lt(8).any():
                sys.exit(LEAKED)

    run_command(main)


def library(read: Callable[[], Any]) -> Callable[[], None]:
    return lambda: run_command(lambda _: read() and None)


# ---------------------------------------------------------------------------------------------------------------- cases


def prepare(folder: Path, reference: Path) -> None:
    """Make a copy of the chain, a small set of pictures in it, and the secret beside."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(reference, folder)
    draw = np.random.default_rng(0)
    for number in range(20):
        path = folder / "source" / "ab"[number % 2] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(draw.integers(0, 200, (8, 8, 3), dtype=np.uint8)).save(path)
    (folder / "outside").mkdir()
    for path in (folder / "secret.png", folder / "outside/secret.png"):
        PIL.Image.new("RGB", (8, 8), SECRET).save(path)
    (folder / "secret.json").write_text("{}")
    disable_progress_bars()
    secret = {"image": [{"bytes": (folder / "secret.png").read_bytes(), "path": None}] * 4}
    Dataset.from_dict(secret, Features({"image": Image()})).save_to_disk(folder / "outside/saved")


def at(name: str, do: Plant) -> Plant:
    """Put a thing at a path of the copy."""
    return lambda folder: do(folder / name)


def text(name: str, content: str) -> Plant:
    """Write a text into the source, with HOME replaced by the secret's folder."""
    return lambda folder: (put(folder / "source" / name).write_text(content.replace("HOME", str(folder))), None)[1]


def rows_of_paths(place: str, folder: Path) -> None:
    """Write a Parquet file that names its pictures and does not hold them."""
    shutil.rmtree(folder / "source")
    (folder / "source").mkdir()
    rows = {"image": [{"bytes": None, "path": place.replace("HOME", str(folder))}] * 20}
    features = Features({"image": {"bytes": Value("binary"), "path": Value("string")}})
    table = Dataset.from_dict(rows, features).with_format("arrow")[:]
    table = table.replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": {"image": {"_type": "Image"}}}})}
    )
    import pyarrow.parquet as pq

    pq.write_table(table, folder / "source/train-00000-of-00001.parquet")


def saved_elsewhere(place: str, folder: Path) -> None:
    """Make a `save_to_disk` folder whose state names shards that lie elsewhere."""
    shutil.rmtree(folder / "source")
    shutil.copytree(folder / "outside/saved", folder / "source")
    state = json.loads((folder / "source/state.json").read_text())
    state["_data_files"] = [{"filename": place.replace("HOME", str(folder))}]
    (folder / "source/state.json").write_text(json.dumps(state))
    for shard in (folder / "source").glob("*.arrow"):
        shard.unlink()


def packed(kind: bytes, folder: Path) -> None:
    """Make a tar with a member that is a link out, a device or a pipe."""
    members = sorted((folder / "source").rglob("*.png"))
    pictures = [path.read_bytes() for path in members]
    shutil.rmtree(folder / "source")
    (folder / "source").mkdir()
    with tarfile.open(folder / "source/train-0000.tar", "w") as tar:
        for number, content in enumerate(pictures):
            info = tarfile.TarInfo(f"{number:04d}.png")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        info = tarfile.TarInfo("9999.png")
        info.type, info.linkname = kind, str(folder / "secret.png")
        tar.addfile(info)


PLACES = (
    "HOME/secret.png",
    "../secret.png",
    "../../secret.png",
    "file://HOME/secret.png",
    "http://127.0.0.1:9/x.png",
    "s3://bucket/x.png",
    "/dev/zero",
    "zip://x.png::HOME/outside.zip",
    "hf://datasets/nobody/nothing/x.png",
)


def of_sources() -> dict[str, Case]:
    read, found = partial(look, "source"), dict[str, Case]()
    for what, do in THINGS.items():
        for name in ("a/x.png", "metadata.jsonl", "metadata.csv", "README.md", "c"):
            named = "" if name == "README.md" else Path(name).name  # a card is no image
            found[f"source, {name}: {what}"] = Case(at(f"source/{name}", do), read, named)
        found[f"as a source: {what}"] = Case(at("thing", do), partial(look, "thing"))
    found["a folder's link that leads out"] = Case(
        lambda folder: (folder / "source/c").symlink_to(folder / "outside"), read, "c"
    )
    found["a folder's link in a circle"] = Case(
        lambda folder: (folder / "source/c").symlink_to(folder / "source"), read, "c"
    )
    for place in PLACES:
        line, head = (
            json.dumps({"file_name": place}),
            f"---\nconfigs:\n- config_name: default\n  data_files: {json.dumps(place)}\n---\n",
        )
        found[f"metadata.jsonl names {place}"] = Case(text("metadata.jsonl", line + "\n"), read)
        found[f"metadata.csv names {place}"] = Case(text("metadata.csv", f"file_name\n{place}\n"), read)
        found[f"the card names {place}"] = Case(text("README.md", head), read)
        found[f"the card, cut short, names {place}"] = Case(
            text("README.md", head.replace("configs", "a: b\n---foo\nconfigs")), read
        )
        found[f"the Hub's settings name {place}"] = Case(text(".huggingface.yaml", head.replace("---\n", "")), read)
        found[f"rows name {place}"] = Case(partial(rows_of_paths, place), read)
        found[f"a saved set names {place}"] = Case(partial(saved_elsewhere, place), read)
    found["a saved set names another"] = Case(
        partial(saved_elsewhere, "../outside/saved/data-00000-of-00001.arrow"), read
    )
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
        found[f"a tar's member of type {kind.decode()}"] = Case(partial(packed, kind), read)
    found["the devices as a source"] = Case(lambda _: None, partial(look, "/dev"))
    return found


def of_models() -> dict[str, Case]:
    lines = tiny()
    readers: dict[str, Callable[[], None]] = {
        "run/tokenizer/model/config.json": library(lambda: load_tokenizer("run/tokenizer/model")),
        "run/tokenizer/model/model.safetensors": library(lambda: load_tokenizer("run/tokenizer/model")),
        "run/prior/model/config.json": library(lambda: load_prior("run/prior/model")),
        "run/prior/model/model.safetensors": library(lambda: load_prior("run/prior/model")),
        "run/pipeline/model_index.json": library(lambda: ImagePipeline.from_pretrained("run/pipeline")),
        "run/pipeline/generation_config.json": library(lambda: ImagePipeline.from_pretrained("run/pipeline")),
        "run/pipeline/prior/model.safetensors": library(lambda: ImagePipeline.from_pretrained("run/pipeline")),
        "run/codes/codes.json": library(lambda: codes.load_codes(Path("run/codes"))),
        "run/tokenizer/config.yaml": command(*lines["evaluate tokenizer"]),
        "run/tokenizer/images.json": command("tokenizer/codebook.py", "run"),
        "run/tokenizer/histogram.json": command(*lines["report"]),
        "run/tokenizer/metrics.jsonl": command(*lines["report"]),
        "run/evaluation/pipeline-test.json": command(*lines["report"]),
        "run/samples/000000.png": command(*lines["generate"]),
        "run/samples/grid.png": command(*lines["report"]),
        "run/compressed.tess": command("pipeline/compress.py", "run", "--expand", "run/compressed.tess"),
        "picture.png": command("pipeline/compress.py", "run", "--files", "picture.png"),
        "settings.yaml": command("tokenizer/train.py", "settings.yaml", "--run", "new"),
        CHECKPOINT: command(*lines["convert"]),
    }
    found = {
        f"{name}: {what}": Case(at(name, do), read) for name, read in readers.items() for what, do in THINGS.items()
    }
    for what, do in THINGS.items():
        shard, state = partial(first_of, "run/codes/*.parquet", do), partial(first_of, "run/prior/state/step_*/*", do)
        found[f"a shard of codes: {what}"] = Case(shard, library(lambda: codes.load_codes(Path("run/codes"))))
        found[f"a file of a state: {what}"] = Case(state, command(*lines["prior"]))
    return found


def first_of(pattern: str, do: Plant, folder: Path) -> None:
    """Put something in the place of the first file of a pattern."""
    if found := sorted(folder.glob(pattern)):
        do(found[0])


def judged(case: Case, ended: Ended) -> list[str]:
    """Return what is wrong with how a case was read."""
    if ended.status == LEAKED:
        return ["what lies outside was read"]
    wrong = [said for said in [fault(ended, 0, 1, 2)] if said]
    if (more := ended.peak - resident()) > MEMORY:
        wrong.append(f"{more / 2**30:.2f} GiB more than it had")
    if ended.status == 0 and case.named not in ended.err:
        wrong.append(f"{case.named} is not named: {ended.err[-200:]}")
    return wrong


def torture(work: Path, number: int, seed: int) -> dict[str, Any]:
    folder, outcomes, wrong, worst = work / "strange", Counter[str](), list[str](), {"seconds": 0.0, "bytes": 0}
    cases = list((of_sources() | of_models()).items())
    chosen = (
        cases
        if number >= len(cases)
        else [cases[i] for i in np.random.default_rng(seed).permutation(len(cases))[:number]]
    )
    for name, case in chosen:
        prepare(folder, work / "reference")
        case.plant(folder)
        ended = run(case.read, folder, work / "out/strange", SECONDS)
        outcomes["refused" if ended.status == 2 else "read without it" if ended.status == 0 else "WRONG"] += 1
        worst = {"seconds": max(worst["seconds"], ended.seconds), "bytes": max(worst["bytes"], ended.peak)}
        bad = judged(case, ended)
        wrong += [f"{name}: {each}" for each in bad]
        for each in bad:
            print(f"wrong: {name}: {each}", flush=True)
    return {"cases": len(chosen), "outcomes": dict(outcomes), "worst": worst, "wrong": wrong}

"""Damaged files: bytes flipped, cut and shuffled, JSON and YAML of other shapes, and planted pickles and YAML tags.

The shapes come from hypothesis; pickles and tags are planted in every file of every folder kind. Each file is read by a
user's own reader, in a process of its own: it must be refused in one line (status 2) or read (status 0), in under a
minute and 2 GiB, and nothing of it may be executed.
"""

import io
import json
import pickle
import random
import resource
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL.Image
import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from benchmarks.torture.forks import Ended, command, run, tiny
from smalti.common import codes, config
from smalti.common.data.config import ImagesConfig
from smalti.common.data.images import open_images
from smalti.common.launch import run_command
from smalti.pipeline.image_pipeline import ImagePipeline
from smalti.prior.config import TrainConfig as PriorTraining
from smalti.prior.model import load_prior
from smalti.tokenizer.config import TrainConfig as TokenizerTraining
from smalti.tokenizer.model import load_tokenizer

SECONDS, MEMORY = 60.0, 2 * 2**30
Reader = Callable[[], None]


class Planted:
    """An object whose unpickling makes a file."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.mark,)


def library(read: Callable[[], Any]) -> Reader:
    """Return a call of the library, ended as a command ends."""
    return lambda: run_command(lambda _: read() and None)


def kinds(base: Path) -> dict[str, tuple[list[Path], Reader]]:
    """Return each kind of folder's files and reader. `base` holds a finished chain of `forks.tiny`, and images."""
    lines, run_ = tiny(), base / "run"

    def images(name: str, rule: Literal["refuse", "skip"]) -> Reader:
        return library(
            lambda: open_images(ImagesConfig(source=str(base / name), corrupt=rule, validation_share=0.2), (8, 8), 1)
        )

    def settings_of(cls: type[config.Settings], path: Path) -> Reader:
        return library(lambda: config.parse(cls, "", [str(path)]))

    def draw() -> None:
        ImagePipeline.from_pretrained(run_ / "pipeline")(num_images=1, seed=0)

    found: dict[str, tuple[str, Reader]] = {
        "tokenizer model": ("run/tokenizer/model", library(lambda: load_tokenizer(run_ / "tokenizer/model"))),
        "prior model": ("run/prior/model", library(lambda: load_prior(run_ / "prior/model"))),
        "pipeline": ("run/pipeline", library(draw)),
        "codes": ("run/codes", library(lambda: codes.load_codes(run_ / "codes"))),
        "tokenizer run": ("run/tokenizer", command(*lines["tokenizer"])),
        "prior run": ("run/prior", command(*lines["prior"])),
        "tokenizer config": (
            "run/tokenizer/config.yaml",
            settings_of(TokenizerTraining, run_ / "tokenizer/config.yaml"),
        ),
        "prior config": ("run/prior/config.yaml", settings_of(PriorTraining, run_ / "prior/config.yaml")),
        "samples": ("run/samples", command(*lines["generate"])),
        "report": ("run", command("pipeline/report.py", "run")),
        "compressed": (
            "run/compressed.tess",
            command("pipeline/compress.py", "run", "--expand", "run/compressed.tess", "--output", "run/expanded"),
        ),
        "image folder, skip": ("pictures", images("pictures", "skip")),
        "image folder, refuse": ("pictures", images("pictures", "refuse")),
        "image Parquet": ("parquet", images("parquet", "skip")),
        "image tar": ("tar", images("tar", "skip")),
    }
    return {name: (_files(base / where), reader) for name, (where, reader) in found.items()}


def _files(path: Path) -> list[Path]:
    found = sorted(path.rglob("*")) if path.is_dir() else [path]
    skipped = (".log", ".lock")
    return [each for each in found if each.is_file() and each.suffix not in skipped and "/.parts/" not in str(each)]


def prepare(reference: Path, base: Path) -> None:
    """Make a copy of the finished chain, and sets of images of every format."""
    import tarfile

    from datasets import ClassLabel, Dataset, Features, Image

    shutil.rmtree(base, ignore_errors=True)
    shutil.copytree(reference, base)
    draw = np.random.default_rng(0)
    files = {}
    for number, kind in enumerate(["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "ICO", "PPM", "TGA", "PNG"]):
        buffer = io.BytesIO()
        pixels = PIL.Image.fromarray(draw.integers(0, 256, (24, 24, 3), dtype=np.uint8))
        pixels.save(buffer, kind, **({"save_all": True, "append_images": [pixels.rotate(90)]} if kind == "GIF" else {}))
        files[f"{'ab'[number % 2]}/{number}.{kind.lower().replace('jpeg', 'jpg')}"] = buffer.getvalue()
    for name, data in files.items():
        (base / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        (base / "pictures" / name).write_bytes(data)
    lines = [json.dumps({"file_name": name, "label": name[0]}) for name in files]
    (base / "pictures/metadata.jsonl").write_text("\n".join(lines))
    (base / "parquet").mkdir()
    rows = {
        "image": [{"bytes": data, "path": None} for data in files.values()],
        "label": [i % 2 for i in range(len(files))],
    }
    features = Features({"image": Image(), "label": ClassLabel(names=["a", "b"])})
    Dataset.from_dict(rows, features).to_parquet(base / "parquet/train-00000-of-00001.parquet")
    (base / "parquet/README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files: train-*.parquet\n---\n"
    )
    (base / "tar").mkdir()
    with tarfile.open(base / "tar/train-0000.tar", "w") as tar:
        for number, (name, data) in enumerate(files.items()):
            for suffix, content in ((Path(name).suffix[1:], data), ("cls", str(number % 2).encode())):
                info = tarfile.TarInfo(f"{number:04d}.{suffix if suffix != 'jpeg' else 'jpg'}")
                info.size = len(content)
                if suffix in ("png", "cls") or number % 10 in (0, 9):
                    tar.addfile(info, io.BytesIO(content))
    ended = run(command("pipeline/compress.py", "run", "--images", 8), base, base.parent / "out/prepare")
    assert ended.status == 0, ended.err


def flipped(data: bytes, draw: random.Random, others: list[bytes]) -> bytes:
    """Return a file damaged in one of ten ways."""
    n, out = len(data), bytearray(data)
    at, size = draw.randrange(n + 1), draw.randrange(1, 64)
    ways: list[Callable[[], bytes]] = [
        lambda: bytes(
            b ^ (1 << draw.randrange(8)) if i in {draw.randrange(n) for _ in range(3)} else b for i, b in enumerate(out)
        ),
        lambda: bytes(out[:at]) + draw.randbytes(size) + bytes(out[at + size :]),
        lambda: bytes(out[:at]),
        lambda: b"",
        lambda: bytes(out[:at]) + draw.randbytes(size) + bytes(out[at:]),
        lambda: bytes(out[:at]) + bytes(out[at + size :]),
        lambda: bytes(out[:at]) + bytes(out[max(0, at - size) :]),
        lambda: draw.choice(others),
        lambda: draw.randbytes(8) + bytes(out[8:]),
        lambda: bytes(out[:at]) + b"\xff\xff\xff\x7f" + bytes(out[at + 4 :]),
    ]
    return draw.choice(ways)() if n else draw.randbytes(size)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["/etc/passwd", "../../x", "vq", "lfq", "10" * 400]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def _places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in list(inner)[:40]:
        yield from _places(each, (*path, key))


def reshaped(value: Any, data: st.DataObject) -> Any:
    """Return a JSON value of which one place, at any depth, is another value, or gone."""
    path = data.draw(st.sampled_from(list(_places(value))))
    if not path:
        return data.draw(VALUES)
    changed = json.loads(json.dumps(value))
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    if data.draw(st.booleans()) and data.draw(st.booleans()):
        del inner[path[-1]]
    else:
        inner[path[-1]] = data.draw(VALUES)
    return changed


class Readings:
    """The files that readers were given in a folder, and what came of them."""

    def __init__(self, work: Path, base: Path, mark: Path):
        """
        Args:
            mark: the file that exists where a planted file was executed.
        """
        self.work, self.base, self.mark = work, base, mark
        self.whole = {path: path.read_bytes() for path in base.rglob("*") if path.is_file()}
        self.outcomes = Counter[str]()
        self.wrong = list[dict[str, str]]()
        self.worst = {"seconds": 0.0, "bytes": 0}

    def read(self, kind: str, how: str, path: Path, content: bytes, reader: Reader) -> None:
        """Write the content, read it in a process of its own, and restore the folder."""
        path.write_bytes(content)
        ended, worst = run(_limited(reader), self.base, self.work / "out/mutated", SECONDS), self.worst
        self.outcomes[f"{kind}: {'refused' if ended.status == 2 else 'read' if ended.status == 0 else 'WRONG'}"] += 1
        worst["seconds"], worst["bytes"] = max(worst["seconds"], ended.seconds), max(worst["bytes"], ended.peak)
        if (fault := _fault(ended)) is not None or self.mark.exists():
            self._keep(kind, how, path, content, "EXECUTED" if self.mark.exists() else str(fault))
            self.mark.unlink(missing_ok=True)
        _restore(self.base, self.whole)

    def _keep(self, kind: str, how: str, path: Path, content: bytes, told: str) -> None:
        kept = self.work / "wrong" / f"{len(self.wrong):03d}-{path.name}"
        kept.parent.mkdir(exist_ok=True)
        kept.write_bytes(content)
        file = str(path.relative_to(self.base))
        self.wrong.append({"kind": kind, "how": how, "file": file, "what": told, "kept": kept.name})
        print(f"wrong: {kind}, {how}, {path.name}: {' '.join(told.split())[-200:]}", flush=True)


def torture(work: Path, number: int, seed_: int) -> dict[str, Any]:
    """Plant something into every file, then damage so many files at random."""
    base, mark = work / "mutated", work / "executed"
    prepare(work / "reference", base)
    mark.unlink(missing_ok=True)
    readings, found = Readings(work, base, mark), kinds(base)
    planted = {
        "pickle": pickle.dumps(Planted(mark)),
        "YAML tag": f"run: !!python/object/apply:os.mkdir ['{mark}']\n".encode(),
    }
    for kind, (files, reader) in found.items():
        for path in files[:60]:
            for how, content in planted.items():
                readings.read(kind, how, path, content, reader)
    print(f"planted: {dict(readings.outcomes)}", flush=True)
    each = max(1, (number - sum(readings.outcomes.values())) // len(found))
    draw = random.Random(seed_)
    for kind, (files, reader) in found.items():
        _damage(readings, kind, files, reader, each, draw, seed_)
        print(f"{kind}: {each} more; {len(readings.wrong)} wrong so far", flush=True)
    tried = {"inputs": sum(readings.outcomes.values()), "outcomes": dict(readings.outcomes)}
    return tried | {"worst": readings.worst, "wrong": readings.wrong}


def _damage(
    readings: Readings, kind: str, files: list[Path], reader: Reader, number: int, draw: random.Random, seed_: int
) -> None:
    """Damage the bytes of files, and for half of the number the shape of JSON and YAML where there is some."""
    whole = readings.whole
    structured = [path for path in files if path.suffix in (".json", ".yaml")]
    for _ in range(number // 2 if structured else number):
        path = draw.choice(files)
        readings.read(kind, "bytes", path, flipped(whole[path], draw, list(whole.values())), reader)

    def reshaped_file(path: Path, content: bytes) -> None:
        readings.read(kind, "shape", path, content, reader)

    if structured:
        _reshape(structured, whole, number - number // 2, seed_, reshaped_file)


def _reshape(
    files: list[Path], whole: dict[Path, bytes], number: int, seed_: int, read: Callable[[Path, bytes], None]
) -> None:
    loaded = {
        path: yaml.safe_load(whole[path]) if path.suffix == ".yaml" else json.loads(whole[path]) for path in files
    }

    @seed(seed_)
    @settings(
        max_examples=number,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def once(data: st.DataObject) -> None:
        path = data.draw(st.sampled_from(files))
        changed = reshaped(loaded[path], data)
        text = yaml.safe_dump(changed) if path.suffix == ".yaml" else json.dumps(changed)
        read(path, text.encode("utf-8", "surrogatepass"))

    once()


def _limited(reader: Reader) -> Reader:
    def work() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (6 * 2**30, 6 * 2**30))  # the machine's, not the claim's
        reader()

    return work


def _fault(ended: Ended) -> str | None:
    if ended.status not in (0, 2):
        return f"status {ended.status} after {ended.seconds:.0f} s: {ended.err[-300:]}"
    if "Traceback" in ended.err:
        return f"a traceback: {ended.err[-300:]}"
    return f"{ended.peak / 2**30:.2f} GiB" if ended.peak > MEMORY else None


def _restore(base: Path, whole: dict[Path, bytes]) -> None:
    """Restore the folder; what the reader wrote or set aside goes too."""
    for path in base.rglob("*"):
        if (path.is_file() or path.is_symlink()) and path not in whole:
            path.unlink()
    for path, content in whole.items():
        if not path.is_file() or path.stat().st_size != len(content) or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    for path in sorted(base.rglob("*"), reverse=True):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()

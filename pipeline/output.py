"""The outputs of generation, written batch by batch: a folder of PNG files, the field's npz, or a codes dataset.

`.request.json` in a folder holds its request, and shows that the folder may be written into: from the request follow
the names of all files that it wrote.

`is_whole()` says whether all is done, and `has(number)` whether a batch is on the disk, so that an interrupted request
goes on. The process that draws a batch calls `write(batch)`, and the main process calls `finish()` at the end.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from PIL.PngImagePlugin import PngInfo
from safetensors import SafetensorError
from safetensors.torch import save_file

from smalti.common.codes import PLAN, CodesSplit, finish, is_whole, shard_path, write_plan, write_shard
from smalti.common.codes_info import CodesInfo
from smalti.common.data.pixels import to_pil
from smalti.common.errors import Refused
from smalti.common.folder import is_empty, read_json, remove, replacing, sweep, temporary_path, write_json
from smalti.common.hub import README
from smalti.common.plots import image_grid
from smalti.common.raster import open_picture, whole_picture
from smalti.common.tensors import read_tensors
from smalti.common.written import is_as_written, keep_found, noted, replacing_ours
from smalti.pipeline import growth
from smalti.pipeline.image_pipeline import GeneratedBatch, ImagePipeline

GRID = 100  # images in grid.png at most
REQUEST = ".request.json"
MARK = "smalti"  # the text chunk of a picture that says whose it is
NOT_DECIDING = {"labels", "seeds", "seed", "num_images", "batch_size", "format"}  # of the settings in a request


class Request:
    """A request: a class number and a seed for each image, in batches."""

    def __init__(self, pipeline: ImagePipeline, labels: Sequence[int], seeds: Sequence[int], batch_size: int):
        self.pipeline = pipeline
        self.labels = labels
        self.seeds = seeds
        self.batch_size = batch_size

    @property
    def batches(self) -> int:
        return -(-len(self.labels) // self.batch_size)

    @property
    def class_names(self) -> tuple[str, ...] | None:
        return self.pipeline.condition.class_names


def in_turn(labels: Sequence[int]) -> int:
    """Return the number of classes that take turns, so that as many columns have one class each; else 1."""
    classes = [*dict.fromkeys(labels)]
    turns = all(label == classes[i % len(classes)] for i, label in enumerate(labels))
    return len(classes) if turns and 1 < len(classes) <= 20 else 1


class Output:
    """The output of a request: batches as safetensors in .parts/, from which `finish` makes the files of the format."""

    def __init__(self, folder: Path, request: Request):
        self.folder, self.request = folder, request

    def _part(self, number: int) -> Path:
        return self.folder / ".parts" / f"{number:06d}.safetensors"

    def is_whole(self) -> bool:
        """Return whether `finish` is done; the parts are gone then."""
        raise NotImplementedError

    def has(self, number: int) -> bool:
        try:
            return read_tensors(self._part(number)).keys() == {"images", "codes"}
        except (OSError, ValueError, SafetensorError):
            return False

    def write(self, batch: GeneratedBatch) -> None:
        with replacing(self._part(batch.start // self.request.batch_size)) as aside:
            save_file({"images": batch.images.contiguous(), "codes": batch.codes.contiguous()}, aside)

    def remove_parts(self) -> None:
        remove(self.folder / ".parts")

    def parts(self) -> list[dict[str, torch.Tensor]]:
        return [read_tensors(self._part(number)) for number in range(self.request.batches)]

    def columns(self, images: int) -> int:
        """Return the columns of a grid, about square; each class has one, or several if there are few classes."""
        each = in_turn(self.request.labels)
        return each * max(1, round(images**0.5 / each))

    def save_grid(self, images: torch.Tensor) -> None:
        """Write grid.png."""
        with replacing_ours(self.folder / "grid.png") as aside:
            image_grid(images, self.columns(len(images))).save(aside, format="PNG")

    def animate(self, **sampling: Any) -> None:
        """Write growth.gif: how the images of grid.png are drawn with these settings, which draws them once more."""
        labels, seeds = self.request.labels[:GRID], self.request.seeds[:GRID]
        growing = growth.frames(self.request.pipeline, labels, seeds, **sampling)
        growth.save_animation(growing, self.columns(len(labels)), self.folder / "growth.gif")

    def finish(self) -> None:
        raise NotImplementedError


class PngFolder(Output):
    """PNG files and metadata.jsonl, which `load_dataset("imagefolder", data_dir=FOLDER)` reads, and grid.png.

    Each picture says in a text chunk whose it is, so that a damaged, an edited and a user's own picture are told apart.
    """

    def __init__(self, folder: Path, request: Request):
        super().__init__(folder, request)
        self._marks = {_name(place): mark for place, mark in enumerate(marks(read_json(folder / REQUEST)))}

    def is_whole(self) -> bool:
        return False  # finishing again is cheap

    def _names(self, number: int) -> list[str]:
        start = number * self.request.batch_size
        stop = min(start + self.request.batch_size, len(self.request.labels))
        return [_name(place) for place in range(start, stop)]

    def has(self, number: int) -> bool:
        return all(map(self._is_drawn, self._names(number)))

    def _is_drawn(self, name: str) -> bool:
        return is_marked(self.folder / name, self._marks[name])

    def write(self, batch: GeneratedBatch) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        names = self._names(batch.start // self.request.batch_size)
        for name, image in zip(names, to_pil(batch.images), strict=True):
            aside = temporary_path(self.folder / name, "writing")
            said = PngInfo()
            said.add_text(MARK, f"{self._marks[name]} {_digest(image)}")
            image.save(aside, format="PNG", pnginfo=said)
            if os.path.lexists(self.folder / name) and not self._is_drawn(name):
                keep_found(self.folder / name)
            os.replace(aside, self.folder / name)

    def finish(self) -> None:
        names = [name for number in range(self.request.batches) for name in self._names(number)]
        lines = []
        for name, label, seed in zip(names, self.request.labels, self.request.seeds, strict=True):
            line = {"file_name": name, "seed": seed}
            if self.request.class_names is not None:
                line["label"] = self.request.class_names[label]
            lines.append(json.dumps(line) + "\n")
        with replacing_ours(self.folder / "metadata.jsonl") as aside:
            aside.write_text("".join(lines), encoding="utf-8")
        hint = "remove it, and the same command draws it again"
        shown = [np.atleast_3d(np.asarray(whole_picture(self.folder / name, hint))) for name in names[:GRID]]
        self.save_grid(torch.from_numpy(np.stack(shown)).permute(0, 3, 1, 2))


def _name(place: int) -> str:
    return f"{place:06d}.png"


def marks(asked: Mapping[str, Any]) -> list[str]:
    """Return for each image of a request what tells it from others: a digest of all that decides it."""
    of_all = {name: value for name, value in asked.items() if name not in NOT_DECIDING}
    each = zip(asked["labels"], asked["seeds"], strict=True)
    return [_hash(json.dumps([of_all, *one], sort_keys=True).encode()) for one in each]


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _digest(picture: PIL.Image.Image) -> str:
    return _hash(f"{picture.mode} {picture.size} ".encode() + picture.tobytes())


def is_marked(path: Path, mark: str) -> bool:
    """Return whether there is a picture that was drawn with this mark, whole and as it was drawn."""
    try:
        with open_picture(path) as picture:
            picture.load()
            return bool(picture.info.get(MARK) == f"{mark} {_digest(picture)}")
    except Exception:  # damaged files raise nearly anything in PIL
        return False


class NpzFile(Output):
    """samples.npz in the evaluators' layout, arr_0 uint8 (N, H, W, C) and arr_1 labels (N,), and grid.png."""

    def is_whole(self) -> bool:
        name = "samples.npz"
        return (self.folder / name).exists() and is_as_written(self.folder, name, noted(self.folder))

    def finish(self) -> None:
        images = torch.cat([part["images"] for part in self.parts()])
        arrays: dict[str, Any] = {"arr_0": images.permute(0, 2, 3, 1).numpy()}
        if self.request.class_names is not None:
            arrays["arr_1"] = np.asarray(self.request.labels, np.int64)
        self.save_grid(images[:GRID])
        with replacing_ours(self.folder / "samples.npz") as aside, open(aside, "wb") as file:
            np.savez_compressed(file, **arrays)
        self.remove_parts()


class CodesFolder(Output):
    """A codes dataset with one split, `generated`, whose rows are the images' places in the request, and grid.png."""

    def is_whole(self) -> bool:
        return is_whole(self.folder)

    def finish(self) -> None:
        parts, prior, request = self.parts(), self.request.pipeline.prior.config, self.request
        info = CodesInfo(
            layout=request.pipeline.tokenizer.config.layout,  # a prior over the vectors of codes has another
            views=1,
            condition=request.pipeline.condition,
            tokenizer=prior.tokenizer,
            source={"generated": True, "seed": request.seeds[0]},
            shard_size=len(request.labels),
        )
        write_plan(self.folder, info)
        codes = torch.cat([part["codes"] for part in parts]).numpy()
        labels = None if request.class_names is None else np.asarray(request.labels, np.int64)
        write_shard(shard_path(self.folder, "generated", 0, 1), info, CodesSplit(codes, labels, np.arange(len(codes))))
        self.save_grid(torch.cat([part["images"] for part in parts])[:GRID])
        finish(self.folder, info, {"generated": {"rows": len(codes)}})
        self.remove_parts()


FORMATS = {"png": PngFolder, "npz": NpzFile, "codes": CodesFolder}


def read_request(folder: Path) -> dict[str, Any] | None:
    """Return the request of the images in a folder, or None if the folder is new or empty.

    Raises:
        Refused: the folder holds something that no request of ours wrote.
    """
    if not os.path.lexists(folder) or (folder.is_dir() and is_empty(folder)):
        return None
    asked = read_json(folder / REQUEST) if (folder / REQUEST).is_file() else {}
    labels, seeds = asked.get("labels"), asked.get("seeds")
    lists = isinstance(labels, list) and isinstance(seeds, list) and len(labels) == len(seeds)
    if asked.get("format") not in FORMATS or not lists:
        raise Refused(f"{folder} holds something else; give another --output")
    return asked


def begin_request(folder: Path, asked: Mapping[str, Any], *, overwrite: bool = False) -> None:
    """Start a request in a folder, or go on with it.

    Raises:
        Refused: as `read_request`; or another request's images are there, and `overwrite` is false.
    """
    before = read_request(folder)
    sweep(folder)
    if before == asked:
        return
    if before is not None:
        left = files_of_request(folder, before)
        if left and not overwrite:
            hint = "give another --output, or --overwrite true to replace them"
            raise Refused(f"{folder} holds another request's images; {hint}")
        for path in left:
            remove(path)
    write_json(folder / REQUEST, asked)


def files_of_request(folder: Path, asked: Mapping[str, Any]) -> list[Path]:
    """Return the existing files that a request wrote, without those that were edited since, which are the user's."""
    noted_ones, names, files = ["grid.png", "growth.gif"], [".parts"], noted(folder)
    if asked["format"] == "png":
        noted_ones += ["metadata.jsonl"]
        pictures = ((_name(place), mark) for place, mark in enumerate(marks(asked)))
        names += [name for name, mark in pictures if is_marked(folder / name, mark)]
    elif asked["format"] == "npz":
        noted_ones += ["samples.npz"]
    else:
        noted_ones += [README]
        names += ["codes.json", PLAN, shard_path(folder, "generated", 0, 1).name]
    names += [name for name in noted_ones if is_as_written(folder, name, files)]
    return [folder / name for name in names if os.path.lexists(folder / name)]

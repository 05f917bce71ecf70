"""The codes dataset: what the tokenizer writes and the prior reads, or what a prior draws in the place of each code.

A folder that `datasets.load_dataset(FOLDER)` reads as it is:

    SPLIT-00000-of-00006.parquet    one row a view of an image: codes (T,), or latents (T,) and where they are the
                                    centre of a distribution its scale (T,); label, row (its index in the source)
    codes.json                      layout, views, classes, source and its fingerprint, the tokenizer's SHA-256
    README.md                       the dataset card, with its YAML head

Shapes: codes (N, T) in [0, K), in raster order, the Q codes of a place side by side, in the smallest unsigned type that
holds K; labels (N,).

Shards are written aside and renamed; `codes.json` comes last, so a folder that has one is whole.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from smalti.common import markdown
from smalti.common.codes_info import CodesInfo
from smalti.common.condition import condition_in_format_1
from smalti.common.config import build
from smalti.common.ends import pass_on
from smalti.common.errors import Refused, UserError
from smalti.common.folder import (
    FORMAT,
    check_format,
    inside,
    is_empty,
    read_json,
    read_settings,
    remove,
    replacing,
    settings_in,
    sweep,
    write_json,
)
from smalti.common.hub import source_repository
from smalti.common.layout import in_format_1
from smalti.common.mapped import MappedRows, map_column
from smalti.common.reading import open_regular_file
from smalti.common.record import private
from smalti.common.written import write_text

if TYPE_CHECKING:  # half a second, and reading does without
    from datasets import Features

MAPPED = 2**26  # bytes of codes from which a split is mapped from the disk: below, mapping gains nothing
TOGETHER = 2**16  # rows that are checked at once
AGAIN = "give the command that wrote it again to mend it"
SHARD = re.compile(r"[^/]+-\d{5}-of-\d{5}\.parquet")  # the name of one, of whichever split
PLAN = ".plan.json"  # the settings of an encode, beside its shards
Rows = np.ndarray | MappedRows


class CodesSplit(NamedTuple):
    codes: Rows  # (N, T) unsigned, or float32 of vectors
    condition: np.ndarray | None  # (N, ...) the column of the condition; of classes int64, -1 where a row has none
    rows: np.ndarray  # (N,) int64, index in the source
    scale: Rows | None = None  # (N, T) float32, standard deviation of q(z | x) around `codes`, where rows are moments

    def at(self, some: slice | range | np.ndarray) -> "CodesSplit":
        """Return some of its rows."""
        condition = None if self.condition is None else self.condition[some]
        return CodesSplit(
            self.codes[some], condition, self.rows[some], None if self.scale is None else self.scale[some]
        )

    def digest(self) -> str:
        """Return the SHA-256 of all its columns."""
        found = Digest()
        for start in range(0, max(1, len(self.rows)), TOGETHER):
            found.update(self.at(slice(start, start + TOGETHER)))
        return found.hexdigest()


class Digest:
    """The SHA-256 of a split, computed shard by shard."""

    def __init__(self) -> None:
        self._codes, self._condition, self._rows = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()
        self._scale: Any = None  # of moments alone: the hash of codes is what it was before there were any

    def update(self, shard: CodesSplit) -> None:
        self._codes.update(np.ascontiguousarray(np.asarray(shard.codes), shard.codes.dtype.newbyteorder("<")).data)
        self._rows.update(np.ascontiguousarray(shard.rows, "<i8").data)
        if shard.condition is not None:
            little = shard.condition.dtype.newbyteorder("<")
            self._condition.update(np.ascontiguousarray(shard.condition, little).data)
        if shard.scale is not None:
            self._scale = self._scale or hashlib.sha256()
            self._scale.update(np.ascontiguousarray(np.asarray(shard.scale), "<f4").data)

    def hexdigest(self) -> str:
        """Return one SHA-256 of all columns."""
        parts = [self._codes, self._condition, self._rows, *([] if self._scale is None else [self._scale])]
        return hashlib.sha256(b"".join(each.digest() for each in parts)).hexdigest()


class Codes(NamedTuple):
    info: CodesInfo
    splits: dict[str, CodesSplit]


# ------------------------------------------------------------------------------------------------------------ writing


def check_plan(folder: Path, info: CodesInfo) -> None:
    """Check that these codes may be written into the folder: it is new, or an encode of the same plan began it.

    Raises:
        UserError: the folder holds codes of another tokenizer, source or setting; it names both.
    """
    check_begun(folder)
    plan = folder / PLAN
    planned = _planned(info)
    if plan.exists():
        before = build(CodesInfo, settings_in(read_json(plan), plan), plan)
        if not before.tokenizer.same_codes(info.tokenizer):
            raise UserError(
                f"{folder} holds codes of the tokenizer {before.tokenizer}, not of {info.tokenizer}; "
                "give another --output, or remove the folder to encode again"
            )
        if (before.redrawn is None) != (info.redrawn is None):
            held = "the images' own codes" if before.redrawn is None else "what a prior drew in place of codes"
            raise UserError(f"{folder} holds {held}; give another --output")
        were = _planned(before)
        differ = [key for key in were | planned if were.get(key) != planned.get(key)]
        if differ and differ != ["tokenizer"]:
            raise UserError(
                f"{folder} holds codes of other settings: {', '.join(differ)} differ; "
                "give the same ones, another --output, or remove the folder"
            )


def _planned(info: CodesInfo) -> dict[str, Any]:
    """Return the settings of a plan by their names, those of draws one by one."""
    said = info.model_dump(mode="json")
    drawn = said.pop("redrawn") or {}
    return said | {f"redrawn.{name}": value for name, value in drawn.items()}


def check_begun(folder: Path) -> None:
    """Raise `Refused` where a folder holds something that no command of ours began, or lies in a codes dataset."""
    if around := next((parent for parent in folder.resolve().parents if is_whole(parent)), None):
        raise Refused(f"{folder} lies in {around}, a codes dataset; give another --output")
    if os.path.lexists(folder) and not (folder / PLAN).is_file() and not (folder.is_dir() and is_empty(folder)):
        raise Refused(f"{folder} holds something that no command of ours began; give another --output")


def begin_codes(folder: Path, info: CodesInfo) -> None:
    """Start writing a codes dataset or go on, and keep the plan beside the shards. Raises as `check_plan`."""
    check_plan(folder, info)
    sweep(folder)
    if not (folder / PLAN).exists():
        write_plan(folder, info)


def write_plan(folder: Path, info: CodesInfo) -> None:
    write_json(folder / PLAN, info.model_dump(mode="json"))


def shard_path(folder: Path, split: str, shard: int, shards: int) -> Path:
    return folder / f"{split}-{shard:05d}-of-{shards:05d}.parquet"


def is_shard(name: str) -> bool:
    """Return whether a file's path in a folder of codes is one that `shard_path` gives."""
    return SHARD.fullmatch(name) is not None


def write_shard(path: Path, info: CodesInfo, shard: CodesSplit) -> None:
    """Write some rows as one Parquet shard that appears when it is whole."""
    schema = _features(info).arrow_schema
    columns = {"row": pa.array(shard.rows, pa.int64())}
    for name, numbers in zip(info.list_columns, (shard.codes, shard.scale), strict=False):
        assert numbers is not None and numbers.shape == (len(shard.rows), info.layout.length)
        flat = pa.array(np.ascontiguousarray(numbers, info.dtype).reshape(-1))
        columns[name] = pa.FixedSizeListArray.from_arrays(flat, info.layout.length)
    if info.condition.column is not None:
        columns[info.condition.column] = pa.array(shard.condition, schema.field(info.condition.column).type)
    table = pa.table({name: columns[name] for name in schema.names}, schema=schema)
    with replacing(path) as aside:
        pq.write_table(table, aside, compression="zstd")


def _features(info: CodesInfo) -> "Features":
    from datasets import Features, List, Value

    columns = {name: List(Value(info.dtype.name), length=info.layout.length) for name in info.list_columns}
    if info.condition.column is not None:
        columns[info.condition.column] = info.condition.feature()
    return Features({**columns, "row": Value("int64")})


def finish(folder: Path, info: CodesInfo, splits: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the dataset card, unless a user edited it, then `codes.json`, which makes the folder whole.

    Args:
        splits: for each split its `rows`, its `sha256`, and any figures to keep with them.
    """
    write_text(folder / "README.md", dataset_card(folder, info, splits))
    write_json(folder / "codes.json", as_written(info, splits))


def as_written(info: CodesInfo, splits: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the content of `codes.json`."""
    return {"kind": "smalti.codes", "format": FORMAT, **info.model_dump(mode="json"), "splits": splits}


# ----------------------------------------------------------------------------------------------------------- the card

SIZES = {
    10**3: "n<1K",
    10**4: "1K<n<10K",
    10**5: "10K<n<100K",
    10**6: "100K<n<1M",
    10**7: "1M<n<10M",
    10**8: "10M<n<100M",
}


def dataset_card(
    folder: Path,
    info: CodesInfo,
    splits: Mapping[str, Mapping[str, Any]],
    *,
    place: str = "path/to/this/folder",
    license: str | None = None,
) -> str:
    """Return the README.md of a codes dataset, with the YAML head that `load_dataset` and the Hub read.

    Args:
        splits: as `finish`.
        place: where the folder will be found, `owner/name` on the Hub.
    """
    origin, total = source_repository(info.source), sum(split["rows"] for split in splits.values())
    head = markdown.yaml_head(
        pretty_name=_title(info) + (f" of {origin}" if origin else ""),
        license=license,
        task_categories=["unconditional-image-generation"],
        tags=[markdown.LIBRARY, "image-codes", "vq-vae"],
        source_datasets=[f"extended|{origin}"] if origin else None,
        size_categories=[next((name for most, name in SIZES.items() if total < most), "n>100M")],
        configs=[
            {"config_name": "default", "data_files": [{"split": name, "path": f"{name}-*.parquet"} for name in splits]}
        ],
        dataset_info=_dataset_info(folder, info, splits),
    )
    return head + _card(info, splits, place)


def _title(info: CodesInfo) -> str:
    return "Image codes" if info.redrawn is None else "Image codes, redrawn"


def _dataset_info(folder: Path, info: CodesInfo, splits: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return columns and sizes as `datasets` writes them into a YAML head."""
    from datasets import DatasetInfo, SplitDict, SplitInfo
    from datasets.info import DatasetInfosDict
    from huggingface_hub import DatasetCardData

    features, data = _features(info), DatasetCardData()
    lists = len(info.list_columns)
    row = lists * info.layout.length * info.dtype.itemsize + 8 * (len(features) - lists)  # bytes in memory
    sizes = {name: SplitInfo(name, row * split["rows"], split["rows"]) for name, split in splits.items()}
    stored = sum(path.stat().st_size for name in splits for path in shard_paths(folder, name))
    told = DatasetInfo(
        features=features,
        splits=SplitDict(sizes),
        download_size=stored,
        dataset_size=sum(size.num_bytes for size in sizes.values()),
    )
    DatasetInfosDict({"default": told}).to_dataset_card_data(data)
    return data.to_dict()["dataset_info"]


FIGURES = {  # of a split, as encoding measures them
    "psnr_pooled": "PSNR of what they decode to, dB",
    "psnr": "mean over images, dB",
    "usage": "codebook in use",
    "perplexity": "perplexity",
}
FIGURES_OF_DRAWS = {"as_they_were": "share of codes drawn as they were"}


DRAWN = (
    " **They are not the images' own codes**: a prior drew each of them, given the image's own codes before it in the "
    "order in which it predicts them."
)


def _use(info: CodesInfo) -> str:
    """Return what to do with the codes, as the card says it."""
    if info.redrawn is not None:
        return "\nTo train the decoder of their tokenizer on them:\n\n" + markdown.fenced(
            "python tokenizer/train.py --start_from RUN --train decoder --replace_codes 1 --replace_by drawn "
            "--drawn_codes CODES --run ANOTHER_RUN"
        )
    return "\nTo train a prior of Smalti on them, with the files in a folder CODES:\n\n" + markdown.fenced(
        "python prior/train.py CONFIG --codes CODES --run RUN"
    )


def _column_rows(info: CodesInfo) -> list[tuple[str, str]]:
    """Return each column and its meaning, as rows of the card's table."""
    values = f"integers in [0, {info.layout.codebook_size})" if info.layout.discrete else "numbers"
    deep = ", those of a place side by side" if any(grid.depth > 1 for grid in info.layout.grids) else ""
    rows = [(f"`{info.column}`", f"{info.layout.length} {values}, raster order{deep}")]
    if info.moments:
        rows[0] = (rows[0][0], f"{rows[0][1]}: the mean of q(z | x)")
        rows.append(("`scale`", f"{info.layout.length} numbers, its standard deviation; z is latents + scale x noise"))
    if info.condition.num_classes:
        rows.append(("`label`", f"one of {info.condition.num_classes} classes; -1 where the source has none"))
    return [*rows, ("`row`", "of the image in its split of the source")]


def _split_row(name: str, split: Mapping[str, Any], told: Mapping[str, str]) -> tuple[str, ...]:
    """Return the sizes and figures of a split, as a row of the card's table."""
    figures = (f"{split[key]:.4g}" if isinstance(split.get(key), float) else "–" for key in told)
    return f"`{name}`", f"{split['rows']:,}", f"{split.get('images', split['rows']):,}", *figures


def _card(info: CodesInfo, splits: Mapping[str, Mapping[str, Any]], place: str) -> str:
    """Return the body of the card, below its head."""
    told = FIGURES if info.redrawn is None else FIGURES_OF_DRAWS
    rows = [_split_row(name, split, told) for name, split in splits.items()]
    measured = "As encoding measured it, on 8-bit images, PSNR of their pooled error; usage is a share of 1."
    limits = "The PSNR above says how much of an image its codes keep. "
    if info.redrawn is not None:
        drawn = info.redrawn
        given = ", ".join(f"{name} {value}" for name, value in drawn.sampling.items() if value is not None)
        measured = f"Drawn by the prior of SHA-256 `{drawn.prior}`, seed {drawn.seed}, {given}."
        limits = "The draws err as that prior errs, and not as others do. "
    return (
        f"# {_title(info)}\n\nAn image is {info.layout}, in raster order; {info.views} view(s) an image, each a row."
        f"{'' if info.redrawn is None else DRAWN}\n\n"
        "## Use\n\n"
        + markdown.fenced(f'from datasets import load_dataset\n\ncodes = load_dataset("{place}")', "python")
        + _use(info)
        + "\n## Columns\n\n"
        + markdown.markdown_table(("column", "holds"), _column_rows(info))
        + "\n## Splits\n\n"
        + markdown.markdown_table(("split", "rows", "images", *told.values()), rows)
        + f"\n{measured}\n\n## Data\n\nThe images, and how they were read:\n\n"
        + markdown.fenced(yaml.safe_dump(private(info.source), sort_keys=False, allow_unicode=True), "yaml")
        + f"\n## Tokenizer\n\n{markdown.plain(info.tokenizer.name)}, SHA-256 "
        f"`{info.tokenizer.sha256}`. Codes mean something to tokenizers with its encoder and codebook alone: one is "
        "needed to decode these, and those that a prior draws.\n"
        f"\n## Limits\n\n{limits}Rights in the images, their errors and their bias are those of the source.\n"
    )


# ------------------------------------------------------------------------------------------------------------ reading


def is_whole(folder: Path) -> bool:
    return (folder / "codes.json").exists()


def remove_damaged_codes(folder: Path) -> list[Path]:
    """Remove the damaged files of a codes dataset, so that encoding writes them again, and return their paths."""
    removed = []
    for path in sorted(folder.glob("*-?????-of-?????.parquet")):
        try:
            with open_regular_file(path):
                pq.read_metadata(path)
        except (pa.ArrowException, OSError, ValueError) as error:
            pass_on(error)
            remove(path)
            removed.append(path)
    if is_whole(folder):
        try:
            _, splits = read_info(folder)
            there = {name: sum(pq.read_metadata(p).num_rows for p in shard_paths(folder, name)) for name in splits}
            damaged = any(there[name] != split["rows"] for name, split in splits.items())
        except UserError:
            damaged = True
        if damaged:
            (folder / "codes.json").unlink()
            removed.append(folder / "codes.json")
    return removed


def read_info(folder: Path) -> tuple[CodesInfo, dict[str, dict[str, Any]]]:
    """Return what `codes.json` says of the codes and of each split. Raises `UserError` unless the folder is whole."""
    if not folder.is_dir():
        raise UserError(f"there is no codes dataset {folder}; tokenizer/encode.py writes one")
    if not is_whole(folder):
        if (folder / PLAN).exists():
            by = "prior/redraw.py" if read_json(folder / PLAN).get("redrawn") else "tokenizer/encode.py"
            raise UserError(f"{folder} was begun and not finished: run {by} again")
        raise UserError(f"{folder} has no codes.json: it is not a codes dataset that tokenizer/encode.py wrote")
    path = inside(folder, "codes.json")
    written = read_json(path)
    check_format(written, "smalti.codes", path)
    splits = written.get("splits")
    if not isinstance(splits, dict) or not all(map(_has_rows, splits.values())):
        raise UserError(f"{path}: splits must say how many rows each has, got {str(splits)[:200]}")
    if foreign := [name for name in splits if not re.fullmatch(r"\w+(\.\w+)*", name)]:
        raise UserError(f"{path}: a split's name must be of letters, digits and dots, got {foreign[0]!r}")
    info = read_settings(CodesInfo, {key: value for key, value in written.items() if key != "splits"}, path)
    for name, split in splits.items():
        if split["rows"] % info.views:
            raise UserError(
                f"{path}: split {name} must have {info.views} rows an image, as views says, got {split['rows']} rows; "
                f"{AGAIN}"
            )
    return info, splits


def _has_rows(split: Any) -> bool:
    """Return whether what codes.json says of a split has a number of rows."""
    rows = split.get("rows") if isinstance(split, dict) else None
    return isinstance(rows, int) and not isinstance(rows, bool) and rows >= 0


def load_codes(folder: Path, splits: Sequence[str] | None = None) -> Codes:
    """Return the named splits, or all, checked against `codes.json`.

    Raises:
        UserError: a split, a shard or rows are missing, codes and labels lie outside what the JSON says, or the codes
            are a prior's draws.
    """
    info, there = read_info(folder)
    if info.redrawn is not None:
        raise UserError(
            f"{folder} holds what a prior drew in place of the images' codes, for tokenizer/train.py --drawn_codes; "
            "give a folder that tokenizer/encode.py wrote"
        )
    return _load(folder, splits, info, there)


def load_redrawn(folder: Path) -> Codes:
    """Return the codes that a prior drew in place of those of the training images. Raises as `load_codes`."""
    if not is_whole(folder) and not (folder / PLAN).is_file():
        beside = f", and {folder / 'redrawn'} does" if is_whole(folder / "redrawn") else ""
        raise UserError(f"{folder} holds no draws{beside}: give the folder that prior/redraw.py wrote, as RUN/redrawn")
    info, there = read_info(folder)
    if info.redrawn is None:
        raise UserError(
            f"{folder} holds the images' own codes: give the folder that prior/redraw.py wrote, as RUN/redrawn"
        )
    return _load(folder, ["train"], info, there)


def _load(folder: Path, splits: Sequence[str] | None, info: CodesInfo, there: Mapping[str, Mapping[str, Any]]) -> Codes:
    wanted = list(there) if splits is None else splits
    if missing := [split for split in wanted if split not in there]:
        raise UserError(f"{folder} has no split {missing[0]!r}; it has {', '.join(there)}")
    found = {}
    for name in wanted:
        paths = [inside(folder, path.name) for path in shard_paths(folder, name)]
        _check_rows(paths, name, there[name]["rows"], info)
        large = there[name]["rows"] * info.layout.length * info.dtype.itemsize * len(info.list_columns) > MAPPED
        found[name] = read_mapped(paths, info) if large else read_whole(paths, info)
        _check_images(name, found[name], info)
        if "sha256" in there[name] and there[name]["sha256"] != found[name].digest():  # earlier versions wrote none
            raise UserError(
                f"split {name} of {folder} holds other codes than were written; remove the folder, and {AGAIN}"
            )
    _check_layout(folder, info)
    return Codes(info, found)


def read_whole(paths: Sequence[Path], info: CodesInfo) -> CodesSplit:
    """Return the rows of some shards, in memory. Raises what `read_shard` raises."""
    shards = [read_shard(path, info) for path in paths]
    told = [shard.condition for shard in shards if shard.condition is not None]  # of all shards, or of none
    return CodesSplit(
        codes=np.concatenate([shard.codes for shard in shards]),
        condition=np.concatenate(told) if told else None,
        rows=np.concatenate([shard.rows for shard in shards]),
        scale=np.concatenate([np.asarray(shard.scale) for shard in shards]) if info.moments else None,
    )


def read_mapped(paths: Sequence[Path], info: CodesInfo) -> CodesSplit:
    """Return the rows of some shards, the codes mapped from the disk.

    Raises:
        UserError: a shard is damaged, or holds other values than `info` allows.
    """
    try:
        codes, *scale = (map_column(paths, name, info.layout.length) for name in info.list_columns)
        table = pq.read_table(paths, columns=["row", *info.condition_columns])
    except (pa.ArrowException, OSError, ValueError) as error:
        pass_on(error)
        raise UserError(f"{paths[0].parent} is damaged ({' '.join(str(error).split())}); {AGAIN}") from None
    for start in range(0, len(codes), TOGETHER):
        for each in (codes, *scale):
            _check_values(paths[0].parent, each[start : start + TOGETHER], info)
    condition = _condition(table, info, paths[0].parent)
    return CodesSplit(codes, condition, table["row"].to_numpy(), scale[0] if scale else None)


def _check_rows(paths: Sequence[Path], split: str, rows: int, info: CodesInfo) -> None:
    """Check that shards have the rows that codes.json says and that these fit in memory, before any is taken."""
    found = sum(map(_rows_in, paths))
    if found != rows:
        raise UserError(f"split {split} must have {rows} rows, got {found} in {len(paths)} shards; {AGAIN}")
    if not paths:
        raise UserError(f"split {split} of no rows has no shards; {AGAIN}")
    needed, memory = rows * 16, psutil.virtual_memory().total  # bytes of labels and rows; codes stay on the disk
    if needed > memory:
        raise UserError(
            f"split {split} of {rows} rows needs {needed / 2**30:.0f} GiB, this machine has {memory / 2**30:.0f}"
        )


def _check_layout(folder: Path, info: CodesInfo) -> None:
    """Raise `UserError` where codes.json says another layout than the encode that wrote the shards.

    Shapes of one length and digits of one product fit the same shards. The plan says which it was; published codes have
    none.
    """
    plan = folder / PLAN
    if not plan.is_file():
        return
    planned = build(CodesInfo, settings_in(read_json(inside(folder, PLAN)), plan), plan).layout
    if planned != info.layout:
        raise UserError(
            f"{folder / 'codes.json'} says {info.layout}, and {planned} were encoded, which differ in "
            f"{info.layout.differences(planned)}: codes.json was changed; remove the folder and encode again"
        )


def _check_images(name: str, split: CodesSplit, info: CodesInfo) -> None:
    """Raise `UserError` unless the rows of an image are its views, and a training row's condition is not said absent.

    The views of an image follow each other: it has as many rows as there are views, and the next image has another row
    of the source. So `views` that were changed in codes.json are found even where they divide the rows.
    """
    images = split.rows.reshape(-1, info.views)
    if (images != images[:, :1]).any() or (images[1:, 0] == images[:-1, 0]).any():
        raise UserError(f"split {name} must have {info.views} rows an image, as views in codes.json says; {AGAIN}")
    if name == "train" and split.condition is not None:
        try:
            info.condition.check_train(split.condition)
        except ValueError as error:
            raise UserError(f"split train and codes.json do not go together: {error}; {AGAIN}") from None


def _rows_in(path: Path) -> int:
    try:
        return pq.read_metadata(path).num_rows
    except (pa.ArrowException, OSError) as error:
        pass_on(error)
        raise UserError(f"{path} is damaged ({' '.join(str(error).split())}); {AGAIN}") from None


def codes_fingerprint(codes: Codes) -> str:
    """Return the SHA-256 of the splits that were read and of what their codes are of.

    It covers every code, label and row, and no name of the source or the tokenizer.
    """
    return _fingerprint(codes.info, {name: split.digest() for name, split in codes.splits.items()})


def recorded_fingerprint(info: CodesInfo, splits: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Return the fingerprint as codes.json gives it, reading no split; None where an earlier version wrote none."""
    digests = {name: split.get("sha256") for name, split in splits.items()}
    return None if None in digests.values() else _fingerprint(info, digests)


def _fingerprint(info: CodesInfo, digests: Mapping[str, str | None]) -> str:
    said = info.model_dump(
        mode="json",
        exclude={
            "layout": True,
            "condition": True,
            "source": True,
            "shard_size": True,
            "tokenizer": {"name", "files"},
            "statistics": True,  # they follow from the rows
        },
    )
    said = {name: value for name, value in said.items() if name not in ("moments", "redrawn") or value}  # new since
    said |= in_format_1(info.layout) | condition_in_format_1(info.condition)  # a fingerprint outlives the format
    told = [said, info.source.get("fingerprint"), digests]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def shard_paths(folder: Path, split: str) -> list[Path]:
    return sorted(folder.glob(f"{split}-?????-of-?????.parquet"))


def read_shard(path: Path, info: CodesInfo) -> CodesSplit:
    """Return one shard. Raises `UserError` that names it when it is damaged or not what `info` says."""
    try:
        table = pq.read_table(path, columns=[*info.list_columns, "row", *info.condition_columns])
        codes, *scale = (_list_column(table, name, info) for name in info.list_columns)
    except (pa.ArrowException, OSError, ValueError) as error:
        pass_on(error)
        raise UserError(f"{path} is damaged ({' '.join(str(error).split())}); {AGAIN}") from None
    for each in (codes, *scale):
        if len(each) != table.num_rows:
            raise UserError(
                f"{path}: a row must have {info.layout.length} codes, as codes.json says, got "
                f"{each.size / table.num_rows:g}; {AGAIN}"
            )
        _check_values(path, each, info)
    condition = _condition(table, info, path)
    return CodesSplit(codes, condition, table["row"].to_numpy(), scale[0] if scale else None)


def _list_column(table: pa.Table, name: str, info: CodesInfo) -> np.ndarray:
    """Return a column of T numbers a row, (N, T); flat where rows have another number."""
    parts = [chunk.flatten().to_numpy() for chunk in table[name].chunks]
    flat = np.concatenate(parts or [np.empty(0, info.dtype)])
    return flat.reshape(-1, info.layout.length) if flat.size == table.num_rows * info.layout.length else flat


def _condition(table: pa.Table, info: CodesInfo, path: Path) -> np.ndarray | None:
    """Return the column of the condition, if there is one. Raises `UserError` where it is not what `info` says."""
    if info.condition.column is None:
        return None
    values: np.ndarray = table[info.condition.column].to_numpy()
    try:
        info.condition.check_column(values)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    return values


def _check_values(path: Path, codes: np.ndarray, info: CodesInfo) -> None:
    """Raise `UserError` unless codes are such as the layout has."""
    if not info.layout.discrete:
        if codes.dtype != np.float32 or not np.isfinite(codes).all():
            raise UserError(f"{path}: latents must be finite numbers in float32, got {codes.dtype}; {AGAIN}")
        return
    K = info.layout.codebook_size
    if codes.dtype.kind != "u" or (codes.size and codes.max() >= K):
        raise UserError(f"{path}: codes must be integers in [0, {K}), got {codes.dtype} up to {codes.max()}")

"""Labels in a table beside the images of a folder: metadata.jsonl, metadata.csv or metadata.parquet.

{"file_name": "images/0.png", "label": "cat"}
"""

import csv
import io
import json
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from smalti.common.data.sources.class_names import normal
from smalti.common.data.sources.files import base_name, is_metadata, read_source_text
from smalti.common.data.sources.part import one_line
from smalti.common.ends import pass_on
from smalti.common.errors import UserError
from smalti.common.raster import read_file

MOST_METADATA = 2**28  # bytes: some four million lines
MOST_ROWS = 2**24


class Row(NamedTuple):
    where: str  # "line 3"
    file: str  # relative to the source
    label: Any


def metadata_rows(root: Path, files: Sequence[str], label: str = "label") -> dict[str, list[Row]]:
    """Return the rows of every metadata file among `files`, the labels from the column `label`.

    Raises:
        UserError: a line cannot be read, or names a file that is not there or not in the folder.
    """
    tables = [file for file in files if is_metadata(file)]
    folders = [posixpath.dirname(table) for table in tables]
    for folder in folders:
        if folders.count(folder) > 1:
            several = " and ".join(base_name(other) for other in tables if posixpath.dirname(other) == folder)
            raise UserError(f"{root / folder} holds {several}: which one is to be read? Keep one")
    there = {normal(file): file for file in files} | {file: file for file in files} if tables else {}
    return {table: [_there(root / table, row, there) for row in _rows(root, table, label)] for table in tables}


def _there(path: Path, row: Row, there: Mapping[str, str]) -> Row:
    file = there.get(row.file) or there.get(normal(row.file))
    if file is None:
        raise UserError(f"{path}, {row.where}: there is no file {row.file}; mend or remove the line")
    return row._replace(file=file)


def _rows(root: Path, table: str, label: str) -> Iterator[Row]:
    path, folder = root / table, posixpath.dirname(table)
    read = {"jsonl": _json_rows, "csv": _csv_rows, "parquet": _parquet_rows}[table.rpartition(".")[2]]
    for where, row in read(path, label):
        name = row.get("file_name")
        if not isinstance(name, str) or not name:
            raise UserError(f'{path}, {where}: expected a "file_name"; got {str(row)[:80]}')
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name.replace("\\", "/")).parts:
            raise UserError(f"{path}, {where}: file_name must stay inside the folder, got {name!r}")
        yield Row(where, posixpath.normpath(posixpath.join(folder, name)), row.get(label))


def _json_rows(path: Path, label: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(read_source_text(path, MOST_METADATA).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            row["file_name"]
        except (ValueError, KeyError, TypeError, RecursionError):
            expected = 'expected a JSON object with "file_name" and, where there are labels, "label"'
            raise UserError(f"{path}, line {number}: {expected}; got {line[:80]}") from None
        if isinstance(row.get(label), list | dict):
            raise UserError(
                f"{path}, line {number}: expected a {label} of text or a whole number; got {str(row[label])[:80]}"
            )
        yield f"line {number}", row


def _csv_rows(path: Path, label: str) -> Iterator[tuple[str, dict[str, Any]]]:
    lines = csv.reader(io.StringIO(read_source_text(path, MOST_METADATA), newline=""))
    try:
        head = next(lines, [])
        if head.count("file_name") != 1 or head.count(label) > 1:
            expected = f"expected columns file_name and, where there are labels, {label}"
            raise UserError(f"{path}, line 1: {expected}; got {str(head)[:80]}")
        for row in lines:
            if row and len(row) != len(head):
                raise UserError(
                    f"{path}, line {lines.line_num}: expected {len(head)} columns as in line 1; got {len(row)}"
                )
            if row:
                found = dict(zip(head, row, strict=True))
                yield f"line {lines.line_num}", {**found, label: found.get(label) or None}
    except csv.Error as error:
        raise UserError(f"{path}, line {lines.line_num}: it is no CSV: {error}") from None


def _parquet_rows(path: Path, label: str) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(pa.BufferReader(read_file(path, MOST_METADATA)))
        if table.metadata.num_rows > MOST_ROWS:
            raise ValueError(f"it has {table.metadata.num_rows:,} rows; at most {MOST_ROWS:,} are read")
        rows = table.read([name for name in ("file_name", label) if name in table.schema_arrow.names]).to_pylist()
    except (OSError, ValueError, pa.ArrowException) as error:
        pass_on(error)
        raise UserError(f"{path} cannot be read: {one_line(error)}") from None
    yield from ((f"row {number}", row) for number, row in enumerate(rows))

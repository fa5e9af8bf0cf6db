"""Read the rows of a table one chunk at a time: CSV, JSON lines or Parquet. However long it is, one chunk is in memory.

What stands in a CSV file is text: 007 stays 007 and NA stays NA. Parquet keeps the types of its columns.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steps.digests import digest_file
from steps.errors import StepError

if TYPE_CHECKING:
    import pyarrow

CSV, JSON_LINES, PARQUET = ".csv", ".jsonl", ".parquet"
FORMATS = (CSV, JSON_LINES, PARQUET)


@dataclass(frozen=True)
class Row:
    """A row's values by column, or why the row cannot be read."""

    values: dict[str, Any]
    error: str | None = None


@dataclass(frozen=True)
class Source:
    """A table that was looked through once.

    Attributes:
        columns: The names of its columns.
        rows: How many rows it has.
        sha256: The digest of the file.
        schema: The types of a Parquet file's columns; None for text.
    """

    path: Path
    columns: tuple[str, ...]
    rows: int
    sha256: str
    schema: pyarrow.Schema | None = None

    def chunks(self, size: int, skip: int = 0) -> Iterator[list[Row]]:
        """Yield the rows in chunks, without the first `skip` chunks."""
        if self.schema is not None:
            yield from islice(_parquet_chunks(self.path, size), skip, None)
            return
        rows = _rows(self.path)
        for _ in islice(rows, skip * size):
            pass
        while chunk := list(islice(rows, size)):
            yield chunk


def opened(path: Path) -> Source:
    """Look through a table; raise StepError if it cannot be read."""
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise StepError(f"input must be a file with the suffix {', '.join(FORMATS)}, got '{path}'.")
    if not path.is_file():
        raise StepError(f"input must be a file, got '{path}', which does not exist.")
    try:
        source = _parquet(path) if suffix == PARQUET else _text(path)
    except UnicodeDecodeError as error:
        raise StepError(f"{path.name} is not UTF-8 text ({error.reason}). Save it as UTF-8.") from error
    except (OSError, ValueError, csv.Error) as error:
        reason = " ".join(str(error).split())[:200]
        raise StepError(
            f"{path.name} cannot be read: {reason}. Write it again as CSV, JSON lines or Parquet."
        ) from error
    if not source.rows:
        raise StepError(f"{path.name} holds no row.")
    return source


def _text(path: Path) -> Source:
    columns: dict[str, None] = {}  # an ordered set
    rows = 0
    for row in _rows(path):
        columns |= dict.fromkeys(row.values)
        rows += 1
    return Source(path, tuple(columns), rows, digest_file(path))


def _parquet(path: Path) -> Source:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        schema = file.schema_arrow.remove_metadata()
        return Source(path, tuple(schema.names), file.metadata.num_rows, digest_file(path), schema)


def _parquet_chunks(path: Path, size: int) -> Iterator[list[Row]]:
    import datasets

    streamed: Any = datasets.load_dataset("parquet", data_files=[str(path)], split="train", streaming=True)
    for table in streamed.with_format("arrow").iter(batch_size=size):
        yield [Row(values) for values in table.to_pylist()]


def _rows(path: Path) -> Iterator[Row]:
    return _csv_rows(path) if path.suffix.lower() == CSV else _json_rows(path)


def _csv_rows(path: Path) -> Iterator[Row]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the default is 128 KiB
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        columns = next(reader, [])
        if twice := {name for name in columns if columns.count(name) > 1}:
            raise ValueError(f"its first line has the column '{sorted(twice)[0]}' twice")
        for cells in reader:
            if not cells:
                continue
            error = None if len(cells) <= len(columns) else f"the row has {len(cells)} cells of {len(columns)}"
            values = dict.fromkeys(columns, "") | dict(zip(columns, cells, strict=False))
            yield Row(values, error)


def _json_rows(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        for line in file:
            if line.strip():
                yield _json_row(line)


def _json_row(line: str) -> Row:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Row({}, f"the line is broken JSON ({type(error).__name__})")
    return Row(values) if isinstance(values, dict) else Row({}, "the line is no JSON object")

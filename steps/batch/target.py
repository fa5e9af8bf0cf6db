"""Write rows with their answers: parts of the output, and the parts as one file. The suffix chooses the format."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steps.batch.source import CSV, PARQUET, Source

if TYPE_CHECKING:
    import pyarrow

Rows = list[dict[str, Any]]


def write_part(path: Path, rows: Rows, source: Source, added: tuple[str, str]) -> None:
    """Write rows to a part.

    Args:
        path: The part.
        rows: The values of each row by column.
        source: What the rows were read from.
        added: The columns that the source does not have.
    """
    columns = [*source.columns, *added]
    if path.suffix == PARQUET:
        from pyarrow import Table, parquet

        schema = _schema(source, added)
        if source.schema is None:
            rows = [{name: _cell(row.get(name)) for name in columns} for row in rows]
        parquet.write_table(Table.from_pylist(rows, schema), path)
    elif path.suffix == CSV:
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([_cell(row.get(name)) for name in columns] for row in rows)
    else:
        lines = (json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
        # JSON's escape of a lone surrogate is what Python writes with backslashreplace.
        with path.open("w", encoding="utf-8", newline="\n", errors="backslashreplace") as file:
            file.writelines(lines)


def join(parts: Iterable[Path], path: Path, source: Source, added: tuple[str, str]) -> None:
    """Join parts to one file, with one of them in memory at a time."""
    if path.suffix == PARQUET:
        from pyarrow import parquet

        with parquet.ParquetWriter(path, _schema(source, added)) as writer:
            for part in parts:
                writer.write_table(parquet.read_table(part))
        return
    with path.open("wb") as file:
        if path.suffix == CSV:
            file.write(_header([*source.columns, *added]))
        for part in parts:
            with part.open("rb") as opened:
                shutil.copyfileobj(opened, file)


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file so that it is whole or not there, also after a power loss."""
    unfinished = path.with_name(f"unfinished{path.suffix}")
    write(unfinished)
    with unfinished.open("rb") as file:
        os.fsync(file.fileno())
    unfinished.replace(path)


def _schema(source: Source, added: tuple[str, str]) -> pyarrow.Schema:
    import pyarrow

    fields = source.schema or [pyarrow.field(name, pyarrow.string()) for name in source.columns]
    return pyarrow.schema([*fields, *(pyarrow.field(name, pyarrow.string()) for name in added)])


def _header(columns: list[str]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerow(columns)
    return text.getvalue().encode()


def _cell(value: Any) -> str | None:
    """Return a value as the text of a cell; a list or an object as JSON."""
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    # A lone surrogate cannot be written to a file.
    return text.encode(errors="replace").decode()

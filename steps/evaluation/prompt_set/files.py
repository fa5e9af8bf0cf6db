"""Read the rows of a file: JSON lines, a JSON array, CSV, TSV or Parquet. What stands in the file is the text.

No cell is taken for a number, a date or a missing value: 007 stays 007 and NA stays NA. Only JSON has types; its
numbers may be read as they are written. Parquet has typed columns, and `columns.py` writes their values as text.
"""

import codecs
import io
import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from steps.errors import StepError
from steps.evaluation.prompt_set import table

TABLES = (".csv", ".tsv", ".tab")
PARQUET = (".parquet", ".pq")
JSON_LINES = (".jsonl", ".ndjson")
JSON = ".json"
SUFFIXES = (*JSON_LINES, JSON, *TABLES, *PARQUET)
# What other files begin with, and how a user can get at their rows.
OTHER_KINDS = {
    b"PK\x03\x04": "an Excel workbook or a zip archive. Save its rows as CSV or JSON lines",
    b"\x1f\x8b": "compressed. Decompress it first",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook. Save its rows as CSV",
}
WRAPPERS = {"data", "rows", "examples", "instances", "items", "questions", "train", "validation", "test"}
SHOWN = 40
NOT_UTF8 = "it is not UTF-8 text. Give its encoding, such as -P prompt_set.encoding=cp1252 (Windows)."


class Number(str):
    """A number in a JSON file, as it is written there."""


class RepeatedKeyError(ValueError):
    """A JSON object has a key twice. Python's parser would keep the last one without a word."""


class Table(NamedTuple):
    """The rows of a file.

    Attributes:
        unit: What the number of a row counts: a "line" or a "row".
        rows: The number of each row, from 1, and its content: a dictionary if the file is well-formed, a ValueError
            with a sentence if the row is not.
        has_types: True for JSON, whose values may be lists and objects.
    """

    unit: str
    rows: Iterator[tuple[int, Any]]
    has_types: bool = False


def read(path: Path, encoding: str | None = None, numbers_as_text: bool = True, suffix: str | None = None) -> Table:
    """Return the rows of a file; raise StepError if it is no such file.

    Args:
        path: The file.
        encoding: Its encoding; None for UTF-8, or what a byte order mark says.
        numbers_as_text: Return the numbers of JSON as they are written, not as int or float.
        suffix: The suffix that says what the file is, if it is not its own.
    """
    suffix = (suffix or path.suffix).lower()
    with path.open("rb") as file:
        start = file.read(8)
    if kind := next((kind for magic, kind in OTHER_KINDS.items() if start.startswith(magic)), None):
        raise StepError(f"prompt_set.path: {path.name} is {kind}.")
    if suffix in PARQUET or start.startswith(b"PAR1"):
        return Table("row", _parquet(path))
    encoding = _encoding(start, encoding)
    if suffix in TABLES:
        return Table("line", table.rows_of(path.name, _decoded(path, encoding), is_tsv=suffix != ".csv"))
    decode = AS_TEXT.decode if numbers_as_text else TYPED.decode
    content = _whole(path, encoding, suffix, decode)
    if content is None:
        return Table("line", _lines(path, encoding, decode), has_types=True)
    return Table("row", iter(enumerate(_objects(content), start=1)), has_types=True)


def _encoding(start: bytes, configured: str | None) -> str:
    """Return the encoding of a file by its first bytes, unless one is configured."""
    if not configured:
        return json.detect_encoding(start)
    try:
        "".encode(configured)
        return codecs.lookup(configured).name
    except (LookupError, ValueError) as error:
        raise StepError(f"prompt_set.encoding must be an encoding such as cp1252, got '{configured}'.") from error


def _decoded(path: Path, encoding: str) -> str:
    """Return the text of a file; raise StepError with the first byte that is not in the encoding."""
    content = path.read_bytes()
    try:
        return content.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        byte, line = content[error.start], content.count(b"\n", 0, error.start) + 1
        advice = "If an older program wrote it, give its encoding, such as -P prompt_set.encoding=cp1252 (Windows)."
        raise StepError(f"{path.name}: line {line}: byte 0x{byte:02X} is not {encoding} text. {advice}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in content if keys.count(key) > 1)
        raise RepeatedKeyError(f"the key {repeated[:SHOWN]!r} stands twice.")
    return content


TYPED = json.JSONDecoder(object_pairs_hook=_unique)
AS_TEXT = json.JSONDecoder(object_pairs_hook=_unique, parse_int=Number, parse_float=Number, parse_constant=Number)


def _parse(text: str, decode: Any) -> Any:
    """Return the value of a JSON text; ValueError, not raised, if it is broken."""
    try:
        return decode(text)
    except json.JSONDecodeError as error:
        line = f" of line {error.lineno}" if error.lineno > 1 else ""
        return ValueError(f"broken JSON: {error.msg} at column {error.colno}{line}.")
    except RepeatedKeyError as error:
        return ValueError(f"broken JSON: {error}")
    except RecursionError:
        return ValueError("broken JSON: it is nested too deeply.")
    except ValueError:
        return ValueError("broken JSON: a number has too many digits.")


def _lines(path: Path, encoding: str, decode: Any) -> Iterator[tuple[int, Any]]:
    """Yield number and content of every line that is not blank."""
    if encoding not in ("utf-8", "utf-8-sig"):
        for number, text in enumerate(io.StringIO(_decoded(path, encoding)), start=1):
            if text.strip():
                yield number, _parse(text.strip(), decode)
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if line.strip():
                try:
                    yield number, _parse(line.decode("utf-8"), decode)
                except UnicodeDecodeError:
                    yield number, ValueError(NOT_UTF8)


def _whole(path: Path, encoding: str, suffix: str, decode: Any) -> Any:
    """Return the content of a file that is one JSON value; None if it has one on each line."""
    with path.open("rb") as file:
        start = file.read(4096).decode(encoding, errors="ignore").lstrip("\ufeff \t\r\n")
    if not start.startswith("[" if suffix in JSON_LINES else ("[", "{")):
        return None
    content = _parse(_decoded(path, encoding), decode)
    if not isinstance(content, ValueError):
        return content
    # A second value follows: JSON lines, whatever the file is called.
    if suffix != JSON or "Extra data" in str(content):
        return None
    raise StepError(f"{path.name}: {content}")


def _objects(content: Any) -> list[Any]:
    """Return the rows of one JSON value: an array, an object that holds one under a usual name, or columns."""
    if isinstance(content, dict):
        if rows := _rows_of_columns(content):
            return rows
        arrays = [value for key, value in content.items() if key.lower() in WRAPPERS and isinstance(value, list)]
        return arrays[0] if len(arrays) == 1 else [content]
    return list(content)


def _rows_of_columns(content: dict[str, Any]) -> list[Any]:
    """Return the rows of a table that is written by its columns, as pandas and `datasets` do; empty if it is none."""
    names, cells = content.get("columns"), content.get("data")
    if isinstance(names, list) and isinstance(cells, list) and all(isinstance(row, list) for row in cells):
        return [dict(zip(map(str, names), row, strict=False)) for row in cells]
    columns = list(content.values())
    if len(columns) > 1 and all(isinstance(column, dict) for column in columns):
        columns = [list(column.values()) for column in columns if column.keys() == columns[0].keys()]
    are_columns = all(isinstance(column, list) and len(column) == len(columns[0]) for column in columns)
    # The messages of a single row are a list too.
    if len(columns) != len(content) or len(columns) < 2 or not are_columns or _is_conversation(content):
        return []
    return [dict(zip(content, row, strict=True)) for row in zip(*columns, strict=True)]


def _is_conversation(content: dict[str, Any]) -> bool:
    return any(isinstance(column, list) and column and isinstance(column[0], dict) for column in content.values())


def _parquet(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield number and values of every row."""
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            batches = chain.from_iterable(_as_written(batch).to_pylist() for batch in file.iter_batches())
            yield from enumerate(batches, start=1)
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise StepError(f"{path.name}: it cannot be read as Parquet: {reason}") from error


def _as_written(batch: Any) -> Any:
    """Return a batch with its short floats as text: as Python's floats, 0.1 of 32 bits is 0.10000000149011612."""
    import pyarrow
    from pyarrow import compute

    for place, field in enumerate(batch.schema):
        if field.type == pyarrow.float32():
            column = batch.column(place)
            text = compute.if_else(compute.is_nan(column), None, column.cast(pyarrow.string()))
            batch = batch.set_column(place, field.name, text)
    return batch

"""The body of a served request: checked before MLflow reads it, and brought into the one form that it takes from us.

MLflow's scoring server takes a frame or `instances` only for models whose requests it checks itself. Ours are checked
by the contract, so every other form becomes `inputs` and `params` here, and a table of CSV too: read by a frame, a text
such as NA would be no text any more, and some thousand short lines under a long header would fill the memory.
"""

import csv
import io
import json
from collections.abc import Callable, Iterable
from email.message import Message
from itertools import islice
from typing import Any

from .errors import RequestError

MAX_ROWS, MAX_BYTES, MAX_LEVELS = 256, 1_000_000, 32
JSON, CSV = "application/json", "text/csv"
FORMATS = ("inputs", "instances", "dataframe_records", "dataframe_split")
INVALID_REQUEST = (
    "a body is a JSON object with messages, with prompt, or with exactly one of inputs, instances, dataframe_records, "
    "dataframe_split (and params), or a table with a header as text/csv"
)
# Takes rows of a frame, returns them without the cells that hold nothing.
FrameRows = Callable[[list[dict[str, Any]]], list[dict[str, Any]]]


def accepted(body: bytes, content_type: str | None, frame_rows: FrameRows) -> bytes:
    """The body as MLflow takes it, JSON; raises RequestError, whose message never repeats the body."""
    kind = _kind(content_type)
    if kind == CSV:
        return json.dumps({"inputs": frame_rows(_table(body))}).encode()
    if kind != JSON:
        said = f"the content type must be {JSON} or {CSV}, in UTF-8"
        raise RequestError("content_type", said, status=415)
    content = _parse(body)
    if not isinstance(content, dict):
        raise RequestError("invalid_request", INVALID_REQUEST)
    wanted = _rewritten(content, frame_rows)
    return body if wanted is content else json.dumps(wanted).encode()


def _kind(content_type: str | None) -> str | None:
    """The kind of content that a header names; None where it is in another charset than UTF-8."""
    header = Message()
    header["content-type"] = content_type or ""
    return header.get_content_type() if header.get_content_charset("utf-8") == "utf-8" else None


def _parse(body: bytes) -> Any:
    try:
        content = json.loads(body.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise RequestError("invalid_json", f"the body must be JSON: {_fault(error)}") from None
    if _is_deeper(content, MAX_LEVELS):
        raise RequestError("invalid_json", f"the body must be nested at most {MAX_LEVELS} levels deep")
    return content


def _fault(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} (line {error.lineno}, column {error.colno})"
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not UTF-8"
    return (
        f"it is nested deeper than {MAX_LEVELS} levels" if isinstance(error, RecursionError) else "a number is too long"
    )


def _table(body: bytes) -> list[dict[str, Any]]:
    """The rows of a table of CSV without its empty cells; a prompt stays as it is, other cells may be JSON."""
    try:
        lines = csv.reader(io.StringIO(body.decode("utf-8-sig"), newline=""), strict=True)
        names = next(lines, [])
        # One more than there may be: the contract refuses them.
        rows = list(islice(filter(None, lines), MAX_ROWS + 1))
    except (ValueError, csv.Error) as error:
        said = _fault(error) if isinstance(error, UnicodeDecodeError) else error
        raise RequestError("invalid_csv", f"the body must be a table of CSV with a header: {said}") from None
    if len(set(names)) < len(names):
        raise RequestError("invalid_csv", "the header of the table must hold different names")
    if longer := [row for row in rows if len(row) > len(names)]:
        said = f"a row of the table has {len(longer[0])} cells, more than the {len(names)} of the header"
        raise RequestError("invalid_csv", said)
    return [{name: _cell(name, cell) for name, cell in zip(names, row, strict=False) if cell} for row in rows]


def _cell(name: str, text: str) -> Any:
    if name == "prompt":
        return text
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return text if _is_deeper(content, MAX_LEVELS) else content


def _is_deeper(content: Any, levels: int) -> bool:
    """Whether lists and objects stand in each other more than so many levels deep."""
    level = [content]
    for _ in range(levels):
        level = [inner for outer in level for inner in _inside(outer) if isinstance(inner, dict | list)]
    return bool(level)


def _inside(outer: Any) -> Iterable[Any]:
    if isinstance(outer, dict):
        return outer.values()
    return outer if isinstance(outer, list) else ()


def _rewritten(content: dict[str, Any], frame_rows: FrameRows) -> dict[str, Any]:
    """Any form as `messages` or as `inputs` and `params`; the same object where it is in that form."""
    fields = {name: value for name, value in content.items() if name != "params"}
    params = content.get("params")
    if params is not None and not isinstance(params, dict):
        raise RequestError("invalid_params", f"params must be an object, got {type(params).__name__}")
    if "messages" in fields:
        return (params or {}) | fields if "params" in content else content
    if "prompt" in fields:
        return {"inputs": fields, "params": params}
    if len(fields) != 1 or next(iter(fields)) not in FORMATS:
        raise RequestError("invalid_request", INVALID_REQUEST)
    ((form, value),) = fields.items()
    return content if form == "inputs" else {"inputs": _rows(form, value, frame_rows), "params": params}


def _rows(form: str, value: Any, frame_rows: FrameRows) -> Any:
    if form == "instances":
        return value
    rows = _split(value) if form == "dataframe_split" else value
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise RequestError("invalid_dataframe", "dataframe_records must be a list of objects")
    return frame_rows(rows)


def _split(frame: Any) -> list[dict[str, Any]]:
    columns, data = (frame.get("columns"), frame.get("data")) if isinstance(frame, dict) else (None, None)
    named = isinstance(columns, list) and all(isinstance(name, str) for name in columns)
    if not named or len(set(columns)) < len(columns):
        raise RequestError("invalid_dataframe", "dataframe_split.columns must be a list of different names")
    if not isinstance(data, list) or not all(isinstance(row, list) and len(row) == len(columns) for row in data):
        said = f"dataframe_split.data must be a list of rows, each a list of {len(columns)} value(s)"
        raise RequestError("invalid_dataframe", said)
    return [dict(zip(columns, row, strict=True)) for row in data]

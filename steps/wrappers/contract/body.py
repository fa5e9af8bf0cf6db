"""The body of a served request: check it before MLflow reads it, and rewrite it into a form that MLflow passes on.

MLflow's scoring server accepts a frame or `instances` only for models whose requests it checks itself, and settings
only if they have exactly the types of the signature. Our contract checks ours, so the rows and params of every form
are put into an envelope here, which MLflow passes on as it is. CSV is read here too: a pandas frame would turn a text
such as NA into a missing value, and a few thousand short lines under a long header would fill the memory.
"""

import codecs
import csv
import io
import json
from collections.abc import Callable, Iterable
from email.message import Message
from itertools import islice
from typing import Any

from .errors import RequestError
from .fields import check_values
from .size import MAX_ROWS

MAX_LEVELS = 32
# The field of an object that holds the rows and the params of a request.
ENVELOPE = "phi3_request"
JSON, CSV = "application/json", "text/csv"
FORMATS = ("inputs", "instances", "dataframe_records", "dataframe_split")
INVALID_REQUEST = (
    "the body must be a JSON object with messages, with prompt, or with exactly one of inputs, instances, "
    "dataframe_records, dataframe_split (and params), or a table with a header as text/csv"
)
# Drops the empty cells and foreign columns of a frame's rows (`Contract.frame_rows`).
FrameRows = Callable[[list[dict[str, Any]]], list[dict[str, Any]]]


def rewrite_body(body: bytes, content_type: str | None, frame_rows: FrameRows) -> bytes:
    """Return the body as JSON that MLflow accepts, or raise RequestError with a message that never repeats the body."""
    media_type = _media_type(content_type)
    if media_type == CSV:
        return json.dumps({"inputs": _sealed(frame_rows(read_csv(body, MAX_ROWS)), None)}).encode()
    content = read_object(body, content_type, f"{JSON} or {CSV}", INVALID_REQUEST)
    return json.dumps(_rewrite(_checked(content), frame_rows)).encode()


def read_object(
    body: bytes, content_type: str | None, types: str = JSON, problem: str = "the body must be a JSON object"
) -> dict[str, Any]:
    """Return the JSON object in a body; raise RequestError for another content type, named `types`, or content."""
    if _media_type(content_type) != JSON:
        raise RequestError("content_type", f"the content type must be {types}, in UTF-8", status=415)
    content = _parse(body)
    if not isinstance(content, dict):
        raise RequestError("invalid_request", problem)
    return content


def _checked(content: dict[str, Any]) -> dict[str, Any]:
    """Check the settings that MLflow would check too: it refuses 7.0 for a whole number, in words of its own."""
    params = content.get("params")
    checked = content | {"params": check_values(params)} if isinstance(params, dict) else content
    return check_values(checked) if "messages" in checked else checked


def opened(model_input: Any, params: dict[str, Any] | None) -> tuple[Any, dict[str, Any] | None]:
    """Return the rows and the params that are in an envelope; without one, return the arguments."""
    if not isinstance(model_input, dict) or ENVELOPE not in model_input:
        return model_input, params
    return model_input[ENVELOPE]["rows"], model_input[ENVELOPE]["params"]


def _sealed(rows: Any, params: dict[str, Any] | None) -> dict[str, Any]:
    return {ENVELOPE: {"rows": rows, "params": params}}


def _media_type(content_type: str | None) -> str | None:
    """Return the media type of a header, or None if its charset is not UTF-8 (or ASCII, which is UTF-8 too)."""
    header = Message()
    header["content-type"] = content_type or ""
    try:
        charset = codecs.lookup(header.get_content_charset("utf-8")).name
    except (LookupError, ValueError):
        return None
    return header.get_content_type() if charset in ("utf-8", "utf-8-sig", "ascii") else None


def _parse(body: bytes) -> Any:
    try:
        content = json.loads(body.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise RequestError("invalid_json", f"the body must be JSON: {_reason(error)}") from None
    if _is_deeper(content, MAX_LEVELS):
        raise RequestError("invalid_json", f"the body must be nested at most {MAX_LEVELS} levels deep")
    return content


def _reason(error: Exception) -> str:
    """Describe a parse error without quoting the body."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} (line {error.lineno}, column {error.colno})"
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not UTF-8"
    if isinstance(error, RecursionError):
        return f"it is nested deeper than {MAX_LEVELS} levels"
    return "a number is too long"


def read_csv(body: bytes, max_rows: int | None = None) -> list[dict[str, Any]]:
    """Return the rows of a CSV table without their empty cells, but no more than one above `max_rows`."""
    try:
        lines = csv.reader(io.StringIO(body.decode("utf-8-sig"), newline=""), strict=True)
        names = next(lines, [])
        # One row above the limit is enough for it to be refused.
        rows = list(islice(filter(None, lines), None if max_rows is None else max_rows + 1))
    except (ValueError, csv.Error) as error:
        reason = _reason(error) if isinstance(error, UnicodeDecodeError) else error
        raise RequestError("invalid_csv", f"the body must be CSV with a header: {reason}") from None
    if len(set(names)) < len(names):
        raise RequestError("invalid_csv", "the header of the CSV table must have unique names")
    if longer := [row for row in rows if len(row) > len(names)]:
        raise RequestError(
            "invalid_csv",
            f"a row of the CSV table has {len(longer[0])} cells, but its header has only {len(names)}",
        )
    return [{name: _cell(name, cell) for name, cell in zip(names, row, strict=False) if cell} for row in rows]


def _cell(name: str, text: str) -> Any:
    """Return the value of a CSV cell: a prompt as it is, another cell as JSON if it can be read so."""
    if name == "prompt":
        return text
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return text if _is_deeper(content, MAX_LEVELS) else content


def _is_deeper(content: Any, levels: int) -> bool:
    """Return True if lists and objects are nested more than `levels` deep."""
    level = [content]
    for _ in range(levels):
        level = [inner for outer in level for inner in _children(outer) if isinstance(inner, dict | list)]
    return bool(level)


def _children(outer: Any) -> Iterable[Any]:
    if isinstance(outer, dict):
        return outer.values()
    return outer if isinstance(outer, list) else ()


def _rewrite(content: dict[str, Any], frame_rows: FrameRows) -> dict[str, Any]:
    """Return any form as an envelope in `inputs`, or with empty `messages` if the reply is an object by itself."""
    fields = {name: value for name, value in content.items() if name != "params"}
    params = content.get("params")
    if params is not None and not isinstance(params, dict):
        raise RequestError("invalid_params", f"params must be an object, got {type(params).__name__}")
    if "messages" in fields:
        return {"messages": []} | _sealed(fields, params)
    if "prompt" in fields:
        return {"inputs": _sealed(fields, params)}
    if len(fields) != 1 or next(iter(fields)) not in FORMATS:
        raise RequestError("invalid_request", INVALID_REQUEST)
    ((form, value),) = fields.items()
    return {"inputs": _sealed(_rows(form, value, frame_rows), params)}


def _rows(form: str, value: Any, frame_rows: FrameRows) -> Any:
    if form in ("inputs", "instances"):
        return value
    if form == "dataframe_split" and isinstance(value, dict) and "columns" not in value:
        return _unnamed_cells(value.get("data"))
    rows = _split_rows(value) if form == "dataframe_split" else value
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise RequestError("invalid_dataframe", "dataframe_records must be a list of objects")
    return frame_rows(rows)


def _unnamed_cells(data: Any) -> list[Any]:
    """Return the cells of a frame that was made without names, such as DataFrame(["a", "b"])."""
    if not isinstance(data, list) or not all(isinstance(row, list) and len(row) == 1 for row in data):
        message = "dataframe_split.columns must be a list of unique names, unless each row has one value"
        raise RequestError("invalid_dataframe", message)
    return [row[0] for row in data]


def _split_rows(frame: Any) -> list[dict[str, Any]]:
    split: dict[str, Any] = frame if isinstance(frame, dict) else {}
    columns, data = split.get("columns", ()), split.get("data")
    are_names = isinstance(columns, list) and all(isinstance(name, str) for name in columns)
    if not are_names or len(set(columns)) < len(columns):
        raise RequestError("invalid_dataframe", "dataframe_split.columns must be a list of unique names")
    if not isinstance(data, list) or not all(isinstance(row, list) and len(row) == len(columns) for row in data):
        message = f"dataframe_split.data must be a list of rows, each a list of {len(columns)} value(s)"
        raise RequestError("invalid_dataframe", message)
    return [dict(zip(columns, row, strict=True)) for row in data]

"""The body of a served request: checked before MLflow reads it, and brought into the one form that it takes from us.

MLflow's scoring server takes a frame or `instances` only for models whose requests it checks itself. Ours are checked
by the contract, so every other form becomes `inputs` and `params` here.
"""

import json
from collections.abc import Callable, Iterable
from typing import Any

from .errors import RequestError

MAX_BYTES, MAX_LEVELS = 1_000_000, 32
JSON = "application/json"
CONTENT_TYPES = (JSON, "text/csv", "application/vnd.apache.parquet")
FORMATS = ("inputs", "instances", "dataframe_records", "dataframe_split")
INVALID_REQUEST = (
    "a body is a JSON object with messages, with prompt, or with exactly one of inputs, instances, dataframe_records, "
    "dataframe_split (and params), or a table with a header as text/csv or Parquet"
)
# Takes rows of a frame, returns them without the cells that hold nothing.
FrameRows = Callable[[list[dict[str, Any]]], list[dict[str, Any]]]


def accepted(body: bytes, content_type: str | None, frame_rows: FrameRows) -> bytes:
    """The body as MLflow takes it; raises RequestError, whose message never repeats the body."""
    kind = (content_type or "").partition(";")[0].strip()
    if kind not in CONTENT_TYPES:
        raise wrong_content_type()
    if kind != JSON:
        return body
    content = _parse(body)
    if not isinstance(content, dict):
        raise RequestError("invalid_request", INVALID_REQUEST)
    wanted = _rewritten(content, frame_rows)
    return body if wanted is content else json.dumps(wanted).encode()


def wrong_content_type() -> RequestError:
    said = f"the content type must be {', '.join(CONTENT_TYPES[:-1])} or {CONTENT_TYPES[-1]}, in UTF-8"
    return RequestError("content_type", said, status=415)


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

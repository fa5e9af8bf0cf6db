"""The size of requests: a served one has at most MAX_ROWS rows and MAX_BYTES bytes of content, any row MAX_BYTES."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .errors import RequestError

MAX_ROWS, MAX_BYTES = 256, 1_000_000


def check_size(rows: Sequence[Any]) -> None:
    """Raise RequestError if a served request has no rows, too many rows or too much content."""
    if not rows:
        raise RequestError("no_rows", "a request must have at least one row, got 0")
    if len(rows) > MAX_ROWS:
        raise RequestError("too_many_rows", f"a request may have at most {MAX_ROWS} rows, got {len(rows)}")
    _check_bytes("a request", list(rows))


def check_row_size(row: dict[str, Any]) -> None:
    """Raise RequestError if a row has too much content."""
    _check_bytes("a row", row)


def _check_bytes(what: str, content: Any) -> None:
    if (size := _total_bytes(content, MAX_BYTES)) > MAX_BYTES:
        raise RequestError("too_large", f"{what} may have at most {MAX_BYTES} bytes of UTF-8, got at least {size}")


def _total_bytes(content: Any, limit: int) -> int:
    """Return the bytes of everything inside nested lists and objects; stop counting above `limit`.

    Every value counts for at least one byte, so an object that contains itself ends the count too.
    """
    size, pending = 0, [content]
    while pending and size <= limit:
        value = pending.pop()
        size += _own_bytes(value)
        if isinstance(value, dict):
            pending += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.dtype == object):
            pending += value if isinstance(value, list | tuple) else value.ravel().tolist()
    return size


def _own_bytes(value: Any) -> int:
    """Return the bytes of a value without its content."""
    if isinstance(value, str):
        return len(value.encode("utf-8", "surrogatepass"))
    if isinstance(value, int):
        return 1 + value.bit_length() // 8
    return max(1, len(value) if isinstance(value, bytes) else getattr(value, "nbytes", 1))

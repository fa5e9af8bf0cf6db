"""Checks of single fields. Each raises `RequestError` with the field, the value and the limit."""

from numbers import Real
from typing import Any

import numpy as np

from ..engines.sequence import Settings
from .errors import RequestError

MAX_CHOICES, MAX_STOPS = 8, 8


def check_settings(values: dict[str, Any], explicit_max_tokens: bool, context: int, used: int) -> tuple[Settings, int]:
    """Return the settings of a generation and the number of choices.

    Args:
        values: A value for each setting; `stop`, `seed` and `n` may be missing.
        explicit_max_tokens: If True, `max_tokens` must fit into the context. Otherwise it shrinks to fit.
        context: Tokens that prompt and completion may have together.
        used: Tokens of the prompt.
    """
    room = context - used
    if room < 1:
        raise RequestError(
            "context_exceeded",
            f"the prompt has {used} tokens and fills the context of {context}; make it at least {1 - room} token(s) "
            "shorter",
        )
    max_tokens = _integer("max_tokens", values["max_tokens"], 1, None)
    if max_tokens > room and explicit_max_tokens:
        raise RequestError(
            "context_exceeded", f"max_tokens must be at most {room} after this prompt, got {short(max_tokens)}"
        )
    seed = values.get("seed")
    settings = Settings(
        temperature=_number("temperature", values["temperature"], 0.0, 2.0),
        top_p=_number("top_p", values["top_p"], 0.0, 1.0, exclude_low=True),
        top_k=_integer("top_k", values["top_k"], 0, None),
        max_tokens=min(max_tokens, room),
        stop=_stop_strings(values.get("stop")),
        seed=None if seed is None else _integer("seed", seed, 0, 2**63 - 1),
    )
    return settings, _integer("n", values.get("n", 1), 1, MAX_CHOICES)


def check_text(field: str, value: Any) -> str:
    """Return a text that is not empty and that a tokenizer keeps whole."""
    if not isinstance(value, str):
        raise RequestError("not_text", f"{field} must be a string, got {type(value).__name__}")
    if not value.strip():
        raise RequestError("empty_text", f"{field} must not be empty")
    if "\0" in value:
        raise RequestError("nul", f"{field} must not contain a NUL character (at {value.index(chr(0))})")
    if surrogates := [index for index, character in enumerate(value) if "\ud800" <= character <= "\udfff"]:
        raise RequestError(
            "lone_surrogate", f"{field} must be valid Unicode, got a lone surrogate (at {surrogates[0]})"
        )
    return value


def _number(field: str, value: Any, low: float, high: float, exclude_low: bool = False) -> float:
    bounds = f"{'above' if exclude_low else 'at least'} {low:g} and at most {high:g}"
    if not is_number(value):
        raise RequestError(f"invalid_{field}", f"{field} must be a number {bounds}, got {short(value)}")
    # Written so that a NaN fails too.
    if not (low < value if exclude_low else low <= value) or not value <= high:
        raise RequestError(f"invalid_{field}", f"{field} must be {bounds}, got {short(value)}")
    return float(value)


def _integer(field: str, value: Any, low: int, high: int | None) -> int:
    bounds = f"at least {low}" + (f" and at most {high}" if high is not None else "")
    integer = _exact_integer(value)
    if integer is None or integer < low or (high is not None and integer > high):
        raise RequestError(f"invalid_{field}", f"{field} must be a whole number, {bounds}, got {short(value)}")
    return integer


def _exact_integer(value: Any) -> int | None:
    """Return the integer that equals a number exactly, or None if there is none."""
    if not is_number(value):
        return None
    try:
        return int(value) if value == int(value) else None
    except (OverflowError, ValueError):  # infinite, or not a number
        return None


def _stop_strings(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, str) and not is_list(value):
        raise RequestError("invalid_stop", f"stop must be a list of strings, got {type(value).__name__}")
    strings = [value] if isinstance(value, str) else list(value)
    if len(strings) > MAX_STOPS:
        raise RequestError("invalid_stop", f"stop may hold at most {MAX_STOPS} strings, got {len(strings)}")
    for index, string in enumerate(strings):
        if not isinstance(string, str) or not string:
            raise RequestError("invalid_stop", f"stop[{index}] must be a non-empty string, got {short(string)}")
    return tuple(strings)


def without_none(row: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a row that hold a value."""
    return {key: value for key, value in row.items() if value is not None}


def is_number(value: Any) -> bool:
    """Return True for a real number of any type, but not for a truth value."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_list(value: Any) -> bool:
    """Return True for a list, a tuple or an array with a length: pandas passes lists on as arrays."""
    return isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim > 0)


def short(value: Any) -> str:
    """Return the beginning of a value's repr, for a message."""
    try:
        return repr(value)[:40]
    except Exception:  # an integer with too many digits, or an object of the caller's
        return f"a value of type {type(value).__name__}"


def shown_name(field: Any) -> str:
    """Return the beginning of a field's name, for a message."""
    return repr(field[:40])[1:-1] if isinstance(field, str) else short(field)

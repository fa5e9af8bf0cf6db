"""Checks of single fields of a request; each raises `RequestError` with the field, the value and the limit."""

from numbers import Real
from typing import Any

import numpy as np

from ..engines.sequence import Settings
from ..tokenizer import ChatTokenizer
from .errors import RequestError

ROLES = ("system", "user", "assistant")
MAX_CHOICES, MAX_STOPS = 8, 8
# What a list may arrive as: pandas hands on arrays too.
MANY = list | tuple | np.ndarray


def checked_messages(messages: Any, tokenizer: ChatTokenizer) -> list[dict[str, str]]:
    if messages is None:
        raise RequestError("empty_conversation", "messages is missing: it must hold at least one message")
    if not is_many(messages):
        raise RequestError("not_messages", f"messages must be a list of messages, got {type(messages).__name__}")
    if len(messages) == 0:
        raise RequestError("empty_conversation", "messages must hold at least one message, got none")
    checked = [_message(index, message, tokenizer) for index, message in enumerate(messages)]
    if checked[-1]["role"] != "user":
        raise RequestError("last_role", f"the last message must be the user's, got role {checked[-1]['role']!r}")
    return checked


def _message(index: int, message: Any, tokenizer: ChatTokenizer) -> dict[str, str]:
    where = f"messages[{index}]"
    if not isinstance(message, dict):
        said = f"{where} must be an object with role and content, got {type(message).__name__}"
        raise RequestError("not_a_message", said)
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise RequestError("unknown_role", f"{where}.role must be one of {', '.join(ROLES)}, got {short(role)}")
    if others := [field for field in without_none(message) if field not in ("role", "content")]:
        raise RequestError("unsupported_field", f"{where}.{shown_name(others[0])} is not supported: leave it out")
    content = checked_text(f"{where}.content", message.get("content"))
    if token := tokenizer.control_token_in(content):
        raise RequestError("control_token", f"{where}.content must not hold the control token {token}")
    return {"role": role, "content": content}


def checked_settings(values: dict[str, Any], explicit: bool, context: int, used: int) -> tuple[Settings, int]:
    """Check the settings; a default max_tokens shrinks to the room in the context, a given one must fit."""
    room = context - used
    if room < 1:
        raise RequestError(
            "context_exceeded",
            f"the prompt has {used} tokens and fills the context of {context}: it must be {1 - room} token(s) shorter",
        )
    max_tokens = _integer("max_tokens", values["max_tokens"], 1, None)
    if max_tokens > room and explicit:
        raise RequestError(
            "context_exceeded", f"max_tokens must be at most {room} after this prompt, got {short(max_tokens)}"
        )
    seed = values.get("seed")
    settings = Settings(
        temperature=_number("temperature", values["temperature"], 0.0, 2.0),
        top_p=_number("top_p", values["top_p"], 0.0, 1.0, open_low=True),
        top_k=_integer("top_k", values["top_k"], 0, None),
        max_tokens=min(max_tokens, room),
        stop=_stop(values.get("stop")),
        seed=None if seed is None else _integer("seed", seed, 0, 2**63 - 1),
    )
    return settings, _integer("n", values.get("n", 1), 1, MAX_CHOICES)


def checked_text(field: str, value: Any) -> str:
    """Check that a value is text that a tokenizer keeps whole."""
    if not isinstance(value, str):
        raise RequestError("not_text", f"{field} must be a string, got {type(value).__name__}")
    if not value.strip():
        raise RequestError("empty_text", f"{field} must not be empty")
    if "\0" in value:
        raise RequestError("nul", f"{field} must not hold a NUL character (at {value.index(chr(0))})")
    if place := [index for index, character in enumerate(value) if "\ud800" <= character <= "\udfff"]:
        raise RequestError("lone_surrogate", f"{field} must be valid Unicode, got a lone surrogate (at {place[0]})")
    return value


def _number(field: str, value: Any, low: float, high: float, open_low: bool = False) -> float:
    bounds = f"{'above' if open_low else 'at least'} {low:g} and at most {high:g}"
    if not isinstance(value, Real) or isinstance(value, bool):
        raise RequestError(f"invalid_{field}", f"{field} must be a number {bounds}, got {short(value)}")
    # Written so that a NaN fails too.
    if not (low < value if open_low else low <= value) or not value <= high:
        raise RequestError(f"invalid_{field}", f"{field} must be {bounds}, got {short(value)}")
    return float(value)


def _integer(field: str, value: Any, low: int, high: int | None) -> int:
    bounds = f"at least {low}" + (f" and at most {high}" if high is not None else "")
    whole = _whole(value)
    if whole is None or whole < low or (high is not None and whole > high):
        raise RequestError(f"invalid_{field}", f"{field} must be a whole number, {bounds}, got {short(value)}")
    return whole


def _whole(value: Any) -> int | None:
    """A number as the integer that it equals exactly, None if there is none."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    try:
        return int(value) if value == int(value) else None
    except (OverflowError, ValueError):  # infinite, or not a number
        return None


def _stop(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, str) and not is_many(value):
        raise RequestError("invalid_stop", f"stop must be a list of strings, got {type(value).__name__}")
    strings = [value] if isinstance(value, str) else list(value)
    if len(strings) > MAX_STOPS:
        raise RequestError("invalid_stop", f"stop holds at most {MAX_STOPS} strings, got {len(strings)}")
    for index, string in enumerate(strings):
        if not isinstance(string, str) or not string:
            said = f"stop[{index}] must be a string that is not empty, got {short(string)}"
            raise RequestError("invalid_stop", said)
    return tuple(strings)


def without_none(row: dict[str, Any]) -> dict[str, Any]:
    """The fields of a row that hold a value."""
    return {key: value for key, value in row.items() if value is not None}


def is_many(value: Any) -> bool:
    """Whether a value is a list, or an array that can be taken for one."""
    return isinstance(value, MANY) and not (isinstance(value, np.ndarray) and value.ndim == 0)


def short(value: Any) -> str:
    try:
        return repr(value)[:40]
    except Exception:  # an integer of too many digits, or an object of the caller's own
        return f"a {type(value).__name__}"


def shown_name(field: Any) -> str:
    """A field's name as a message can show it."""
    return repr(field[:40])[1:-1] if isinstance(field, str) else short(field)

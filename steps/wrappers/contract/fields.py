"""Checks of single fields. Each raises `RequestError` with the field, the value and the limit."""

import re
from collections.abc import Callable, Mapping
from functools import partial
from numbers import Real
from typing import Any

import numpy as np

from ..engines.sequence import Settings
from .errors import RequestError

MAX_CHOICES, MAX_STOPS = 8, 8
MAX_BIASES, MAX_BIAS = 1024, 100
LEAST_LOGPROB = -9999.0
# What OpenAI's API has in addition to MLflow's schemas: changes to the choice of a token, and log-probabilities.
CHOICE_FIELDS = ("presence_penalty", "frequency_penalty", "logit_bias", "response_format", "ignore_eos")
# Those that an engine reads as they are.
ENGINE_FIELDS = ("presence_penalty", "frequency_penalty", "logit_bias", "ignore_eos")
LOGPROB_FIELDS = ("logprobs", "top_logprobs")
MAX_COMPLETION_TOKENS = "max_completion_tokens"


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
    values = check_values(values)
    values |= {name: check(name, values[name]) for name, check in OFFERED_CHECKS.items() if name in values}
    max_tokens = values["max_tokens"]
    if max_tokens > room and explicit_max_tokens:
        raise RequestError(
            "context_exceeded", f"max_tokens must be at most {room} after this prompt, got {short(max_tokens)}"
        )
    settings = Settings(
        temperature=values["temperature"],
        top_p=values["top_p"],
        top_k=values["top_k"],
        max_tokens=min(max_tokens, room),
        stop=tuple(values.get("stop", ())),
        seed=values.get("seed"),
        **{name: values[name] for name in ENGINE_FIELDS if name in values},
        logprobs=_alternatives(values),
        echo=values.get("echo", False),
    )
    return settings, values.get("n", 1)


def _alternatives(values: Mapping[str, Any]) -> int | None:
    """Return how many alternatives each log-probability comes with; None if none were asked for."""
    alternatives: int | None = values.get("top_logprobs")
    if values.get("logprobs"):
        return alternatives or 0
    if alternatives:
        raise RequestError("invalid_top_logprobs", f"top_logprobs needs logprobs: true, got {alternatives} without it")
    return None


def check_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of settings in their own types, without those that are None. Others are left as they are."""
    return {
        name: CHECKS[name](name, value) if name in CHECKS else value
        for name, value in values.items()
        if value is not None or name not in CHECKS
    }


def with_max_tokens(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with `max_tokens` in place of `max_completion_tokens`, which means the same in OpenAI's API."""
    others = {name: value for name, value in values.items() if name != MAX_COMPLETION_TOKENS}
    limit, other = values.get(MAX_COMPLETION_TOKENS), others.get("max_tokens")
    if limit is None:
        return others
    _integer(MAX_COMPLETION_TOKENS, limit, 1, None)
    if other is not None and _exact_integer(other) != limit:
        raise RequestError(
            "invalid_max_tokens",
            f"max_tokens and {MAX_COMPLETION_TOKENS} mean the same and must be equal, got {short(other)} and "
            f"{short(limit)}",
        )
    return others | {"max_tokens": limit}


def check_text(field: str, value: Any, by_assistant: bool = False) -> str:
    """Return a text that a tokenizer keeps whole.

    A text by the assistant may be empty and may hold a NUL character: the model's own reply can.
    """
    if not isinstance(value, str):
        raise RequestError("not_text", f"{field} must be a string, got {type(value).__name__}")
    if not value.strip() and not by_assistant:
        raise RequestError("empty_text", f"{field} must not be empty")
    if "\0" in value and not by_assistant:
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


def _stop_strings(field: str, value: Any) -> list[str]:
    if not isinstance(value, str) and not is_list(value):
        raise RequestError("invalid_stop", f"{field} must be a list of strings, got {type(value).__name__}")
    strings = [value] if isinstance(value, str) else list(value)
    if len(strings) > MAX_STOPS:
        raise RequestError("invalid_stop", f"{field} may hold at most {MAX_STOPS} strings, got {len(strings)}")
    for index, string in enumerate(strings):
        if not isinstance(string, str) or not string:
            raise RequestError("invalid_stop", f"{field}[{index}] must be a non-empty string, got {short(string)}")
    return strings


def _flag(field: str, value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise RequestError(f"invalid_{field}", f"{field} must be true or false, got {short(value)}")
    return bool(value)


def _token_biases(field: str, value: Any) -> tuple[tuple[int, float], ...]:
    """Return the biases of tokens, which JSON names by their ids as strings."""
    if not isinstance(value, dict) or len(value) > MAX_BIASES:
        bounds = f"an object of at most {MAX_BIASES} token ids with numbers"
        raise RequestError(f"invalid_{field}", f"{field} must be {bounds}, got {short(value)}")
    biases = []
    for name, bias in value.items():
        if not isinstance(name, str) or not re.fullmatch(r"[0-9]{1,9}", name):
            raise RequestError(f"invalid_{field}", f"{field} must have token ids as names, got {shown_name(name)}")
        if not is_number(bias) or not -MAX_BIAS <= bias <= MAX_BIAS:
            bounds = f"a number, at least -{MAX_BIAS} and at most {MAX_BIAS}"
            raise RequestError(f"invalid_{field}", f"{field}.{name} must be {bounds}, got {short(bias)}")
        biases.append((int(name), float(bias)))
    return tuple(biases)


# By setting: the check of its value.
CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "temperature": partial(_number, low=0.0, high=2.0),
    "top_p": partial(_number, low=0.0, high=1.0, exclude_low=True),
    "top_k": partial(_integer, low=0, high=None),
    "max_tokens": partial(_integer, low=1, high=None),
    "stop": _stop_strings,
    "n": partial(_integer, low=1, high=MAX_CHOICES),
    "seed": partial(_integer, low=0, high=2**63 - 1),
}
# By field of neutral.UNSUPPORTED that an interface may offer: the check of its value.
OFFERED_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "presence_penalty": partial(_number, low=-2.0, high=2.0),
    "frequency_penalty": partial(_number, low=-2.0, high=2.0),
    "logit_bias": _token_biases,
    "ignore_eos": _flag,
    "logprobs": _flag,
    "top_logprobs": partial(_integer, low=0, high=20),
    "echo": _flag,
}


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


def shown_logprob(logprob: float) -> float:
    """Return a log-probability as OpenAI shows it: JSON has no infinity, so -9999 is the least."""
    return max(logprob, LEAST_LOGPROB)

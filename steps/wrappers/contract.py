"""The contract of both custom wrappers: what a request may hold, and what a reply looks like.

Both interfaces end in the same `Request`: token ids of a prompt and the settings of its generation.
A request that breaks a limit raises `RequestError` (HTTP 400 when served), which names the field,
the value and the limit, and never repeats the prompt.
"""

import time
import uuid
from collections.abc import Sequence as Many
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd

from .body import MAX_BYTES
from .errors import RequestError
from .sequence import Sequence, Settings
from .tokenizer import ChatTokenizer

ROLES = ("system", "user", "assistant")
MAX_ROWS, MAX_CHOICES, MAX_STOPS = 256, 8, 8
# Fields that no Phi-3 wrapper can honour: refused unless they ask for nothing. Of MLflow's chat schema:
UNSUPPORTED = (
    *("tools", "frequency_penalty", "presence_penalty"),
    # of OpenAI's own API, whose clients may send them
    *("max_completion_tokens", "logprobs", "top_logprobs", "logit_bias", "response_format", "tool_choice", "functions"),
)
# What a list may arrive as: pandas hands on arrays too.
MANY = list | tuple | np.ndarray
SETTINGS = ("temperature", "top_p", "top_k", "max_tokens", "stop", "n", "seed")
CUSTOM = ("seed", "top_k")
OPTIONS = (*SETTINGS, "stream", "custom_inputs")
# OpenAI's clients always may send these, which change nothing here.
IGNORED = ("model", "user")
SUBJECT = {"chat": "messages", "prompt": "prompt"}


@dataclass(frozen=True)
class Request:
    """One conversation or prompt, ready for an engine: `n` completions of `prompt` (token ids)."""

    prompt: list[int]
    settings: Settings
    n: int

    def sequences(self, tokenizer: ChatTokenizer) -> list[Sequence]:
        """One sequence a choice; a seed gives every choice a seed of its own."""
        return [Sequence(self.prompt, self.settings.for_choice(index), tokenizer) for index in range(self.n)]


@dataclass(frozen=True)
class Contract:
    """What one logged model accepts: its interface, tokenizer, context and default settings."""

    interface: str
    tokenizer: ChatTokenizer
    context_length: int
    defaults: dict[str, Any]

    def requests(self, rows: Many[dict[str, Any]], params: dict[str, Any] | None) -> list[Request]:
        """Check a batch of rows; `params` of the call stand in for what a row does not give."""
        _check_size(rows)
        return [self._request(_given(row), params or {}) for row in rows]

    def frame_rows(self, rows: Many[dict[str, Any]]) -> list[dict[str, Any]]:
        """Rows of a frame: a NaN cell is not given, and a frame may have columns of its owner's own."""
        known = {SUBJECT[self.interface], *OPTIONS, *UNSUPPORTED}
        return [{key: cell for key, cell in row.items() if key in known and not _is_missing(cell)} for row in rows]

    def _request(self, row: dict[str, Any], params: dict[str, Any]) -> Request:
        _refuse_unsupported(row, (SUBJECT[self.interface], *OPTIONS))
        given = {key: value for key, value in params.items() if key in SETTINGS and value is not None}
        given |= _custom_inputs(row) | {key: row[key] for key in SETTINGS if key in row}
        prompt = self._encode(row)
        explicit = "max_tokens" in given
        settings, n = _settings(self.defaults | given, explicit, self.context_length, len(prompt))
        return Request(prompt, settings, n)

    def _encode(self, row: dict[str, Any]) -> list[int]:
        if self.interface == "chat":
            return self.tokenizer.encode_chat(_messages(row.get("messages"), self.tokenizer))
        prompt = _text("prompt", row.get("prompt"))
        if self.tokenizer.control_token_in(prompt):
            # As in upstream's second option: the caller has written the whole of Phi-3's format.
            return self.tokenizer.encode(prompt)
        return self.tokenizer.encode_chat([{"role": "user", "content": prompt}])


def chat_completion(model: str, request: Request, choices: list[Sequence]) -> dict[str, Any]:
    """One reply in MLflow's chat schema, with true token counts."""
    completion_tokens = sum(len(choice.tokens) for choice in choices)
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [
            {
                "index": index,
                "message": {"role": "assistant", "content": choice.text},
                "finish_reason": choice.finish_reason,
            }
            for index, choice in enumerate(choices)
        ],
        "usage": {
            "prompt_tokens": len(request.prompt),
            "completion_tokens": completion_tokens,
            "total_tokens": len(request.prompt) + completion_tokens,
        },
    }


def chat_chunk(
    identity: str, model: str, index: int, delta: dict[str, str], finish_reason: str | None
) -> dict[str, Any]:
    """One piece of a streamed reply, in the shape of OpenAI's chunks."""
    return {
        "id": identity,
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": model,
        "choices": [{"index": index, "delta": delta, "finish_reason": finish_reason}],
    }


def _check_size(rows: Many[dict[str, Any]]) -> None:
    if not rows:
        raise RequestError("no_rows", "a request needs at least one row, got 0")
    if len(rows) > MAX_ROWS:
        raise RequestError("too_many_rows", f"a request holds at most {MAX_ROWS} rows, got {len(rows)}")
    if _is_larger(list(rows), MAX_BYTES):
        raise RequestError("too_large", f"a request holds at most {MAX_BYTES} bytes of UTF-8, got more")


def _is_larger(content: Any, limit: int) -> bool:
    """Whether all texts in lists and objects, and whatever else is in them, have more bytes than so many."""
    size, open_ = 0, [content]
    # An end also for an object that holds itself: every piece counts for a byte at least.
    while open_ and size <= limit:
        piece = open_.pop()
        size += _bytes(piece)
        if isinstance(piece, dict):
            open_ += [*piece.keys(), *piece.values()]
        elif isinstance(piece, list | tuple) or (isinstance(piece, np.ndarray) and piece.dtype == object):
            open_ += piece if isinstance(piece, list | tuple) else piece.ravel().tolist()
    return size > limit


def _bytes(piece: Any) -> int:
    """How many bytes a piece counts for, beside what it holds."""
    if isinstance(piece, str):
        return len(piece.encode("utf-8", "surrogatepass"))
    if isinstance(piece, int):
        return 1 + piece.bit_length() // 8
    return max(1, len(piece) if isinstance(piece, bytes) else getattr(piece, "nbytes", 1))


def _given(row: dict[str, Any]) -> dict[str, Any]:
    """The fields of a row that hold a value."""
    return {key: value for key, value in row.items() if value is not None}


def _is_missing(cell: Any) -> bool:
    return pd.api.types.is_scalar(cell) and bool(pd.isna(cell))


def _refuse_unsupported(row: dict[str, Any], known: tuple[str, ...]) -> None:
    for field in UNSUPPORTED:
        value = row.get(field)
        if not _asks_for_nothing(value):
            got = f", got {_short(value)}" if isinstance(value, Real) else ""
            raise RequestError("unsupported_field", f"{field} is not supported by this model: leave it out{got}")
    if unknown := [key for key in row if key not in (*known, *UNSUPPORTED, *IGNORED)]:
        raise RequestError("unsupported_field", f"{_name(unknown[0])} is not known: known are {', '.join(known)}")
    stream = row.get("stream", False)
    if not isinstance(stream, Real | np.bool_):
        raise RequestError("stream", f"stream must be true or false, got {_short(stream)}")
    if stream:
        raise RequestError("stream", "stream: predict answers whole; call predict_stream for a stream")


def _asks_for_nothing(value: Any) -> bool:
    if isinstance(value, str | dict) or _is_many(value):
        return len(value) == 0
    return value is None or (isinstance(value, Real | np.bool_) and not value)


def _is_many(value: Any) -> bool:
    """Whether a value is a list, or an array that can be taken for one."""
    return isinstance(value, MANY) and not (isinstance(value, np.ndarray) and value.ndim == 0)


def _custom_inputs(row: dict[str, Any]) -> dict[str, Any]:
    custom = row.get("custom_inputs")
    if custom is None:
        return {}
    if not isinstance(custom, dict):
        raise RequestError("invalid_custom_inputs", f"custom_inputs must be an object, got {type(custom).__name__}")
    if unknown := [key for key in custom if key not in CUSTOM]:
        said = f"custom_inputs.{_name(unknown[0])} is not known: known are {', '.join(CUSTOM)}"
        raise RequestError("unsupported_field", said)
    return _given(custom)


def _messages(messages: Any, tokenizer: ChatTokenizer) -> list[dict[str, str]]:
    if messages is None:
        raise RequestError("empty_conversation", "messages is missing: it must hold at least one message")
    if not _is_many(messages):
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
        raise RequestError("not_a_message", f"{where} must be an object with role and content")
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise RequestError("unknown_role", f"{where}.role must be one of {', '.join(ROLES)}, got {_short(role)}")
    if others := [field for field in _given(message) if field not in ("role", "content")]:
        raise RequestError("unsupported_field", f"{where}.{_name(others[0])} is not supported: leave it out")
    content = _text(f"{where}.content", message.get("content"))
    if token := tokenizer.control_token_in(content):
        raise RequestError("control_token", f"{where}.content must not hold the control token {token}")
    return {"role": role, "content": content}


def _text(field: str, value: Any) -> str:
    """Check that a value is text that a tokenizer keeps whole."""
    if not isinstance(value, str):
        raise RequestError("not_text", f"{field} must be a string, got {type(value).__name__}")
    if not value.strip():
        raise RequestError("empty_text", f"{field} must not be empty")
    if "\0" in value:
        raise RequestError("nul", f"{field} must not hold a NUL character (at {value.index(chr(0))})")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise RequestError("lone_surrogate", f"{field} must be valid Unicode, got a lone surrogate")
    return value


def _settings(values: dict[str, Any], explicit: bool, context: int, used: int) -> tuple[Settings, int]:
    """Check the settings; a default max_tokens shrinks to the room in the context, a given one must fit."""
    room = context - used
    if room < 1:
        raise RequestError(
            "context_exceeded",
            f"the prompt fills the context of {context} tokens: it must be {1 - room} token(s) shorter",
        )
    max_tokens = _integer("max_tokens", values["max_tokens"], 1, None)
    if max_tokens > room and explicit:
        raise RequestError(
            "context_exceeded", f"max_tokens must be at most {room} after this prompt, got {_short(max_tokens)}"
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


def _number(field: str, value: Any, low: float, high: float, open_low: bool = False) -> float:
    bounds = f"{'above' if open_low else 'at least'} {low:g} and at most {high:g}"
    if not isinstance(value, Real) or isinstance(value, bool):
        raise RequestError(f"invalid_{field}", f"{field} must be a number {bounds}, got {_short(value)}")
    # Written so that a NaN fails too.
    if not (low < value if open_low else low <= value) or not value <= high:
        raise RequestError(f"invalid_{field}", f"{field} must be {bounds}, got {_short(value)}")
    return float(value)


def _integer(field: str, value: Any, low: int, high: int | None) -> int:
    bounds = f"at least {low}" + (f" and at most {high}" if high is not None else "")
    whole = _whole(value)
    if whole is None or whole < low or (high is not None and whole > high):
        raise RequestError(f"invalid_{field}", f"{field} must be a whole number, {bounds}, got {_short(value)}")
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
    if not isinstance(value, str) and not _is_many(value):
        raise RequestError("invalid_stop", f"stop must be a list of strings, got {type(value).__name__}")
    strings = [value] if isinstance(value, str) else list(value)
    if len(strings) > MAX_STOPS:
        raise RequestError("invalid_stop", f"stop holds at most {MAX_STOPS} strings, got {len(strings)}")
    if not all(isinstance(string, str) and string for string in strings):
        raise RequestError("invalid_stop", "stop must hold strings that are not empty")
    return tuple(strings)


def _short(value: Any) -> str:
    try:
        return repr(value)[:40]
    except Exception:  # an integer of too many digits, or an object of the caller's own
        return f"a {type(value).__name__}"


def _name(field: Any) -> str:
    """A field's name as a message can show it."""
    return repr(field[:40])[1:-1] if isinstance(field, str) else _short(field)

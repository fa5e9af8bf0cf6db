"""The contract of both custom wrappers: what a request may hold, and what a reply looks like.

Both interfaces end in the same `Request`: token ids of a prompt and the settings of its generation.
A request that breaks a limit raises `RequestError` (HTTP 400 when served), which names the field,
the value and the limit, and never repeats the prompt.
"""

import math
import time
import uuid
from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import Any

import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

from .sequence import Sequence, Settings
from .tokenizer import ChatTokenizer

ROLES = ("system", "user", "assistant")
MAX_ROWS, MAX_CHARACTERS, MAX_CHOICES, MAX_STOPS = 256, 1_000_000, 8, 8
# Fields that no Phi-3 wrapper can honour: refused unless they ask for nothing. Of MLflow's chat schema:
UNSUPPORTED = (
    *("tools", "frequency_penalty", "presence_penalty"),
    # of OpenAI's own API, whose clients may send them
    *("max_completion_tokens", "logprobs", "top_logprobs", "logit_bias", "response_format", "tool_choice", "functions"),
)
# What a list may arrive as: pandas hands on arrays too.
MANY = list | tuple | np.ndarray
SETTINGS = ("temperature", "top_p", "top_k", "max_tokens", "stop", "n", "seed")


class RequestError(MlflowException):
    """A request that the contract refuses; `code` is stable, the message is for people."""

    def __init__(self, code: str, message: str, error_code: int = INVALID_PARAMETER_VALUE):
        super().__init__(f"[{code}] {message}", error_code=error_code)
        self.code = code

    @property
    def message(self) -> str:
        return self._message

    @message.setter
    def message(self, value: str) -> None:
        # MLflow's scoring server rewrites the message to repeat the whole input: keep the first one.
        self.__dict__.setdefault("_message", value)


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
        # Among several rows a missing cell is NaN; in a single row a NaN is what the caller wrote.
        alone = len(rows) == 1
        return [self._request(_given(row, alone), params or {}) for row in rows]

    def _request(self, row: dict[str, Any], params: dict[str, Any]) -> Request:
        _refuse_unsupported(row)
        given = {key: value for key, value in params.items() if key in SETTINGS and value is not None}
        given |= _custom_inputs(row) | {key: row[key] for key in SETTINGS if key in row}
        prompt = self._encode(row)
        room = self.context_length - len(prompt)
        settings, n = _settings(self.defaults | given, explicit="max_tokens" in given, room=room)
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
    size = sum(len(str(row.get("messages", row.get("prompt", "")))) for row in rows)
    if size > MAX_CHARACTERS:
        raise RequestError("too_large", f"a request holds at most {MAX_CHARACTERS} characters, got {size}")


def _given(row: dict[str, Any], alone: bool) -> dict[str, Any]:
    """The fields of a row that hold a value."""
    return {key: value for key, value in row.items() if not (value is None or (_is_nan(value) and not alone))}


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _refuse_unsupported(row: dict[str, Any]) -> None:
    for field in UNSUPPORTED:
        value = row.get(field)
        empty = len(value) == 0 if hasattr(value, "__len__") else value is None or _is_nan(value) or value == 0
        if not empty:
            raise RequestError("unsupported_field", f"{field} is not supported by this model: leave it out")
    if row.get("stream"):
        raise RequestError("stream", "stream: predict answers whole; call predict_stream for a stream")


def _custom_inputs(row: dict[str, Any]) -> dict[str, Any]:
    custom = row.get("custom_inputs")
    if custom is None or _is_nan(custom):
        return {}
    if not isinstance(custom, dict):
        raise RequestError("invalid_custom_inputs", f"custom_inputs must be an object, got {type(custom).__name__}")
    if unknown := sorted(set(map(str, custom)) - {"seed", "top_k"}):
        raise RequestError("unsupported_field", f"custom_inputs.{unknown[0]} is not known: known are seed, top_k")
    return dict(custom)


def _messages(messages: Any, tokenizer: ChatTokenizer) -> list[dict[str, str]]:
    if messages is None:
        raise RequestError("empty_conversation", "messages is missing: it must hold at least one message")
    if not isinstance(messages, MANY):
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
    if role not in ROLES:
        raise RequestError("unknown_role", f"{where}.role must be one of {', '.join(ROLES)}, got {str(role)[:40]!r}")
    for field, value in message.items():
        if field not in ("role", "content") and value is not None and not _is_nan(value):
            raise RequestError("unsupported_field", f"{where}.{str(field)[:40]} is not supported: leave it out")
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


def _settings(values: dict[str, Any], explicit: bool, room: int) -> tuple[Settings, int]:
    """Check the settings; a default max_tokens shrinks to the room in the context, a given one must fit."""
    if room < 1:
        raise RequestError("context_exceeded", f"the prompt fills the context: {1 - room} token(s) too many")
    max_tokens = _integer("max_tokens", values["max_tokens"], 1, None)
    if max_tokens > room and explicit:
        raise RequestError("context_exceeded", f"max_tokens must be at most {room} after this prompt, got {max_tokens}")
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
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise RequestError(f"invalid_{field}", f"{field} must be a number {bounds}, got {_short(value)}") from None
    if isinstance(value, bool) or not (low < number if open_low else low <= number) or not number <= high:
        raise RequestError(f"invalid_{field}", f"{field} must be {bounds}, got {_short(value)}")
    return number


def _integer(field: str, value: Any, low: int, high: int | None) -> int:
    bounds = f"at least {low}" + (f" and at most {high}" if high is not None else "")
    try:
        whole = int(value)
        exact = whole == float(value) and not isinstance(value, bool)
    except (TypeError, ValueError, OverflowError):
        whole, exact = 0, False
    if not exact or whole < low or (high is not None and whole > high):
        raise RequestError(f"invalid_{field}", f"{field} must be a whole number, {bounds}, got {_short(value)}")
    return whole


def _stop(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, str | MANY):
        raise RequestError("invalid_stop", f"stop must be a list of strings, got {type(value).__name__}")
    strings = [value] if isinstance(value, str) else list(value)
    if len(strings) > MAX_STOPS:
        raise RequestError("invalid_stop", f"stop holds at most {MAX_STOPS} strings, got {len(strings)}")
    if not all(isinstance(string, str) and string for string in strings):
        raise RequestError("invalid_stop", "stop must hold strings that are not empty")
    return tuple(strings)


def _short(value: Any) -> str:
    return repr(value)[:40]

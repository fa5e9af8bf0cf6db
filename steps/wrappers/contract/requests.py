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

from ..engines.sequence import Sequence, Settings
from ..tokenizer import ChatTokenizer
from .body import MAX_BYTES, MAX_ROWS
from .errors import RequestError
from .fields import checked_messages, checked_settings, checked_text, is_many, short, shown_name, without_none

# Fields that no Phi-3 wrapper can honour: refused unless they ask for nothing. Of MLflow's chat schema:
UNSUPPORTED = (
    *("tools", "frequency_penalty", "presence_penalty"),
    # of OpenAI's own API, whose clients may send them
    *("max_completion_tokens", "logprobs", "top_logprobs", "logit_bias", "response_format", "tool_choice", "functions"),
)
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
        return [self._request(without_none(row), params or {}) for row in rows]

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
        settings, n = checked_settings(self.defaults | given, explicit, self.context_length, len(prompt))
        return Request(prompt, settings, n)

    def _encode(self, row: dict[str, Any]) -> list[int]:
        if self.interface == "chat":
            return self.tokenizer.encode_chat(checked_messages(row.get("messages"), self.tokenizer))
        prompt = checked_text("prompt", row.get("prompt"))
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
    if (size := _size(list(rows), MAX_BYTES)) > MAX_BYTES:
        raise RequestError("too_large", f"a request holds at most {MAX_BYTES} bytes of UTF-8, got at least {size}")


def _size(content: Any, limit: int) -> int:
    """The bytes of all texts in lists and objects, and of whatever else is in them; counted no further than a limit."""
    size, open_ = 0, [content]
    # An end also for an object that holds itself: every piece counts for a byte at least.
    while open_ and size <= limit:
        piece = open_.pop()
        size += _bytes(piece)
        if isinstance(piece, dict):
            open_ += [*piece.keys(), *piece.values()]
        elif isinstance(piece, list | tuple) or (isinstance(piece, np.ndarray) and piece.dtype == object):
            open_ += piece if isinstance(piece, list | tuple) else piece.ravel().tolist()
    return size


def _bytes(piece: Any) -> int:
    """How many bytes a piece counts for, beside what it holds."""
    if isinstance(piece, str):
        return len(piece.encode("utf-8", "surrogatepass"))
    if isinstance(piece, int):
        return 1 + piece.bit_length() // 8
    return max(1, len(piece) if isinstance(piece, bytes) else getattr(piece, "nbytes", 1))


def _is_missing(cell: Any) -> bool:
    return pd.api.types.is_scalar(cell) and bool(pd.isna(cell))


def _refuse_unsupported(row: dict[str, Any], known: tuple[str, ...]) -> None:
    for field in UNSUPPORTED:
        value = row.get(field)
        if not _asks_for_nothing(value):
            got = f", got {short(value)}" if isinstance(value, Real) else ""
            raise RequestError("unsupported_field", f"{field} is not supported by this model: leave it out{got}")
    if unknown := [key for key in row if key not in (*known, *UNSUPPORTED, *IGNORED)]:
        raise RequestError("unsupported_field", f"{shown_name(unknown[0])} is not known: known are {', '.join(known)}")
    stream = row.get("stream", False)
    if not isinstance(stream, Real | np.bool_):
        raise RequestError("stream", f"stream must be true or false, got {short(stream)}")
    if stream:
        raise RequestError("stream", "stream: predict answers whole; call predict_stream for a stream")


def _asks_for_nothing(value: Any) -> bool:
    if isinstance(value, str | dict) or is_many(value):
        return len(value) == 0
    return value is None or (isinstance(value, Real | np.bool_) and not value)


def _custom_inputs(row: dict[str, Any]) -> dict[str, Any]:
    custom = row.get("custom_inputs")
    if custom is None:
        return {}
    if not isinstance(custom, dict):
        raise RequestError("invalid_custom_inputs", f"custom_inputs must be an object, got {type(custom).__name__}")
    if unknown := [key for key in custom if key not in CUSTOM]:
        said = f"custom_inputs.{shown_name(unknown[0])} is not known: known are {', '.join(CUSTOM)}"
        raise RequestError("unsupported_field", said)
    return without_none(custom)

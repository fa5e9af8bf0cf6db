"""Read requests: rows become token ids and checked settings."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd

from ..engines.sequence import Sequence, Settings
from ..tokenizer import ChatTokenizer
from .errors import RequestError
from .fields import MAX_COMPLETION_TOKENS, check_settings, is_list, short, shown_name, with_max_tokens, without_none
from .formats import schema_of, with_mask
from .interfaces import Interface
from .neutral import COLUMNS, IGNORED, UNSUPPORTED, asks_for_nothing, refuse_unsupported
from .size import check_row_size
from .tools import FIELDS as TOOL_FIELDS
from .tools import tool_use, with_calls

SETTINGS = ("temperature", "top_p", "top_k", "max_tokens", "stop", "n", "seed")
CUSTOM_INPUTS = ("seed", "top_k")
OPTIONS = (*SETTINGS, "stream", "custom_inputs", MAX_COMPLETION_TOKENS)


@dataclass(frozen=True)
class Request:
    """One conversation or prompt, ready for an engine: `n` completions of `prompt` (token ids)."""

    prompt: list[int]
    settings: Settings
    n: int

    def sequences(self, tokenizer: ChatTokenizer) -> list[Sequence]:
        """Return one sequence for each choice. With a seed, each choice has a seed of its own."""
        return [Sequence(self.prompt, self.settings.for_choice(index), tokenizer) for index in range(self.n)]


@dataclass(frozen=True)
class Contract:
    """The requests that one logged model accepts."""

    interface: Interface
    tokenizer: ChatTokenizer
    context_length: int
    defaults: dict[str, Any]

    def frame_rows(self, rows: Iterable[Mapping[Any, Any]]) -> list[dict[str, Any]]:
        """Drop what a frame adds to its rows: cells that hold nothing (NaN), and columns that are not ours."""
        known = {self.interface.SUBJECT, *OPTIONS, *COLUMNS}
        return [{key: cell for key, cell in row.items() if key in known and not is_missing(cell)} for row in rows]

    def requests(self, rows: Iterable[dict[str, Any]], params: dict[str, Any] | None) -> list[Request]:
        """Check rows. `params` of the call fill in the settings that a row does not have."""
        return [self.request(row, params) for row in rows]

    def request(self, row: dict[str, Any], params: dict[str, Any] | None) -> Request:
        """Check one row."""
        check_row_size(row)
        row = without_none(row)
        offered = self._offered
        known = (self.interface.SUBJECT, *OPTIONS, *offered)
        # MLflow passes an empty list for a list that the params of a call do not have.
        params = {name: value for name, value in without_none(params or {}).items() if not _is_empty_list(value)}
        explicit = _settings(params, (*OPTIONS, *offered), offered) | _settings(row, known, offered)
        tools = tool_use(params | row, self.tokenizer) if "tools" in offered else None
        prompt = self.interface.encode(row | {"tools": tools.tools if tools else None}, self.tokenizer)
        settings, n = check_settings(
            self.defaults | explicit, "max_tokens" in explicit, self.context_length, len(prompt)
        )
        self._refuse_foreign_tokens(settings)
        if "response_format" in explicit:
            settings = with_mask(settings, schema_of(explicit["response_format"]), self.tokenizer)
        return Request(prompt, with_calls(settings, tools, self.tokenizer), n)

    @property
    def _offered(self) -> tuple[str, ...]:
        """Return the fields of neutral.UNSUPPORTED that this model honours."""
        takes_tools = self.interface.TAKES_TOOLS and self.tokenizer.call_syntax is not None
        return (*self.interface.OFFERED, *(TOOL_FIELDS if takes_tools else ()))

    def _refuse_foreign_tokens(self, settings: Settings) -> None:
        size = self.tokenizer.vocabulary_size
        if foreign := [token for token, _ in settings.logit_bias if token >= size]:
            message = f"logit_bias must name tokens of the vocabulary, which has {size}, got {foreign[0]}"
            raise RequestError("invalid_logit_bias", message)


def _settings(fields: dict[str, Any], known: tuple[str, ...], offered: tuple[str, ...]) -> dict[str, Any]:
    """Return the settings among the fields of a row or the params of a call; refuse what the model cannot honour."""
    fields = with_max_tokens(fields)
    _refuse_unsupported(fields, known, offered)
    more = {name: fields[name] for name in offered if name in fields and not asks_for_nothing(fields[name])}
    return _custom_inputs(fields) | {name: fields[name] for name in SETTINGS if name in fields} | more


def is_missing(cell: Any) -> bool:
    """Return True for a cell of a frame that holds nothing: None, NaN, NA or NaT."""
    return pd.api.types.is_scalar(cell) and bool(pd.isna(cell))


def _refuse_unsupported(row: dict[str, Any], known: tuple[str, ...], offered: tuple[str, ...]) -> None:
    refuse_unsupported(row, offered)
    if unknown := [key for key in row if key not in (*known, *UNSUPPORTED, *IGNORED)]:
        raise RequestError(
            "unsupported_field", f"{shown_name(unknown[0])} is not a known field; known fields: {', '.join(known)}"
        )
    stream = row.get("stream", False)
    if not isinstance(stream, Real | np.bool_):
        raise RequestError("stream", f"stream must be true or false, got {short(stream)}")
    if stream:
        raise RequestError("stream", "stream must be false in a call of predict; call predict_stream for a stream")


def _is_empty_list(value: Any) -> bool:
    return is_list(value) and len(value) == 0


def _custom_inputs(row: dict[str, Any]) -> dict[str, Any]:
    custom = row.get("custom_inputs")
    if custom is None:
        return {}
    if not isinstance(custom, dict):
        raise RequestError("invalid_custom_inputs", f"custom_inputs must be an object, got {type(custom).__name__}")
    if unknown := [key for key in custom if key not in CUSTOM_INPUTS]:
        raise RequestError(
            "unsupported_field",
            f"custom_inputs.{shown_name(unknown[0])} is not a known field; known fields: {', '.join(CUSTOM_INPUTS)}",
        )
    return without_none(custom)

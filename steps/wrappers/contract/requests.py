"""Read requests: rows in any form that MLflow passes on become token ids and checked settings."""

from collections.abc import Mapping
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd

from ..engines.sequence import Sequence, Settings
from ..tokenizer import ChatTokenizer
from .errors import RequestError
from .fields import MAX_COMPLETION_TOKENS, check_settings, short, shown_name, with_max_tokens, without_none
from .interfaces import Interface
from .neutral import COLUMNS, IGNORED, UNSUPPORTED, refuse_unsupported
from .size import check_size

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

    def rows(self, model_input: Any) -> list[dict[str, Any]]:
        """Return the rows of a frame, of one object or of a list of objects."""
        if isinstance(model_input, pd.DataFrame):
            return self.frame_rows(model_input.to_dict("records"))
        rows = self.interface.rows(model_input) if isinstance(model_input, dict) else model_input
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise RequestError("not_rows", f"expected an object or a list of objects, got {type(model_input).__name__}")
        return rows

    def frame_rows(self, rows: Rows[Mapping[Any, Any]]) -> list[dict[str, Any]]:
        """Drop what a frame adds to its rows: cells that hold nothing (NaN), and columns that are not ours."""
        known = {self.interface.SUBJECT, *OPTIONS, *COLUMNS}
        return [{key: cell for key, cell in row.items() if key in known and not _is_missing(cell)} for row in rows]

    def requests(self, rows: Rows[dict[str, Any]], params: dict[str, Any] | None) -> list[Request]:
        """Check a batch of rows. `params` of the call fill in the settings that a row does not have."""
        check_size(rows)
        return [self._request(without_none(row), params or {}) for row in rows]

    def _request(self, row: dict[str, Any], params: dict[str, Any]) -> Request:
        row, params = with_max_tokens(row), with_max_tokens(params)
        _refuse_unsupported(row, (self.interface.SUBJECT, *OPTIONS))
        explicit = {key: value for key, value in params.items() if key in SETTINGS and value is not None}
        explicit |= _custom_inputs(row) | {key: row[key] for key in SETTINGS if key in row}
        prompt = self.interface.encode(row, self.tokenizer)
        settings, n = check_settings(
            self.defaults | explicit, "max_tokens" in explicit, self.context_length, len(prompt)
        )
        return Request(prompt, settings, n)


def _is_missing(cell: Any) -> bool:
    return pd.api.types.is_scalar(cell) and bool(pd.isna(cell))


def _refuse_unsupported(row: dict[str, Any], known: tuple[str, ...]) -> None:
    refuse_unsupported(row)
    if unknown := [key for key in row if key not in (*known, *UNSUPPORTED, *IGNORED)]:
        raise RequestError(
            "unsupported_field", f"{shown_name(unknown[0])} is not a known field; known fields: {', '.join(known)}"
        )
    stream = row.get("stream", False)
    if not isinstance(stream, Real | np.bool_):
        raise RequestError("stream", f"stream must be true or false, got {short(stream)}")
    if stream:
        raise RequestError("stream", "stream must be false in a call of predict; call predict_stream for a stream")


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

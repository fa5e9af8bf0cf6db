"""The forms of a request: whatever MLflow passes on becomes rows, in pieces, so that a long frame takes no more memory.

A text or an object is one row, and its reply is one object. Frames, Series, arrays and lists get a list with a reply
for each row, however many they have.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from .errors import RequestError
from .fields import is_list
from .requests import Contract, is_missing

# Rows that are read, queued and answered together.
PIECE_ROWS = 256


@dataclass(frozen=True)
class Form:
    """The rows of a call.

    Attributes:
        contract: The contract of the model.
        items: A frame with named columns, or a list of rows and of what the subject of a row can be.
        is_one: Whether the reply is one object instead of a list.
        is_table: Whether a row may be empty: then it has an error of its own, and the others are answered.
    """

    contract: Contract
    items: Any
    is_one: bool = False
    is_table: bool = False

    def __len__(self) -> int:
        return len(self.items)

    def pieces(self) -> Iterator[list[dict[str, Any]]]:
        """Yield the rows in pieces. May be called more than once."""
        for start in range(0, len(self.items), PIECE_ROWS):
            if isinstance(self.items, pd.DataFrame):
                piece = self.items.iloc[start : start + PIECE_ROWS]
                yield self.contract.frame_rows(piece.to_dict("records"))
            else:
                yield [self._row(item) for item in self.items[start : start + PIECE_ROWS]]

    def may_be_empty(self, row: dict[str, Any]) -> bool:
        """Return True if a row is an empty one of a table."""
        return self.is_table and self.contract.interface.SUBJECT not in row

    def _row(self, item: Any) -> dict[str, Any]:
        """Return the row of an object, or of a text or a conversation alone."""
        if isinstance(item, dict):
            return item
        if isinstance(item, str) or is_list(item):
            return self.contract.interface.row(item)
        if is_missing(item):
            return {}
        got = type(item).__name__
        raise RequestError("not_rows", f"expected a text, an object, or a list, Series or frame of them, got {got}")


def read_form(contract: Contract, model_input: Any) -> Form:
    """Return the rows of whatever `predict` was called with."""
    if isinstance(model_input, pd.DataFrame):
        # A frame that was made without names, such as DataFrame(["a", "b"]), is a Series.
        columns: list[Any] = list(model_input.columns)
        if columns != [0]:
            return Form(contract, model_input, is_table=contract.interface.SUBJECT in model_input)
        model_input = model_input[0]
    if isinstance(model_input, pd.Series):
        return Form(contract, model_input.tolist(), is_table=True)
    if isinstance(model_input, dict):
        rows = contract.interface.rows(model_input)
        return Form(contract, rows, is_one=len(rows) == 1 and rows[0] is model_input)
    if is_list(model_input):
        return Form(contract, model_input.tolist() if isinstance(model_input, np.ndarray) else list(model_input))
    return Form(contract, [model_input], is_one=True)

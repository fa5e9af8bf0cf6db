"""Bounds that keys declare become sentences."""

from dataclasses import dataclass

import pytest

from steps.config.schema import key
from steps.config.validation import faults


@dataclass
class Bounded:
    low: float = key(1, at_least=1)
    between: float = key(1, at_least=0, at_most=2)
    open: float = key(1, above=0)
    choice: str = key("a", one_of=("a", "b"))
    needed: str | None = key("x", needed=True)
    free: float = key(1)


SENTENCES = {
    "below": ({"low": 0}, "low must be at least 1, got 0."),
    "above": ({"between": 3}, "between must be at least 0 and at most 2, got 3."),
    "at an open end": ({"open": 0}, "open must be above 0, got 0."),
    "no number": ({"between": float("nan")}, "between must be at least 0 and at most 2, got nan."),
    "another choice": ({"choice": "c"}, "choice must be one of a, b, got 'c'."),
    "missing": ({"needed": None}, "needed is needed: give -P needed=…"),
}


@pytest.mark.parametrize(("values", "sentence"), SENTENCES.values(), ids=SENTENCES)
def test_a_value_out_of_bounds_is_reported_by_its_key(values, sentence):
    assert faults(Bounded(**values)) == [sentence]


def test_values_within_bounds_have_no_fault():
    assert faults(Bounded(low=1, between=0, open=0.001, choice="b", free=float("inf"))) == []

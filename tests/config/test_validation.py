"""Bounds that keys declare become sentences."""

from dataclasses import dataclass

import pytest

from steps.config.schema import RegisterConfig, key
from steps.config.validation import faults


@dataclass
class Bounded:
    low: float = key(1, at_least=1)
    between: float = key(1, at_least=0, at_most=2)
    open: float = key(1, above=0)
    choice: str = key("a", one_of=("a", "b"))
    needed: str | None = key("x", needed=True)
    name: str = key("a", plain_name=True)
    free: float = key(1)


SENTENCES = {
    "below": ({"low": 0}, "low must be at least 1, got 0."),
    "above": ({"between": 3}, "between must be at least 0 and at most 2, got 3."),
    "at an open end": ({"open": 0}, "open must be above 0, got 0."),
    "no number": ({"between": float("nan")}, "between must be at least 0 and at most 2, got nan."),
    "another choice": ({"choice": "c"}, "choice must be one of a, b, got 'c'."),
    "no plain name": (
        {"name": "a/b"},
        "name must be at most 100 letters from a to z, digits, '_' and '-', got 'a/b'.",
    ),
    "missing": ({"needed": None}, "needed is needed: give -P needed=…"),
}


@pytest.mark.parametrize(("values", "sentence"), SENTENCES.values(), ids=SENTENCES)
def test_a_value_out_of_bounds_is_reported_by_its_key(values, sentence):
    assert faults(Bounded(**values)) == [sentence]


def test_values_within_bounds_have_no_fault():
    assert faults(Bounded(low=1, between=0, open=0.001, choice="b", free=float("inf"))) == []


@pytest.mark.parametrize("name", ["phi3", "phi3-few_shot", "Größe 2", "a@b", "a..b", "a#b", "phi3.prompting"])
def test_a_registered_model_may_have_any_name_that_mlflow_reads_back(name):
    assert _about_the_model(name) == []


@pytest.mark.parametrize(
    "name", ["", " ", " a", "a ", "a/b", "a:b", "a?b", "it's", 'a"b', ".", "..", "a\nb", "a" * 257]
)
def test_other_names_of_a_registered_model_are_refused(name):
    (sentence,) = _about_the_model(name)
    assert sentence.startswith("registered_model must be a name of at most 256 characters without")


def _about_the_model(name):
    sentences = faults(RegisterConfig(registered_model=name))
    return [sentence for sentence in sentences if sentence.startswith("registered_model")]

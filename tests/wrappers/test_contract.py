"""What a request may hold: every limit with its code and its words."""

import contextlib
import math
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow.exceptions import MlflowException

from steps.wrappers.contract.errors import RequestError
from steps.wrappers.contract.requests import Contract
from tests.conftest import SPAIN
from tests.wrappers.conftest import DEFAULTS

USER = {"role": "user", "content": SPAIN}


def _row(content=SPAIN, role="user", **fields):
    return {"messages": [{"role": role, "content": content}]} | fields


REFUSED = {
    "temperature below": (_row(temperature=-0.1), "invalid_temperature", "at least 0 and at most 2, got -0.1"),
    "temperature above": (_row(temperature=2.1), "invalid_temperature", "at least 0 and at most 2, got 2.1"),
    "temperature nan": (_row(temperature=math.nan), "invalid_temperature", "got nan"),
    "temperature text": (_row(temperature="hot"), "invalid_temperature", "must be a number"),
    "top_p zero": (_row(top_p=0.0), "invalid_top_p", "above 0 and at most 1, got 0.0"),
    "top_p above": (_row(top_p=1.5), "invalid_top_p", "got 1.5"),
    "top_k below": (_row(top_k=-1), "invalid_top_k", "at least 0, got -1"),
    "max_tokens zero": (_row(max_tokens=0), "invalid_max_tokens", "at least 1, got 0"),
    "max_tokens half": (_row(max_tokens=1.5), "invalid_max_tokens", "whole number"),
    "max_tokens beyond the context": (_row(max_tokens=512), "context_exceeded", "max_tokens must be at most 499"),
    "prompt beyond the context": (
        _row("the " * 600),
        "context_exceeded",
        "tokens and fills the context of 512: it must be",
    ),
    "max_tokens of 5000 digits": (_row(max_tokens=10**5000), "context_exceeded", "got a int"),
    "temperature of 5000 digits": (_row(temperature=10**5000), "invalid_temperature", "got a int"),
    "temperature in text": (_row(temperature="0.5"), "invalid_temperature", "must be a number"),
    "temperature in bytes": (_row(temperature=b"1"), "invalid_temperature", "must be a number"),
    "temperature true": (_row(temperature=True), "invalid_temperature", "got True"),
    "temperature numpy's true": (_row(temperature=np.True_), "invalid_temperature", "must be a number"),
    "temperature in an array": (_row(temperature=np.array(1.0)), "invalid_temperature", "must be a number"),
    "n in text": (_row(n="2"), "invalid_n", "got '2'"),
    "n true": (_row(n=True), "invalid_n", "got True"),
    "n in an array": (_row(n=np.array(1)), "invalid_n", "whole number"),
    "n infinite": (_row(n=np.float32("inf")), "invalid_n", "whole number"),
    "n nan": (_row(n=math.nan), "invalid_n", "got nan"),
    "seed too large": (_row(seed=2**63), "invalid_seed", "at most 9223372036854775807"),
    "seed nan": (_row(custom_inputs={"seed": math.nan}), "invalid_seed", "got nan"),
    "n zero": (_row(n=0), "invalid_n", "at least 1 and at most 8, got 0"),
    "n nine": (_row(n=9), "invalid_n", "got 9"),
    "seed below": (_row(custom_inputs={"seed": -1}), "invalid_seed", "got -1"),
    "stop empty": (_row(stop=["a", ""]), "invalid_stop", "stop[1] must be a string that is not empty, got ''"),
    "stop not text": (_row(stop=[1]), "invalid_stop", "stop[0] must be a string that is not empty, got 1"),
    "stop too many": (_row(stop=["a"] * 9), "invalid_stop", "at most 8 strings, got 9"),
    "stop in an array of none": (_row(stop=np.array("x")), "invalid_stop", "a list of strings"),
    "stop in an array of arrays": (
        _row(stop=np.array([["x"]])),
        "invalid_stop",
        "stop[0] must be a string that is not empty",
    ),
    "stream": (_row(stream=True), "stream", "predict_stream"),
    "stream numpy's true": (_row(stream=np.True_), "stream", "predict_stream"),
    "stream in an array": (_row(stream=np.array([True, False])), "stream", "must be true or false"),
    "stream in text": (_row(stream="no"), "stream", "must be true or false, got 'no'"),
    "unknown field": (_row(temprature=1), "unsupported_field", "temprature is not known: known are messages, temp"),
    "unknown field of 5000": (_row(**{"x" * 5000: 1}), "unsupported_field", f"] {'x' * 40} is not known"),
    "unknown field that is no name": (_row() | {10**5000: 1}, "unsupported_field", "a int is not known"),
    "custom input of 5000": (_row(custom_inputs={"x" * 5000: 1}), "unsupported_field", f".{'x' * 40} is not known"),
    "custom inputs nan": (_row(custom_inputs=math.nan), "invalid_custom_inputs", "got float"),
    "tools in an array": (_row(tools=np.array("x")), "unsupported_field", "tools is not supported"),
    "penalty nan": (_row(presence_penalty=math.nan), "unsupported_field", "got nan"),
    "tools": (_row(tools=[{"type": "function"}]), "unsupported_field", "tools is not supported"),
    "penalty": (
        _row(presence_penalty=0.5),
        "unsupported_field",
        "presence_penalty is not supported by this model: leave it out, got 0.5",
    ),
    "custom input": (_row(custom_inputs={"sed": 1}), "unsupported_field", "custom_inputs.sed is not known"),
    "no messages": ({"messages": []}, "empty_conversation", "at least one message"),
    "unknown role": (_row(role="tool"), "unknown_role", "messages[0].role must be one of system, user, assistant"),
    "role in an array": (_row(role=np.array(["user", "user"])), "unknown_role", "messages[0].role must be one of"),
    "messages in an array of none": ({"messages": np.array(USER)}, "not_messages", "must be a list of messages"),
    "assistant last": (_row(role="assistant"), "last_role", "the last message must be the user's"),
    "field of a message": (
        {"messages": [USER | {"name": "me"}]},
        "unsupported_field",
        "messages[0].name is not supported",
    ),
    "not text": (_row(5), "not_text", "messages[0].content must be a string, got int"),
    "missing text": ({"messages": [{"role": "user"}]}, "not_text", "got NoneType"),
    "empty text": (_row("  "), "empty_text", "must not be empty"),
    "NUL": (_row("a\0b"), "nul", "must not hold a NUL character (at 1)"),
    "lone surrogate": (_row("a\ud800"), "lone_surrogate", "must be valid Unicode, got a lone surrogate (at 1)"),
    "end token": (_row("a<|end|>b"), "control_token", "must not hold the control token <|end|>"),
    "system token": (_row("<|system|>"), "control_token", "<|system|>"),
    "padding token": (_row("<|endoftext|>"), "control_token", "<|endoftext|>"),
    "too large": (_row("a" * 1_000_001), "too_large", "at most 1000000 bytes of UTF-8, got at least 10000"),
    "too large in UTF-8": (_row("\u20ac" * 333_334), "too_large", "at most 1000000 bytes"),
    "too large a stop": (_row(stop=["a" * 1_000_001]), "too_large", "at most 1000000 bytes"),
    "too large a tool": (_row(tools=[{"deep": [{"a" * 1_000_001: 1}]}]), "too_large", "at most 1000000 bytes"),
    "too large a number": (_row(seed=2**8_000_000), "too_large", "at most 1000000 bytes"),
}


@pytest.mark.parametrize(("row", "code", "words"), REFUSED.values(), ids=REFUSED)
def test_refused_with_a_code_and_words(contract, row, code, words):
    with pytest.raises(RequestError) as refusal:
        contract.requests([row], None)
    assert refusal.value.code == code
    assert refusal.value.message.startswith(f"[{code}] ")
    assert words in refusal.value.message
    assert SPAIN not in refusal.value.message
    assert refusal.value.get_http_status_code() == 400


def test_too_many_rows(contract):
    with pytest.raises(RequestError, match="at most 256 rows, got 257"):
        contract.requests([_row()] * 257, None)


def test_the_server_cannot_put_the_prompt_into_the_message():
    """MLflow's scoring server rewrites `message` to repeat the request."""
    error = RequestError("nul", "no")
    error.message = "Failed to predict data 'secret'"
    assert "secret" not in error.serialize_as_json()
    assert isinstance(error, MlflowException)


ACCEPTED = {
    "greedy": (_row(temperature=0), {"temperature": 0.0}),
    "an int for a float": (_row(temperature=1, top_p=1), {"temperature": 1.0, "top_p": 1.0}),
    "a float for an int": (_row(max_tokens=8.0), {"max_tokens": 8}),
    "one stop string": (_row(stop="x"), {"stop": ("x",)}),
    "seed": (_row(custom_inputs={"seed": 5}), {"seed": 5}),
    "a seed that no float holds": (_row(custom_inputs={"seed": 2**53 + 1}), {"seed": 2**53 + 1}),
    "the largest seed": (_row(seed=np.int64(2**63 - 1)), {"seed": 2**63 - 1}),
    "a seed in a field": (_row(seed=5), {"seed": 5}),
    "custom inputs of nothing": (_row(custom_inputs={"seed": None, "top_k": None}), {"seed": None, "top_k": 0}),
    "numpy's numbers": (
        _row(temperature=np.float32(0.5), max_tokens=np.int32(3)),
        {"temperature": 0.5, "max_tokens": 3},
    ),
    "a fraction": (_row(top_p=Fraction(1, 2)), {"top_p": 0.5}),
    "what OpenAI's clients send": (_row(model="phi3", user="me"), {"max_tokens": 64}),
    "a default that does not fit shrinks": (_row("the " * 480), {"max_tokens": 25}),
    "what asks for nothing": (_row(stream=False, tools=[], presence_penalty=0.0), {"max_tokens": 64}),
}


@pytest.mark.parametrize(("row", "expected"), ACCEPTED.values(), ids=ACCEPTED)
def test_accepted(contract, row, expected):
    (request,) = contract.requests([row], None)
    for name, value in expected.items():
        assert getattr(request.settings, name) == value


def test_a_large_request_is_large_as_a_whole(contract):
    half = _row(tools=[], user="a" * 500_000)
    assert contract.requests([half], None)
    with pytest.raises(RequestError, match="too_large"):
        contract.requests([half, half], None)


@pytest.mark.parametrize("missing", [None, math.nan, np.float32("nan"), pd.NA, pd.NaT], ids=str)
def test_a_missing_cell_of_a_frame_is_not_given_and_other_columns_are_left_out(contract, missing):
    rows = [_row(temperature=missing, target="x"), _row(temperature=1.0, target=missing, prompt="y")]
    assert contract.frame_rows(rows[:1]) == [_row()]
    assert contract.frame_rows(rows) == [_row(), _row(temperature=1.0)]


def test_an_object_that_holds_itself_is_refused(contract):
    knot = []
    knot.append(knot)
    with pytest.raises(RequestError, match="too_large"):
        contract.requests([_row(tools=knot)], None)


def test_params_stand_in_for_what_a_row_does_not_give(tokenizer):
    contract = Contract("prompt", tokenizer, 512, DEFAULTS)
    (request,) = contract.requests([{"prompt": "a"}], {"temperature": 0.5, "seed": 3, "unknown": 1})
    assert (request.settings.temperature, request.settings.seed) == (0.5, 3)


def test_a_prompt_in_phi3s_own_format_is_taken_as_it_is(tokenizer):
    contract = Contract("prompt", tokenizer, 512, DEFAULTS)
    raw = f"<|user|>\n{SPAIN}<|end|>\n<|assistant|>\n"
    plain, whole = contract.requests([{"prompt": SPAIN}, {"prompt": raw}], None)
    assert plain.prompt == whole.prompt == tokenizer.encode(raw)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
FIELDS = ["temperature", "top_p", "top_k", "max_tokens", "stop", "n", "seed", "stream", "tools", "custom_inputs", "x"]
VALUE = JSON | st.sampled_from([10**5000, np.array(1), np.array(["user"]), np.array([[1.0]]), np.True_, np.float32(2)])


@settings(max_examples=400, deadline=None)
@given(
    st.fixed_dictionaries({"messages": st.lists(st.fixed_dictionaries({"role": VALUE, "content": VALUE})) | VALUE})
    | st.fixed_dictionaries({"messages": st.just([USER])}, optional=dict.fromkeys(FIELDS, VALUE))
)
def test_a_random_request_is_answered_or_refused(contract, row):
    """Whatever comes, it is a request or a RequestError: never anything that a server calls 500."""
    with contextlib.suppress(RequestError):
        (request,) = contract.requests([row], None)
        assert request.prompt

"""What a request may hold: every limit with its code and its words."""

import contextlib
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow.exceptions import MlflowException

from steps.wrappers.contract import Contract, RequestError
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
    "prompt beyond the context": (_row("the " * 600), "context_exceeded", "the prompt fills the context"),
    "n zero": (_row(n=0), "invalid_n", "at least 1 and at most 8, got 0"),
    "n nine": (_row(n=9), "invalid_n", "got 9"),
    "seed below": (_row(custom_inputs={"seed": -1}), "invalid_seed", "got -1"),
    "stop empty": (_row(stop=[""]), "invalid_stop", "not empty"),
    "stop not text": (_row(stop=[1]), "invalid_stop", "strings"),
    "stop too many": (_row(stop=["a"] * 9), "invalid_stop", "at most 8 strings, got 9"),
    "stream": (_row(stream=True), "stream", "predict_stream"),
    "tools": (_row(tools=[{"type": "function"}]), "unsupported_field", "tools is not supported"),
    "penalty": (_row(presence_penalty=0.5), "unsupported_field", "presence_penalty is not supported"),
    "custom input": (_row(custom_inputs={"sed": 1}), "unsupported_field", "custom_inputs.sed is not known"),
    "no messages": ({"messages": []}, "empty_conversation", "at least one message"),
    "unknown role": (_row(role="tool"), "unknown_role", "messages[0].role must be one of system, user, assistant"),
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
    "lone surrogate": (_row("a\ud800"), "lone_surrogate", "must be valid Unicode"),
    "end token": (_row("a<|end|>b"), "control_token", "must not hold the control token <|end|>"),
    "system token": (_row("<|system|>"), "control_token", "<|system|>"),
    "padding token": (_row("<|endoftext|>"), "control_token", "<|endoftext|>"),
    "too large": (_row("a" * 1_000_001), "too_large", "at most 1000000 characters"),
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
    "a default that does not fit shrinks": (_row("the " * 480), {"max_tokens": 25}),
    "what asks for nothing": (_row(stream=False, tools=[], presence_penalty=0.0), {"max_tokens": 64}),
}


@pytest.mark.parametrize(("row", "expected"), ACCEPTED.values(), ids=ACCEPTED)
def test_accepted(contract, row, expected):
    (request,) = contract.requests([row], None)
    for name, value in expected.items():
        assert getattr(request.settings, name) == value


def test_a_missing_cell_of_several_rows_is_not_given(contract):
    first, second = contract.requests([_row(temperature=1.0), _row(temperature=math.nan)], None)
    assert (first.settings.temperature, second.settings.temperature) == (1.0, 0.0)


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
FIELDS = ["temperature", "top_p", "top_k", "max_tokens", "stop", "n", "stream", "tools", "custom_inputs"]


@settings(max_examples=400, deadline=None)
@given(
    st.fixed_dictionaries({"messages": st.lists(st.fixed_dictionaries({"role": JSON, "content": JSON})) | JSON})
    | st.fixed_dictionaries({"messages": st.just([USER])}, optional=dict.fromkeys(FIELDS, JSON))
)
def test_a_random_request_is_answered_or_refused(contract, row):
    """Whatever comes, it is a request or a RequestError: never anything that a server calls 500."""
    with contextlib.suppress(RequestError):
        (request,) = contract.requests([row], None)
        assert request.prompt

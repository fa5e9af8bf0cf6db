"""The contract of a request: every limit with its stable code and its message."""

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
from steps.wrappers.contract.interfaces import INTERFACES
from steps.wrappers.contract.requests import Contract
from steps.wrappers.contract.size import check_size
from steps.wrappers.tokenizer import ChatTokenizer
from tests.conftest import SPAIN
from tests.wrappers import checkpoints
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
        "tokens and fills the context of 512; make it at least",
    ),
    "max_tokens of 5000 digits": (_row(max_tokens=10**5000), "context_exceeded", "got a value of type int"),
    "temperature of 5000 digits": (_row(temperature=10**5000), "invalid_temperature", "got a value of type int"),
    "temperature in a string": (_row(temperature="0.5"), "invalid_temperature", "must be a number"),
    "temperature in bytes": (_row(temperature=b"1"), "invalid_temperature", "must be a number"),
    "temperature true": (_row(temperature=True), "invalid_temperature", "got True"),
    "temperature true of numpy": (_row(temperature=np.True_), "invalid_temperature", "must be a number"),
    "temperature in an array": (_row(temperature=np.array(1.0)), "invalid_temperature", "must be a number"),
    "n in a string": (_row(n="2"), "invalid_n", "got '2'"),
    "n true": (_row(n=True), "invalid_n", "got True"),
    "n in an array": (_row(n=np.array(1)), "invalid_n", "whole number"),
    "n infinite": (_row(n=np.float32("inf")), "invalid_n", "whole number"),
    "n nan": (_row(n=math.nan), "invalid_n", "got nan"),
    "seed too large": (_row(seed=2**63), "invalid_seed", "at most 9223372036854775807"),
    "seed nan": (_row(custom_inputs={"seed": math.nan}), "invalid_seed", "got nan"),
    "n zero": (_row(n=0), "invalid_n", "at least 1 and at most 8, got 0"),
    "n nine": (_row(n=9), "invalid_n", "got 9"),
    "seed below": (_row(custom_inputs={"seed": -1}), "invalid_seed", "got -1"),
    "stop empty": (_row(stop=["a", ""]), "invalid_stop", "stop[1] must be a non-empty string, got ''"),
    "stop not text": (_row(stop=[1]), "invalid_stop", "stop[0] must be a non-empty string, got 1"),
    "stop too many": (_row(stop=["a"] * 9), "invalid_stop", "at most 8 strings, got 9"),
    "stop in an array without a dimension": (_row(stop=np.array("x")), "invalid_stop", "a list of strings"),
    "stop in an array with two dimensions": (
        _row(stop=np.array([["x"]])),
        "invalid_stop",
        "stop[0] must be a non-empty string",
    ),
    "stream": (_row(stream=True), "stream", "predict_stream"),
    "stream true of numpy": (_row(stream=np.True_), "stream", "predict_stream"),
    "stream in an array": (_row(stream=np.array([True, False])), "stream", "must be true or false"),
    "stream in a string": (_row(stream="no"), "stream", "must be true or false, got 'no'"),
    "unknown field": (
        _row(temprature=1),
        "unsupported_field",
        "temprature is not a known field; known fields: messages, temp",
    ),
    "unknown field of 5000 characters": (
        _row(**{"x" * 5000: 1}),
        "unsupported_field",
        f"] {'x' * 40} is not a known field",
    ),
    "unknown field that is a number": (
        _row() | {10**5000: 1},
        "unsupported_field",
        "a value of type int is not a known field",
    ),
    "custom input of 5000 characters": (
        _row(custom_inputs={"x" * 5000: 1}),
        "unsupported_field",
        f".{'x' * 40} is not a known field",
    ),
    "custom inputs nan": (_row(custom_inputs=math.nan), "invalid_custom_inputs", "got float"),
    "tools in an array": (_row(tools=np.array("x")), "unsupported_field", "tools is not supported"),
    "penalty nan": (_row(presence_penalty=math.nan), "invalid_presence_penalty", "got nan"),
    "penalty below": (_row(frequency_penalty=-2.1), "invalid_frequency_penalty", "at least -2 and at most 2, got -2.1"),
    "biases in a list": (_row(logit_bias=[1]), "invalid_logit_bias", "an object of at most 1024 token ids"),
    "bias of a word": (_row(logit_bias={"the": 1}), "invalid_logit_bias", "token ids as names, got the"),
    "bias too large": (_row(logit_bias={"5": 101}), "invalid_logit_bias", "logit_bias.5 must be a number"),
    "bias of no token": (_row(logit_bias={"999999999": 1}), "invalid_logit_bias", "the vocabulary, which has"),
    "logprobs in a number": (_row(logprobs=5), "invalid_logprobs", "must be true or false, got 5"),
    "top_logprobs above": (_row(logprobs=True, top_logprobs=21), "invalid_top_logprobs", "at most 20, got 21"),
    "top_logprobs alone": (_row(top_logprobs=2), "invalid_top_logprobs", "needs logprobs: true, got 2 without it"),
    "tools": (_row(tools=[{"type": "function"}]), "unsupported_field", "tools is not supported"),
    "penalty": (_row(presence_penalty=2.5), "invalid_presence_penalty", "at least -2 and at most 2, got 2.5"),
    "custom input": (_row(custom_inputs={"sed": 1}), "unsupported_field", "custom_inputs.sed is not a known field"),
    "no messages": ({"messages": []}, "empty_conversation", "at least one message"),
    "unknown role": (_row(role="tool"), "unknown_role", "messages[0].role must be one of system, user, assistant"),
    "role in an array": (_row(role=np.array(["user", "user"])), "unknown_role", "messages[0].role must be one of"),
    "messages in an array without a dimension": (
        {"messages": np.array(USER)},
        "not_messages",
        "must be a list of messages",
    ),
    "assistant last": (_row(role="assistant"), "last_role", "the last message must have role 'user', got 'assistant'"),
    "unknown field of a message": (
        {"messages": [USER | {"name": "me"}]},
        "unsupported_field",
        "messages[0].name is not supported",
    ),
    "not text": (_row(5), "not_text", "messages[0].content must be a string, got int"),
    "missing text": ({"messages": [{"role": "user"}]}, "not_text", "got NoneType"),
    "empty text": (_row("  "), "empty_text", "must not be empty"),
    "NUL": (_row("a\0b"), "nul", "must not contain a NUL character (at 1)"),
    "lone surrogate": (_row("a\ud800"), "lone_surrogate", "must be valid Unicode, got a lone surrogate (at 1)"),
    "end token": (_row("a<|end|>b"), "control_token", "must not contain the control token <|end|>"),
    "system token": (_row("<|system|>"), "control_token", "<|system|>"),
    "padding token": (_row("<|endoftext|>"), "control_token", "<|endoftext|>"),
    "too large": (_row("a" * 1_000_001), "too_large", "at most 1000000 bytes of UTF-8, got at least 10000"),
    "too large in UTF-8": (_row("\u20ac" * 333_334), "too_large", "at most 1000000 bytes"),
    "stop too large": (_row(stop=["a" * 1_000_001]), "too_large", "at most 1000000 bytes"),
    "tool too large": (_row(tools=[{"deep": [{"a" * 1_000_001: 1}]}]), "too_large", "at most 1000000 bytes"),
    "number too large": (_row(seed=2**8_000_000), "too_large", "at most 1000000 bytes"),
}


@pytest.mark.parametrize(("row", "code", "words"), REFUSED.values(), ids=REFUSED)
def test_invalid_request_is_refused_with_a_stable_code(contract, row, code, words):
    with pytest.raises(RequestError) as refusal:
        contract.requests([row], None)
    assert refusal.value.code == code
    assert refusal.value.message.startswith(f"[{code}] ")
    assert words in refusal.value.message
    assert SPAIN not in refusal.value.message
    assert refusal.value.get_http_status_code() == 400


NEUTRAL = {
    "response_format": [{"type": "text"}, None],
    "tool_choice": ["none", "auto", None],
    "function_call": ["none", "auto"],
    "tools": [[], None, np.array([])],
    "functions": [[]],
    "parallel_tool_calls": [True, False],
    "store": [False, None],
    "metadata": [{}, None],
    "modalities": [["text"], []],
    "audio": [None],
    "prediction": [None],
    "logprobs": [False, None],
    "top_logprobs": [0, None],
    "logit_bias": [{}, None],
    "frequency_penalty": [0, 0.0],
    "presence_penalty": [0.0],
    "reasoning_effort": ["none", None],
    "verbosity": ["medium"],
    "service_tier": ["auto", "default"],
    "stream_options": [{}, {"include_usage": False}, None],
    "web_search_options": [None],
    "best_of": [1],
    "echo": [False],
    "suffix": ["", None],
    "stream": [False],
    # from other servers
    "repetition_penalty": [1, 1.0, None],
    "min_p": [0, 0.0],
    "length_penalty": [1.0],
    "min_tokens": [0],
    "ignore_eos": [False],
    "use_beam_search": [False],
    "include_stop_str_in_output": [False],
    "stop_token_ids": [[]],
    "any_other": [None],
    # labels and hints: any value
    "model": ["phi3"],
    "user": ["me"],
    "safety_identifier": ["me"],
    "prompt_cache_key": ["key"],
    "prompt_cache_retention": ["24h"],
    "prompt_cache_options": [{"mode": "implicit"}],
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in NEUTRAL.items() for value in values])
@pytest.mark.parametrize("interface", ["chat", "prompt"])
def test_field_that_asks_for_nothing_is_accepted(tokenizer, interface, field, value):
    contract = Contract(INTERFACES[interface], tokenizer, 512, DEFAULTS)
    row = _row() if interface == "chat" else {"prompt": SPAIN}
    (plain,), (request,) = contract.requests([row], None), contract.requests([row | {field: value}], None)
    assert request == plain


DEMANDING = {
    "tool_choice": ["required", {"type": "function", "function": {"name": "f"}}],
    "function_call": [{"name": "f"}],
    "functions": [[{"name": "f"}]],
    "store": [True],
    "metadata": [{"a": "b"}],
    "modalities": [["text", "audio"], ["audio"]],
    "audio": [{"voice": "alloy", "format": "wav"}],
    "prediction": [{"type": "content", "content": "a"}],
    "reasoning_effort": ["high"],
    "verbosity": ["low"],
    "service_tier": ["flex"],
    "stream_options": [{"include_usage": True}],
    "web_search_options": [{}],
    "best_of": [2],
    "echo": [True],
    "suffix": ["a"],
    "repetition_penalty": [1.1],
    "min_p": [0.1],
    "stop_token_ids": [[5]],
    "any_other": [0, False, {}, ""],
}


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in DEMANDING.items() for value in values]
)
def test_field_that_asks_for_something_is_refused(contract, field, value):
    with pytest.raises(RequestError, match=rf"^\[unsupported_field\] {field} is not") as refusal:
        contract.requests([_row(**{field: value})], None)
    assert refusal.value.get_http_status_code() == 400


def test_frame_may_have_its_own_column_with_the_name_of_a_field(contract):
    assert contract.frame_rows([_row(metadata={"source": "x"}, suffix="y")]) == [_row()]


def _max_tokens(contract, row, params=None):
    (request,) = contract.requests([row], params)
    return request.settings.max_tokens


def test_max_completion_tokens_means_max_tokens(contract):
    assert _max_tokens(contract, _row(max_completion_tokens=5)) == 5
    assert _max_tokens(contract, _row(max_completion_tokens=5, max_tokens=5.0)) == 5
    assert _max_tokens(contract, _row(max_completion_tokens=None, max_tokens=6)) == 6
    assert _max_tokens(contract, _row(), {"max_completion_tokens": 7}) == 7
    assert _max_tokens(contract, _row(max_completion_tokens=5), {"max_tokens": 7}) == 5
    assert contract.frame_rows([_row(max_completion_tokens=5)]) == [_row(max_completion_tokens=5)]


@pytest.mark.parametrize(
    ("fields", "code", "words"),
    [
        ({"max_completion_tokens": 5, "max_tokens": 6}, "invalid_max_tokens", "must be equal, got 6 and 5"),
        ({"max_completion_tokens": 0}, "invalid_max_completion_tokens", "at least 1, got 0"),
        ({"max_completion_tokens": "5"}, "invalid_max_completion_tokens", "whole number"),
        ({"max_completion_tokens": 10**6}, "context_exceeded", "max_tokens must be at most"),
    ],
)
def test_wrong_max_completion_tokens_is_refused(contract, fields, code, words):
    with pytest.raises(RequestError) as refusal:
        contract.requests([_row(**fields)], None)
    assert refusal.value.code == code
    assert words in refusal.value.message


def _history(content="Madrid.", **fields):
    return {"messages": [USER, {"role": "assistant", "content": content} | fields, USER]}


@pytest.mark.parametrize("content", ["", " ", "\n\n", None, "a\0b", "\ufffd", "Madrid."])
def test_any_reply_is_accepted_as_history(contract, tokenizer, content):
    (request,) = contract.requests([_history(content)], None)
    expected = [USER, {"role": "assistant", "content": content or ""}, USER]
    assert request.prompt == tokenizer.encode_chat(expected)


@pytest.mark.parametrize("message", [{"role": "assistant"}, {"role": "assistant", "content": ""}])
def test_reply_without_text_is_accepted_as_history(contract, message):
    assert contract.requests([{"messages": [USER, message, USER]}], None)


NOTHING = {"tool_calls": [], "name": None, "refusal": None, "function_call": None, "audio": None, "annotations": []}


@pytest.mark.parametrize("fields", [NOTHING, {"tool_calls": None}, {"tool_calls": np.array([])}, {"name": ""}], ids=str)
@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_fields_of_a_message_that_ask_for_nothing_are_accepted(contract, role, fields):
    message = {"role": role, "content": "a"}
    (plain,), (request,) = (
        contract.requests([{"messages": [turn, USER]}], None) for turn in (message, message | fields)
    )
    assert request == plain


@pytest.mark.parametrize("field", ["tool_calls", "name", "refusal", "prefix"])
def test_field_of_a_reply_that_asks_for_something_is_refused(contract, field):
    with pytest.raises(RequestError, match=rf"messages\[1\].{field} is not supported"):
        contract.requests([_history(**{field: ["x"]})], None)


@pytest.mark.parametrize(
    ("content", "code"), [(5, "not_text"), ("a\ud800", "lone_surrogate"), ("a<|end|>", "control_token")]
)
def test_what_no_reply_can_be_is_refused_as_history(contract, content, code):
    with pytest.raises(RequestError) as refusal:
        contract.requests([_history(content)], None)
    assert refusal.value.code == code


def _parts(*texts, **fields):
    return [{"type": "text", "text": text} | fields for text in texts]


PARTS = {
    "one": (_parts(SPAIN), SPAIN),
    "several": (_parts("What is the ", "", "capital of Spain?"), SPAIN),
    "in an array": (np.array(_parts(SPAIN), dtype=object), SPAIN),
    "with fields that ask for nothing": (_parts(SPAIN, annotations=[], cache_control=None), SPAIN),
}


@pytest.mark.parametrize(("parts", "text"), PARTS.values(), ids=PARTS)
@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_content_in_parts_of_text_is_their_text(contract, role, parts, text):
    requests = [
        contract.requests([{"messages": [{"role": role, "content": content}, USER]}], None) for content in (parts, text)
    ]
    assert requests[0] == requests[1]


WRONG_PARTS = {
    "an image": ([*_parts("a"), {"type": "image_url", "image_url": {"url": SPAIN}}], "not_text", "[1] must be a part"),
    "no type": ([{"text": SPAIN}], "not_text", "[0] must be a part of type 'text' with a string"),
    "no text": ([{"type": "text"}], "not_text", "[0] must be a part of type 'text' with a string"),
    "a number": (_parts(5), "not_text", "[0] must be a part of type 'text' with a string"),
    "texts": ([SPAIN], "not_text", "[0] must be a part of type 'text' with a string"),
    "none": ([], "not_text", "must be a string, got list"),
    "empty": (_parts("", " "), "empty_text", "must not be empty"),
    "an unknown field": (_parts(SPAIN, language="es"), "unsupported_field", "[0].language is not supported"),
    "a control token in two parts": (_parts("<|en", "d|>"), "control_token", "the control token <|end|>"),
}


@pytest.mark.parametrize(("parts", "code", "words"), WRONG_PARTS.values(), ids=WRONG_PARTS)
def test_other_parts_are_refused(contract, parts, code, words):
    with pytest.raises(RequestError) as refusal:
        contract.requests([_row(parts)], None)
    assert (refusal.value.code, words in refusal.value.message) == (code, True)
    assert SPAIN not in refusal.value.message


@pytest.fixture
def with_template(tmp_path):
    """Return the contract of a model with another chat template: `with_template("gemma", "chat")`."""

    def make(name, interface="chat"):
        folder = checkpoints.write(tmp_path / "checkpoint", template=checkpoints.TEMPLATES.get(name, name))
        return Contract(INTERFACES[interface], ChatTokenizer(folder), 512, DEFAULTS)

    return make


SYSTEM = {"role": "system", "content": "A secret."}
UNRENDERED = {
    "a dropped role": ("phi3_first", [SYSTEM, USER], "role_not_rendered", "messages[0] has role 'system', which"),
    "a dropped place": ("deepseek", [SYSTEM, SYSTEM, USER], "role_not_rendered", "messages[0] has role 'system'"),
    "a later message": ("phi3_first", [USER, SYSTEM, USER], "role_not_rendered", "messages[1] has role 'system'"),
    "a refusal": ("gemma", [SYSTEM, USER], "template_refused", "refuses this conversation: System role not supported"),
    "the order": ("llama2", [USER, USER], "template_refused", "Conversation roles must alternate"),
    "the content": ("{{ raise_exception(messages[0].content) }}", [SYSTEM, USER], "template_refused", ": …"),
    "an error": ("{{ messages[0].content + 1 }}", [USER], "template_refused", "it raises TypeError"),
}


@pytest.mark.parametrize(("template", "messages", "code", "words"), UNRENDERED.values(), ids=UNRENDERED)
def test_conversation_that_the_template_does_not_render_is_refused(with_template, template, messages, code, words):
    with pytest.raises(RequestError) as refusal:
        with_template(template).requests([{"messages": messages}], None)
    assert refusal.value.code == code
    assert words in refusal.value.message
    assert refusal.value.get_http_status_code() == 400
    assert SPAIN not in refusal.value.message
    assert "secret" not in refusal.value.message


def test_prompt_that_the_template_refuses_is_a_400(with_template):
    with pytest.raises(RequestError, match="template_refused"):
        with_template("{{ raise_exception('no') }}", "prompt").requests([{"prompt": SPAIN}], None)


def test_prompt_with_an_added_word_is_rendered_in_the_chat_format(tmp_path):
    tokenizer = checkpoints.byte_level()
    tokenizer.add_tokens(["Spain"])
    tokenizer = ChatTokenizer(checkpoints.write(tmp_path, tokenizer, checkpoints.TEMPLATES["phi3"]))
    contract = Contract(INTERFACES["prompt"], tokenizer, 512, DEFAULTS)
    (request,) = contract.requests([{"prompt": SPAIN}], None)
    assert request.prompt == tokenizer.encode_chat([USER])
    assert Contract(INTERFACES["chat"], tokenizer, 512, DEFAULTS).requests([_row()], None)


def test_more_than_256_rows_of_a_served_request_are_refused():
    with pytest.raises(RequestError, match="at most 256 rows, got 257"):
        check_size([_row()] * 257)


def test_message_cannot_be_replaced_by_one_with_the_prompt():
    """MLflow's scoring server sets `message` to a text that repeats the request."""
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
    "a seed that no float can represent": (_row(custom_inputs={"seed": 2**53 + 1}), {"seed": 2**53 + 1}),
    "the largest seed": (_row(seed=np.int64(2**63 - 1)), {"seed": 2**63 - 1}),
    "seed as a field": (_row(seed=5), {"seed": 5}),
    "empty custom inputs": (_row(custom_inputs={"seed": None, "top_k": None}), {"seed": None, "top_k": 0}),
    "numpy's numbers": (
        _row(temperature=np.float32(0.5), max_tokens=np.int32(3)),
        {"temperature": 0.5, "max_tokens": 3},
    ),
    "a fraction": (_row(top_p=Fraction(1, 2)), {"top_p": 0.5}),
    "fields that OpenAI's clients always send": (_row(model="phi3", user="me"), {"max_tokens": 64}),
    "a default that does not fit shrinks": (_row("the " * 480), {"max_tokens": 25}),
    "unsupported fields that ask for nothing": (_row(stream=False, tools=[], presence_penalty=0.0), {"max_tokens": 64}),
}


@pytest.mark.parametrize(("row", "expected"), ACCEPTED.values(), ids=ACCEPTED)
def test_valid_settings_are_accepted_and_converted(contract, row, expected):
    (request,) = contract.requests([row], None)
    for name, value in expected.items():
        assert getattr(request.settings, name) == value


def test_size_limit_of_a_served_request_counts_all_rows_together(contract):
    half = _row(tools=[], user="a" * 500_000)
    assert contract.requests([half, half], None)
    check_size([half])
    with pytest.raises(RequestError, match="too_large"):
        check_size([half, half])


@pytest.mark.parametrize("missing", [None, math.nan, np.float32("nan"), pd.NA, pd.NaT], ids=str)
def test_missing_cells_and_foreign_columns_of_a_frame_are_dropped(contract, missing):
    rows = [_row(temperature=missing, target="x"), _row(temperature=1.0, target=missing, prompt="y")]
    assert contract.frame_rows(rows[:1]) == [_row()]
    assert contract.frame_rows(rows) == [_row(), _row(temperature=1.0)]


def test_object_that_contains_itself_is_refused(contract):
    cycle = []
    cycle.append(cycle)
    with pytest.raises(RequestError, match="too_large"):
        contract.requests([_row(tools=cycle)], None)


def test_params_fill_in_settings_that_a_row_does_not_have(contract):
    params = {"temperature": 0.5, "seed": 3, "stop": ["a"], "custom_inputs": {"top_k": 2}, "max_tokens": None}
    rows = [_row(), _row(seed=4, stop=["b"]), _row(seed=None, custom_inputs={"seed": 5, "top_k": 7})]
    requests = [contract.request(row, params).settings for row in rows]
    assert [settings.temperature for settings in requests] == [0.5] * 3
    assert [settings.seed for settings in requests] == [3, 4, 5]
    assert [settings.stop for settings in requests] == [("a",), ("b",), ("a",)]
    assert [settings.top_k for settings in requests] == [2, 2, 7]


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"max_token": 1}, "max_token is not a known field"),
        ({"messages": [{}]}, "messages is not a known field"),
        ({"presence_penalty": 2.5}, "presence_penalty must be at least -2 and at most 2"),
        ({"stream": True}, "stream must be false"),
        ({"custom_inputs": {"sed": 1}}, "custom_inputs.sed is not a known field"),
        ({"temperature": 3}, "temperature must be at least 0 and at most 2"),
        ({"stop": 5}, "stop must be a list of strings"),
    ],
    ids=str,
)
def test_params_are_checked_as_the_fields_of_a_row_are(contract, params, words):
    with pytest.raises(RequestError, match=words):
        contract.request(_row(), params)


def test_prompt_in_the_chat_format_is_encoded_as_it_is(tokenizer):
    contract = Contract(INTERFACES["prompt"], tokenizer, 512, DEFAULTS)
    raw = f"<|user|>\n{SPAIN}<|end|>\n<|assistant|>\n"
    plain, formatted = contract.requests([{"prompt": SPAIN}, {"prompt": raw}], None)
    assert plain.prompt == formatted.prompt == tokenizer.encode(raw)


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
def test_random_request_is_accepted_or_refused(contract, row):
    """Any row becomes a Request or a RequestError, never an error that a server answers with 500."""
    with contextlib.suppress(RequestError):
        (request,) = contract.requests([row], None)
        assert request.prompt

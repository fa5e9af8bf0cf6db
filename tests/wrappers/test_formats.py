"""`response_format`: every reply is valid under its schema, on every engine, greedy and sampled."""

import json

import pytest

from steps.wrappers.contract.errors import RequestError
from tests.conftest import SPAIN

SCHEMAS = {
    "an object": {
        "type": "object",
        "properties": {"city": {"enum": ["Madrid", "Paris"]}, "sure": {"type": "boolean"}},
        "required": ["city", "sure"],
        "additionalProperties": False,
    },
    "a list": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3},
    "a number": {"type": "integer", "minimum": 3, "maximum": 99},
    "a pattern": {"type": "string", "pattern": "^[a-c]{2,4}$"},
    "nested": {
        "type": "object",
        "properties": {
            "a": {
                "type": "object",
                "properties": {"b": {"const": None}},
                "required": ["b"],
                "additionalProperties": False,
            }
        },
        "required": ["a"],
        "additionalProperties": False,
    },
}


def _valid(value, schema):
    """A check of the few words of JSON Schema that are used here."""
    kind = {"object": dict, "array": list, "integer": int, "string": str}[schema["type"]]
    assert isinstance(value, kind)
    if kind is dict:
        assert set(schema["required"]) <= set(value)
        for name, inner in schema["properties"].items():
            if "type" in inner and name in value and inner["type"] != "boolean":
                _valid(value[name], inner)
            assert "enum" not in inner or value[name] in inner["enum"]
    assert kind is not list or schema["minItems"] <= len(value) <= schema["maxItems"]
    assert kind is not int or schema["minimum"] <= value <= schema["maximum"]
    assert kind is not str or (2 <= len(value) <= 4 and set(value) <= set("abc"))


def _row(schema=None, **fields):
    format_ = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}} if schema else None
    row = {"messages": [{"role": "user", "content": SPAIN}], "max_tokens": 80} | fields
    return row | ({"response_format": format_} if format_ else {})


@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_reply_is_valid_and_free_rows_do_not_change(complete, temperature):
    ((alone,),) = complete(_row(temperature=temperature, seed=5))
    rows = [_row(schema, temperature=temperature, seed=5) for schema in SCHEMAS.values()]
    *replies, (free,) = complete(*rows, _row(temperature=temperature, seed=5))
    for schema, (reply,) in zip(SCHEMAS.values(), replies, strict=True):
        assert reply.finish_reason == "stop", reply.text
        _valid(json.loads(reply.text), schema)
    assert free.tokens == alone.tokens


def test_json_object_is_an_object(complete):
    # The miniature would write strings without end, so only the closing brace and quotes are likely.
    ((reply,),) = complete(_row(response_format={"type": "json_object"}, max_tokens=120, temperature=1, seed=3))
    assert reply.text.startswith("{")
    if reply.finish_reason == "stop":
        assert isinstance(json.loads(reply.text), dict)


@pytest.mark.parametrize("value", [None, {}, {"type": "text"}], ids=str)
def test_text_is_free(complete, value):
    ((free,), (same,)) = complete(_row(), _row(response_format=value))
    assert same.text == free.text


REFUSED = {
    "another type": ({"type": "xml"}, "invalid_response_format", "one of text, json_object, json_schema, got 'xml'"),
    "a foreign field": ({"type": "text", "x": 1}, "invalid_response_format", "response_format.x is not a known"),
    "a word": ("json", "invalid_response_format", "got str"),
    "no schema": ({"type": "json_schema"}, "invalid_response_format", "must be an object with a schema"),
    "what llguidance cannot express": (
        {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object", "not": {"type": "null"}}}},
        "unsupported_schema",
        '"not"',
    ),
    "nothing fits": (
        {
            "type": "json_schema",
            "json_schema": {"name": "n", "schema": {"type": "integer", "minimum": 3, "maximum": 1}},
        },
        "unsupported_schema",
        "cannot be enforced",
    ),
}


@pytest.mark.parametrize(("value", "code", "words"), REFUSED.values(), ids=REFUSED)
def test_format_that_cannot_be_kept_is_refused_by_name(contract, value, code, words):
    with pytest.raises(RequestError) as refusal:
        contract.requests([_row(response_format=value)], None)
    assert refusal.value.code == code
    assert words in refusal.value.message

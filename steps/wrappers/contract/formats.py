"""`response_format`: a JSON object, or JSON that is valid under a schema, becomes a grammar."""

import json
from dataclasses import replace
from functools import partial
from typing import Any

from ..engines.sequence import Settings
from ..tokenizer import ChatTokenizer
from .errors import RequestError
from .fields import is_list, short, shown_name

TYPES = ("text", "json_object", "json_schema")
# A model that writes white space without end would never finish its JSON.
COMPACT_JSON: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
SHOWN_CHARACTERS = 200


def schema_of(value: Any) -> dict[str, Any] | None:
    """Return the JSON schema that a `response_format` asks for; None if any text will do."""
    kind = value.get("type") if isinstance(value, dict) else None
    if kind not in TYPES or is_list(kind):
        problem = f"must be an object whose type is one of {', '.join(TYPES)}, got {_shown(value, kind)}"
        raise RequestError("invalid_response_format", f"response_format {problem}")
    if unknown := set(value) - {"type", "json_schema"}:
        message = f"response_format.{shown_name(min(unknown))} is not a known field"
        raise RequestError("invalid_response_format", message)
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    wrapper = value.get("json_schema")
    schema = wrapper.get("schema") if isinstance(wrapper, dict) else None
    if not isinstance(schema, dict):
        message = "response_format.json_schema must be an object with a schema, which is an object"
        raise RequestError("invalid_response_format", message)
    return schema


def _shown(value: Any, kind: Any) -> str:
    return short(kind) if isinstance(value, dict) else type(value).__name__


def with_mask(settings: Settings, schema: dict[str, Any] | None, tokenizer: ChatTokenizer) -> Settings:
    """Return the settings with the mask of a schema; raise RequestError if it cannot be enforced."""
    if schema is None:
        return settings
    if fault := schema_fault(json.dumps(schema), tokenizer):
        raise RequestError("unsupported_schema", f"response_format.json_schema.schema cannot be enforced: {fault}")
    from llguidance import LLMatcher

    from ..engines.grammar import GrammarMask

    grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=COMPACT_JSON)
    return replace(settings, mask=partial(GrammarMask, grammar, tokenizer.guide))


def schema_fault(schema: str, tokenizer: ChatTokenizer) -> str | None:
    """Return why llguidance cannot enforce a JSON schema; None if it can."""
    from llguidance import LLMatcher

    from ..engines.grammar import grammar_fault

    try:
        fault = grammar_fault(LLMatcher.grammar_from_json_schema(schema, overrides=COMPACT_JSON), tokenizer.guide)
    except ValueError as error:
        fault = str(error)
    return shown_fault(fault) if fault else None


def shown_fault(fault: str) -> str:
    """Return the beginning of llguidance's own words."""
    return fault.strip().splitlines()[0][:SHOWN_CHARACTERS]

"""`tools` and `tool_choice`: the tools go into the prompt, and a grammar keeps the calls to their schemas."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from ..engines.sampling import Mask
from ..engines.sequence import Settings
from ..tokenizer import ChatTokenizer
from ..tool_calls import CallSyntax
from .errors import RequestError
from .fields import check_text, is_list, short, shown_name
from .formats import COMPACT_JSON, schema_fault, shown_fault
from .neutral import asks_for_nothing

FIELDS = ("tools", "tool_choice", "parallel_tool_calls")
MAX_TOOLS, MAX_CALLS = 128, 8
CHOICES = ("none", "auto", "required")
NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}
INVALID = "invalid_tools"
# What an object with further properties has, or may have.
OPEN = {"additionalProperties", "patternProperties", "unevaluatedProperties", "allOf", "anyOf", "oneOf", "$ref"}


@dataclass(frozen=True)
class ToolUse:
    """The tools of a request, and what may be called.

    Attributes:
        tools: The tools as objects, for the chat template.
        callable: The places of those that may be called.
        forced: Whether the reply has to be calls.
        most: How many calls a reply may have.
    """

    tools: list[dict[str, Any]]
    callable: list[int]
    forced: bool
    most: int


def tool_use(fields: dict[str, Any], tokenizer: ChatTokenizer) -> ToolUse | None:
    """Return what the fields of a request ask for; None if no tool may be called."""
    tools = [_tool(f"tools[{index}]", tool) for index, tool in enumerate(_listed(fields.get("tools")))]
    names = [tool["function"]["name"] for tool in tools]
    if len(set(names)) < len(names):
        raise RequestError(INVALID, "tools must have functions of different names")
    choice = fields.get("tool_choice")
    chosen = _chosen_name(choice)
    if not tools and (chosen or choice == "required"):
        raise RequestError("invalid_tool_choice", "tool_choice needs tools that can be called, got none")
    if chosen and chosen not in names:
        raise RequestError("invalid_tool_choice", "tool_choice.function.name must be the name of one of the tools")
    if not tools or choice == "none":
        return None
    shown = json.dumps(tools, ensure_ascii=False)
    check_text("tools", shown)
    if token := tokenizer.control_token_in(shown):
        raise RequestError("control_token", f"tools must not contain the control token {token}")
    several = fields.get("parallel_tool_calls") is not False and not chosen
    places = [names.index(chosen)] if chosen else list(range(len(names)))
    return ToolUse(tools, places, bool(chosen) or choice == "required", MAX_CALLS if several else 1)


def with_calls(settings: Settings, use: ToolUse | None, tokenizer: ChatTokenizer) -> Settings:
    """Return the settings with the grammar of calls; raise RequestError if a schema cannot be enforced."""
    from ..engines.grammar import GrammarMask, LazyMask, grammar_fault

    syntax = tokenizer.call_syntax
    if use is None or syntax is None:
        return settings
    if settings.mask:
        raise RequestError("unsupported_field", "tools is not supported together with response_format; leave one out")
    from llguidance import LLMatcher

    for index in use.callable:
        if fault := schema_fault(_schema(use, index), tokenizer):
            message = f"tools[{index}].function.parameters must be a schema that can be enforced: {fault}"
            raise RequestError("unsupported_schema", message)
    grammar = LLMatcher.grammar_from_lark(_grammar(use, syntax, tokenizer))
    if fault := grammar_fault(grammar, tokenizer.guide):
        raise RequestError("unsupported_schema", f"tools must have schemas that can be enforced: {shown_fault(fault)}")
    mask: Callable[[], Mask] = partial(GrammarMask, grammar, tokenizer.guide)
    if not use.forced:
        mask = partial(LazyMask, grammar, tokenizer.guide, _trigger(syntax, tokenizer), tokenizer.token_bytes)
    return replace(settings, mask=mask, calls=tokenizer.decoded_syntax(syntax))


def _grammar(use: ToolUse, syntax: CallSyntax, tokenizer: ChatTokenizer) -> str:
    """Return the calls of a reply as a grammar of llguidance."""

    def literal(text: str) -> str:
        pieces = tokenizer.split(text)
        return " ".join(f"<[{piece}]>" if isinstance(piece, int) else json.dumps(piece) for piece in pieces)

    more = ""
    if syntax.separator is not None and use.most > 1:
        more = f"({literal(syntax.separator)} call){{0,{use.most - 1}}}"
    space = "" if use.forced else "space"
    lines = [f"start: {space} {literal(syntax.begin)} call {more} {literal(syntax.end)}", r"space: /[ \n\t\r]*/"]
    lines.append("call: " + " | ".join(f"call_{index}" for index in use.callable))
    for index in use.callable:
        name = use.tools[index]["function"]["name"]
        lines.append(f"call_{index}: {literal(name + syntax.middle)} arguments_{index}")
        lines.append(f"arguments_{index}: %json {_schema(use, index)}")
    return "\n".join(lines)


def _schema(use: ToolUse, index: int) -> str:
    return json.dumps(_closed(use.tools[index]["function"]["parameters"]) | {"x-guidance": COMPACT_JSON})


def _closed(schema: Any) -> Any:
    """Return a schema whose objects have only the properties that it names, unless it says otherwise.

    JSON Schema allows any others. A function cannot take them, and a small model would go on adding some.
    """
    if not isinstance(schema, dict):
        return schema
    closed = {}
    for name, value in schema.items():
        if name in ("properties", "$defs", "definitions") and isinstance(value, dict):
            value = {key: _closed(inner) for key, inner in value.items()}
        elif name in ("anyOf", "oneOf", "prefixItems") and isinstance(value, list):
            value = [_closed(inner) for inner in value]
        closed[name] = _closed(value) if name == "items" else value
    says_otherwise = OPEN & set(schema) or not isinstance(schema.get("properties"), dict)
    return closed if says_otherwise else closed | {"additionalProperties": False}


def _trigger(syntax: CallSyntax, tokenizer: ChatTokenizer) -> bytes:
    """Return the beginning of a call that no other text has: a token of its own, or else the first word."""
    first = tokenizer.split(syntax.begin)[0]
    if isinstance(first, int):
        return tokenizer.token_bytes(first)
    word = re.match(r"[^\s\[{]+", first)
    return (word[0] if word else first).encode()


def _listed(tools: Any) -> list[Any]:
    if asks_for_nothing(tools):
        return []
    if not is_list(tools):
        raise RequestError(INVALID, f"tools must be a list of objects, got {type(tools).__name__}")
    if len(tools) > MAX_TOOLS:
        raise RequestError(INVALID, f"tools may hold at most {MAX_TOOLS} tools, got {len(tools)}")
    return list(tools)


def _tool(field: str, tool: Any) -> dict[str, Any]:
    """Return a checked tool in plain types: pandas passes lists on as arrays."""
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(function, dict) or tool.get("type") != "function":
        raise RequestError(INVALID, f"{field} must be an object with type 'function' and a function")
    if unknown := sorted(set(tool) - {"type", "function"}, key=str):
        raise RequestError("unsupported_field", f"{field}.{shown_name(unknown[0])} is not a known field")
    if unknown := sorted(set(function) - {"name", "description", "parameters", "strict"}, key=str):
        raise RequestError("unsupported_field", f"{field}.function.{shown_name(unknown[0])} is not a known field")
    name, parameters = function.get("name"), function.get("parameters")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        problem = "must be 1 to 64 letters, digits, underscores or dashes"
        raise RequestError(INVALID, f"{field}.function.name {problem}, got {short(name)}")
    description = function.get("description")
    if description is not None and not isinstance(description, str):
        kind = type(description).__name__
        raise RequestError(INVALID, f"{field}.function.description must be a string, got {kind}")
    shown: dict[str, Any] = {"name": name, "description": description or ""}
    shown["parameters"] = NO_ARGUMENTS if asks_for_nothing(parameters) else _parameters(field, parameters)
    return {"type": "function", "function": shown}


def _parameters(field: str, parameters: Any) -> dict[str, Any]:
    if not isinstance(parameters, dict) or parameters.get("type", "object") != "object":
        raise RequestError(INVALID, f"{field}.function.parameters must be a JSON schema of type 'object'")
    try:
        plain: dict[str, Any] = json.loads(json.dumps(parameters, default=_plain)) | {"type": "object"}
    except (TypeError, ValueError, RecursionError):
        raise RequestError(INVALID, f"{field}.function.parameters must be JSON") from None
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError


def _chosen_name(choice: Any) -> str | None:
    """Return the function that has to be called; None if `tool_choice` names none."""
    if isinstance(choice, dict) and choice.get("type") == "function" and isinstance(choice.get("function"), dict):
        name = choice["function"].get("name")
        if isinstance(name, str):
            return name
    elif choice is None or (isinstance(choice, str) and choice in CHOICES):
        return None
    message = (
        f"tool_choice must be one of {', '.join(CHOICES)}, or an object with type 'function' and a function's name"
    )
    raise RequestError("invalid_tool_choice", message)

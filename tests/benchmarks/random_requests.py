"""Random bodies of requests, and random JSON schemas with a check of their few words."""

import json
import random
from copy import deepcopy

SPAIN = "What is the capital of Spain?"
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {}}}}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "boolean"}}, "additionalProperties": False}
CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
RESULT = {"role": "tool", "tool_call_id": "a", "content": "b"}
USER = {"role": "user", "content": SPAIN}
# A valid beginning of each route's bodies.
BASES = {
    "/v1/chat/completions": [
        {"messages": [USER]},
        {"messages": [{"role": "system", "content": "a"}, USER], "tools": [TOOL], "tool_choice": "required"},
        {"messages": [USER, {"role": "assistant", "tool_calls": [CALL]}, RESULT]},
    ],
    "/v1/completions": [{"prompt": SPAIN}, {"prompt": [1, 2, 3]}, {"prompt": [SPAIN, "a"]}, {"prompt": [[1], [2, 3]]}],
    "/invocations": [
        {"messages": [USER]},
        {"inputs": [SPAIN], "params": {"max_tokens": 2}},
        {"instances": [{"messages": [USER]}]},
        {"dataframe_split": {"columns": ["messages"], "data": [[[USER]]]}},
        {"dataframe_records": [{"messages": [USER], "x": None}]},
    ],
}
# Values that a field of the API may have, and others near them.
VALUES = {
    "temperature": [0, 1, 2.0, 2.1, -1, 1e308, "1"],
    "top_p": [1, 0, 0.1, 2],
    "top_k": [0, 1, 10**30, 1.5],
    "max_tokens": [1, 2, 0, 7.0, 10**12],
    "max_completion_tokens": [1, 2, None],
    "stop": ["a", ["a", "b"], [""], [1], ["a"] * 99],
    "n": [1, 2, 8, 9, 0],
    "seed": [0, 1, -1, 2**63, 2**64],
    "presence_penalty": [0, 2, -2, 3],
    "frequency_penalty": [0.5, "a"],
    "logit_bias": [{}, {"40": 100}, {"40": -100}, {"-1": 1}, {"999999999": 1}, {"a": 1}, []],
    "logprobs": [True, False, 0, 5, 21, None],
    "top_logprobs": [0, 20, 21, True],
    "echo": [True, False, 1],
    "stream": [True, False, "yes", 1, None],
    "stream_options": [{"include_usage": True}, {"include_usage": 1}, {"x": True}, []],
    "response_format": [
        {"type": "json_object"},
        {"type": "text"},
        {"type": "json_schema", "json_schema": {"schema": SCHEMA}},
        {"type": "json_schema", "json_schema": {"schema": {"$ref": "#/a"}}},
        {"type": "json_schema"},
    ],
    "tools": [[TOOL], [], [TOOL, TOOL], [{"type": "function"}], None],
    "tool_choice": ["auto", "none", "required", {"type": "function", "function": {"name": "f"}}, {"type": "a"}],
    "parallel_tool_calls": [True, False, 3],
    "suffix": ["a", ""],
    "user": ["a", 1],
    "metadata": [{"a": "b"}, 1],
    "params": [{"max_tokens": 1}, {"stop": "a"}, [], {"stream": True}],
    "custom_inputs": [{"seed": 1}, {"x": 1}, 1],
    "messages": [[], [USER, USER], [{"role": "assistant", "content": "a"}], [[USER]], "a", [None]],
    "prompt": ["a", [], [[]], "a" * 5000, [1.5], [True], ["a", 1], "<|end|>", "\ud800", "\0"],
}
TEXTS = ["", "a", "\0", "\ud800", "日本", "<|end|>", "a" * 3000, "messages", "1e999", "{", "%s", "../..", "👩‍👩‍👧"]


def random_json(rng: random.Random, depth: int = 3):
    """Return any JSON value, mostly small."""
    kind = rng.randrange(8 if depth else 6)
    if kind == 0:
        return rng.choice([None, True, False])
    if kind == 1:
        return rng.choice([0, 1, -1, 2**31, 2**63, 10**40, rng.randrange(10**6)])
    if kind == 2:
        return rng.choice([0.0, -0.0, 0.5, 1e308, 1e-308, float("nan"), float("inf"), rng.random()])
    if kind in (3, 4, 5):
        return rng.choice(TEXTS)
    if kind == 6:
        return [random_json(rng, depth - 1) for _ in range(rng.randrange(4))]
    names = [*VALUES, "role", "content", "type", *TEXTS]
    return {rng.choice(names): random_json(rng, depth - 1) for _ in range(rng.randrange(4))}


def random_body(rng: random.Random, route: str) -> tuple[bytes, dict[str, str]]:
    """Return a body for a route, and its headers: most are near valid ones, some are damaged."""
    headers = {"content-type": "application/json"}
    if rng.random() < 0.03:
        headers = {"content-type": rng.choice(["text/plain", "text/csv", "application/json; charset=latin-1", "a/b"])}
    if rng.random() < 0.02:
        headers["content-encoding"] = rng.choice(["gzip", "br", "deflate, gzip", ""])
    kind = rng.random()
    if kind < 0.05:
        return rng.randbytes(rng.randrange(200)), headers
    if kind < 0.12:
        return json.dumps(random_json(rng, 4)).encode(), headers
    # Copies, because places in them are changed.
    body = deepcopy(rng.choice(BASES[route]))
    # Settings stand next to messages or a prompt, or in params next to any other form.
    settings = body if {"messages", "prompt"} & set(body) else body.setdefault("params", {})
    settings |= {"max_tokens": rng.randrange(1, 4)}
    for _ in range(rng.choice([0, 0, 1, 1, 2, 4])):
        name = rng.choice(list(VALUES))
        settings[name] = deepcopy(rng.choice(VALUES[name])) if rng.random() < 0.85 else random_json(rng)
    if rng.random() < 0.25:
        _change_somewhere(rng, body)
    encoded = json.dumps(body).encode()
    if kind > 0.9:
        place = rng.randrange(len(encoded))
        encoded = encoded[:place] + rng.choice([b"", rng.randbytes(2)]) + encoded[place + rng.randrange(3) :]
    return encoded, headers


def _change_somewhere(rng: random.Random, body) -> None:
    """Put a random value in a random place of nested lists and objects."""
    while True:
        keys = list(body) if isinstance(body, dict) else list(range(len(body)))
        if not keys:
            return
        key = rng.choice(keys)
        if not isinstance(body[key], dict | list) or rng.random() < 0.3:
            body[key] = random_json(rng)
            return
        body = body[key]


def random_schema(rng: random.Random, depth: int = 2) -> dict:
    """Return a JSON schema whose values are short enough for the context of the benchmark's model."""
    kind = rng.choice(["integer", "string", "boolean", "enum", "pattern", "number", *["array", "object"] * bool(depth)])
    if kind == "integer":
        low = rng.randrange(-99, 100)
        return {"type": "integer", "minimum": low, "maximum": low + rng.randrange(100)}
    if kind == "string":
        return {"type": "string", "minLength": rng.randrange(3), "maxLength": rng.randrange(3, 9)}
    if kind == "enum":
        return {"enum": rng.sample(["a", "日本", "two words", '"', 1, 2.5, None, True], rng.randrange(1, 5))}
    if kind == "pattern":
        return {"type": "string", "pattern": rng.choice(["^[a-c]{2,4}$", "^\\d{3}-\\d{2}$", "^(yes|no)$"])}
    if kind == "array":
        size = rng.randrange(3)
        bounds = {"minItems": size, "maxItems": size + rng.randrange(3)}
        return {"type": "array", "items": random_schema(rng, depth - 1), **bounds}
    if kind == "object":
        names = rng.sample(["a", "b c", "日本", "d_e", "f"], rng.randrange(1, 5))
        properties = {name: random_schema(rng, depth - 1) for name in names}
        required = [name for name in names if rng.random() < 0.6]
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    if kind == "number":
        return {"enum": [rng.randrange(100) / 4 for _ in range(3)]}
    return {"type": "boolean"}


def is_valid(value, schema: dict) -> bool:
    """Return True if a value is valid under a schema of `random_schema`."""
    import re

    if "enum" in schema:
        return any(isinstance(value, bool) == isinstance(item, bool) and value == item for item in schema["enum"])
    kind = schema["type"]
    if kind == "boolean":
        return isinstance(value, bool)
    if kind == "integer":
        is_integer = isinstance(value, int) and not isinstance(value, bool)
        return is_integer and schema["minimum"] <= value <= schema["maximum"]
    if kind == "string" and "pattern" in schema:
        return isinstance(value, str) and re.search(schema["pattern"], value) is not None
    if kind == "string":
        return isinstance(value, str) and schema["minLength"] <= len(value) <= schema["maxLength"]
    if kind == "array":
        is_list = isinstance(value, list) and schema["minItems"] <= len(value) <= schema["maxItems"]
        return is_list and all(is_valid(item, schema["items"]) for item in value)
    known = isinstance(value, dict) and set(schema["required"]) <= set(value) <= set(schema["properties"])
    return known and all(is_valid(item, schema["properties"][name]) for name, item in value.items())

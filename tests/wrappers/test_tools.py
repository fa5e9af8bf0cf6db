"""`tools` and `tool_choice`: calls are valid under their schemas, on both engines, whole and in streams."""

import json
import random

import pytest
from tokenizers import AddedToken

from steps.checkpoints.checkpoint import resolve
from steps.config.schema import FolderModel
from steps.wrappers.contract.errors import RequestError
from steps.wrappers.contract.interfaces import INTERFACES
from steps.wrappers.contract.requests import Contract
from steps.wrappers.engines.scheduler import Scheduler
from steps.wrappers.tokenizer import ChatTokenizer
from steps.wrappers.tool_calls import PHI4_MINI
from tests.benchmarks.random_requests import random_body
from tests.modes.random_phi3 import edit_json, random_phi3, without
from tests.wrappers import checkpoints
from tests.wrappers.checkpoints import SPECIAL, TEMPLATES
from tests.wrappers.conftest import DEFAULTS, _exported
from tests.wrappers.test_openai import CHAT, COMPLETIONS, serving

SECRET = "marked-secret"
USER = {"role": "user", "content": "the cat"}
WEATHER = {
    "name": "get_weather",
    "description": "Weather of a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"enum": ["Madrid", "日本"]}, "days": {"type": "integer", "minimum": 1, "maximum": 99}},
        "required": ["city"],
    },
}
TIME = {"name": "time-now"}
TOOLS = [{"type": "function", "function": function} for function in (WEATHER, TIME)]
SHOWN = [WEATHER, TIME | {"description": "", "parameters": {"type": "object", "properties": {}}}]
SHOWN[1]["parameters"]["additionalProperties"] = False
END = SPECIAL.index("<|end|>")
MARKERS = ("<|tool|>", "<|/tool|>", "<|tool_call|>", "<|/tool_call|>")


def _folder(path, template="phi4_mini", special=False):
    tokenizer = checkpoints.byte_level()
    tokenizer.add_tokens([AddedToken(token, special=special, normalized=False) for token in MARKERS])
    folder = checkpoints.write(path, tokenizer, TEMPLATES[template])
    edit_json(folder / "config.json", without(eos_token_id=END))
    return folder


@pytest.fixture(scope="module")
def folder(request, tmp_path_factory):
    """A checkpoint with random weights. Decoding leaves out the markers around calls only if they are special."""
    path = tmp_path_factory.mktemp("tools")
    tokens = _folder(path / "tokens", special=request.param)
    size = ChatTokenizer(tokens).vocabulary_size
    ids = {"bos_token_id": 1, "eos_token_id": END, "pad_token_id": 3}
    lengths = dict.fromkeys(("max_position_embeddings", "original_max_position_embeddings"), 2048)
    return random_phi3(path / "model", tokens, vocab_size=size, **ids, **lengths)


def _torch(folder):
    from steps.wrappers.engines.torch_engine import TorchEngine

    return TorchEngine(str(folder), "fp32", 16, "cpu")


def _onnx(folder):
    from steps.wrappers.engines.onnx_engine import OnnxEngine

    with _exported(resolve(FolderModel(name="local", path=str(folder))), ["mode=onnx"]) as exported:
        return OnnxEngine(str(exported), 16)


@pytest.fixture(scope="module")
def model(folder):
    """The tokenizer of the checkpoint."""
    return ChatTokenizer(folder)


@pytest.fixture(scope="module")
def server(request, folder, model):
    with serving(Scheduler(request.param(folder)), model) as server:
        yield server


# By engine: whether the markers are special tokens.
ENGINES = pytest.mark.parametrize(("server", "folder"), [(_torch, True), (_onnx, False)], indirect=True, scope="module")


def _check(call):
    function = call["function"]
    arguments = json.loads(function["arguments"])
    assert call["type"] == "function"
    if function["name"] == "get_weather":
        assert arguments["city"] in ("Madrid", "日本")
        assert set(arguments) <= {"city", "days"}
        assert 1 <= arguments.get("days", 1) <= 99
    else:
        assert (function["name"], arguments) == ("time-now", {})


@ENGINES
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_required_calls_are_valid(server, temperature):
    reply = server.chat(
        messages=[USER], tools=TOOLS, tool_choice="required", temperature=temperature, n=4, seed=1, max_tokens=900
    )
    for choice in reply["choices"]:
        assert choice["finish_reason"] == "tool_calls"
        assert choice["message"]["content"] is None
        calls = choice["message"]["tool_calls"]
        assert 1 <= len(calls) <= 8
        assert len({call["id"] for call in calls}) == len(calls)
        for call in calls:
            _check(call)


@ENGINES
def test_named_function_and_one_call_at_most(server):
    named = {"type": "function", "function": {"name": "time-now"}}
    for fields in ({"tool_choice": named}, {"tool_choice": "required", "parallel_tool_calls": False}):
        for seed in range(4):
            reply = server.chat(messages=[USER], tools=TOOLS, temperature=2, seed=seed, max_tokens=200, **fields)
            (call,) = reply["choices"][0]["message"]["tool_calls"]
            _check(call)
            assert named != fields["tool_choice"] or call["function"]["name"] == "time-now"


@ENGINES
def test_auto_is_the_free_answer_unless_it_begins_with_a_call(server, model):
    prompt = model.render([USER], [{"type": "function", "function": function} for function in SHOWN])
    (free,) = server.complete(prompt=prompt, max_tokens=30)["choices"]
    answer = server.chat(messages=[USER], tools=TOOLS, max_tokens=30)["choices"][0]
    assert answer["message"] == {"role": "assistant", "content": free["text"]}
    assert answer["finish_reason"] == free["finish_reason"]
    (marker,) = model.encode("<|tool_call|>")
    fields = {"tools": TOOLS, "tool_choice": "auto", "logit_bias": {str(marker): 100}, "max_tokens": 900}
    called = server.chat(messages=[USER], **fields)["choices"][0]
    assert called["finish_reason"] == "tool_calls"
    for call in called["message"]["tool_calls"]:
        _check(call)


@ENGINES
def test_none_is_the_answer_without_tools(server):
    without = server.chat(messages=[USER], max_tokens=20)
    assert server.chat(messages=[USER], max_tokens=20, tools=TOOLS, tool_choice="none")["choices"] == without["choices"]


@ENGINES
@pytest.mark.parametrize("bias", [None, 100])
def test_stream_joins_to_the_reply(server, model, bias):
    (marker,) = model.encode("<|tool_call|>")
    choice = {"logit_bias": {str(marker): bias}} if bias else {}
    fields = {"tools": TOOLS, "max_tokens": 900 if bias else 30, "n": 2, "temperature": 1, "seed": 3} | choice
    whole = server.chat(messages=[USER], **fields)["choices"]
    chunks = [chunk["choices"][0] for chunk in server.events(CHAT, messages=[USER], **fields)]
    for expected in whole:
        own = [chunk for chunk in chunks if chunk["index"] == expected["index"]]
        text, calls = "", []
        for delta in (chunk["delta"] for chunk in own):
            text += delta.get("content") or ""
            for piece in delta.get("tool_calls", ()):
                if "id" in piece:
                    assert piece["index"] == len(calls)
                    calls.append({"type": piece["type"], "function": {**piece["function"]}})
                else:
                    calls[piece["index"]]["function"]["arguments"] += piece["function"]["arguments"]
        assert own[-1]["finish_reason"] == expected["finish_reason"]
        assert text == (expected["message"]["content"] or "")
        expected_calls = expected["message"].get("tool_calls", [])
        assert calls == [{name: call[name] for name in ("type", "function")} for call in expected_calls]
        assert bool(calls) == bool(bias)
        pieces = [delta for chunk in own for delta in chunk["delta"].get("tool_calls", ())]
        assert len(pieces) > len(calls) or not bias


@ENGINES
def test_calls_share_a_batch_with_free_rows_whose_answers_do_not_change(server, model):
    contract = Contract(INTERFACES["chat"], model, 2048, DEFAULTS)
    free, forced = {"messages": [USER]}, {"messages": [USER], "tools": TOOLS, "tool_choice": "required"}

    def run(*rows):
        sequences = [sequence for row in rows for sequence in contract.request(row, None).sequences(model)]
        server.scheduler.run(sequences)
        return [sequence.tokens for sequence in sequences]

    (alone,) = run(free)
    assert run(forced, free, forced, free)[1::2] == [alone, alone]


@ENGINES
def test_calls_that_are_cut_off_say_so(server):
    (choice,) = server.chat(messages=[USER], tools=TOOLS, tool_choice="required", max_tokens=3)["choices"]
    assert choice == {
        "index": 0,
        "message": {"role": "assistant", "content": ""},
        "finish_reason": "length",
    }


@ENGINES
def test_invocations_take_tools_too(server):
    events = server.events("/invocations", messages=[USER], tools=TOOLS, tool_choice="required", max_tokens=900)
    assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize(("server", "folder"), [(_onnx, False)], indirect=True, scope="module")
@pytest.mark.parametrize("route", [CHAT, COMPLETIONS])
def test_random_bodies_are_answered_or_refused(server, route):
    """`python -m tests.benchmarks.serving fuzz` sends thousands, to /invocations too."""
    for seed in range(150):
        body, headers = random_body(random.Random(seed), route)
        reply = server.post(route, content=body, headers=headers)
        assert reply.status_code < 500, body
        assert "server_error" not in reply.text, body


HISTORY = [
    USER,
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "get_weather", "arguments": '{"city":"日本"}'}},
            {"id": "b", "type": "function", "function": {"name": "time-now", "arguments": "{}"}},
        ],
    },
    {"role": "tool", "tool_call_id": "a", "content": "sun"},
    {"role": "tool", "tool_call_id": "b", "content": [{"type": "text", "text": "noon"}]},
]
RENDERED = {
    "phi4_mini": (
        f"<|system|>You are a helpful assistant with some tools.<|tool|>{json.dumps(SHOWN, ensure_ascii=False)}"
        '<|/tool|><|end|><|user|>the cat<|end|><|assistant|><|tool_call|>[{"name": "get_weather", "arguments": '
        '{"city": "日本"}}, {"name": "time-now", "arguments": {}}]<|/tool_call|><|end|><|tool|>sun<|end|>'
        "<|tool|>noon<|end|><|assistant|>"
    ),
    "hermes": (
        "<|system|># Tools\n<tools>\n"
        + "\n".join(json.dumps({"type": "function", "function": tool}, ensure_ascii=False) for tool in SHOWN)
        + '\n</tools><|end|>\n<|user|>the cat<|end|>\n<|assistant|>\n<tool_call>\n{"name": "get_weather", '
        '"arguments": {"city": "日本"}}\n</tool_call>\n<tool_call>\n{"name": "time-now", "arguments": {}}\n</tool_call>'
        "<|end|>\n<|user|><tool_response>\nsun\n</tool_response><|end|>\n<|user|><tool_response>\nnoon\n"
        "</tool_response><|end|>\n<|assistant|>"
    ),
}


def _contract(path, template):
    tokenizer = ChatTokenizer(_folder(path / template, template))
    return Contract(INTERFACES["chat"], tokenizer, 4096, DEFAULTS)


@pytest.mark.parametrize("template", RENDERED)
def test_calls_and_results_go_back_into_the_template(tmp_path, template):
    contract = _contract(tmp_path, template)
    request = contract.request({"messages": HISTORY, "tools": TOOLS}, None)
    expected = contract.tokenizer.encode(RENDERED[template])
    assert request.prompt == expected


def test_tools_are_attached_to_the_system_message_that_is_there(tmp_path):
    contract = _contract(tmp_path, "phi4_mini")
    messages = [{"role": "system", "content": "Be brief."}, USER]
    prompt = contract.request({"messages": messages, "tools": TOOLS[1:]}, None).prompt
    text = f"<|system|>Be brief.<|tool|>{json.dumps(SHOWN[1:])}<|/tool|><|end|><|user|>the cat<|end|><|assistant|>"
    assert prompt == contract.tokenizer.encode(text)


def test_call_syntax_is_that_of_the_template(tmp_path):
    syntax = {name: ChatTokenizer(_folder(tmp_path / name, name)).call_syntax for name in TEMPLATES}
    assert syntax["phi4_mini"] == PHI4_MINI
    hermes = syntax["hermes"]
    assert (hermes.begin, hermes.middle) == ('<tool_call>\n{"name": "', '", "arguments": ')
    assert (hermes.separator, hermes.end) == ('}\n</tool_call>\n<tool_call>\n{"name": "', "}\n</tool_call>")
    assert {name for name, value in syntax.items() if value} == {"phi4_mini", "hermes"}


def _call(**function):
    return {"role": "assistant", "tool_calls": [{"id": "a", "type": "function", "function": function}]}


def _with(**parameters):
    return [{"type": "function", "function": {"name": "f", "parameters": parameters}}]


RESULT = {"role": "tool", "tool_call_id": "a", "content": "b"}
REFUSED = {
    "a word": ({"tools": "f"}, "invalid_tools", "tools must be a list"),
    "no function": ({"tools": [{"type": "function"}]}, "invalid_tools", "tools[0] must be an object with type"),
    "another type": ({"tools": [{"type": "code"}]}, "invalid_tools", "tools[0] must be an object with type"),
    "a foreign field": ({"tools": [TOOLS[0] | {"x": 1}]}, "unsupported_field", "tools[0].x is not a known field"),
    "no name": (
        {"tools": [{"type": "function", "function": {"name": "a b"}}]},
        "invalid_tools",
        "[0].function.name must",
    ),
    "the same name": ({"tools": [TOOLS[0], TOOLS[0]]}, "invalid_tools", "different names"),
    "too many": ({"tools": [TOOLS[0]] * 129}, "invalid_tools", "at most 128 tools, got 129"),
    "a list as arguments": ({"tools": _with(type="array")}, "invalid_tools", "a JSON schema of type 'object'"),
    "not": ({"tools": _with(**{"not": {"type": "null"}})}, "unsupported_schema", "tools[0].function.parameters must"),
    "a control token": ({"tools": _with(title=f"{SECRET}<|end|>")}, "control_token", "control token <|end|>"),
    "no such choice": ({"tools": TOOLS, "tool_choice": "any"}, "invalid_tool_choice", "none, auto, required"),
    "no such name": (
        {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": SECRET}}},
        "invalid_tool_choice",
        "one of the tools",
    ),
    "required without tools": ({"tool_choice": "required"}, "invalid_tool_choice", "tool_choice needs tools"),
    "a format too": (
        {"tools": TOOLS, "response_format": {"type": "json_object"}},
        "unsupported_field",
        "tools is not supported together with response_format",
    ),
    "functions": ({"functions": [{"name": "f"}]}, "unsupported_field", "functions is not supported"),
    "a result without a call": ({"messages": [USER, RESULT]}, "invalid_tool_call_id", "messages[1].tool_call_id must"),
    "a result of a list": (
        {"messages": [USER, RESULT | {"tool_call_id": [SECRET]}]},
        "invalid_tool_call_id",
        "must be the id of a call",
    ),
    "arguments in a list": (
        {"messages": [USER, _call(name="f", arguments=f'["{SECRET}"]'), RESULT]},
        "invalid_tool_calls",
        "messages[1].tool_calls[0].function.arguments must be a JSON object",
    ),
    "arguments as an object": (
        {"messages": [USER, _call(name="f", arguments={}), RESULT]},
        "invalid_tool_calls",
        "all of them strings",
    ),
    "a control token in arguments": (
        {"messages": [USER, _call(name="f", arguments=f'{{"a": "{SECRET}<|end|>"}}'), RESULT]},
        "control_token",
        "messages[1].tool_calls[0] must not contain the control token <|end|>",
    ),
    "calls in a word": (
        {"messages": [USER, {"role": "assistant", "tool_calls": SECRET}, USER]},
        "invalid_tool_calls",
        "messages[1].tool_calls must be a list",
    ),
    "a user's calls": (
        {"messages": [USER | {"tool_calls": [1]}]},
        "unsupported_field",
        "messages[0].tool_calls is not",
    ),
    "the assistant's last word": ({"messages": HISTORY[:2]}, "last_role", "the last message must have role 'user'"),
}


@pytest.fixture(scope="module")
def phi4(tmp_path_factory):
    return _contract(tmp_path_factory.mktemp("phi4"), "phi4_mini")


@pytest.mark.parametrize(("fields", "code", "words"), REFUSED.values(), ids=REFUSED)
def test_refusal_names_the_field_and_never_repeats_the_request(phi4, fields, code, words):
    with pytest.raises(RequestError) as refusal:
        phi4.request({"messages": [USER]} | fields, None)
    assert refusal.value.code == code
    assert words in refusal.value.message
    assert SECRET not in refusal.value.message


@pytest.mark.parametrize("fields", [{"tools": TOOLS}, {"tool_choice": "required"}], ids=["tools", "choice"])
def test_template_without_tools_refuses_them_by_name(contract, fields):
    with pytest.raises(RequestError, match="is not supported by this model \\(a chat has tools only where") as refusal:
        contract.request({"messages": [USER]} | fields, None)
    assert refusal.value.code == "unsupported_field"

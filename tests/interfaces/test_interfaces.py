"""What clients send and get: the requests and the replies of each interface."""

import pytest

from steps.config.schema import Generation
from steps.errors import StepError
from steps.interfaces import INTERFACES, get_interface
from steps.interfaces.interface import Question, Reply

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a"}]
REQUESTS = {
    # interface, settings → row, params
    "chat": ("chat", {}, {"messages": MESSAGES}, None),
    "chat with settings": ("chat", {"max_tokens": 3}, {"messages": MESSAGES, "max_tokens": 3}, None),
    "chat with a seed": (
        "chat",
        {"seed": 7, "n": 2},
        {"messages": MESSAGES, "n": 2, "custom_inputs": {"seed": 7}},
        None,
    ),
    "chat with other messages": ("chat", {"messages": []}, {"messages": []}, None),
    "prompt": ("prompt", {}, {"prompt": "as text"}, None),
    "prompt with settings": ("prompt", {"seed": 7, "n": 2}, {"prompt": "as text"}, {"seed": 7, "n": 2}),
}


@pytest.mark.parametrize(("interface", "settings", "row", "params"), REQUESTS.values(), ids=REQUESTS)
def test_a_question_becomes_a_row_and_params(interface, settings, row, params):
    question = Question(MESSAGES, "as text", settings)
    assert get_interface(interface).row(question) == row
    assert get_interface(interface).params(question) == params
    assert question.settings == settings


def _completion(*texts, reasons=("stop",), **fields):
    choices = [
        {"message": {"role": "assistant", "content": text}} | ({"finish_reason": reason} if reason else {})
        for text, reason in zip(texts, reasons, strict=True)
    ]
    return {"choices": choices} | fields


USAGE = {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
REPLIES = {
    "chat": ("chat", _completion("a", usage=USAGE), Reply(["a"], ["stop"], 3, True, 2)),
    "chat in a list": ("chat", [_completion("a", usage=USAGE)], Reply(["a"], ["stop"], 3, False, 2)),
    "chat that reused a part of its prompt": (
        "chat",
        _completion("a", usage=USAGE | {"prompt_tokens_details": {"cached_tokens": 1}}),
        Reply(["a"], ["stop"], 3, True, 2, 1),
    ),
    "chat with empty details": (
        "chat",
        _completion("a", usage=USAGE | {"prompt_tokens_details": None}),
        Reply(["a"], ["stop"], 3, True, 2),
    ),
    "chat without token counts": ("chat", _completion("a"), Reply(["a"], ["stop"])),
    "chat with empty token counts": ("chat", _completion("a", usage=None), Reply(["a"], ["stop"])),
    "chat without a reason": ("chat", _completion("a", reasons=[None]), Reply(["a"], [None])),
    "chat with choices": (
        "chat",
        _completion("a", "b", reasons=["stop", "length"], usage=USAGE),
        Reply(["a", "b"], ["stop", "length"], 3, True, 2),
    ),
    "prompt": ("prompt", "a", Reply(["a"])),
    "prompt with choices": ("prompt", ["a", "b"], Reply(["a", "b"])),
}


@pytest.mark.parametrize(("interface", "content", "reply"), REPLIES.values(), ids=REPLIES)
def test_a_reply_is_read(interface, content, reply):
    assert get_interface(interface).reply(content) == reply


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (_completion("a", usage=USAGE | {"total_tokens": 4}), "the token counts of usage do not add up"),
        ([_completion("a"), _completion("b")], "1 row got 2 replies"),
        ([], "1 row got 0 replies"),
    ],
)
def test_a_broken_chat_reply_is_refused(content, fault):
    with pytest.raises(ValueError, match=fault):
        get_interface("chat").reply(content)


@pytest.mark.parametrize(
    ("interface", "piece", "text"),
    [
        ("chat", {"choices": [{"delta": {"content": "a"}, "finish_reason": None}]}, "a"),
        ("chat", {"choices": [{"delta": {}, "finish_reason": "stop"}]}, ""),
        ("prompt", "a", "a"),
    ],
)
def test_a_piece_of_a_stream_is_read(interface, piece, text):
    assert get_interface(interface).piece(piece) == text


@pytest.mark.parametrize("interface", INTERFACES)
def test_the_example_fits_the_signature(interface):
    chosen = get_interface(interface)
    assert set(chosen.signature(None).inputs.input_names()) >= set(chosen.example)
    assert chosen.name == interface


SETTINGS = {
    "temperature",
    "top_p",
    "top_k",
    "max_tokens",
    "max_completion_tokens",
    "stop",
    "n",
    "seed",
    "custom_inputs",
}


@pytest.mark.parametrize("interface", INTERFACES)
def test_the_signature_has_every_setting_that_a_call_takes(interface):
    params = get_interface(interface).signature(Generation()).params.to_dict()
    assert {param["name"] for param in params} >= SETTINGS
    assert set(get_interface(interface).signature(Generation()).inputs.input_names()) >= SETTINGS
    # Without a value in the call, the model's own default counts.
    assert {param["name"]: param["default"] for param in params}["temperature"] is None
    assert get_interface(interface).signature(None).params is None


def test_an_unknown_interface_gets_the_nearest_name():
    with pytest.raises(StepError, match=r"Unknown interface 'chap'. Did you mean 'chat'\? Available: chat, prompt."):
        get_interface("chap")

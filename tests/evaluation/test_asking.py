"""The one way to ask a model: what each mode and interface is sent, and how its replies are read."""

import sys
from dataclasses import replace

import mlflow
import pytest

from steps.evaluation.asking import Asker, loaded
from steps.interfaces import INTERFACES, get_interface
from steps.interfaces.interface import Question
from steps.modes import MODES, get_mode
from steps.output import suppress_output
from tests.support import EchoModel

CAP = {"max_tokens": 4}


def _asker(model, mode="onnx", interface="chat", count_tokens=None):
    return Asker(model, get_mode(mode), get_interface(interface), count_tokens)


def _question(text, **settings):
    return Question([{"role": "user", "content": text}], text, settings)


def _chat_row(text, **fields):
    return {"messages": [{"role": "user", "content": text}]} | fields


CALLS = {
    # mode, interface, the settings of each of two questions → the calls: rows and params
    "chat without settings": (
        ("onnx", "chat", {}, {}),
        [([_chat_row("a"), _chat_row("b")], None)],
    ),
    "chat with settings for each row": (
        ("pyfunc", "chat", {"max_tokens": 1}, {"max_tokens": 2}),
        [([_chat_row("a", max_tokens=1), _chat_row("b", max_tokens=2)], None)],
    ),
    "chat with a seed for each row": (
        ("onnx", "chat", {"seed": 1}, {"seed": 2}),
        [([_chat_row("a", custom_inputs={"seed": 1}), _chat_row("b", custom_inputs={"seed": 2})], None)],
    ),
    "prompt without settings": (
        ("onnx", "prompt", {}, {}),
        [([{"prompt": "a"}, {"prompt": "b"}], None)],
    ),
    "prompt with the same settings": (
        ("pyfunc", "prompt", CAP, CAP),
        [([{"prompt": "a"}, {"prompt": "b"}], CAP)],
    ),
    "prompt with settings that differ": (
        ("onnx", "prompt", {"seed": 1}, {"seed": 2}),
        [([{"prompt": "a"}], {"seed": 1}), ([{"prompt": "b"}], {"seed": 2})],
    ),
    "stock flavour, chat": (
        ("transformers", "chat", CAP, CAP),
        [([_chat_row("a", max_tokens=4)], None), ([_chat_row("b", max_tokens=4)], None)],
    ),
    "stock flavour, prompt, which takes no settings": (
        ("transformers", "prompt", CAP, CAP),
        [([{"prompt": "a"}], None), ([{"prompt": "b"}], None)],
    ),
}


@pytest.mark.parametrize(("asked", "calls"), CALLS.values(), ids=CALLS)
def test_questions_are_sent_as_the_mode_and_the_interface_take_them(asked, calls):
    mode, interface, *settings = asked
    model = EchoModel(in_list=mode == "transformers")
    questions = [_question(text, **each) for text, each in zip("ab", settings, strict=True)]
    replies = _asker(model, mode, interface).ask(questions)
    assert model.calls == calls
    assert [reply.texts[0][0] for reply in replies] == ["a", "b"]
    assert all(reply.seconds > 0 for reply in replies)


@pytest.mark.parametrize("interface", INTERFACES)
def test_a_mode_without_seeds_in_requests_is_seeded_before_each_row(interface):
    model, seeds = EchoModel(in_list=True), []
    mode = replace(get_mode("transformers"), seed=lambda seed: seeds.append((seed, len(model.calls))))
    asker = Asker(model, mode, get_interface(interface))
    assert [reply.texts for reply in asker.ask([_question("a", seed=3), _question("b", seed=4)])] == [["a"], ["b"]]
    assert seeds == [(3, 0), (4, 1)]
    assert "seed" not in str(model.calls)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("interface", INTERFACES)
def test_a_request_can_carry_settings_unless_it_is_a_prompt_to_the_stock_flavour(mode, interface):
    expected = (mode, interface) != ("transformers", "prompt")
    assert _asker(EchoModel(), mode, interface).takes_settings == expected


def test_what_the_stock_flavour_prints_is_hidden(capsys):
    model = EchoModel(in_list=True)
    model.answer = lambda row, params: print("chatter") or "a"
    _asker(model, "transformers").ask([_question("a")])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("number", "reply", "fault"),
    [
        (2, lambda: [_completion()] * 3, "2 rows got 3 replies"),
        (2, lambda: [_completion()], "2 rows got 1 replies"),
        (2, lambda: _completion(), "2 rows got 1 replies"),
        (1, lambda: [_completion()] * 2, "1 row got 2 replies"),
        (1, lambda: {"choices": _completion()["choices"] * 2}, "the reply must have 1 choices, got 2"),
        (1, lambda: {"choices": []}, "the reply must have 1 choices, got 0"),
    ],
)
def test_a_wrong_number_of_replies_or_choices_is_refused(number, reply, fault):
    model = EchoModel()
    model.predict = lambda data, params=None: reply()
    with pytest.raises(ValueError, match=f"^{fault}$"):
        _asker(model).ask([_question("a")] * number)


def _completion():
    return {"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}]}


def test_several_choices_are_one_reply_if_they_were_asked_for():
    model = EchoModel()
    model.predict = lambda data, params=None: ["a", "b"]
    (reply,) = _asker(model, interface="prompt").ask([_question("a", n=2)])
    assert reply.texts == ["a", "b"]


def test_send_returns_whatever_number_of_replies_came():
    model = EchoModel()
    model.predict = lambda data, params=None: ["a"]
    assert len(_asker(model, interface="prompt").send([_question("a"), _question("b")])) == 1


def test_send_does_not_hold_back_settings_that_the_mode_does_not_take():
    model = EchoModel()
    _asker(model, "transformers", "prompt").send([_question("a", temperature=9.0)])
    assert model.calls == [([{"prompt": "a"}], {"temperature": 9.0})]


@pytest.mark.parametrize("interface", INTERFACES)
def test_a_stream_is_the_reply_in_pieces(interface):
    pieces = list(_asker(EchoModel(), interface=interface).stream(_question("one two", seed=1)))
    assert pieces == ["", "one", "two", "1"]


def test_closing_a_stream_early_closes_the_models_own():
    model, closed = EchoModel(), []

    def predict_stream(data, params=None):
        try:
            yield from "abc"
        finally:
            closed.append(True)

    model.predict_stream = predict_stream
    stream = _asker(model, interface="prompt").stream(_question("a"))
    assert next(stream) == "a"
    stream.close()
    assert closed == [True]


COUNTS = {
    # interface, answer, cap → tokens, if a word is a token
    "a chat reply says it": ("chat", "a b c", 9, 3),
    "a text below its cap ended with an end token": ("prompt", "a b", 4, 3),
    "a text at its cap has no end token": ("prompt", "a b c d", 4, 4),
    "a text without a cap ended with an end token": ("prompt", "a b c d", None, 5),
}


@pytest.mark.parametrize(("interface", "answer", "cap", "tokens"), COUNTS.values(), ids=COUNTS)
def test_tokens_are_counted_where_the_reply_does_not_say(interface, answer, cap, tokens):
    asker = _asker(EchoModel(), interface=interface, count_tokens=lambda text: len(text.split()))
    (reply,) = asker.ask([_question(answer, **({"max_tokens": cap} if cap else {}))])
    assert reply.completion_tokens == tokens


def test_tokens_are_counted_up_to_the_cap_of_a_setting_that_the_mode_does_not_take():
    asker = _asker(EchoModel(in_list=True), "transformers", "prompt", lambda text: len(text.split()))
    assert [reply.completion_tokens for reply in asker.ask([_question("a b c d e", **CAP)])] == [5]


def test_tokens_are_unknown_without_a_counter():
    assert _asker(EchoModel(), interface="prompt").ask([_question("a")])[0].completion_tokens is None


def test_the_time_of_a_batch_is_shared_by_its_rows():
    replies = _asker(EchoModel()).ask([_question("a"), _question("b")])
    assert replies[0].seconds == replies[1].seconds


def test_a_loaded_model_and_its_code_are_forgotten_at_the_end(tmp_path):
    code = tmp_path / "wrappers"
    code.mkdir()
    (code / "__init__.py").touch()
    (code / "word.py").write_text("WORD = 'mine'")
    (tmp_path / "model.py").write_text(MODEL)
    path = list(sys.path)
    with suppress_output(), pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        mlflow.pyfunc.save_model(
            tmp_path / "saved", python_model=str(tmp_path / "model.py"), code_paths=[str(code)], pip_requirements=[]
        )
        for name in [name for name in sys.modules if name.partition(".")[0] == "wrappers"]:
            del sys.modules[name]
    with loaded(str(tmp_path / "saved")) as model:
        assert model.predict({"prompt": "a"}) == ["mine"]
        assert "wrappers.word" in sys.modules
    assert not [name for name in sys.modules if name.partition(".")[0] == "wrappers"]
    assert sys.path == path
    assert mlflow.models.model.__mlflow_model__ is None


MODEL = """
import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel
from wrappers.word import WORD

class Model(PythonModel):
    def predict(self, context, model_input: pd.DataFrame, params=None):
        return [WORD]

set_model(Model())
"""

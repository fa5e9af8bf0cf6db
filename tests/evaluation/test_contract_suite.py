"""The contract suite finds what a model breaks; each expectation can fail."""

import pytest
from mlflow.exceptions import MlflowException

from steps.evaluation import contract_suite
from steps.evaluation.asking import Asker
from steps.evaluation.contract_suite import QUESTION, Result
from steps.interfaces import get_interface
from steps.modes import get_mode


def _chat(*texts, tokens=3, finish_reason="stop"):
    choices = [{"message": {"content": text}, "finish_reason": finish_reason} for text in texts]
    usage = {"prompt_tokens": 5, "completion_tokens": tokens, "total_tokens": 5 + tokens}
    return {"choices": choices, "usage": usage}


def _without(reply, *path):
    """Return a chat reply without one field of it."""
    *parents, field = path
    holder = reply
    for key in parents:
        holder = holder[key]
    del holder[field]
    return reply


class FakeModel:
    """A model that gives one reply after the other, and the last one for ever; it raises those that are errors."""

    def __init__(self, *replies):
        self._replies = list(replies)

    def predict(self, data, params=None):
        reply = self._replies.pop(0) if len(self._replies) > 1 else self._replies[0]
        if isinstance(reply, Exception):
            raise reply
        return reply

    def predict_stream(self, data, params=None):
        yield from self.predict(data, params)


def _run(model, rows, interface="chat"):
    return contract_suite.run_checks(Asker(model, get_mode("onnx"), get_interface(interface)), rows)


def _refusal(text):
    return MlflowException.invalid_parameter_value(text)


TWO = {"rows": [{}, {}]}
CHECKS = {
    # request, expectation, reply → fault
    "answered": ({}, {}, _chat("a"), None),
    "error": ({}, {}, ValueError("no"), "ValueError: no"),
    "answered, not refused": ({}, {"refused": "n"}, _chat("a"), "answered instead of refused"),
    "refused": ({}, {"refused": "n must"}, _refusal("n must be at most 8"), None),
    "refused without the name": (
        {},
        {"refused": "top_p"},
        _refusal("n must be at most 8"),
        "the refusal does not name top_p",
    ),
    "refused with a part of the name": (
        {},
        {"refused": "us"},
        _refusal("n must be at most 8"),
        "the refusal does not name us",
    ),
    "refused in capitals": ({}, {"refused": "AT MOST"}, _refusal("n must be at most 8"), None),
    "refused with an echo": (
        {},
        {"refused": "n"},
        _refusal(f"n must be at most 8, got '{QUESTION}'"),
        "the refusal repeats the prompt",
    ),
    "refused by accident": (
        {},
        {"refused": "n"},
        KeyError("n"),
        "refused with KeyError, which is not an HTTP 400",
    ),
    "choices": ({}, {"choices": 2}, _chat("a"), "1 choices instead of 2"),
    "tokens": ({}, {"tokens": 1}, _chat("a"), "3 tokens instead of 1"),
    "words": ({}, {"words": 1}, _chat("a b"), "the answer has 2 words instead of 1"),
    "finish reason": ({}, {"finish_reason": "length"}, _chat("a"), "finish_reason stop instead of length"),
    "without": ({}, {"without": " "}, _chat("a b"), "the answer holds ' '"),
    "a list": ({}, {"object": True}, [_chat("a")], "the reply is a list, not an object"),
    "replies": (TWO, {"replies": 2}, [_chat("a")], "1 replies instead of 2"),
    "one reply for two rows": (TWO, {"replies": 2}, _chat("a"), "1 replies instead of 2"),
    "last tokens": (TWO, {"replies": 2, "last_tokens": 1}, [_chat("a"), _chat("b")], "3 tokens instead of 1"),
    "nothing to compare": ({}, {"same_as": "x"}, _chat("a"), "'x' was not answered, so there is nothing to compare"),
    "no token counts": (
        {},
        {},
        _without(_chat("a"), "usage"),
        "the reply has no token counts or no finish reason",
    ),
    "no finish reason": (
        {},
        {},
        _without(_chat("a"), "choices", 0, "finish_reason"),
        "the reply has no token counts or no finish reason",
    ),
}


@pytest.mark.parametrize(("request_", "expect", "reply", "fault"), CHECKS.values(), ids=CHECKS)
def test_a_check_finds_what_is_not_as_expected(request_, expect, reply, fault):
    rows = [{"name": "it", "request": request_, "expect": expect}]
    assert _run(FakeModel(reply), rows) == [Result("it", fault)]


@pytest.mark.parametrize(
    ("interface", "piece"),
    [("chat", lambda text: {"choices": [{"delta": {"content": text}, "finish_reason": None}]}), ("prompt", str)],
)
@pytest.mark.parametrize(("second", "fault"), [("b", None), ("c", "the answer differs from that of 'one'")])
def test_a_stream_is_compared_with_the_answer_in_one_piece(interface, piece, second, fault):
    rows = [{"name": "one"}, {"name": "stream", "call": "predict_stream", "expect": {"same_as": "one"}}]
    model = FakeModel(_chat("ab") if interface == "chat" else "ab", [piece("a"), piece(second)])
    assert [result.fault for result in _run(model, rows, interface)] == [None, fault]


def test_an_answer_that_ends_at_once_has_not_reached_the_limit():
    rows = [{"name": "it", "request": {"max_tokens": 1}, "expect": {"tokens": 1, "finish_reason": "length"}}]
    faults = [_run(FakeModel(_chat("", tokens=1, finish_reason=reason)), rows)[0].fault for reason in ("stop", "error")]
    assert faults == [None, "finish_reason error instead of length"]


def test_answers_are_compared():
    rows = [{"name": "one"}, {"name": "same", "expect": {"same_as": "one"}}]
    assert _run(FakeModel(_chat("a"), _chat("b")), rows)[1].fault == "the answer differs from that of 'one'"


def test_exact_checks_are_not_required_of_an_inexact_precision():
    def names(mode, precision):
        return {check["name"] for check in contract_suite.core_checks("chat", get_mode(mode), precision)}

    assert names("pyfunc", "fp32") - names("pyfunc", "bf16") == {"two rows as if asked one by one"}
    assert "two rows in order" in names("pyfunc", "bf16")
    assert names("transformers", "fp32") == names("transformers", "bf16") < names("onnx", "int4")


MADRID, PARIS = "The capital of Spain is Madrid.", "The capital of France is Paris."
FOREIGN, OTHERS = "a row has the answer of another row", "the rows' answers differ from those one by one"
ORDERS = {
    "empty": (["", ""], FOREIGN, OTHERS),
    "of neither row": (["#####", PARIS], FOREIGN, OTHERS),
    "alike": (["The", "The"], FOREIGN, OTHERS),
    "in order": ([MADRID, PARIS], None, None),
    "one rounded differently": (["The capital city is Madrid.", PARIS], None, OTHERS),
    "swapped": ([PARIS, MADRID], FOREIGN, OTHERS),
    "one twice": ([MADRID, MADRID], FOREIGN, OTHERS),
}


@pytest.mark.parametrize(("texts", "closest", "same"), ORDERS.values(), ids=ORDERS)
def test_rows_are_compared_with_their_own_answers(texts, closest, same):
    rows = [{"name": "one"}, {"name": "other"}]
    for name in ("closest_to", "answers_of"):
        rows.append({"name": name, "request": TWO, "expect": {"replies": 2, name: ["one", "other"]}})
    model = FakeModel(_chat(MADRID), _chat(PARIS), [_chat(text) for text in texts])
    assert [result.fault for result in _run(model, rows)] == [None, None, closest, same]


def test_token_counts_that_do_not_add_up_are_a_fault():
    reply = _chat("a")
    reply["usage"]["total_tokens"] = 1
    assert "do not add up" in _run(FakeModel(reply), [{"name": "it"}])[0].fault


@pytest.mark.parametrize("interface", ["chat", "prompt"])
def test_the_suite_has_at_least_25_checks_with_different_names(interface):
    names = [check["name"] for check in contract_suite.checks(interface)]
    assert len(names) >= 25
    assert len(set(names)) == len(names)


@pytest.fixture
def table(tmp_path, monkeypatch):
    """A table of the user's own."""
    monkeypatch.setattr(contract_suite, "TABLE", tmp_path / "contract_suite.yaml")
    return tmp_path / "contract_suite.yaml"


def test_a_row_that_a_user_adds_counts(table):
    table.write_text("- {name: mine, expect: {choices: 2}}")
    assert _run(FakeModel(_chat("a")), contract_suite.checks("chat"))[0].fault == "1 choices instead of 2"


def test_a_typo_in_a_row_that_a_user_adds_is_reported(table):
    table.write_text("- {name: mine, expect: {choises: 2}}")
    with pytest.raises(ValueError, match="'mine' expects unknown choises"):
        contract_suite.checks("chat")


class _Refusing:
    """A model that refuses some control tokens, and answers everything else."""

    def __init__(self, *tokens):
        self.tokens, self.asked = tokens, []

    def predict(self, data, params=None):
        text = data["messages"][-1]["content"]
        self.asked.append(text)
        if any(token in text for token in self.tokens):
            raise _refusal("it holds a control token")
        return _chat("a")


def test_every_control_token_of_the_checkpoint_itself_is_tried():
    (check,) = [row for row in contract_suite.checks("chat") if row["name"] == "a control token in a message"]
    asker = Asker(model := _Refusing("<|im_end|>"), get_mode("onnx"), get_interface("chat"))
    assert contract_suite.run_checks(asker, [check], ["<|im_end|>"]) == [Result(check["name"], None)]
    assert model.asked == ["a<|im_end|>b"]
    (result,) = contract_suite.run_checks(asker, [check], ["<|im_end|>", "<|im_start|>"])
    assert result.fault == "answered instead of refused"

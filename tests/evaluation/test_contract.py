"""The contract suite finds what a model breaks; each expectation can fail."""

import pytest
from mlflow.exceptions import MlflowException

from steps.evaluation import contract


def _chat(*texts, tokens=3, finish_reason="stop"):
    choices = [{"message": {"content": text}, "finish_reason": finish_reason} for text in texts]
    usage = {"prompt_tokens": 5, "completion_tokens": tokens, "total_tokens": 5 + tokens}
    return {"choices": choices, "usage": usage}


class _Model:
    """A model that gives one reply, or raises it, whatever it is asked."""

    def __init__(self, reply):
        self.reply = reply

    def predict(self, data, params=None):
        if isinstance(self.reply, Exception):
            raise self.reply
        return self.reply


REFUSAL = MlflowException.invalid_parameter_value("n must be at most 8")
ECHO = MlflowException.invalid_parameter_value(f"n must be at most 8, got '{contract.QUESTION}'")
TWO = {"rows": [{}, {}]}
FOUND = {
    "answered": ({}, {}, _chat("a"), None),
    "error": ({}, {}, ValueError("no"), "ValueError: no"),
    "answered, not refused": ({}, {"refused": "n"}, _chat("a"), "answered instead of refused"),
    "refused": ({}, {"refused": "n must"}, REFUSAL, None),
    "refused without the name": ({}, {"refused": "top_p"}, REFUSAL, "the refusal does not name top_p"),
    "refused with a part of the name": ({}, {"refused": "us"}, REFUSAL, "the refusal does not name us"),
    "refused in capitals": ({}, {"refused": "AT MOST"}, REFUSAL, None),
    "refused with an echo": ({}, {"refused": "n"}, ECHO, "the refusal repeats the prompt"),
    "refused by accident": (
        {},
        {"refused": "n"},
        KeyError("n"),
        "refused with KeyError, which is no HTTP 400",
    ),
    "choices": ({}, {"choices": 2}, _chat("a"), "1 choices instead of 2"),
    "tokens": ({}, {"tokens": 1}, _chat("a"), "3 tokens instead of 1"),
    "finish reason": ({}, {"finish_reason": "length"}, _chat("a"), "finish_reason stop instead of length"),
    "without": ({}, {"without": " "}, _chat("a b"), "the answer holds ' '"),
    "a list": ({}, {"object": True}, [_chat("a")], "the reply is a list, not an object"),
    "replies": (TWO, {"replies": 2}, [_chat("a")], "1 replies instead of 2"),
    "last tokens": (TWO, {"replies": 2, "last_tokens": 1}, [_chat("a"), _chat("b")], "3 tokens instead of 1"),
    "nothing to compare": ({}, {"same_as": "x"}, _chat("a"), "'x' was not answered, so there is nothing to compare"),
}


@pytest.mark.parametrize(("request_", "expect", "reply", "fault"), FOUND.values(), ids=FOUND)
def test_a_check(monkeypatch, request_, expect, reply, fault):
    monkeypatch.setattr(contract, "checks", lambda interface: [{"name": "it", "request": request_, "expect": expect}])
    assert contract.run(_Model(reply), "chat") == [contract.Result("it", fault)]


def test_answers_are_compared(monkeypatch):
    rows = [{"name": "one"}, {"name": "same", "expect": {"same_as": "one"}}]
    monkeypatch.setattr(contract, "checks", lambda interface: rows)
    replies = iter([_chat("a"), _chat("b")])
    model = _Model(None)
    model.predict = lambda data, params=None: next(replies)
    assert contract.run(model, "chat")[1].fault == "the answer differs from that of 'one'"


def test_what_must_hold_exactly_is_not_asked_of_bf16_before_it_is_served():
    def names(mode, precision):
        return {check["name"] for check in contract.core("chat", mode, precision)}

    assert names("pyfunc", "fp32") - names("pyfunc", "bf16") == {"two rows as one by one"}
    assert "two rows in order" in names("pyfunc", "bf16")
    assert names("transformers", "fp32") == names("transformers", "bf16") < names("onnx", "int4")


MADRID, PARIS = "The capital of Spain is Madrid.", "The capital of France is Paris."
FOREIGN, OTHERS = "a row has the answer of another row", "the rows' answers differ from those one by one"
ORDERS = {
    "empty": (["", ""], FOREIGN, OTHERS),
    "of nobody": (["#####", PARIS], FOREIGN, OTHERS),
    "alike": (["The", "The"], FOREIGN, OTHERS),
    "in order": ([MADRID, PARIS], None, None),
    "one rounded otherwise": (["The capital city is Madrid.", PARIS], None, OTHERS),
    "changed places": ([PARIS, MADRID], FOREIGN, OTHERS),
    "one twice": ([MADRID, MADRID], FOREIGN, OTHERS),
}


@pytest.mark.parametrize(("texts", "closest", "same"), ORDERS.values(), ids=ORDERS)
def test_rows_are_held_against_their_own_answers(monkeypatch, texts, closest, same):
    rows = [{"name": "one"}, {"name": "other"}]
    for name in ("closest_to", "answers_of"):
        rows.append({"name": name, "request": TWO, "expect": {"replies": 2, name: ["one", "other"]}})
    monkeypatch.setattr(contract, "checks", lambda interface: rows)
    replies = iter([_chat(MADRID), _chat(PARIS), *[[_chat(text) for text in texts]] * 2])
    model = _Model(None)
    model.predict = lambda data, params=None: next(replies)
    assert [result.fault for result in contract.run(model, "chat")] == [None, None, closest, same]


def test_the_token_counts_must_add_up(monkeypatch):
    monkeypatch.setattr(contract, "checks", lambda interface: [{"name": "it"}])
    reply = _chat("a")
    reply["usage"]["total_tokens"] = 1
    assert "do not add up" in contract.run(_Model(reply), "chat")[0].fault


@pytest.mark.parametrize("interface", ["chat", "prompt"])
def test_the_suite_has_25_checks_or_more_with_names_of_their_own(interface):
    names = [check["name"] for check in contract.checks(interface)]
    assert len(names) >= 25
    assert len(set(names)) == len(names)


def test_a_row_of_the_users_own_counts_and_a_typo_in_it_is_told(tmp_path, monkeypatch):
    table = tmp_path / "contract.yaml"
    monkeypatch.setattr(contract, "TABLE", table)
    contract.checks.cache_clear()
    table.write_text("- {name: mine, expect: {choices: 2}}")
    assert contract.run(_Model(_chat("a")), "chat")[0].fault == "1 choices instead of 2"
    contract.checks.cache_clear()
    table.write_text("- {name: mine, expect: {choises: 2}}")
    with pytest.raises(ValueError, match="'mine' expects unknown choises"):
        contract.checks("chat")
    contract.checks.cache_clear()

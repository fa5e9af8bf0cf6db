"""Asking in batches: errors by row, seeds by row, and going on where a journal ends."""

import contextlib
from typing import ClassVar

import pandas as pd
import pytest
from steps.evaluation.fit import Fit

from steps.config.schema import Evaluation
from steps.errors import StepError
from steps.evaluation import answers
from steps.evaluation.journal import Journal
from steps.evaluation.prompt_set import PromptSet
from steps.evaluation.prompt_set.row import Row
from steps.store.variants import Variant


def _rows(*texts):
    return PromptSet("set", tuple(Row(f"row-{text}", (("user", text),), ("t",), ()) for text in texts))


def _variant(mode="onnx", interface="chat", temperature=0.0):
    params = {"mode": mode, "interface": interface, "generation.temperature": str(temperature)}
    return Variant("m", "r", "variant", {}, params, ())


class _Model:
    """Says every question back with the seed that it came with; `fails` are texts that it raises for."""

    def __init__(self, *fails):
        self.fails, self.calls = fails, []

    def predict(self, data, params=None):
        rows = data.to_dict("records") if isinstance(data, pd.DataFrame) else [data]
        self.calls.append(len(rows))
        said = [self._reply(row, params or {}) for row in rows]
        return said if len(said) > 1 or self.as_list(rows[0]) else said[0]

    def as_list(self, row):
        return False

    def _reply(self, row, params):
        text = row["prompt"] if "prompt" in row else row["messages"][-1]["content"]
        if text in self.fails:
            raise ValueError(f"no {text}\nwith details")
        seed = params.get("seed", (row.get("custom_inputs") or {}).get("seed"))
        said = text if seed is None else f"{text} {seed}"
        return said if "prompt" in row else {"choices": [{"message": {"content": said}}]}


class _Stock(_Model):
    """Like MLflow's own flavour, it answers one conversation, with a list."""

    def as_list(self, row):
        return True


def _ask(tmp_path, model, rows, variant=None, fit=None, **settings):
    journal = Journal(tmp_path / "journal.sqlite", {})
    try:
        config = Evaluation(**({"batch_size": 2} | settings))
        return answers.answer(model, variant or _variant(), rows, fit or Fit(), config, journal)
    finally:
        journal.close()


def _texts(answered):
    return [[said.text for said in repeat] for repeat in answered]


@pytest.fixture(autouse=True)
def in_batches(monkeypatch):
    """No row is asked alone, which few enough rows all would be."""
    monkeypatch.setattr(answers, "asked_alone", lambda rows: [])


@pytest.mark.parametrize(("rows", "alone"), [(3, [0, 1, 2]), (8, list(range(8))), (66, list(range(0, 64, 8)))])
def test_some_rows_from_all_over_the_set_are_asked_alone(monkeypatch, tmp_path, rows, alone):
    monkeypatch.undo()
    assert answers.asked_alone(rows) == alone
    model, texts = _Model(), [f"q{number}" for number in range(rows)]
    assert _texts(_ask(tmp_path, model, _rows(*texts), batch_size=64)) == [texts]
    assert model.calls == [1] * len(alone) + [rows - len(alone)] * (rows > len(alone))


def test_a_sampled_variant_is_not_asked_alone(monkeypatch, tmp_path):
    monkeypatch.undo()
    model = _Model()
    _ask(tmp_path, model, _rows("a", "b"), _variant(temperature=1.0))
    assert model.calls == [2]


@pytest.mark.parametrize("interface", ["chat", "prompt"])
def test_answers_come_in_order_and_in_batches(tmp_path, interface):
    model = _Model()
    answered = _ask(tmp_path, model, _rows("a", "b", "c"), _variant(interface=interface))
    assert _texts(answered) == [["a", "b", "c"]]
    assert model.calls == [2, 1]
    assert all(said.latency_ms > 0 for said in answered[0])


@pytest.mark.parametrize("interface", ["chat", "prompt"])
def test_the_stock_flavour_is_asked_one_by_one(tmp_path, interface):
    model = _Stock()
    answered = _ask(tmp_path, model, _rows("a", "b", "c"), _variant("transformers", interface))
    assert _texts(answered) == [["a", "b", "c"]]
    assert model.calls == [1, 1, 1]


def test_a_row_that_fails_is_a_row_with_an_error_and_the_others_of_its_batch_are_answered(tmp_path):
    model = _Model("b")
    (answered,) = _ask(tmp_path, model, _rows("a", "b", "c", "d"))
    assert [said.text for said in answered] == ["a", "", "c", "d"]
    assert [said.error for said in answered] == [None, "ValueError: no b", None, None]
    assert model.calls == [2, 1, 1, 2]


def test_more_errors_than_allowed_end_it_and_name_the_rows(tmp_path):
    model = _Model("a", "b", "c", "d", "e", "f")
    with pytest.raises(StepError, match=r"2 rows failed, more than evaluate.max_errors=1: row 'row-a': ValueError: no"):
        _ask(tmp_path, model, _rows(*"abcdef"), max_errors=1)
    assert sum(model.calls) < 6


def test_an_error_is_an_answer_and_is_not_asked_again(tmp_path):
    """Else what comes out would depend on whether it was killed."""
    first = _ask(tmp_path, _Model("b"), _rows("a", "b", "c"))
    model = _Model()
    assert _ask(tmp_path, model, _rows("a", "b", "c")) == first
    assert model.calls == []


def test_rows_of_more_errors_than_allowed_are_asked_again(tmp_path):
    with pytest.raises(StepError, match=r"more than evaluate\.max_errors=1"):
        _ask(tmp_path, _Model("a", "d"), _rows(*"abcdef"), max_errors=1)
    model = _Model()
    (answered,) = _ask(tmp_path, model, _rows(*"abcdef"), max_errors=1)
    assert [said.error for said in answered] == [None] * 6
    assert model.calls == [2, 2, 2]


def test_a_retry_that_is_killed_keeps_no_error_that_it_was_to_ask_again(tmp_path):
    fails = _Model("a", "c", "e")
    with pytest.raises(StepError, match=r"more than evaluate\.max_errors=2"):
        _ask(tmp_path, fails, _rows(*"abcdef"), max_errors=2)
    killed = _Model()
    killed.predict = _raising(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        _ask(tmp_path, killed, _rows(*"abcdef"), max_errors=2)
    (answered,) = _ask(tmp_path, _Model(), _rows(*"abcdef"), max_errors=2)
    assert [said.error for said in answered] == [None] * 6


def _raising(error):
    def predict(*_, **__):
        raise error

    return predict


def test_after_a_line_was_mended_its_batch_alone_is_asked_again(tmp_path):
    _ask(tmp_path, _Model(), _rows(*"abcde"))
    model = _Model()
    assert _texts(_ask(tmp_path, model, _rows(*"abCde"))) == [list("abCde")]
    assert model.calls == [2]


def test_how_a_chat_ended_is_known(tmp_path):
    model = _Model()
    model._reply = lambda row, params: {"choices": [{"message": {"content": "x"}, "finish_reason": "length"}]}
    (answered,) = _ask(tmp_path, model, _rows("a"))
    assert answered[0].finish_reason == "length"
    (answered,) = _ask(tmp_path, _Model(), _rows("b"), _variant(interface="prompt"))
    assert answered[0].finish_reason is None


def test_rows_that_cannot_be_asked_count_as_errors(tmp_path):
    model = _Model()
    with pytest.raises(StepError, match=r"1 rows failed, more than evaluate.max_errors=0: row 'row-b': no place"):
        _ask(tmp_path, model, _rows(*"ab"), fit=Fit(unaskable={1: "no place"}), max_errors=0)
    assert model.calls == []


def test_what_a_model_says_of_an_error_can_be_written(tmp_path):
    (answered,) = _ask(tmp_path, _Model("\ud800"), PromptSet("set", (Row("a", (("user", "\ud800"),), ("t",), ()),)))
    assert answered[0].error == "ValueError: no ?"


def test_the_bar_counts_all_rows_and_begins_at_those_that_are_known(tmp_path, monkeypatch):
    class _Bar(contextlib.nullcontext):
        shown: ClassVar[list] = []

        def __init__(self, initial, total, **_):
            super().__init__(self)
            self.shown.append([initial, total])

        def update(self, number):
            self.shown[-1].append(number)

    monkeypatch.setattr("tqdm.tqdm", _Bar)
    _ask(tmp_path, _Model(), _rows(*"abcde"))
    _ask(tmp_path, _Model(), _rows(*"abcdE"))
    assert _Bar.shown == [[0, 5, 2, 2, 1], [4, 5, 1]]


def test_an_answer_that_is_no_text_is_an_error(tmp_path):
    model = _Model()
    model._reply = lambda row, params: {"choices": [{"message": {"content": 5}}]}
    (answered,) = _ask(tmp_path, model, _rows("a"))
    assert answered[0].error == "the answer is no text but int"


def test_a_wrong_number_of_replies_is_no_answer(tmp_path):
    model = _Model()
    model.predict = lambda data, params=None: [{"choices": [{"message": {"content": "x"}}]}] * 3
    (answered,) = _ask(tmp_path, model, _rows("a", "b"))
    assert [said.error for said in answered] == ["ValueError: 1 rows got 3 replies"] * 2


def test_a_skipped_row_is_not_asked(tmp_path):
    model = _Model()
    (answered,) = _ask(tmp_path, model, _rows("a", "b", "c"), fit=Fit(too_long={1: "too long"}))
    assert [said.skipped for said in answered] == [None, "too long", None]
    assert model.calls == [2]


def test_several_turns_go_to_a_prompt_interface_as_the_variant_writes_them(tmp_path):
    (answered,) = _ask(tmp_path, _Model(), _rows("a", "b"), _variant(interface="prompt"), Fit(prompts={1: "<a>b"}))
    assert [said.text for said in answered] == ["a", "<a>b"]


def test_a_greedy_variant_is_asked_once_whatever_the_repeats(tmp_path):
    assert len(_ask(tmp_path, _Model(), _rows("a"), repeats=3)) == 1


@pytest.mark.parametrize(("mode", "interface"), [("onnx", "chat"), ("onnx", "prompt")])
def test_every_row_and_repeat_has_a_seed_of_its_own_whatever_the_batch(tmp_path, mode, interface):
    expected = [["a 5", "b 6", "c 7"], ["a 8", "b 9", "c 10"]]
    for batch_size in (1, 2, 64):
        folder = tmp_path / str(batch_size)
        folder.mkdir()
        asked = {"seed": 5, "repeats": 2, "batch_size": batch_size}
        answered = _ask(folder, _Model(), _rows("a", "b", "c"), _variant(mode, interface, 0.7), **asked)
        assert _texts(answered) == expected


def test_the_stock_flavour_draws_by_the_rows_seed(tmp_path):
    import torch

    model = _Stock()
    model._reply = lambda row, params: {"choices": [{"message": {"content": str(torch.rand(1).item())}}]}
    rows, variant = _rows("a", "b", "c"), _variant("transformers", "chat", 0.7)
    (whole,) = _ask(tmp_path, model, rows, variant, batch_size=3)
    (tmp_path / "journal.sqlite").unlink()
    (one_by_one,) = _ask(tmp_path, model, rows, variant, batch_size=1)
    assert [said.text for said in whole] == [said.text for said in one_by_one]
    assert len({said.text for said in whole}) == 3


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_what_is_in_the_journal_is_not_asked_again(tmp_path, stop):
    class Killed(BaseException):
        """Ends the process's work as a signal does."""

    class _Mortal(_Model):
        def predict(self, data, params=None):
            if len(self.calls) == stop:
                raise Killed
            return super().predict(data, params)

    rows, variant = _rows(*"abcdefghijk"), _variant(temperature=0.7)
    with pytest.raises(Killed):
        _ask(tmp_path, _Mortal(), rows, variant)
    model = _Model()
    answered = _ask(tmp_path, model, rows, variant)
    assert _texts(answered) == [[f"{text} {seed}" for seed, text in enumerate("abcdefghijk")]]
    assert sum(model.calls) == 11 - 2 * stop

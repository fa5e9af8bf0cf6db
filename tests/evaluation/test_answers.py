"""Answering rows in batches: errors and seeds for each row, and continuing where a journal ends."""

from typing import ClassVar

import pytest

from steps.config.schema import Evaluation
from steps.errors import StepError
from steps.evaluation import answers
from steps.evaluation.asking import Asker
from steps.evaluation.context_check import ContextCheck
from steps.evaluation.journal import Journal
from tests.support import EchoModel, make_prompt_set, make_variant


def _answer(tmp_path, model, rows, variant=None, check=None, **settings):
    variant = variant or make_variant()
    asker = Asker(model, variant.mode, variant.interface)
    journal = Journal(tmp_path / "journal.sqlite", {})
    try:
        evaluation = Evaluation(**({"batch_size": 2} | settings))
        return answers.answer_rows(asker, variant, rows, check or ContextCheck(), evaluation, journal)
    finally:
        journal.close()


def _texts(repeats):
    return [[answer.text for answer in repeat] for repeat in repeats]


class MortalModel(EchoModel):
    """A model whose process ends after some calls, as by Ctrl-C."""

    def __init__(self, calls):
        super().__init__()
        self._left = calls

    def predict(self, data, params=None):
        if len(self.calls) == self._left:
            raise KeyboardInterrupt
        return super().predict(data, params)


@pytest.fixture
def no_row_alone(monkeypatch):
    """Few enough rows would all be asked one by one."""
    monkeypatch.setattr(answers, "rows_asked_alone", lambda rows: [])


@pytest.mark.parametrize(("rows", "alone"), [(3, [0, 1, 2]), (8, list(range(8))), (66, list(range(0, 64, 8)))])
def test_some_rows_from_all_over_the_set_are_asked_alone(tmp_path, rows, alone):
    assert answers.rows_asked_alone(rows) == alone
    model, texts = EchoModel(), [f"q{number}" for number in range(rows)]
    assert _texts(_answer(tmp_path, model, make_prompt_set(*texts), batch_size=64)) == [texts]
    assert model.sizes == [1] * len(alone) + [rows - len(alone)] * (rows > len(alone))


def test_a_sampled_variant_is_asked_no_row_alone(tmp_path):
    model = EchoModel()
    _answer(tmp_path, model, make_prompt_set("a", "b"), make_variant(temperature=1.0))
    assert model.sizes == [2]


@pytest.mark.usefixtures("no_row_alone")
@pytest.mark.parametrize("interface", ["chat", "prompt"])
def test_answers_come_in_order_and_in_batches(tmp_path, interface):
    model = EchoModel()
    repeats = _answer(tmp_path, model, make_prompt_set("a", "b", "c"), make_variant(interface=interface))
    assert _texts(repeats) == [["a", "b", "c"]]
    assert model.sizes == [2, 1]
    assert all(answer.latency_ms > 0 for answer in repeats[0])


@pytest.mark.usefixtures("no_row_alone")
@pytest.mark.parametrize("interface", ["chat", "prompt"])
def test_the_stock_flavour_is_asked_one_by_one(tmp_path, interface):
    model = EchoModel(in_list=True)
    variant = make_variant(mode="transformers", interface=interface)
    assert _texts(_answer(tmp_path, model, make_prompt_set("a", "b", "c"), variant)) == [["a", "b", "c"]]
    assert model.sizes == [1, 1, 1]


@pytest.mark.usefixtures("no_row_alone")
def test_a_failing_row_gets_an_error_and_the_rest_of_its_batch_is_answered(tmp_path):
    model = EchoModel("b")
    (repeat,) = _answer(tmp_path, model, make_prompt_set("a", "b", "c", "d"))
    assert [answer.text for answer in repeat] == ["a", "", "c", "d"]
    assert [answer.error for answer in repeat] == [None, "ValueError: no b", None, None]
    assert model.sizes == [2, 1, 1, 2]


@pytest.mark.usefixtures("no_row_alone")
def test_more_errors_than_allowed_end_the_evaluation_and_name_the_rows(tmp_path):
    model = EchoModel("a", "b", "c", "d", "e", "f")
    with pytest.raises(StepError, match=r"2 rows failed, more than evaluate.max_errors=1: row 'row-a': ValueError: no"):
        _answer(tmp_path, model, make_prompt_set(*"abcdef"), max_errors=1)
    assert sum(model.sizes) < 6


@pytest.mark.usefixtures("no_row_alone")
def test_an_error_is_an_answer_and_is_not_asked_again(tmp_path):
    """Otherwise the result would depend on whether the evaluation was killed."""
    first = _answer(tmp_path, EchoModel("b"), make_prompt_set("a", "b", "c"))
    model = EchoModel()
    assert _answer(tmp_path, model, make_prompt_set("a", "b", "c")) == first
    assert model.calls == []


@pytest.mark.usefixtures("no_row_alone")
def test_rows_of_more_errors_than_allowed_are_asked_again(tmp_path):
    with pytest.raises(StepError, match=r"more than evaluate\.max_errors=1"):
        _answer(tmp_path, EchoModel("a", "d"), make_prompt_set(*"abcdef"), max_errors=1)
    model = EchoModel()
    (repeat,) = _answer(tmp_path, model, make_prompt_set(*"abcdef"), max_errors=1)
    assert [answer.error for answer in repeat] == [None] * 6
    assert model.sizes == [2, 2, 2]


@pytest.mark.usefixtures("no_row_alone")
def test_a_killed_retry_keeps_no_error_that_it_was_to_ask_again(tmp_path):
    with pytest.raises(StepError, match=r"more than evaluate\.max_errors=2"):
        _answer(tmp_path, EchoModel("a", "c", "e"), make_prompt_set(*"abcdef"), max_errors=2)
    with pytest.raises(KeyboardInterrupt):
        _answer(tmp_path, MortalModel(calls=0), make_prompt_set(*"abcdef"), max_errors=2)
    (repeat,) = _answer(tmp_path, EchoModel(), make_prompt_set(*"abcdef"), max_errors=2)
    assert [answer.error for answer in repeat] == [None] * 6


@pytest.mark.usefixtures("no_row_alone")
def test_after_a_line_is_corrected_only_its_batch_is_asked_again(tmp_path):
    _answer(tmp_path, EchoModel(), make_prompt_set(*"abcde"))
    model = EchoModel()
    assert _texts(_answer(tmp_path, model, make_prompt_set(*"abCde"))) == [list("abCde")]
    assert model.sizes == [2]


def test_the_finish_reason_of_a_chat_is_kept(tmp_path):
    model = EchoModel()
    model.reply = lambda row, params: {"choices": [{"message": {"content": "x"}, "finish_reason": "length"}]}
    (repeat,) = _answer(tmp_path, model, make_prompt_set("a"))
    assert repeat[0].finish_reason == "length"
    (repeat,) = _answer(tmp_path, EchoModel(), make_prompt_set("b"), make_variant(interface="prompt"))
    assert repeat[0].finish_reason is None


def test_rows_that_cannot_be_asked_count_as_errors(tmp_path):
    model, check = EchoModel(), ContextCheck(unaskable={1: "no place"})
    with pytest.raises(StepError, match=r"1 rows failed, more than evaluate.max_errors=0: row 'row-b': no place"):
        _answer(tmp_path, model, make_prompt_set(*"ab"), check=check, max_errors=0)
    assert model.calls == []


def test_an_error_with_a_lone_surrogate_can_be_written(tmp_path):
    (repeat,) = _answer(tmp_path, EchoModel("\ud800"), make_prompt_set("\ud800"))
    assert repeat[0].error == "ValueError: no ?"


class FakeBar:
    """A progress bar that remembers where it began, its total, and its steps."""

    shown: ClassVar[list] = []

    def __init__(self, initial, total, **_):
        self.shown.append([initial, total])

    def update(self, number):
        self.shown[-1].append(number)

    def close(self):
        """Nothing is shown that would have to be removed."""


@pytest.mark.usefixtures("no_row_alone")
def test_the_bar_counts_all_rows_and_begins_at_the_known_ones(tmp_path, monkeypatch):
    monkeypatch.setattr("tqdm.tqdm", FakeBar)
    monkeypatch.setattr(FakeBar, "shown", [])
    _answer(tmp_path, EchoModel(), make_prompt_set(*"abcde"))
    _answer(tmp_path, EchoModel(), make_prompt_set(*"abcdE"))
    assert FakeBar.shown == [[0, 5, 2, 2, 1], [4, 5, 1]]


def test_an_answer_that_is_not_text_is_an_error(tmp_path):
    model = EchoModel()
    model.reply = lambda row, params: {"choices": [{"message": {"content": 5}}]}
    (repeat,) = _answer(tmp_path, model, make_prompt_set("a"))
    assert repeat[0].error == "the answer must be text, got int"


@pytest.mark.usefixtures("no_row_alone")
@pytest.mark.parametrize(
    ("interface", "reply", "error"),
    [
        ("chat", {"choices": [{"message": {"content": "x"}}]}, "ValueError: 1 row got 3 replies"),
        ("prompt", "x", "ValueError: the reply must have 1 choices, got 3"),
    ],
)
def test_a_wrong_number_of_replies_is_an_error(tmp_path, interface, reply, error):
    model = EchoModel()
    model.predict = lambda data, params=None: [reply] * 3
    (repeat,) = _answer(tmp_path, model, make_prompt_set("a", "b"), make_variant(interface=interface))
    assert [answer.error for answer in repeat] == [error] * 2


@pytest.mark.usefixtures("no_row_alone")
def test_a_skipped_row_is_not_asked(tmp_path):
    model, check = EchoModel(), ContextCheck(too_long={1: "too long"})
    (repeat,) = _answer(tmp_path, model, make_prompt_set("a", "b", "c"), check=check)
    assert [answer.skipped for answer in repeat] == [None, "too long", None]
    assert model.sizes == [2]


def test_several_turns_reach_a_prompt_interface_as_one_text(tmp_path):
    check = ContextCheck(prompts={1: "<a>b"})
    repeats = _answer(tmp_path, EchoModel(), make_prompt_set("a", "b"), make_variant(interface="prompt"), check)
    assert _texts(repeats) == [["a", "<a>b"]]


def test_a_greedy_variant_is_asked_once_whatever_the_repeats(tmp_path):
    assert len(_answer(tmp_path, EchoModel(), make_prompt_set("a"), repeats=3)) == 1


@pytest.mark.parametrize("interface", ["chat", "prompt"])
@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_each_row_of_each_repeat_has_its_own_seed_in_any_batch(tmp_path, interface, batch_size):
    variant = make_variant(interface=interface, temperature=0.7)
    rows = make_prompt_set("a", "b", "c")
    repeats = _answer(tmp_path, EchoModel(), rows, variant, seed=5, repeats=2, batch_size=batch_size)
    assert _texts(repeats) == [["a 5", "b 6", "c 7"], ["a 8", "b 9", "c 10"]]


def test_the_stock_flavour_samples_with_the_rows_seed(tmp_path):
    import torch

    model = EchoModel(in_list=True)
    model.answer = lambda row, params: str(torch.rand(1).item())
    rows, variant = make_prompt_set("a", "b", "c"), make_variant(mode="transformers", temperature=0.7)
    (together,) = _answer(tmp_path, model, rows, variant, batch_size=3)
    (tmp_path / "journal.sqlite").unlink()
    (one_by_one,) = _answer(tmp_path, model, rows, variant, batch_size=1)
    assert [answer.text for answer in together] == [answer.text for answer in one_by_one]
    assert len({answer.text for answer in together}) == 3


@pytest.mark.parametrize("calls", [1, 3, 5])
def test_answers_in_the_journal_are_not_asked_again(tmp_path, calls):
    rows, variant = make_prompt_set(*"abcdefghijk"), make_variant(temperature=0.7)
    with pytest.raises(KeyboardInterrupt):
        _answer(tmp_path, MortalModel(calls), rows, variant)
    model = EchoModel()
    repeats = _answer(tmp_path, model, rows, variant)
    assert _texts(repeats) == [[f"{text} {seed}" for seed, text in enumerate("abcdefghijk")]]
    assert sum(model.sizes) == 11 - 2 * calls

"""Which rows a variant's context has room for, and how several turns become one prompt."""

import contextlib

import pytest

from steps.checkpoints.prompting import around_user_message
from steps.errors import StepError
from steps.evaluation import context_check
from steps.evaluation.prompt_set import PromptSet
from steps.evaluation.prompt_set.row import Row
from steps.wrappers.tokenizer import ChatTokenizer
from tests.support import make_prompt_set, make_variant


@pytest.fixture
def tokenizer(checkpoint, monkeypatch):
    tokenizer = ChatTokenizer(checkpoint.directory)
    monkeypatch.setattr(context_check, "tokenizer_of", lambda variant: contextlib.nullcontext(tokenizer))
    return tokenizer


TEXTS = ["a", "the " * 600, "a" + " " * 600 + "b", "\n" * 600, "é" * 600, "a " * 480, "a" + " " * 480 + "b"]


@pytest.mark.parametrize("reserve", [1, 32])
def test_a_row_is_too_long_exactly_if_its_tokens_leave_too_little_room(tokenizer, reserve):
    rows = make_prompt_set(*TEXTS)
    lengths = [len(tokenizer.encode_chat(row.conversation)) for row in rows.rows]
    expected = {index for index, length in enumerate(lengths) if length + reserve > tokenizer.context_length}
    assert expected
    assert set(context_check.context_check(make_variant(mode="pyfunc"), rows, reserve).too_long) == expected


TURNS = (("user", "Wet?"), ("assistant", "Dry."), ("user", "Hot?"))
SYSTEM = (("system", "Be brief."), ("user", "Hot?"))


@pytest.fixture
def turns():
    messages = [(("user", "Hot?"),), TURNS, SYSTEM]
    return PromptSet("set", tuple(Row(str(index), each, ("t",), ()) for index, each in enumerate(messages)))


def test_an_interface_that_takes_conversations_gets_them(tokenizer, turns):
    check = context_check.context_check(make_variant(), turns)
    assert (check.prompts, check.unaskable) == ({}, {})


def test_a_wrapper_gets_several_turns_in_the_whole_chat_format(tokenizer, turns):
    check = context_check.context_check(make_variant(interface="prompt"), turns)
    assert check.prompts == {index: tokenizer.render(turns.rows[index].conversation) for index in (1, 2)}
    assert check.unaskable == {}


def test_the_stock_flavour_gets_several_turns_without_what_its_template_adds(tokenizer, turns):
    check = context_check.context_check(make_variant(mode="transformers", interface="prompt"), turns)
    before, after = around_user_message(tokenizer)
    assert {index: f"{before}{prompt}{after}" for index, prompt in check.prompts.items()} == {
        1: tokenizer.render(turns.rows[1].conversation)
    }
    assert check.unaskable == {2: "its system message does not fit the prompt template of mode=transformers"}


def test_a_row_with_a_control_token_is_refused_with_its_place(tokenizer):
    rows = make_prompt_set("good", "a<|end|>b", name="mine")
    with pytest.raises(StepError, match=r"^mine: row 2 \(id '.*'\): messages\[0\].content holds the control token"):
        context_check.check_variants([make_variant()], rows, "skip")


def test_long_rows_are_refused_unless_they_are_to_be_skipped(tokenizer):
    rows, variant = make_prompt_set("the " * 600), make_variant()
    with pytest.raises(StepError, match=r"its prompt has [0-9]+ tokens, the context of variant 512"):
        context_check.check_variants([variant], rows, "refuse")
    assert set(context_check.check_variants([variant], rows, "skip")[variant.model_id].too_long) == {0}


def test_a_variant_without_a_readable_tokenizer_is_left_out(monkeypatch):
    def tokenizer_of(variant):
        raise FileNotFoundError("tokenizer.json")

    monkeypatch.setattr(context_check, "tokenizer_of", tokenizer_of)
    assert context_check.check_variants([make_variant()], make_prompt_set("a"), "refuse") == {}

"""Rows that a variant's chat template does not render, and what counts as a control token in a row."""

import contextlib

import pytest

from steps import command_line
from steps.errors import StepError
from steps.evaluation import context_check
from steps.evaluation.prompt_set import PromptSet
from steps.evaluation.prompt_set.row import Row
from steps.store.variants import Variant
from steps.wrappers.tokenizer import ChatTokenizer
from tests.wrappers import checkpoints

SYSTEM, USER, REPLY = ("system", "Be brief."), ("user", "a Spain?"), ("assistant", "<think>no</think>b")


def _check(monkeypatch, tmp_path, template, *conversations, interface="chat", added=()):
    tokenizer = checkpoints.byte_level()
    tokenizer.add_tokens(list(added))
    folder = checkpoints.write(tmp_path / "checkpoint", tokenizer, checkpoints.TEMPLATES[template])
    config = command_line.compose("build", ["mode=pyfunc", f"interface={interface}"])
    variant = Variant("m", "r", "v", {}, config, ())
    rows = tuple(Row(str(index), messages, ("t",), ()) for index, messages in enumerate(conversations))
    tokenizer_of = contextlib.nullcontext(ChatTokenizer(folder))
    monkeypatch.setattr(context_check, "tokenizer_of", lambda variant: tokenizer_of)
    return context_check.check_variants([variant], PromptSet("set", rows), "refuse")["m"]


@pytest.mark.parametrize("interface", ["chat", "prompt"])
def test_row_whose_role_is_left_out_cannot_be_asked(monkeypatch, tmp_path, interface):
    check = _check(monkeypatch, tmp_path, "phi3_first", (USER,), (SYSTEM, USER), interface=interface)
    assert check.unaskable == {1: "the chat template leaves out messages[0], whose role is 'system'"}
    assert set(check.prompts) == set()


def test_row_that_the_template_refuses_cannot_be_asked(monkeypatch, tmp_path):
    check = _check(monkeypatch, tmp_path, "gemma", (SYSTEM, USER), (USER,), (USER, USER))
    assert check.unaskable == {
        0: "the chat template refuses its conversation: System role not supported",
        2: "the chat template refuses its conversation: "
        "Conversation roles must alternate user/assistant/user/assistant/...",
    }


def test_long_row_that_the_template_refuses_is_not_tokenized(monkeypatch, tmp_path):
    check = _check(monkeypatch, tmp_path, "gemma", (SYSTEM, ("user", "the " * 600)), (USER,))
    assert (set(check.unaskable), check.too_long) == ({0}, {})


def test_added_words_do_not_refuse_a_prompt_set(monkeypatch, tmp_path):
    assert _check(monkeypatch, tmp_path, "phi3", (USER,), added=["Spain"]).control_tokens == {}


def test_reply_may_hold_what_the_model_writes_but_a_question_may_not(monkeypatch, tmp_path):
    added = ["<think>", "</think>"]
    assert _check(monkeypatch, tmp_path, "phi4_reasoning", (USER, REPLY, USER), added=added).control_tokens == {}
    with pytest.raises(StepError, match=r"messages\[0\].content holds the control token <think>"):
        _check(monkeypatch, tmp_path, "phi4_reasoning", (("user", REPLY[1]),), added=added)

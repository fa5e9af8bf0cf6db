"""Which rows a variant's context has room for."""

import contextlib

import pytest

from steps.evaluation import fit
from steps.evaluation.prompt_set import PromptSet
from steps.evaluation.prompt_set.row import Row
from steps.store.variants import Variant
from steps.wrappers.tokenizer import ChatTokenizer

CHAT = Variant("m", "r", "v", {}, {"interface": "chat", "mode": "pyfunc"}, ())


@pytest.fixture
def tokenizer(checkpoint, monkeypatch):
    tokenizer = ChatTokenizer(checkpoint.directory)
    monkeypatch.setattr(fit, "tokenizer_of", lambda variant: contextlib.nullcontext(tokenizer))
    return tokenizer


TEXTS = ["a", "the " * 600, "a" + " " * 600 + "b", "\n" * 600, "é" * 600, "a " * 480, "a" + " " * 480 + "b"]


@pytest.mark.parametrize("reserve", [1, 32])
def test_a_row_is_too_long_exactly_where_its_tokens_leave_too_little_room(tokenizer, reserve):
    rows = [Row(str(index), (("user", text),), ("t",), ()) for index, text in enumerate(TEXTS)]
    lengths = [len(tokenizer.encode_chat(row.conversation)) for row in rows]
    wanted = {index for index, length in enumerate(lengths) if length + reserve > tokenizer.context_length}
    assert wanted
    assert set(fit.fit(CHAT, PromptSet("set", tuple(rows)), reserve).too_long) == wanted

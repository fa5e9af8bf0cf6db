"""Our reading of the tokenizer's files is transformers' own."""

import json
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steps.wrappers.tokenizer import ChatTokenizer


@pytest.fixture(scope="session")
def reference(checkpoint):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(checkpoint.directory)


CONTENT = st.text(st.characters(blacklist_categories=("Cs",)), min_size=1, max_size=60)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), CONTENT), min_size=1, max_size=5))
def test_conversations_tokenise_as_the_chat_template_does(tokenizer, reference, turns):
    messages = [{"role": role, "content": content} for role, content in turns]
    expected = reference.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert tokenizer.encode_chat(messages) == expected


@settings(max_examples=100, deadline=None)
@given(CONTENT)
def test_texts_come_back(tokenizer, text):
    if not tokenizer.control_token_in(text):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_control_tokens_are_found(tokenizer):
    assert tokenizer.control_token_in("a <|end|> b") == "<|end|>"
    assert tokenizer.control_token_in("a <|endless b") is None


def test_end_tokens_and_context(tokenizer):
    assert tokenizer.decode([next(iter(tokenizer.end_tokens))]) == ""
    assert len(tokenizer.end_tokens) == 1
    assert tokenizer.context_length == 512


def test_of_a_long_context_only_what_the_short_factors_hold_for_is_used(tokenizer, checkpoint, tmp_path):
    shutil.copytree(checkpoint.directory, tmp_path / "long")
    file = tmp_path / "long" / "config.json"
    config = json.loads(file.read_text()) | {"max_position_embeddings": 4096, "original_max_position_embeddings": 256}
    file.write_text(json.dumps(config))
    assert ChatTokenizer(tmp_path / "long").context_length == 256
    (tmp_path / "long" / "genai_config.json").write_text(json.dumps({"model": {"context_length": 4096}}))
    assert ChatTokenizer(tmp_path / "long").context_length == 256

"""Our reading of the tokenizer's files is transformers' own."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st


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

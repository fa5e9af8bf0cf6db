"""ChatTokenizer gives the same results as transformers."""

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
def test_conversations_are_encoded_as_transformers_does(tokenizer, reference, turns):
    messages = [{"role": role, "content": content} for role, content in turns]
    expected = reference.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert tokenizer.encode_chat(messages) == expected


@settings(max_examples=100, deadline=None)
@given(CONTENT)
def test_decode_reverses_encode(tokenizer, text):
    if not tokenizer.control_token_in(text):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_first_control_token_in_a_text_is_returned(tokenizer):
    assert tokenizer.control_token_in("a <|end|> b") == "<|end|>"
    assert tokenizer.control_token_in("a <|endless b") is None


def test_end_tokens_and_context_length_of_the_miniature(tokenizer):
    assert tokenizer.decode([next(iter(tokenizer.end_tokens))]) == ""
    assert len(tokenizer.end_tokens) == 1
    assert tokenizer.context_length == 512


def test_context_of_a_longrope_model_is_limited_to_its_short_factors(tokenizer, checkpoint, tmp_path):
    shutil.copytree(checkpoint.directory, tmp_path / "long")
    file = tmp_path / "long" / "config.json"
    config = json.loads(file.read_text()) | {"max_position_embeddings": 4096, "original_max_position_embeddings": 256}
    file.write_text(json.dumps(config))
    assert ChatTokenizer(tmp_path / "long").context_length == 256
    (tmp_path / "long" / "genai_config.json").write_text(json.dumps({"model": {"context_length": 4096}}))
    assert ChatTokenizer(tmp_path / "long").context_length == 256

"""Tokenizers of both real kinds: Phi-3's strips white space behind its markers, Phi-4-mini's does not."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from steps.wrappers.engines.sequence import Sequence, Settings
from steps.wrappers.tokenizer import ChatTokenizer
from tests.wrappers import checkpoints
from tests.wrappers.checkpoints import SPECIAL, TEMPLATES

# Of Phi-3's tokens these strip the white space on their right.
STRIPPING = ("</s>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>")
TEXTS = ["the cat", " the  cat ", "日本", "👩‍👩‍👧 cat", "\n\nthe\n", "\tcat", "e\u0301", "🇪🇸"]
CONTENT = st.one_of(st.sampled_from(TEXTS), st.text(st.sampled_from("the cat日本👧\n\t "), min_size=1, max_size=20))


def _phi3():
    tokenizer = checkpoints.byte_fallback()
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False, rstrip=token in STRIPPING) for token in SPECIAL]
    )
    return tokenizer


REAL = {"phi3": (_phi3, TEMPLATES["phi3"]), "phi4_mini": (checkpoints.byte_level, TEMPLATES["phi4_mini"])}


@pytest.fixture(scope="module", params=REAL)
def folder(request, tmp_path_factory):
    make, template = REAL[request.param]
    return checkpoints.write(tmp_path_factory.mktemp(request.param), make(), template)


@pytest.fixture(scope="module")
def tokenizer(folder):
    return ChatTokenizer(folder)


@pytest.fixture(scope="module")
def reference(folder):
    return checkpoints.reference(folder)


def _messages(contents):
    roles = ["user", "assistant"] * len(contents)
    return [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]


@settings(max_examples=100, deadline=None)
@given(contents=st.lists(CONTENT, min_size=1, max_size=4))
def test_a_conversation_has_the_tokens_and_the_count_of_transformers(tokenizer, reference, contents):
    messages = _messages(contents)
    expected = reference.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert tokenizer.encode_chat(messages) == expected
    assert tokenizer.count_tokens([tokenizer.render(messages)]) == [len(expected)]


def test_the_white_space_behind_a_marker_of_phi3_makes_no_token(tmp_path):
    tokenizer = ChatTokenizer(checkpoints.write(tmp_path / "phi3", _phi3(), TEMPLATES["phi3"]))
    tokens = tokenizer.encode_chat(_messages(["the"]))
    assert tokenizer.render(_messages(["the"])) == "<|user|>\nthe<|end|>\n<|assistant|>\n"
    assert tokens == tokenizer.encode("<|user|>the<|end|><|assistant|>")


@settings(max_examples=60, deadline=None)
@given(text=CONTENT)
def test_the_pieces_of_a_stream_join_to_the_text(tokenizer, reference, text):
    """An emoji has several tokens, and is shown when it is whole."""
    tokens = tokenizer.encode(text)
    sequence = Sequence([0], Settings(0.0, 1.0, 0, len(tokens)), tokenizer)
    shown = []
    for token in tokens:
        sequence.push(token)
        shown.append(sequence.settled_text())
    assert all(sequence.text.startswith(piece) and "\ufffd" not in piece for piece in shown)
    assert sequence.text == reference.decode(tokens, skip_special_tokens=True)


@pytest.mark.parametrize(("stop", "rest"), [("e ca", "th"), ("日本", "the cat "), ("👧", "the cat 日本 ")])
def test_a_stop_string_ends_a_text_over_the_border_of_tokens(tokenizer, stop, rest):
    sequence = Sequence([0], Settings(0.0, 1.0, 0, 100, (stop,)), tokenizer)
    for token in tokenizer.encode("the cat 日本 👧 the"):
        if not sequence.done.is_set():
            sequence.push(token)
    assert (sequence.text, sequence.finish_reason) == (rest, "stop")


def test_the_control_tokens_are_those_of_the_checkpoint(tokenizer):
    assert {"<|user|>", "<|end|>", "<|assistant|>"} <= set(tokenizer.control_tokens)
    assert all(tokenizer.control_token_in(f"a{token}b") for token in tokenizer.control_tokens)

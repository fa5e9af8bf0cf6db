"""Decoding token by token: pieces join to the text, whole characters are kept, and the cost does not grow."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders

from steps.wrappers.detokenizer import Detokenizer, decoder_parts
from steps.wrappers.engines.sequence import Sequence, Settings
from steps.wrappers.tokenizer import ChatTokenizer
from tests.wrappers import checkpoints
from tests.wrappers.checkpoints import KINDS


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def folder(kind, tmp_path_factory):
    return checkpoints.write(tmp_path_factory.mktemp("tokenizer"), KINDS[kind]())


@pytest.fixture(scope="module")
def tokenizer(folder):
    return ChatTokenizer(folder)


@pytest.fixture(scope="module")
def reference(folder):
    return checkpoints.reference(folder)


@pytest.fixture(scope="module")
def bytes_of(kind, reference):
    """Return the tokens that hold one byte each: `bytes_of("€".encode())`."""
    vocabulary = reference.get_vocab()
    names = {byte: f"<0x{byte:02X}>" for byte in range(256)}
    if kind == "byte level":
        from transformers.convert_slow_tokenizer import bytes_to_unicode

        names = bytes_to_unicode()
    return lambda content: [vocabulary[names[byte]] for byte in content]


def _sequence(tokenizer, stop=(), max_tokens=10**6):
    return Sequence([0], Settings(1.0, 1.0, 0, max_tokens, stop), tokenizer)


def _stream(sequence, tokens):
    """Push tokens and return what a stream shows after each of them; the last one ends the sequence."""
    shown = []
    for token in tokens:
        sequence.push(token)
        shown.append(sequence.settled_text())
    return shown


# Text, white space, bytes that begin, continue and break characters, special tokens.
BYTES = [*" A日€🎉".encode(), 0x80, 0xBF, 0xC0, 0xE0, 0xED, 0xF4, 0xFF]


@pytest.fixture(scope="module")
def some_tokens(reference, bytes_of):
    words = ["▁", "▁the", "Ġthe", "a", "日本", "æĹ", "¥æ", "<|end|>", "<s>"]
    vocabulary = reference.get_vocab()
    return st.lists(
        st.sampled_from([*bytes_of(BYTES), *(vocabulary[word] for word in words if word in vocabulary)])
        | st.integers(0, len(vocabulary) + 2),
        max_size=24,
    )


def _with_whole_characters(reference, kind, tokens):
    """Return transformers' text, of a checkpoint whose runs of bytes end where a character or a fault ends.

    This is the one difference: such a run keeps its characters.
    """
    if kind == "byte level":
        return reference.decode(tokens, skip_special_tokens=True)
    special = {token.content for token in reference.added_tokens_decoder.values() if token.special}
    forms, run = [], b""
    for token in [*tokens, None]:
        form = None if token is None else reference.convert_ids_to_tokens(token)
        if token is not None and (form is None or form in special):
            continue
        if form is not None and form.startswith("<0x"):
            run += bytes([int(form[3:5], 16)])
            continue
        for character in run.decode("utf-8", "surrogateescape"):
            broken = character.encode("utf-8", "surrogateescape")
            forms += [*(f"<0x{byte:02X}>" for byte in broken), ""]
        run, forms = b"", [*forms, *([form] if form else [])]
    return reference.backend_tokenizer.decoder.decode(forms)


def test_random_tokens_are_decoded_alike_in_a_stream_and_as_a_whole(kind, tokenizer, reference, some_tokens):
    @settings(max_examples=400, deadline=None)
    @given(some_tokens)
    def check(tokens):
        sequence = _sequence(tokenizer, max_tokens=max(1, len(tokens)))
        shown = _stream(sequence, tokens)
        assert all(after.startswith(before) for before, after in pairwise(shown))
        if tokens:
            assert shown[-1] == sequence.text == tokenizer.decode(tokens)
        assert tokenizer.decode(tokens) == _with_whole_characters(reference, kind, tokens)

    check()


def test_text_of_random_words_is_that_of_transformers(tokenizer, reference):
    @settings(max_examples=200, deadline=None)
    @given(st.text(st.characters(blacklist_categories=("Cs",)), max_size=40))
    def check(text):
        tokens = tokenizer.encode(text)
        assert tokens == reference.encode(text, add_special_tokens=False)
        assert tokenizer.decode(tokens) == reference.decode(tokens, skip_special_tokens=True)
        assert _stream(_sequence(tokenizer, max_tokens=max(1, len(tokens))), tokens)[-1:] == [
            tokenizer.decode(tokens)
        ] * bool(tokens)

    check()


CUT = {
    "日€ without its last byte": ("日€".encode()[:-1], "日"),
    "🎉🎊 without its last byte": ("🎉🎊".encode()[:-1], "🎉"),
    "a first byte after a word": ("a€".encode()[:-2], "a"),
    "a first byte alone": ("€".encode()[:1], ""),
    "a whole character": ("é".encode(), "é"),
    "a byte of another character between": ("日".encode() + b"\xe2" + "日".encode(), None),
}


@pytest.mark.parametrize(("content", "whole"), CUT.values(), ids=CUT)
def test_characters_before_a_cut_are_kept(tokenizer, bytes_of, content, whole):
    sequence = _sequence(tokenizer, max_tokens=len(content))
    shown = _stream(sequence, bytes_of(content))
    assert shown[-1] == sequence.text
    assert sequence.finish_reason == "length"
    if whole is None:
        assert (sequence.text[0], sequence.text[-1]) == ("日", "日")
        assert set(sequence.text[1:-1]) == {"\ufffd"}
    else:
        assert sequence.text.rstrip("\ufffd") == whole
        # A stream does not show U+FFFD as long as the next byte may complete the character.
        assert all("\ufffd" not in text for text in shown[:-1])


def test_invalid_bytes_become_replacement_characters_as_in_transformers(tokenizer, reference, bytes_of):
    for content in (b"\xff", b"\xff\xfe\x80", b"\xe2\x82", b"\xf0\x9f\x8e"):
        tokens = bytes_of(content)
        assert tokenizer.decode(tokens) == reference.decode(tokens, skip_special_tokens=True)
        assert set(tokenizer.decode(tokens)) == {"\ufffd"}


def test_stream_goes_on_after_invalid_bytes(tokenizer, bytes_of):
    sequence = _sequence(tokenizer)
    shown = _stream(sequence, bytes_of(b"a\xffb"))
    assert shown == ["a", "a\ufffd", "a\ufffdb"]


def test_special_token_between_the_bytes_of_a_character_is_left_out(tokenizer, bytes_of):
    first, second, third = bytes_of("€".encode())
    special = tokenizer.encode("<|user|>")[-1]
    assert tokenizer.decode([first, special, second, third]) == "€"


@pytest.mark.parametrize("stop", ["€", "日€", "\ufffd"])
def test_stop_string_is_found_in_characters_of_several_tokens(tokenizer, bytes_of, stop):
    content = "日€a".encode() if stop != "\ufffd" else "日".encode() + b"\xffa"
    sequence = _sequence(tokenizer, stop=(stop,))
    for token in bytes_of(content):
        if not sequence.done.is_set():
            sequence.push(token)
    assert (sequence.text, sequence.finish_reason) == ("" if stop == "日€" else "日", "stop")


def test_stop_string_may_begin_in_text_that_was_searched_before(tokenizer, bytes_of):
    sequence = _sequence(tokenizer, stop=("abc", "zz"))
    shown = _stream(sequence, bytes_of(b"xxabc"))
    assert set(shown) <= {"", "x", "xx"}
    assert (sequence.text, sequence.finish_reason) == ("xx", "stop")


def test_each_token_is_decoded_a_bounded_number_of_times(tokenizer, bytes_of):
    decode, bytes_of_form = decoder_parts(tokenizer._tokenizer.decoder)
    decoded = []
    detokenizer = Detokenizer(
        tokenizer._tokenizer.id_to_token, lambda forms: decoded.append(len(forms)) or decode(forms), bytes_of_form
    )
    tokens = bytes_of("the 日本 €🎉 ".encode() * 50)
    for token in tokens:
        detokenizer.push(token)
    assert sum(decoded) <= 3 * len(tokens)


DECODERS = {
    "Gemma": decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]),
    "Metaspace": decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()]),
    "WordPiece": decoders.WordPiece(),
    "none": None,
}


@pytest.mark.parametrize("decoder", DECODERS.values(), ids=DECODERS)
@given(forms=st.lists(st.sampled_from(["▁", "▁the", "##s", "a", "b"]), max_size=8))
@settings(max_examples=100, deadline=None)
def test_text_without_bytes_is_the_same_in_pieces_for_other_decoders(decoder, forms):
    decode, bytes_of = decoder_parts(decoder)
    detokenizer = Detokenizer(forms.__getitem__, decode, bytes_of)
    pieces = [*map(detokenizer.push, range(len(forms))), detokenizer.finish()]
    assert "".join(pieces) == decode(forms)


@pytest.mark.parametrize("word", ["Spain", "é"])
def test_added_words_are_decoded_as_transformers_does(tmp_path, kind, word):
    tokenizer = KINDS[kind]()
    tokenizer.add_tokens([AddedToken(word, special=False, normalized=False)])
    folder = checkpoints.write(tmp_path, tokenizer)
    ours, theirs = ChatTokenizer(folder), checkpoints.reference(folder)
    tokens = theirs.encode(f"the {word} a", add_special_tokens=False)
    assert ours.encode(f"the {word} a") == tokens
    assert ours.decode(tokens) == theirs.decode(tokens, skip_special_tokens=True)

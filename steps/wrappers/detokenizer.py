"""Decode a completion token by token: the pieces joined are its text.

`tokenizers` decodes a whole list of tokens, and a token more can change the text before it: bytes become a character,
and of a run of byte tokens such as <0xE2> that is not UTF-8 as a whole, every byte becomes U+FFFD. Here a token stays
open until its bytes end where a character ends. Whatever is closed is decoded once, and a run of byte tokens keeps its
whole characters. Apart from those, the text is the one that `tokenizers` gives for the whole list.
"""

from codecs import getincrementaldecoder
from collections.abc import Callable
from functools import cache

from tokenizers.decoders import Decoder

Decode = Callable[[list[str]], str]
BytesOf = Callable[[str], bytes | None]
# Stands before the tokens that are not the first ones: decoders drop the space that opens a text.
BEFORE = "x"


class Detokenizer:
    """The text of a growing list of tokens. One thread at a time may use it."""

    def __init__(self, form_of: Callable[[int], str | None], decode: Decode, bytes_of: BytesOf) -> None:
        """Start with no token.

        Args:
            form_of: Returns how the vocabulary writes a token; None if the token has no text.
            decode: Turns written tokens into text.
            bytes_of: Returns the bytes of a written token; None if it holds text.
        """
        self._form_of, self._decode, self._bytes_of = form_of, decode, bytes_of
        self._open: list[str] = []
        self._at_start = True
        # Its state holds the bytes of a character that is not complete. It turns a byte that cannot belong to any
        # character into a lone surrogate.
        self._utf8 = getincrementaldecoder("utf-8")("surrogateescape")

    def push(self, token: int) -> str:
        """Add the next token and return the text that no later token can change."""
        form = self._form_of(token)
        if form is None:
            return ""
        added = self._bytes_of(form)
        if added is None:
            self._utf8.reset()
            text = self._close(len(self._open))
        else:
            first = self._utf8.decode(added[:1])
            # The bytes before belong to no character, and this token does not continue them.
            text = self._close(len(self._open)) if "\udc80" <= first[:1] <= "\udcff" else ""
            self._utf8.decode(added[1:])
        self._open.append(form)
        return text + self._close(len(self._open) - self._incomplete())

    def finish(self) -> str:
        """Return the rest of the text. The bytes of a character that is not complete become U+FFFD."""
        return self._close(len(self._open))

    def _incomplete(self) -> int:
        """Return how many open tokens hold bytes of a character that is not complete."""
        missing = len(self._utf8.getstate()[0])
        for count, form in enumerate(reversed(self._open)):
            if missing == 0:
                return count
            missing -= len(self._bytes_of(form) or b"")
            if missing < 0:  # the token holds the end of another character too
                break
        return len(self._open)

    def _close(self, count: int) -> str:
        """Decode the first `count` open tokens."""
        if count == 0:
            return ""
        forms = self._open[:count]
        text = self._decode(forms) if self._at_start else self._decode([BEFORE, *forms])[len(BEFORE) :]
        if self._at_start and not text:
            # What the decoder drops at the start is not used up, so these tokens stay open. The empty token keeps
            # their bytes apart from the next ones.
            self._open.insert(count, "")
            return ""
        self._at_start = False
        del self._open[:count]
        return text


def decoder_parts(decoder: Decoder | None) -> tuple[Decode, BytesOf]:
    """Return `decode` and `bytes_of` of a tokenizer's decoder."""
    # Without a decoder, tokenizers joins tokens with a space.
    decode: Decode = decoder.decode if decoder else " ".join
    if decode([BEFORE, "\u0120"]) == f"{BEFORE} ":
        return decode, _byte_level
    if decode([BEFORE, "<0x41>"]) == f"{BEFORE}A":
        return decode, _byte_fallback
    return decode, lambda _: None


def _byte_fallback(form: str) -> bytes | None:
    """Return the byte of a token such as <0xE2>."""
    is_byte = len(form) == 6 and form.startswith("<0x") and form.endswith(">")
    try:
        return bytes([int(form[3:5], 16)]) if is_byte else None
    except ValueError:
        return None


def _byte_level(form: str) -> bytes | None:
    """Return the bytes of a token of byte-level BPE, which writes each byte as a visible character."""
    table = _byte_level_table()
    try:
        return bytes(table[character] for character in form)
    except KeyError:  # an added token, which is text
        return form.encode()


@cache
def _byte_level_table() -> dict[str, int]:
    """Return the byte of each character: itself if it is visible, otherwise the next one from U+0100 on."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    table = {chr(byte): byte for byte in visible}
    hidden = (byte for byte in range(256) if byte not in visible)
    return table | {chr(0x100 + index): byte for index, byte in enumerate(hidden)}

"""Normalize text for comparison: case, punctuation and spaces are ignored."""

import re
import unicodedata


def words(text: str) -> list[str]:
    """Return the words of a text in lower case. Punctuation separates words; accents stay."""
    folded = unicodedata.normalize("NFC", text).casefold()
    return re.findall(r"\w+", folded)

"""Make texts comparable: case, punctuation and spaces do not count."""

import re
import unicodedata


def words(text: str) -> list[str]:
    """The words of a text in lower case; punctuation parts words, accents stay."""
    folded = unicodedata.normalize("NFC", text).casefold()
    return re.findall(r"\w+", folded)

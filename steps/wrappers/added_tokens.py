"""The tokens that a tokenizer's vocabulary was extended by, as transformers reads them from the configuration.

tokenizer_config.json may name tokens (bos_token, …), list added tokens with other properties than tokenizer.json has,
and mark tokens as special. Special tokens are never text: decoding leaves them out.
"""

import re
from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Tokenizer

PROPERTIES = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
# A word, or white space and punctuation without any letter: text even if the chat template writes it.
PLAIN_TEXT = re.compile(r"[\W_]*|[\w\s.,'\u2019-]+")


def named_tokens(config: Mapping[str, Any], padding: Mapping[str, Any] | None) -> dict[str, str]:
    """Return the tokens that have a name, such as bos_token: those that a chat template may use.

    Args:
        config: The content of tokenizer_config.json.
        padding: How tokenizer.json pads, if it does.
    """
    named: dict[str, Any] = {"pad_token": padding["pad_token"]} if padding else {}
    named |= {name: value for name, value in config.items() if name.endswith("_token")}
    if isinstance(extra := config.get("extra_special_tokens"), dict):
        named |= extra
    return {name: text for name, value in named.items() if (text := _content(value)) is not None}


def add_configured_tokens(tokenizer: Tokenizer, config: Mapping[str, Any], named: Mapping[str, str]) -> frozenset[str]:
    """Add the tokens that only tokenizer_config.json has, or has otherwise; return those that decoding leaves out.

    A named token that the vocabulary lacks is left out: the model has no embedding for it.
    """
    present = list(tokenizer.get_added_tokens_decoder().values())
    skipped = {token.content for token in present if token.special}
    known = {repr(token) for token in present}
    entries = sorted(config.get("added_tokens_decoder", {}).items(), key=lambda entry: int(entry[0]))
    tokens = [token for _, entry in entries if repr(token := _added_token(entry, named)) not in known]
    contents = {token.content for token in (*present, *tokens)}
    special = [content for content in special_tokens(config, named) if content not in contents]
    tokens += [AddedToken(content, special=True) for content in special if tokenizer.token_to_id(content) is not None]
    tokenizer.add_tokens(tokens)
    return frozenset(skipped | {token.content for token in tokens if token.special})


def special_tokens(config: Mapping[str, Any], named: Mapping[str, str]) -> list[str]:
    """Return the contents of the tokens that the configuration calls special, whatever tokenizer.json calls them."""
    extra = config.get("extra_special_tokens", config.get("additional_special_tokens"))
    contents = [_content(entry) for entry in extra] if isinstance(extra, list) else []
    return list(dict.fromkeys([*named.values(), *filter(None, contents)]))


def is_marker(content: str) -> bool:
    """Return True if a token looks like a part of a format, such as <|user|> or [INST], and not like text."""
    return not PLAIN_TEXT.fullmatch(content)


def _content(value: Any) -> str | None:
    """Return the text of a token that is given as a string or as an object with its properties."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def _added_token(entry: Mapping[str, Any], named: Mapping[str, str]) -> AddedToken:
    properties = {name: entry[name] for name in PROPERTIES if name in entry}
    if properties["content"] in named.values():
        properties["special"] = True
    return AddedToken(**properties)

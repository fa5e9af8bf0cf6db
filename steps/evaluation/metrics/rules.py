"""Rules for the form of an answer, as a row of a prompt set names them: `one_word`, or with a value `max_words=3`."""

import json
import re
from collections.abc import Callable


def _is_json(answer: str, _: str) -> bool:
    try:
        return isinstance(json.loads(answer), dict | list)
    except (ValueError, RecursionError):
        return False


def _is_sentence(answer: str, _: str) -> bool:
    return bool(re.fullmatch(r"[A-Z][^.!?\n]*[.!?]", answer.strip())) and len(answer.split()) >= 3


RULES: dict[str, Callable[[str, str], bool]] = {
    "one_word": lambda answer, _: len(answer.split()) == 1,
    "one_line": lambda answer, _: "\n" not in answer.strip(),
    "sentence": _is_sentence,
    "json": _is_json,
    "upper_case": lambda answer, _: answer.isupper(),
    "lower_case": lambda answer, _: answer.islower(),
    "no_punctuation": lambda answer, _: not re.search(r"[^\w\s]", answer),
}
VALUED: dict[str, Callable[[str, str], bool]] = {
    "max_words": lambda answer, value: len(answer.split()) <= int(value),
    "min_words": lambda answer, value: len(answer.split()) >= int(value),
    "starts_with": lambda answer, value: answer.strip().startswith(value),
    "ends_with": lambda answer, value: answer.strip().endswith(value),
    "contains": lambda answer, value: value in answer,
}
NUMBERS = ("max_words", "min_words")


def fault(rule: object) -> str | None:
    """Describe what is wrong with a rule of a row; None for a valid rule."""
    if not isinstance(rule, str):
        return f"must be text, got {type(rule).__name__}"
    name, separator, value = rule.partition("=")
    if name not in (VALUED if separator else RULES):
        known = ", ".join([*RULES, *(f"{valued}=…" for valued in VALUED)])
        return f"must be one of {known}, got {rule[:40]!r}"
    if name in NUMBERS and not (value.isascii() and value.isdigit()):
        return f"needs a whole number, got {rule[:40]!r}"
    return None


def keeps(answer: str, rule: str) -> bool:
    """Return True if an answer keeps a valid rule. An empty answer keeps no rule."""
    name, separator, value = rule.partition("=")
    return bool(answer.strip()) and (VALUED if separator else RULES)[name](answer.strip(), value)

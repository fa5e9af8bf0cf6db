"""Turn the values in the columns of a row into the fields that a row of a prompt set has.

All values become text: as they stand in the file, or as their type writes them. In a table, lists are written as JSON
or Python writes them, and accepted answers with semicolons between them.
"""

import ast
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from string import ascii_uppercase
from typing import Any

from steps.config.schema import Columns
from steps.evaluation.prompt_set.columns import ANSWERING, Chosen, choose, describe, plain
from steps.evaluation.prompt_set.files import Number
from steps.output import echo

SHOWN = 40  # characters of a bad value in an error message
# Text in one of these columns is a list of accepted answers.
PLURAL = {"answers", "targets", "correct_answers", "references", "aliases"}
ROLES = {"human": "user"} | dict.fromkeys(ANSWERING, "assistant")
# promptfoo writes how to compare before an answer. Only these compare with a text.
PROMPTFOO = re.compile(r"(?:(?:equals|i?contains):\s*)?(?!(?:not-)?[a-z]+(?:-[a-z]+)*(?:\([^)]*\))?:)(.+)", re.DOTALL)

PEEKED = 1000  # rows by which columns are chosen


def fields_of(
    columns: Columns, source: str, rows: Iterable[tuple[int, Any]]
) -> Iterator[tuple[int, dict[str, Any] | ValueError]]:
    """Yield number and fields of every row; a ValueError with a sentence for one that cannot be read.

    Args:
        columns: Which column holds which field.
        source: What the rows are from, for what is printed.
        rows: Number and values of every row.

    Raises:
        StepError: There is no column for what a row needs.
    """
    rows = iter(rows)
    head = list(islice(rows, PEEKED))
    if not (objects := [row for _, row in head if isinstance(row, dict)]):
        yield from head
        return
    chosen = choose(columns, objects)
    if described := describe(chosen):
        echo(f"Reading {source}: {described}.")
    for row_id, (number, row) in enumerate(chain(head, rows), start=1):
        try:
            yield number, _fields(row, chosen, str(row_id)) if isinstance(row, dict) else row
        except ValueError as error:
            yield number, error


def _fields(row: dict[str, Any], chosen: Chosen, row_id: str) -> dict[str, Any]:
    """Return the fields of a row. Its number is its id if it has no other."""
    content: dict[str, Any] = {"id": row_id}
    for field in ("id", "tags", "rules"):
        value = _value(row, chosen[field][0]) if field in chosen else None
        if value not in (None, "", []):
            content[field] = FORMS[field](value)
    content |= _question(row, chosen)
    target = _target(row, chosen)
    messages: Any = content.get("messages")
    if _is_answer(messages):
        # It is a reference for the answer, not a part of the question.
        target = messages[-1].get("content") if "target" not in chosen else target
        content["messages"] = messages[:-1]
    if "choices" in chosen and "prompt" in content:
        target = _with_choices(content, target, row, chosen)
    return content | ({} if target is None else {"target": target})


def _value(row: Any, name: str) -> Any:
    """Return the value of a column, with a dot inside of another one; None if it has none."""
    if isinstance(row, list):
        return [_value(entry, name) for entry in row]
    if not isinstance(row, dict) or name in row:
        value = row.get(name) if isinstance(row, dict) else None
        return None if isinstance(value, float) and math.isnan(value) else value
    outer, _, inner = name.partition(".")
    return _value(row.get(outer), inner) if inner else None


def _text(value: Any) -> Any:
    """Return a single value as text; a list, an object or nothing as it is."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    return value if value is None or isinstance(value, str | list | dict) else str(value)


def _texts(value: Any) -> Any:
    """Return several values as a list of texts. A single text may be a list as JSON or Python writes it."""
    value = _written_list(value) if type(value) is str and value.startswith("[") else value
    if isinstance(value, list):
        return [_text(entry) for entry in value]
    return [value] if isinstance(value, str) else value


def _tags(value: Any) -> Any:
    return _texts(value if isinstance(value, list) else _text(value))


FORMS: dict[str, Callable[[Any], Any]] = {"id": _text, "tags": _tags, "rules": _texts}


def _written_list(text: str) -> Any:
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        if isinstance(value, list):
            return value
    return text


def _question(row: dict[str, Any], chosen: Chosen) -> dict[str, Any]:
    """Return `messages` or `prompt` from the first of the chosen columns that has a value in this row."""
    for field in (field for field in chosen if field in ("messages", "prompt")):
        parts = [_value(row, name) for name in chosen[field]]
        if all(part is None for part in parts):
            continue
        if field == "messages" or (len(parts) == 1 and isinstance(parts[0], list)):
            return {"messages": _messages(parts[0])}
        texts = ["\n".join(map(str, part)) if isinstance(part, list) else _text(part) for part in parts if part]
        wrong = [text for text in texts if not isinstance(text, str)]
        return {"prompt": wrong[0] if wrong else "\n\n".join(texts)}
    return {}


def _messages(value: Any) -> Any:
    """Return a conversation with `role` and `content`, whatever the roles are called."""
    value = _written_list(value) if isinstance(value, str) else value
    if not isinstance(value, list):
        return value
    return [_message(message) for message in value]


def _message(message: Any) -> Any:
    if not isinstance(message, dict):
        return message
    message = {{"from": "role", "value": "content"}.get(key, key): value for key, value in message.items()}
    role = message.get("role")
    return message | ({"role": ROLES[role]} if isinstance(role, str) and role in ROLES else {})


def _is_answer(messages: Any) -> bool:
    return (
        isinstance(messages, list)
        and len(messages) > 1
        and isinstance(messages[-1], dict)
        and messages[-1].get("role") == "assistant"
    )


def _target(row: dict[str, Any], chosen: Chosen) -> Any:
    """Return the accepted answer or a list of them; None if the row has none."""
    if "target" not in chosen:
        return None
    (name,) = chosen["target"]
    value, column = _value(row, name), plain(name.rpartition(".")[2])
    if isinstance(value, str) and column in PLURAL:
        value = _texts(value) if value.startswith("[") else [part.strip() for part in value.split(";")]
    if isinstance(value, list):
        return [_text(entry) for entry in value if entry not in (None, "")] or None
    return _asserted(value) if column == "__expected" and isinstance(value, str) else _text(value)


def _asserted(text: str) -> str:
    """Return the answer that an assertion of promptfoo compares with."""
    if match := PROMPTFOO.fullmatch(text):
        return match[1]
    raise ValueError(f"{text[:SHOWN]!r} compares with no text. Only equals, contains and icontains are known.")


def _with_choices(content: dict[str, Any], target: Any, row: dict[str, Any], chosen: Chosen) -> Any:
    """Put the choices below the question; return what is accepted: the letter of the right one, its text, both.

    The letters are the choices to score by their likelihood, because the question names them.
    """
    prompt = content["prompt"]
    labels, texts = _choices(row, chosen["choices"])
    if not texts or not isinstance(prompt, str) or "target" not in chosen:
        return target
    listed = [f"{label}. {text}" for label, text in zip(labels, texts, strict=True)]
    right = _right_choice(_value(row, chosen["target"][0]), labels, texts)
    accepted = dict.fromkeys([labels[right], listed[right], texts[right]])
    content["prompt"] = f"{prompt}\n\n" + "\n".join(listed)
    if len(labels) > 1:
        content["choices"] = labels
    return list(accepted)


def _choices(row: dict[str, Any], names: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Return the labels and the texts of a row's choices: a list in one column, or a column for each letter."""
    if len(names) > 1:
        values: Any = [_value(row, name) for name in names]
        return [name.strip().upper() for name in names], [str(_text(value)) for value in values]
    values, outer = _texts(_value(row, names[0])), names[0].rpartition(".")[0]
    texts: list[str] = [str(value) for value in values] if isinstance(values, list) else []
    labels: Any = _value(row, f"{outer}.label") if outer else None
    own = isinstance(labels, list) and len(labels) == len(texts)
    return [str(label) for label in labels] if own else list(ascii_uppercase[: len(texts)]), texts


def _right_choice(target: Any, labels: list[str], texts: list[str]) -> int:
    """Return the place of the choice that a target names by its label, its number from 0, or its text."""
    target = target[0] if isinstance(target, list) and len(target) == 1 else target
    text = str(_text(target))
    is_number = isinstance(target, int | Number) and not isinstance(target, bool)
    for place in range(len(texts)):
        named = str(place) == text if is_number and text not in labels else text in (labels[place], texts[place])
        if named:
            return place
    if text.isdecimal() and int(text) < len(texts):
        return int(text)
    raise ValueError(f"target must be one of the choices {', '.join(labels)}, got {text[:SHOWN]!r}.")

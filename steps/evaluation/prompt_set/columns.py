"""Choose the columns that hold the fields of a row: by their usual names, or as `prompt_set.columns` says.

    -P prompt_set.path=quiz.csv -P prompt_set.columns.prompt=ask -P prompt_set.columns.target=reply

A dot names a column inside another one (`answers.text`), a plus joins several (`context+question`), null ignores one.
"""

import re
from collections.abc import Iterator
from dataclasses import asdict
from itertools import chain
from typing import Any

from steps.config.schema import Columns
from steps.errors import StepError, unknown

Chosen = dict[str, tuple[str, ...]]

# `null` on the command line arrives as text.
NO_COLUMN = (None, "null")
SHOWN = 40  # characters of a column's name in an error message
TARGETS = (
    *("target", "targets", "ideal", "answers.text", "answer.aliases", "answer", "answers", "answerkey"),
    *("correct_answers", "correct_answer", "best_answer", "expected", "expected_answer", "expected_output"),
    *("__expected", "references", "reference", "reference_answer", "ground_truth", "gold"),
    *("output", "completion", "response", "solution"),
)
# Fields that several columns may make.
JOINED = ("prompt", "choices")
# What the one who answers is called in conversations.
ANSWERING = ("assistant", "gpt", "bot", "model")
# The usual names of a field's columns, the most telling first. Of several columns all must be there.
USUAL: dict[str, tuple[tuple[str, ...], ...]] = {
    "id": (("id",),),
    "messages": (("messages",), ("conversations",), ("conversation",)),
    "prompt": (
        ("prompt",),
        ("context", "question"),
        ("passage", "question"),
        ("question",),
        ("instruction", "input"),
        ("instruction", "context"),
        ("instruction",),
        ("input",),
        ("query",),
        ("problem",),
    ),
    "choices": (("choices.text",), ("choices",), ("options",), tuple("abcde"), tuple("abcd"), tuple("abc")),
    "target": tuple((name,) for name in TARGETS),
    "tags": (("tags",),),
    "rules": (("rules",),),
}


def choose(columns: Columns, rows: list[dict[str, Any]]) -> Chosen:
    """Return the columns of each field that has some.

    Args:
        columns: The configuration. A column with the name of its field stands for all usual names.
        rows: The first rows.

    Raises:
        StepError: A column that is named does not exist, or none has a usual name for what is needed.
    """
    available = list(dict.fromkeys(chain.from_iterable(map(_names, rows))))
    chosen: Chosen = {}
    faults: list[str] = []
    for field, name in asdict(columns).items():
        if name == field:
            found = _usual(field, available)
        elif name in NO_COLUMN:
            continue
        else:
            joined = field in JOINED and name not in available
            found = tuple(part.strip() for part in name.split("+")) if joined else (name,)
            missing = [part for part in found if part not in available]
            faults += [f"prompt_set.columns.{field}: {unknown('column', part, _shown(available))}" for part in missing]
            found = () if missing else found
        if found:
            chosen[field] = found
    choices = f"must name a column of {', '.join(_shown(available)) or 'none'}."
    if not {"messages", "prompt"} & chosen.keys():
        faults.append(f"prompt_set.columns.prompt or .messages {choices}")
    if "target" not in chosen and not any(_ends_with_answer(row, chosen) for row in rows):
        faults.append(f"prompt_set.columns.target {choices}")
    if faults:
        raise StepError(*faults)
    return _in_order(chosen, columns)


def describe(chosen: Chosen) -> str:
    """Return where fields come from whose columns have other names; empty if none has."""
    return ", ".join(f"{field} from {'+'.join(names)}" for field, names in chosen.items() if names != (field,))


def plain(name: str) -> str:
    """Return a column's name as the usual names are written: `Correct Answers` is `correct_answers`."""
    return re.sub(r"[\s-]+", "_", name.strip()).lower()


def _names(row: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in row.items():
        if isinstance(value, dict):
            yield from _names(value, f"{prefix}{key}.")
            continue
        yield f"{prefix}{key}"
        # Answers as objects. A conversation has no such key.
        if isinstance(value, list) and value and isinstance(value[0], dict) and "text" in value[0]:
            yield from (f"{prefix}{key}.{inner}" for inner in value[0])


def _ends_with_answer(row: dict[str, Any], chosen: Chosen) -> bool:
    """Return True if a row's conversation ends with the assistant's answer, so that it needs no other target."""
    messages = row.get(*chosen["messages"]) if "messages" in chosen else None
    last = messages[-1] if isinstance(messages, list) and len(messages) > 1 else None
    return isinstance(last, dict) and last.get("role", last.get("from")) in ANSWERING


def _usual(field: str, available: list[str]) -> tuple[str, ...]:
    """Return the columns with a usual name of a field, as they are written; empty if there are none."""
    written = {plain(name): name for name in reversed(available)}
    usual = (names for names in USUAL[field] if all(name in written for name in names))
    return tuple(written[name] for name in next(usual, ()))


def _in_order(chosen: Chosen, columns: Columns) -> Chosen:
    """Return the fields with the question to prefer first: messages, unless only the prompt's column is named."""
    if columns.messages == "messages" and columns.prompt != "prompt" and "prompt" in chosen:
        return {"prompt": chosen["prompt"]} | chosen
    return chosen


def _shown(names: list[str]) -> list[str]:
    return [name if len(name) <= SHOWN else f"{name[:SHOWN]}…" for name in names]

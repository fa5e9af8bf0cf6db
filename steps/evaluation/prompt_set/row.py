"""One row of a prompt set: its fields, and the checks that report every fault of a row."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from steps.evaluation.metrics import rules

FIELDS = {"id", "messages", "prompt", "target", "tags", "rules", "choices"}
ROLES = {"system", "user", "assistant"}
MESSAGE = {"role", "content"}
SHOWN = 40  # characters of a bad value in an error message
LEAST_CHOICES = 2
# A text of these alone shows nothing.
INVISIBLE = "\u00ad\u200b\u200c\u200d\u200e\u200f\u2060\ufeff \t\r\n"
# Tokenizers cut text at NUL and refuse lone surrogates.
UNFIT = re.compile("[\0\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Row:
    """One question with its accepted answers.

    Attributes:
        id: unique in the prompt set.
        messages: (role, content) of each turn; the last is the user's.
        targets: accepted answers, at least one.
        tags: groups that the row counts in.
        rules: rules for the form of the answer (steps/evaluation/metrics/rules.py).
        choices: the answers to choose from, by their likelihood; empty if the row has none.
        number: line in the file or row in the dataset, from 1. Rows are equal whatever their number.
    """

    id: str
    messages: tuple[tuple[str, str], ...]
    targets: tuple[str, ...]
    tags: tuple[str, ...]
    rules: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    number: int = field(default=0, compare=False)

    @property
    def conversation(self) -> list[dict[str, str]]:
        """Return the messages in OpenAI's format."""
        return [{"role": role, "content": content} for role, content in self.messages]

    @property
    def question(self) -> str:
        """Return the content of the last message."""
        return self.messages[-1][1]

    @property
    def transcript(self) -> str:
        """Return the question, or all turns with their roles if there are several."""
        return self.question if self.is_plain else "\n".join(f"{role}: {content}" for role, content in self.messages)

    @property
    def is_plain(self) -> bool:
        """Return True if the row is a single message."""
        return len(self.messages) == 1


def make_row(content: dict[str, Any], number: int = 0) -> Row:
    """Return the row of an object for which `faults_of` found nothing."""
    messages = content.get("messages") or [{"role": "user", "content": content["prompt"]}]
    target = content["target"]
    return Row(
        id=content["id"],
        messages=tuple([(message["role"], message["content"]) for message in messages]),
        targets=tuple(target) if isinstance(target, list) else (target,),
        tags=tuple(content.get("tags", ())),
        rules=tuple(content.get("rules", ())),
        choices=tuple(content.get("choices", ())),
        number=number,
    )


def faults_of(content: Any) -> list[str]:
    """Return every fault of one row, as read from JSON or a dataset."""
    if not isinstance(content, dict):
        return [f"expected a JSON object, got {type(content).__name__}."]
    return list(_faults(content))


def _faults(content: dict[str, Any]) -> Iterator[str]:
    if not content.keys() <= FIELDS:
        unknown = sorted(name[:SHOWN] for name in content.keys() - FIELDS)
        yield f"unknown field {', '.join(map(repr, unknown))}; known are {', '.join(sorted(FIELDS))}."
    yield from _text_faults("id", content.get("id"))
    if ("messages" in content) == ("prompt" in content):
        yield "needs either messages or prompt."
    elif "prompt" in content:
        yield from _text_faults("prompt", content["prompt"])
    else:
        yield from _message_faults(content["messages"])
    yield from _target_faults(content.get("target"))
    if "tags" in content:
        yield from _tag_faults(content["tags"])
    if "rules" in content:
        yield from _rule_faults(content["rules"])
    if "choices" in content:
        yield from _choice_faults(content["choices"], content.get("target"))


def _message_faults(messages: Any) -> Iterator[str]:
    if not isinstance(messages, list) or not messages:
        yield "messages must be a list of at least one message."
        return
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or (message.keys() != MESSAGE and _has_more(message)):
            yield f"messages[{index}] must hold role and content, and nothing else."
            continue
        if not _is_role(message["role"]):
            shown = repr(message["role"])[:SHOWN]
            yield f"messages[{index}].role must be one of {', '.join(sorted(ROLES))}, got {shown}."
        yield from _text_faults("messages[{}].content", message["content"], index)
    last = messages[-1]
    if isinstance(last, dict) and _is_role(role := last.get("role")) and role != "user":
        yield f"the last message must be the user's, got role {role!r}."


def _has_more(message: dict[str, Any]) -> bool:
    """Return True if a message holds anything else than role and content. Of null it holds nothing."""
    return {key for key, value in message.items() if value is not None or key in MESSAGE} != MESSAGE


def _is_role(value: Any) -> bool:
    return isinstance(value, str) and value in ROLES


def _target_faults(target: Any) -> Iterator[str]:
    if isinstance(target, list) and target:
        for index, accepted in enumerate(target):
            yield from _text_faults("target[{}]", accepted, index)
    else:
        yield from _text_faults("target", target)


def _tag_faults(tags: Any) -> Iterator[str]:
    if not isinstance(tags, list):
        yield "tags must be a list of strings."
        return
    for index, tag in enumerate(tags):
        yield from _text_faults("tags[{}]", tag, index)
        if tag in tags[:index]:
            yield f"tags[{index}] is {repr(tag)[:SHOWN]} again."


def _rule_faults(row_rules: Any) -> Iterator[str]:
    if not isinstance(row_rules, list):
        yield "rules must be a list of strings."
        return
    for index, rule in enumerate(row_rules):
        if fault := rules.fault(rule):
            yield f"rules[{index}] {fault}."
        else:
            yield from _text_faults("rules[{}]", rule, index)


def _choice_faults(choices: Any, target: Any) -> Iterator[str]:
    if not isinstance(choices, list) or len(choices) < LEAST_CHOICES:
        yield f"choices must be a list of at least {LEAST_CHOICES} strings."
        return
    for index, choice in enumerate(choices):
        yield from _text_faults("choices[{}]", choice, index)
        if choice in choices[:index]:
            yield f"choices[{index}] is {repr(choice)[:SHOWN]} again."
    targets = target if isinstance(target, list) else [target]
    if target is not None and not any(one in choices for one in targets):
        yield f"target must be one of the choices, got {repr(target)[:SHOWN]}."


def _text_faults(field: str, value: Any, index: int | None = None) -> Iterator[str]:
    """Yield the fault of a text, if any. `field` is formatted with `index` only then: most texts have none."""
    if isinstance(value, str) and value.strip().strip(INVISIBLE) and not UNFIT.search(value):
        return
    field = field.format(index)
    if value is None:
        yield f"{field} is missing."
    elif not isinstance(value, str):
        yield f"{field} must be text, got {type(value).__name__}."
    elif not value.strip().strip(INVISIBLE):
        yield f"{field} is empty."
    elif "\0" in value:
        yield f"{field} holds a NUL character."
    else:
        yield f"{field} holds a lone surrogate."

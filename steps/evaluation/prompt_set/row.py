"""One row of a prompt set: what it may hold, and what is wrong with one that holds something else."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from steps.evaluation.metrics import rules

FIELDS = {"id", "messages", "prompt", "target", "tags", "rules"}
ROLES = {"system", "user", "assistant"}
MESSAGE = {"role", "content"}
SHOWN = 40
# What a tokenizer would cut at or not take.
UNFIT = re.compile("[\0\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Row:
    """One question; `targets` are the accepted answers; `rules` are for its form.

    `number` is where it stands: its line in a file or its row in a dataset.
    """

    id: str
    messages: tuple[tuple[str, str], ...]
    targets: tuple[str, ...]
    tags: tuple[str, ...]
    rules: tuple[str, ...] = ()
    number: int = field(default=0, compare=False)

    @property
    def conversation(self) -> list[dict[str, str]]:
        return [{"role": role, "content": content} for role, content in self.messages]

    @property
    def question(self) -> str:
        """The last message."""
        return self.messages[-1][1]

    @property
    def transcript(self) -> str:
        """What people read in a table: the question, or all messages where there are more."""
        return self.question if self.is_plain else "\n".join(f"{role}: {content}" for role, content in self.messages)

    @property
    def is_plain(self) -> bool:
        """Whether the question is all there is."""
        return len(self.messages) == 1


def make_row(content: dict[str, Any], number: int = 0) -> Row:
    """The row of an object without faults, which stands at `number`."""
    messages = content.get("messages") or [{"role": "user", "content": content["prompt"]}]
    target = content["target"]
    return Row(
        id=content["id"],
        messages=tuple([(message["role"], message["content"]) for message in messages]),
        targets=tuple(target) if isinstance(target, list) else (target,),
        tags=tuple(content.get("tags", ())),
        rules=tuple(content.get("rules", ())),
        number=number,
    )


def faults_of(content: Any) -> list[str]:
    """Everything that is wrong with one row."""
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


def _message_faults(messages: Any) -> Iterator[str]:
    if not isinstance(messages, list) or not messages:
        yield "messages must be a list of at least one message."
        return
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or message.keys() != MESSAGE:
            yield f"messages[{index}] must hold role and content, and nothing else."
            continue
        if not _is_role(message["role"]):
            shown = repr(message["role"])[:SHOWN]
            yield f"messages[{index}].role must be one of {', '.join(sorted(ROLES))}, got {shown}."
        yield from _text_faults("messages[{}].content", message["content"], index)
    last = messages[-1]
    if isinstance(last, dict) and _is_role(role := last.get("role")) and role != "user":
        yield f"the last message must be the user's, got role {role!r}."


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


def _rule_faults(asked: Any) -> Iterator[str]:
    if not isinstance(asked, list):
        yield "rules must be a list of strings."
        return
    for index, rule in enumerate(asked):
        if fault := rules.fault(rule):
            yield f"rules[{index}] {fault}."
        else:
            yield from _text_faults("rules[{}]", rule, index)


def _text_faults(field: str, value: Any, index: int | None = None) -> Iterator[str]:
    """What is wrong with a text; the index is put into the field's name only for a fault, since most have none."""
    if isinstance(value, str) and value.strip() and not UNFIT.search(value):
        return
    field = field.format(index)
    if value is None:
        yield f"{field} is missing."
    elif not isinstance(value, str):
        yield f"{field} must be text, got {type(value).__name__}."
    elif not value.strip():
        yield f"{field} is empty."
    elif "\0" in value:
        yield f"{field} holds a NUL character."
    else:
        yield f"{field} holds a lone surrogate."

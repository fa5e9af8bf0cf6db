"""Prompt sets: questions with accepted answers, one JSON object a line.

    {"id": "capital-spain", "messages": [{"role": "user", "content": "…"}], "target": "Madrid", "tags": ["capital"]}

`prompt` may stand for `messages` with one user message; `target` is a string or a list of accepted ones;
`tags` may be left out. A file is checked whole before any model loads: all faults at once, by line.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from steps.cli import CONF
from steps.errors import StepError
from steps.schema import PromptSet as PromptSetConfig

FIELDS = {"id", "messages", "prompt", "target", "tags"}
ROLES = {"system", "user", "assistant"}
MAX_FAULTS = 50


@dataclass(frozen=True)
class Row:
    """One question; `targets` are the accepted answers, the first one is shown."""

    id: str
    messages: tuple[tuple[str, str], ...]
    targets: tuple[str, ...]
    tags: tuple[str, ...]

    @property
    def conversation(self) -> list[dict[str, str]]:
        return [{"role": role, "content": content} for role, content in self.messages]

    @property
    def question(self) -> str:
        """What people read in a table: the last message."""
        return self.messages[-1][1]


@dataclass(frozen=True)
class PromptSet:
    """The checked rows of a prompt set."""

    name: str
    rows: tuple[Row, ...]

    @cached_property
    def sha256(self) -> str:
        """Over what the rows say: the same whatever their layout in the file."""
        content = [[row.id, row.messages, row.targets, row.tags] for row in self.rows]
        return sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()


def load(config: PromptSetConfig) -> PromptSet:
    """Read and check a prompt set; raises StepError with every fault and its line number."""
    path = locate(config.path)
    rows, faults = _check(path.read_bytes().splitlines())
    if not rows and not faults:
        faults = ["it holds no row."]
    if faults:
        more = [f"… and {len(faults) - MAX_FAULTS} more faults."] if len(faults) > MAX_FAULTS else []
        raise StepError(*(f"{path.name}: {fault}" for fault in faults[:MAX_FAULTS]), *more)
    return PromptSet(config.name, tuple(rows))


def locate(path: str) -> Path:
    """A prompt set's file: relative to where the user stands, else to the project."""
    for candidate in (Path(path).expanduser(), CONF.parent / path):
        if candidate.is_file():
            return candidate
    raise StepError(f"prompt_set.path must be a JSONL file, got '{path}', which does not exist.")


def as_dataset(prompt_set: PromptSet):
    """The rows as a `datasets.Dataset` with columns id, question, target, accepted and tags."""
    from datasets import Dataset

    return Dataset.from_list(
        [
            {
                "id": row.id,
                "question": row.question,
                "target": row.targets[0],
                "accepted": list(row.targets),
                "tags": list(row.tags),
            }
            for row in prompt_set.rows
        ]
    )


def _check(lines: list[bytes]) -> tuple[list[Row], list[str]]:
    """Rows and faults of a file's lines; blank lines do not count."""
    rows: list[Row] = []
    faults: list[str] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        content, problem = _parse(line)
        problems = [problem] if problem else list(_row_faults(content))
        identity = content.get("id") if content else None
        if isinstance(identity, str) and identity:
            if identity in seen:
                problems.append(f"id '{identity}' stands on line {seen[identity]} already.")
            seen.setdefault(identity, number)
        if problems:
            faults += [f"line {number}: {problem}" for problem in problems]
        else:
            rows.append(_row(content))
    return rows, faults


def _parse(line: bytes) -> tuple[dict[str, Any], str | None]:
    try:
        content = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        return {}, "it is not UTF-8 text."
    except json.JSONDecodeError as error:
        return {}, f"broken JSON: {error.msg} at column {error.colno}."
    if not isinstance(content, dict):
        return {}, f"expected a JSON object, got {type(content).__name__}."
    return content, None


def _row_faults(content: dict[str, Any]) -> Iterator[str]:
    if unknown := sorted(set(content) - FIELDS):
        yield f"unknown field {', '.join(map(repr, unknown))}; known are {', '.join(sorted(FIELDS))}."
    yield from _text_faults("id", content.get("id"))
    if ("messages" in content) == ("prompt" in content):
        yield "needs either messages or prompt."
    elif "prompt" in content:
        yield from _text_faults("prompt", content["prompt"])
    else:
        yield from _message_faults(content["messages"])
    yield from _target_faults(content.get("target"))
    tags = content.get("tags", [])
    if not isinstance(tags, list) or not all(isinstance(tag, str) and tag for tag in tags):
        yield "tags must be a list of strings."


def _message_faults(messages: Any) -> Iterator[str]:
    if not isinstance(messages, list) or not messages:
        yield "messages must be a list of at least one message."
        return
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            yield f"messages[{index}] must hold role and content, and nothing else."
            continue
        if message["role"] not in ROLES:
            yield f"messages[{index}].role must be one of {', '.join(sorted(ROLES))}, got {message['role']!r}."
        yield from _text_faults(f"messages[{index}].content", message["content"])
    last = messages[-1]
    if isinstance(last, dict) and last.get("role") in ROLES - {"user"}:
        yield f"the last message must be the user's, got role {last['role']!r}."


def _target_faults(target: Any) -> Iterator[str]:
    if isinstance(target, list) and target:
        for index, accepted in enumerate(target):
            yield from _text_faults(f"target[{index}]", accepted)
    else:
        yield from _text_faults("target", target)


def _text_faults(field: str, value: Any) -> Iterator[str]:
    if value is None:
        yield f"{field} is missing."
    elif not isinstance(value, str):
        yield f"{field} must be text, got {type(value).__name__}."
    elif not value.strip():
        yield f"{field} is empty."
    elif "\0" in value:
        yield f"{field} holds a NUL character."
    elif any("\ud800" <= character <= "\udfff" for character in value):
        yield f"{field} holds a lone surrogate."


def _row(content: dict[str, Any]) -> Row:
    messages = content.get("messages") or [{"role": "user", "content": content["prompt"]}]
    target = content["target"]
    return Row(
        id=content["id"],
        messages=tuple((message["role"], message["content"]) for message in messages),
        targets=tuple(target) if isinstance(target, list) else (target,),
        tags=tuple(content.get("tags", [])),
    )

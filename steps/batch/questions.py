"""Turn the rows of a table into questions, and a batch of questions into answers with the errors of single rows."""

import json
from dataclasses import dataclass
from typing import Any

from steps.batch.source import Row, Source
from steps.errors import StepError, reason
from steps.evaluation.asking import Asker
from steps.interfaces.interface import Interface, Question, Reply

# Columns that hold the question, the first that is there.
USUAL = ("messages", "prompt", "question")


@dataclass(frozen=True)
class Answer:
    """The text of an answer, or why there is none."""

    text: str | None = None
    error: str | None = None


def question_column(source: Source, configured: str | None) -> str:
    """Return the column that holds the questions; raise StepError if there is none."""
    names = (configured,) if configured else USUAL
    column = next((name for name in names if name in source.columns), None)
    if column is None:
        raise StepError(
            f"question must name a column of {source.path.name}, got {configured or 'none'}. It has: "
            f"{', '.join(source.columns) or 'none'}."
        )
    return column


def answers(asker: Asker, interface: Interface, rows: list[Row], column: str) -> list[Answer]:
    """Return the answer to each row. A row that cannot be asked, or that the model refuses, gets an error."""
    results: dict[int, Answer] = {}
    questions: dict[int, Question] = {}
    for index, row in enumerate(rows):
        try:
            if row.error:
                raise ValueError(row.error)
            questions[index] = _question(row.values.get(column), column, interface)
        except ValueError as error:
            results[index] = Answer(error=str(error))
    asked = _ask(asker, list(questions.values())) if questions else []
    results |= dict(zip(questions, asked, strict=True))
    return [results[index] for index in range(len(rows))]


def _question(value: Any, column: str, interface: Interface) -> Question:
    """Return the value of a cell as a question; raise ValueError if it is none."""
    messages = _messages(value)
    if messages is None:
        if not isinstance(value, str) or not value.strip():
            got = "nothing" if value is None or value == "" else f"{type(value).__name__} {str(value)[:40]!r}"
            raise ValueError(f"{column} must be a text or a list of messages, got {got}")
        return Question([{"role": "user", "content": value}], value)
    if interface.takes_conversations:
        return Question(messages, None)
    if len(messages) != 1 or messages[0].get("role") != "user":
        raise ValueError(f"{column} has a conversation, and the model takes one text: promote a chat model for it")
    return Question(messages, messages[0].get("content"))


def _messages(value: Any) -> list[dict[str, Any]] | None:
    """Return a conversation, also one that a table has as JSON text; None if it is something else."""
    if isinstance(value, str) and value.lstrip().startswith("[{"):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    if not isinstance(value, list) or not value or not all(isinstance(message, dict) for message in value):
        return None
    # Parquet gives every message the keys of all.
    return [{key: part for key, part in message.items() if part is not None} for message in value]


def _ask(asker: Asker, questions: list[Question]) -> list[Answer]:
    """Ask together. If the call fails, halve it until the rows that fail stand alone."""
    try:
        replies = asker.ask(questions)
    except Exception as error:  # whatever a model raises, it is the row's error
        if len(questions) == 1:
            return [Answer(error=reason(error))]
        middle = len(questions) // 2
        return _ask(asker, questions[:middle]) + _ask(asker, questions[middle:])
    return [_answer(reply) for reply in replies]


def _answer(reply: Reply) -> Answer:
    text = reply.texts[0] if reply.texts else None
    if not isinstance(text, str):
        return Answer(error=f"the answer must be text, got {type(text).__name__}")
    # A lone surrogate cannot be written to a file.
    text = text.encode(errors="replace").decode()
    return Answer(error=text) if reply.finish_reasons[:1] == ["error"] else Answer(text)

"""The parts that every interface has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

    from steps.config.schema import Generation


@dataclass(frozen=True)
class Question:
    """One request in the words of either interface.

    Attributes:
        messages: The conversation, objects with role and content.
        prompt: The same as one text.
        settings: Fields of the request: temperature, max_tokens, seed, …
    """

    messages: Any
    prompt: Any
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Reply:
    """One row's reply.

    Attributes:
        texts: The text of each choice.
        finish_reasons: Why each choice ended; empty if the interface does not say.
        completion_tokens: How many tokens were generated, end tokens included; None if unknown.
        is_object: False if the reply to one request was wrapped in a list.
        prompt_tokens: How many tokens the prompt has; None if unknown.
        reused_tokens: How many of them the engine had computed before, for another prompt; None if unknown.
        seconds: The reply's share of the time that its call took; None if it was not timed.
    """

    texts: list[Any]
    finish_reasons: list[str] = field(default_factory=list)
    completion_tokens: int | None = None
    is_object: bool = True
    prompt_tokens: int | None = None
    reused_tokens: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Interface:
    """Everything that is true of one interface and of no other.

    Attributes:
        name: What users type.
        task: MLflow's name for the schemas; None if MLflow has no name for them.
        takes_conversations: Whether a request holds a conversation. If not, several turns become one text.
        settings_in_row: Whether settings are fields of a row. If not, they are parameters of the whole call.
        example: A request for the logged model's input example.
        signature: Build the signature. `generation` holds the defaults; None means that a call takes no settings.
        row: Turn a question into a row of a request.
        params: Turn a question into the parameters of a call; None if the interface has none.
        reply: Read one row's reply.
        piece: Read the text in one piece of a stream.
    """

    name: str
    task: str | None
    takes_conversations: bool
    settings_in_row: bool
    example: dict[str, Any]
    signature: Callable[[Generation | None], ModelSignature]
    row: Callable[[Question], dict[str, Any]]
    params: Callable[[Question], dict[str, Any] | None]
    reply: Callable[[Any], Reply]
    piece: Callable[[Any], str]

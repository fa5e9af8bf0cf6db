"""The interfaces of a logged model, by the name in its `model_config`. Each is a module with these members."""

from collections.abc import Iterator
from typing import Any, Protocol

from ..engines.sequence import Sequence
from ..tokenizer import ChatTokenizer
from . import chat, completions, prompt


class Interface(Protocol):
    """Everything that depends on the interface of a model."""

    SUBJECT: str
    """The field of a row that holds the conversation or the prompt."""

    OFFERED: tuple[str, ...]
    """The fields of neutral.UNSUPPORTED that this interface honours."""

    TAKES_TOOLS: bool
    """Whether a request may have tools, if the chat template takes them."""

    def rows(self, request: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the rows of a request that came as one object."""

    def row(self, subject: Any) -> dict[str, Any]:
        """Return the row of a text, or of a subject, that came alone."""

    def encode(self, row: dict[str, Any], tokenizer: ChatTokenizer) -> list[int]:
        """Check the subject of a row and return the token ids of its prompt."""

    def reply(self, model: str, choices: list[Sequence]) -> Any:
        """Return the reply to a row from its finished choices; `model` is the name to show."""

    def error_reply(self, model: str, error: str) -> Any:
        """Return the reply to a row that cannot be answered, while the other rows of its table are."""

    def stream(self, model: str, sequence: Sequence, pieces: Iterator[str]) -> Iterator[Any]:
        """Yield the reply to a row in pieces, from the pieces of the sequence's text."""


INTERFACES: dict[str, Interface] = {"chat": chat, "prompt": prompt}
# OpenAI's completions: no model is logged with it, every served one offers it.
COMPLETIONS: Interface = completions

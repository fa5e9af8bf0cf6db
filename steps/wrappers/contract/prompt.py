"""The `prompt` interface: one text in, the text of its completion out."""

from collections.abc import Iterator
from typing import Any

from ..engines.sequence import Sequence
from ..tokenizer import ChatTokenizer
from .fields import CHOICE_FIELDS, check_text, is_list
from .rendering import encode_conversation

SUBJECT = "prompt"
# A text has no place for log-probabilities.
OFFERED: tuple[str, ...] = CHOICE_FIELDS
TAKES_TOOLS = False


def rows(request: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of a request that came as one object: one for each prompt, if it holds a list of them."""
    prompts: Any = request.get(SUBJECT)
    return [request | {SUBJECT: text} for text in prompts] if is_list(prompts) else [request]


def row(subject: Any) -> dict[str, Any]:
    """Return the row of a prompt that came alone."""
    return {SUBJECT: subject}


def encode(row: dict[str, Any], tokenizer: ChatTokenizer) -> list[int]:
    """Check the prompt of a row and return its token ids.

    A plain text becomes one user message. A text with a control token is taken as it is: as in the upstream sample,
    the caller has then written the whole of Phi-3's format.
    """
    text = check_text(SUBJECT, row.get(SUBJECT))
    if tokenizer.control_token_in(text):
        return tokenizer.encode(text)
    return encode_conversation([{"role": "user", "content": text}], tokenizer)


def reply(model: str, choices: list[Sequence]) -> str | list[str]:  # noqa: ARG001
    """Return the text of the completion, or a list of texts if several choices were requested."""
    texts = [choice.text for choice in choices]
    return texts[0] if len(texts) == 1 else texts


def error_reply(model: str, error: str) -> str:  # noqa: ARG001
    """Return the error as the text of the reply: a caller such as Spark expects a text for every row."""
    return error


def stream(model: str, sequence: Sequence, pieces: Iterator[str]) -> Iterator[str]:  # noqa: ARG001
    """Return the pieces of text as they are."""
    return pieces

"""Hold the tokenizer of a checkpoint against its model: every token needs an embedding, every end token is a token.

A token without an embedding fails the whole batch that it is in, and only then.
"""

import json
from pathlib import Path
from typing import Any

from steps.errors import StepError, reason
from steps.wrappers.tokenizer import ChatTokenizer


def load_tokenizer(directory: Path) -> ChatTokenizer:
    """Return the tokenizer of a checkpoint; raise StepError if it cannot be used."""
    try:
        return ChatTokenizer(directory)
    except Exception as error:  # tokenizers raises nothing narrower
        why = reason(error) if isinstance(error, LookupError | TypeError | AttributeError) else str(error)
        raise StepError(f"The checkpoint's tokenizer cannot be used: {why}.") from None


def check_vocabulary(directory: Path) -> None:
    """Raise StepError if the tokenizer of a checkpoint can make tokens that its model does not have."""
    tokenizer, size = load_tokenizer(directory), _vocabulary_size(directory)
    if size is not None and tokenizer.highest_token >= size:
        raise StepError(
            f"The tokenizer in '{directory}' does not fit the model: it has tokens up to the id "
            f"{tokenizer.highest_token}, and the model has only the ids below {size}. Give the tokenizer that the "
            "model was trained with, or resize the model's embeddings."
        )
    if wrong := [token for token in tokenizer.end_tokens if type(token) is not int]:
        raise StepError(f"eos_token_id in '{directory}' must be a whole number or a list of them, got {wrong[0]!r}.")


def _vocabulary_size(directory: Path) -> int | None:
    """Return how many tokens the model has, by its configuration; None if that has no such number."""
    for name, section in (("genai_config.json", "model"), ("config.json", None)):
        file = directory / name
        if file.is_file():
            content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            size = (content.get(section) or {} if section else content).get("vocab_size")
            return size if isinstance(size, int) else None
    return None

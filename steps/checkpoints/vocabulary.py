"""Hold the tokenizer of a checkpoint against its model: every token needs an embedding.

A token without one fails the whole batch that it is in, and only then.
"""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from steps.errors import StepError, reason


def check_vocabulary(directory: Path) -> None:
    """Raise StepError if the tokenizer of a checkpoint can make tokens that its model does not have."""
    try:
        tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    except Exception as error:  # tokenizers raises nothing narrower
        raise StepError(f"The checkpoint's tokenizer cannot be used: {reason(error)}.") from None
    size = _vocabulary_size(directory)
    beyond = sorted(token for token in tokenizer.get_vocab().values() if size is not None and token >= size)
    if beyond:
        raise StepError(
            f"The tokenizer in '{directory}' does not fit the model: {len(beyond)} of its tokens have ids from "
            f"{beyond[0]} to {beyond[-1]}, and the model has only the ids below {size}. Give the tokenizer that the "
            "model was trained with, or resize the model's embeddings."
        )


def _vocabulary_size(directory: Path) -> int | None:
    """Return how many tokens the model has, by its configuration; None if that has no such number."""
    for name, section in (("genai_config.json", "model"), ("config.json", None)):
        file = directory / name
        if file.is_file():
            content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            size = (content.get(section) or {} if section else content).get("vocab_size")
            return size if isinstance(size, int) else None
    return None

"""OpenAI's completions: a text, or token ids, is continued as it is. No chat template is applied."""

import time
import uuid
from collections.abc import Iterator
from itertools import accumulate
from typing import Any

from ..engines.sampling import TokenScore
from ..engines.sequence import Sequence
from ..tokenizer import ChatTokenizer
from .errors import RequestError
from .fields import CHOICE_FIELDS, LOGPROB_FIELDS, check_text, is_list, short, shown_logprob
from .usage import usage

SUBJECT = "prompt"
OFFERED: tuple[str, ...] = (*CHOICE_FIELDS, *LOGPROB_FIELDS, "echo")
TAKES_TOOLS = False


def rows(request: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of a request: one for each prompt, if it holds a list of texts or of lists of token ids."""
    prompts: Any = request.get(SUBJECT)
    is_one = not is_list(prompts) or all(isinstance(item, int) for item in prompts)
    return [request] if is_one else [request | {SUBJECT: prompt} for prompt in prompts]


def row(subject: Any) -> dict[str, Any]:
    """Return the row of a prompt that came alone."""
    return {SUBJECT: subject}


def encode(row: dict[str, Any], tokenizer: ChatTokenizer) -> list[int]:
    """Check the prompt of a row and return its token ids."""
    prompt: Any = row.get(SUBJECT)
    if not is_list(prompt):
        return tokenizer.encode(check_text(SUBJECT, prompt))
    size = tokenizer.vocabulary_size
    for index, token in enumerate(prompt):
        if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < size:
            message = f"prompt[{index}] must be a token id, at least 0 and at most {size - 1}, got {_kind(token)}"
            raise RequestError("invalid_prompt", message)
    if len(prompt) == 0:
        raise RequestError("empty_text", "prompt must hold at least one token id, got none")
    return [int(token) for token in prompt]


def _kind(token: Any) -> str:
    """Describe what stands in the place of a token id; a text may be a secret."""
    return short(token) if isinstance(token, int) else type(token).__name__


def reply(model: str, choices: list[Sequence]) -> dict[str, Any]:
    """Return the completions of one prompt."""
    return completion(model, [choices])


def completion(model: str, prompts: list[list[Sequence]]) -> dict[str, Any]:
    """Return the completions of several prompts, with exact token counts."""
    sequences = [sequence for choices in prompts for sequence in choices]
    return {
        "id": f"cmpl-{uuid.uuid4().hex}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": model,
        "choices": [
            {
                "index": index,
                "text": echoed(sequence) + sequence.text,
                "logprobs": logprobs(sequence, sequence.scores, with_prompt=True),
                "finish_reason": sequence.finish_reason,
            }
            for index, sequence in enumerate(sequences)
        ],
        "usage": usage(sequences),
    }


def echoed(sequence: Sequence) -> str:
    """Return the text of the prompt, special tokens included, if the request asked for an echo."""
    if not sequence.settings.echo:
        return ""
    return b"".join(map(sequence.tokenizer.token_bytes, sequence.prompt)).decode("utf-8", "replace")


def logprobs(sequence: Sequence, new: list[TokenScore], with_prompt: bool) -> dict[str, list[Any]] | None:
    """Return OpenAI's log-probabilities of new tokens, the token that ended the text included.

    Of the prompt, the first token has none.
    """
    if sequence.settings.logprobs is None:
        return None
    scores: list[TokenScore | None] = list(new)
    tokens = [score.token for score in new]
    if with_prompt and sequence.settings.echo:
        scores, tokens = [None, *sequence.prompt_scores, *scores], [*sequence.prompt, *tokens]
    names = [_name(sequence.tokenizer, token) for token in tokens]
    return {
        "tokens": names,
        "token_logprobs": [shown_logprob(score.logprob) if score else None for score in scores],
        "top_logprobs": [_best(sequence.tokenizer, score) for score in scores],
        "text_offset": list(accumulate(map(len, names[:-1]), initial=0)) if names else [],
    }


def _best(tokenizer: ChatTokenizer, score: TokenScore | None) -> dict[str, float] | None:
    if score is None:
        return None
    return {_name(tokenizer, token): shown_logprob(logprob) for token, logprob in score.best}


def _name(tokenizer: ChatTokenizer, token: int) -> str:
    """Return the text of a token. As in OpenAI's API, an incomplete character is written in bytes."""
    content = tokenizer.token_bytes(token)
    try:
        return content.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)


def error_reply(model: str, error: str) -> dict[str, Any]:
    """Return the error as OpenAI's object."""
    return {"model": model, "error": {"message": error}}


def stream(model: str, sequence: Sequence, pieces: Iterator[str]) -> Iterator[Any]:  # noqa: ARG001
    """Return the pieces of text as they are."""
    return pieces

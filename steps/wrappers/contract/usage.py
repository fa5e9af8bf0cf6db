"""The token counts of a reply, in OpenAI's shape."""

from collections.abc import Sequence as List
from typing import Any

from ..engines.sequence import Sequence


def usage(sequences: List[Sequence]) -> dict[str, Any]:
    """Return the token counts of the choices of a reply; choices of the same prompt count it once.

    `cached_tokens` are those of the prompts that the engine had computed before, for another one.
    """
    prompts = {id(sequence.prompt): len(sequence.prompt) for sequence in sequences}
    cached = dict(prompts)
    for sequence in sequences:
        # The other choices of a new prompt find what the first one has computed.
        cached[id(sequence.prompt)] = min(cached[id(sequence.prompt)], sequence.reused)
    prompt_tokens, tokens = sum(prompts.values()), sum(len(sequence.tokens) for sequence in sequences)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": tokens,
        "total_tokens": prompt_tokens + tokens,
        "prompt_tokens_details": {"cached_tokens": sum(cached.values())},
    }

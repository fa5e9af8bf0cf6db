"""Fields that not every model can honour. Clients send them with values that ask for nothing, and those are accepted.

If the interface of a model does not offer the field, any other value is refused, so that nobody relies on it.
"""

from collections.abc import Container, Mapping
from numbers import Real
from typing import Any

import numpy as np

from .errors import RequestError
from .fields import is_list, short

# By field: the values that ask for nothing, in addition to null, false, 0 and what is empty. These are looked for in
# the columns of a frame too.
COLUMNS: dict[str, tuple[Any, ...]] = {
    # from MLflow's chat schema
    "tools": (),
    "frequency_penalty": (),
    "presence_penalty": (),
    # from OpenAI's own API
    "logprobs": (),
    "top_logprobs": (),
    "logit_bias": (),
    "response_format": ({"type": "text"},),
    "tool_choice": ("none", "auto"),  # without tools there is no choice
    "functions": (),
    # from other servers with OpenAI's API
    "repetition_penalty": (1, 1.0),
    "min_p": (),
}
# A frame may have columns of its own with these names.
UNSUPPORTED: dict[str, tuple[Any, ...]] = COLUMNS | {
    "audio": (),
    "function_call": ("none", "auto"),
    "metadata": (),
    "modalities": (["text"],),
    "moderation": (),
    "parallel_tool_calls": (True,),
    "prediction": (),
    "reasoning_effort": ("none",),
    "service_tier": ("auto", "default"),
    "store": (),
    "stream_options": (),
    "verbosity": ("medium",),
    # from OpenAI's API for completions
    "best_of": (1,),
    "echo": (),
    "suffix": (),
    # from other servers
    "ignore_eos": (),
    "include_stop_str_in_output": (),
    "length_penalty": (1, 1.0),
    "min_tokens": (),
    "stop_token_ids": (),
    "use_beam_search": (),
}
# Fields that a chat may have if the model's chat template takes tools (tools.py).
CHAT_TOOLS = ("tools", "tool_choice", "parallel_tool_calls")
# Labels and hints: whatever their values are, they change no answer.
IGNORED = ("model", "user", "safety_identifier", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention")


def refuse_unsupported(row: Mapping[str, Any], offered: Container[str]) -> None:
    """Raise RequestError if a field that is not offered asks for something."""
    for field, neutral in UNSUPPORTED.items():
        if field in offered:
            continue
        value = row.get(field)
        # Compared as text: an array has no truth value. No neutral value is longer than what `short` shows.
        if not asks_for_nothing(value) and short(value) not in map(short, neutral):
            got = f", got {short(value)}" if isinstance(value, Real) else ""
            why = " (a chat has tools only where the chat template takes them)" if field in CHAT_TOOLS else ""
            raise RequestError("unsupported_field", f"{field} is not supported by this model{why}; leave it out{got}")


def asks_for_nothing(value: Any) -> bool:
    """Return True for null, false, 0, what is empty, and an object of only such values."""
    return all(map(_is_empty, value.values())) if isinstance(value, dict) else _is_empty(value)


def _is_empty(value: Any) -> bool:
    if isinstance(value, str | dict) or is_list(value):
        return len(value) == 0
    return value is None or (isinstance(value, Real | np.bool_) and not value)

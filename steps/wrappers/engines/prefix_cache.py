"""Keep what an engine has computed for the beginnings that prompts share: a system prompt, examples, earlier turns.

A beginning is kept once two prompts share it, in whole blocks of tokens, so that what two prompts share by chance is
not. An entry may extend another one. The least recently used entries go first.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from .admission import Pass, Passes

# Shorter beginnings gain nothing, and chance makes many of them.
BLOCK = 16
# Prompts that new ones are compared with.
REMEMBERED = 64

IntArray = npt.NDArray[np.int64]
State = TypeVar("State")


@dataclass(frozen=True)
class Prefix(Generic[State]):
    """The beginning of prompts: its tokens [length], and what the engine computed for them."""

    tokens: IntArray
    state: State


@dataclass(frozen=True)
class Found(Generic[State]):
    """The longest known beginning of a prompt, if any, and how many of its tokens were computed for this prompt."""

    prefix: Prefix[State] | None = None
    computed: int = 0


Extend = Callable[[Prefix[State] | None, IntArray], Passes[Prefix[State]]]


class PrefixCache(Generic[State]):
    """The beginnings of prompts and their states."""

    def __init__(self, max_bytes: int, bytes_per_token: int) -> None:
        """Keep at most `max_bytes` of states that take `bytes_per_token`."""
        self._max_tokens = max_bytes // bytes_per_token
        self._entries: OrderedDict[bytes, Prefix[State]] = OrderedDict()
        self._remembered: deque[IntArray] = deque(maxlen=REMEMBERED)
        self._is_extending = False

    @property
    def kept_tokens(self) -> int:
        """Return the number of tokens in all entries."""
        return sum(len(entry.tokens) for entry in self._entries.values())

    def reset(self) -> None:
        """Forget that a beginning is being computed; what has computed it is gone."""
        self._is_extending = False

    def lookup(self, prompts: Iterable[list[int]], extend: Extend[State]) -> Passes[list[Found[State]]]:
        """Return the longest known beginning of each prompt. Each leaves at least one token of its prompt.

        Args:
            prompts: Tokens of prompts that arrive together.
            extend: Computes a beginning from the known part of it and all of its tokens.
        """
        arrays = [np.array(prompt, dtype=np.int64) for prompt in prompts]
        if self._max_tokens < BLOCK:
            return [Found() for _ in arrays]
        known = [*self._remembered, *arrays]
        self._remembered.extend(arrays)
        computed = {}
        # The long ones first: what the short ones share may be a part of that.
        for array in sorted(arrays, key=len, reverse=True):
            shared = max((_shared(array, other) for other in known if other is not array), default=0)
            computed[id(array)] = yield from self._keep(array, min(shared, len(array) - 1) // BLOCK * BLOCK, extend)
        return [Found(self._longest(array), computed[id(array)]) for array in arrays]

    def _keep(self, prompt: IntArray, length: int, extend: Extend[State]) -> Passes[int]:
        """Keep the first `length` tokens of a prompt, unless more are known; return how many were computed."""
        length = min(length, self._max_tokens // BLOCK * BLOCK)
        while self._is_missing(prompt, length) and self._is_extending:
            yield Pass(0)  # what is being computed for prompts that arrived before may be this one's beginning too
        if not self._is_missing(prompt, length):
            return 0
        # Before it is computed, so that there is room for it.
        entry = self._longest(prompt)
        while self.kept_tokens + length > self._max_tokens:
            self._entries.popitem(last=False)
        self._is_extending = True
        try:
            self._entries[prompt[:length].tobytes()] = yield from extend(entry, prompt[:length])
        finally:
            self._is_extending = False
        return length - (len(entry.tokens) if entry else 0)

    def _is_missing(self, prompt: IntArray, length: int) -> bool:
        """Return True unless the first `length` tokens of a prompt are known."""
        entry = self._longest(prompt)
        return length > 0 and (entry is None or len(entry.tokens) < length)

    def _longest(self, prompt: IntArray) -> Prefix[State] | None:
        """Return the longest entry that a prompt begins with and goes on after, and mark it as used."""
        lengths = sorted({len(entry.tokens) for entry in self._entries.values()}, reverse=True)
        for length in (length for length in lengths if length < len(prompt)):
            key = prompt[:length].tobytes()
            if key in self._entries:
                self._entries.move_to_end(key)
                return self._entries[key]
        return None


def _shared(first: IntArray, second: IntArray) -> int:
    """Return how many tokens two prompts have in common at their beginning."""
    length = min(len(first), len(second))
    differing = first[:length] != second[:length]
    return int(differing.argmax()) if differing.any() else length

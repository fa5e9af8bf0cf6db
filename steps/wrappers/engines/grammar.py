"""Keep a completion within a grammar: before each token, llguidance says which tokens may come next."""

from collections.abc import Callable

import numpy as np
from llguidance import LLMatcher, LLTokenizer

from .sampling import FloatArray


class GrammarMask:
    """The state of one completion in its grammar."""

    def __init__(self, grammar: str, tokenizer: LLTokenizer) -> None:
        self._matcher = LLMatcher(tokenizer, grammar, log_level=0)

    @property
    def has_begun(self) -> bool | None:
        """Return True: the whole completion is in the grammar."""
        return True

    def apply(self, logits: FloatArray) -> FloatArray:
        """Return the logits [vocabulary] with those of forbidden tokens at minus infinity."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        # The model may have more logits than its tokenizer has tokens.
        allowed = np.unpackbits(bits, bitorder="little")[: len(logits)].astype(bool)
        result = np.full_like(logits, -np.inf)
        result[: len(allowed)][allowed] = logits[: len(allowed)][allowed]
        return result

    def accept(self, token: int) -> None:
        """Advance by the token that was chosen."""
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise RuntimeError(f"llguidance failed: {self._matcher.get_error()}")


class LazyMask(GrammarMask):
    """A grammar that holds from the moment that the completion has begun with `trigger`; any other one is free."""

    def __init__(
        self, grammar: str, tokenizer: LLTokenizer, trigger: bytes, token_bytes: Callable[[int], bytes]
    ) -> None:
        super().__init__(grammar, tokenizer)
        self._trigger, self._token_bytes, self._written = trigger, token_bytes, b""
        self._has_begun: bool | None = None

    @property
    def has_begun(self) -> bool | None:
        """Return whether the completion is in the grammar; None while that is open."""
        return self._has_begun

    def apply(self, logits: FloatArray) -> FloatArray:
        """Return the logits; once the completion is in the grammar, those of forbidden tokens at minus infinity."""
        return super().apply(logits) if self._has_begun else logits

    def accept(self, token: int) -> None:
        """Advance by the token that was chosen; it may decide whether the grammar holds."""
        if self._has_begun is None and self._matcher.validate_tokens([token]) == 0:
            self._has_begun = False
        if self._has_begun is False:
            return
        super().accept(token)
        self._written += self._token_bytes(token)
        if self._written.lstrip().startswith(self._trigger):
            self._has_begun = True


def grammar_fault(grammar: str, tokenizer: LLTokenizer) -> str | None:
    """Return why llguidance cannot keep to a grammar; None if it can."""
    return LLMatcher.validate_grammar(grammar, tokenizer) or None

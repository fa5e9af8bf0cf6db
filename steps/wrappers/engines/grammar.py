"""Keep a completion within a grammar: before each token, llguidance says which tokens may come next."""

import numpy as np
from llguidance import LLMatcher, LLTokenizer

from .sampling import FloatArray


class GrammarMask:
    """The state of one completion in its grammar."""

    def __init__(self, grammar: str, tokenizer: LLTokenizer) -> None:
        self._matcher = LLMatcher(tokenizer, grammar, log_level=0)

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


def grammar_fault(grammar: str, tokenizer: LLTokenizer) -> str | None:
    """Return why llguidance cannot keep to a grammar; None if it can."""
    return LLMatcher.validate_grammar(grammar, tokenizer) or None

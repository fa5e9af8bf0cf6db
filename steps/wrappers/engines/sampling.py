"""What a request may ask of the next token: penalties, biases, a grammar's mask, and log-probabilities.

Log-probabilities are those of the model itself, before the temperature and everything else that changes its choice.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class TokenScore:
    """The log-probability of one token, and the most likely tokens at its place with theirs."""

    token: int
    logprob: float
    best: tuple[tuple[int, float], ...]


class Mask(Protocol):
    """Which tokens may come next. It belongs to one sequence."""

    @property
    def has_begun(self) -> bool | None:
        """Return whether its grammar holds; None while that is open."""

    def apply(self, logits: FloatArray) -> FloatArray:
        """Return the logits with those of forbidden tokens at minus infinity."""

    def accept(self, token: int) -> None:
        """Advance by the token that was chosen."""


def score(logits: FloatArray, token: int, alternatives: int) -> TokenScore:
    """Return the log-probability of a token under `logits` [vocabulary], and the best alternatives."""
    values = log_softmax(logits)
    count = min(alternatives, len(values))
    # The stable order of equal values is that of the tokens, as everywhere.
    best = np.argsort(-values, kind="stable")[:count] if count else ()
    return TokenScore(token, float(values[token]), tuple((int(index), float(values[index])) for index in best))


def log_softmax(logits: FloatArray) -> FloatArray:
    """Return the log-probability of every token under `logits` [vocabulary], in double precision."""
    values = logits.astype(np.float64)
    values -= values.max()
    values -= np.log(np.exp(values).sum())
    return values


def biased(logits: FloatArray, biases: Iterable[tuple[int, float]]) -> FloatArray:
    """Return a copy of the logits [vocabulary] with a number added to some tokens."""
    result = logits.copy()
    for token, bias in biases:
        if token < len(result):
            result[token] += bias
    return result


def penalized(logits: FloatArray, tokens: list[int], presence: float, frequency: float) -> FloatArray:
    """Return the logits less what OpenAI's two penalties take from the tokens of a completion so far."""
    if not tokens or not (presence or frequency):
        return logits
    used, counts = np.unique(tokens, return_counts=True)
    result = logits.copy()
    result[used] -= (presence + frequency * counts).astype(result.dtype)
    return result

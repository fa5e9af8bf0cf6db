"""What a request may ask of the next token: penalties, biases, a grammar's mask, and log-probabilities.

Log-probabilities are those of the model itself, before the temperature and everything else that changes its choice.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.int64]

# Below it only the likeliest tokens can be drawn, and 32 bits could not hold much less.
LOWEST_TEMPERATURE = 1e-30
# How many weights are sorted before all of them are. A language model mostly has few likely tokens.
FIRST_SORTED = 2048


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
    best = highest(values, alternatives)
    # The stable order of equal values is that of the tokens, as everywhere.
    best = best[np.argsort(-values[best], kind="stable")]
    return TokenScore(token, float(values[token]), tuple((int(index), float(values[index])) for index in best))


def highest(values: FloatArray, count: int) -> IntArray:
    """Return the places of the `count` highest values [any number], in ascending order; the first ones of equal values.

    Sorting the whole vocabulary would take as long as a small model takes for a token.
    """
    if count >= len(values):
        return np.arange(len(values))
    if count == 0:
        return np.arange(0)
    least = np.partition(values, len(values) - count)[len(values) - count]
    above = np.flatnonzero(values > least)
    return np.sort(np.concatenate([above, np.flatnonzero(values == least)[: count - len(above)]]))


def draw(logits: FloatArray, temperature: float, top_p: float, top_k: int, number: float) -> int:
    """Return the token that a random number from 0 to 1 means, by temperature, top_k and top_p (nucleus sampling).

    Args:
        logits: Those of all tokens [vocabulary].
        temperature: Above 0.
        top_p: How much probability the tokens that may be drawn have together at least; 1 for all tokens.
        top_k: How many of the likeliest tokens may be drawn; 0 for all.
        number: At least 0 and less than 1.

    Raises:
        FloatingPointError: No token can be drawn.
    """
    best = logits.max()
    if not np.isfinite(best):
        raise FloatingPointError(f"the highest logit is {best}")
    # Subtract before dividing: a temperature close to 0 would turn the logits themselves into infinities.
    with np.errstate(over="ignore"):
        weights = np.exp((logits - best) / np.float32(max(temperature, LOWEST_TEMPERATURE)))
    tokens = highest(logits, top_k) if top_k else None
    if top_p < 1:
        kept = highest(_at(logits, tokens), _nucleus_size(_at(weights, tokens), top_p))
        tokens = kept if tokens is None else tokens[kept]
    sums = np.cumsum(_at(weights, tokens), dtype=np.float64)
    # Rounding must not choose what comes after the last token that has a probability.
    place = min(np.searchsorted(sums, number * sums[-1], side="right"), np.searchsorted(sums, sums[-1]))
    return int(place if tokens is None else tokens[place])


def _at(values: FloatArray, tokens: IntArray | None) -> FloatArray:
    """Return the values of some tokens, or of all: a copy of these would cost as much as drawing."""
    return values if tokens is None else values[tokens]


def _nucleus_size(weights: FloatArray, top_p: float) -> int:
    """Return how many of the likeliest tokens have a share of `top_p` in the weights of all."""
    least = top_p * weights.sum(dtype=np.float64)
    likely = weights[highest(weights, FIRST_SORTED)]
    descending = np.sort(likely if likely.sum(dtype=np.float64) >= least else weights)[::-1]
    sums = np.cumsum(descending, dtype=np.float64)
    return int(np.count_nonzero(sums - descending < least))


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

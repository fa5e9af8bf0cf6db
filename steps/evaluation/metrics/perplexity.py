"""Perplexity: how surprised the model is by the accepted answer, per token; 1 is the least, and lower is better.

A row's perplexity is exp(-mean log-probability of the answer's tokens), of the accepted answer that has the lowest. The
mean over rows is that of the metric `perplexity` of the `evaluate` library.
"""

import math

from .row_metric import row_metric

# exp of more is no number any more.
MOST_NATS = 700.0


def score(_prediction: str, _accepted: list[str], logprobs: list[float], tokens: list[float]) -> float:
    """Return the lowest perplexity of the accepted answers."""
    return math.exp(min(MOST_NATS, _best(logprobs, tokens)[0]))


def _best(logprobs: list[float], tokens: list[float]) -> tuple[float, float]:
    """Return the nats per token and the tokens of the answer with the lowest perplexity."""
    return min((-logprob / count, count) for logprob, count in zip(logprobs, tokens, strict=True))


Perplexity = row_metric(__name__, __doc__, score, "Jelinek et al., 1977", numbers=("target_logprobs", "target_tokens"))

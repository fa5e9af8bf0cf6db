"""Exact match: 1 if the answer equals an accepted answer, ignoring case, punctuation and spaces."""

from .normalize import words
from .row_metric import row_metric


def score(prediction: str, accepted: list[str]) -> float:
    """Return 1 if the prediction has the same words as any accepted answer, else 0."""
    return float(any(words(prediction) == words(target) for target in accepted))


ExactMatch = row_metric(__name__, __doc__, score, "SQuAD (Rajpurkar et al., 2016)")

"""Exact match: 1 if the answer equals an accepted answer, ignoring case, punctuation and spaces.

Numbers compare by their value, and an accepted answer without any word (`+`, 👍) as it stands. docs/scoring.md has the
rules.
"""

from .normalize import comparable
from .row_metric import row_metric


def score(prediction: str, accepted: list[str]) -> float:
    """Return 1 if the prediction has the same words as any accepted answer, else 0."""
    return float(any(_equals(*comparable(prediction, target)) for target in accepted))


def _equals(predicted: list[str], target: list[str]) -> bool:
    return bool(target) and predicted == target


ExactMatch = row_metric(__name__, __doc__, score, "SQuAD (Rajpurkar et al., 2016)")

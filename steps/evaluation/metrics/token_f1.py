"""Token F1: the harmonic mean of precision and recall over words, for the best accepted answer.

A number is one word and compares by its value. In scripts without spaces between words every letter counts as a word.
docs/scoring.md has the rules.
"""

from collections import Counter

from .normalize import comparable
from .row_metric import row_metric


def score(prediction: str, accepted: list[str]) -> float:
    """Return the highest F1 between the prediction and an accepted answer."""
    return max(_f1(*comparable(prediction, target)) for target in accepted)


def _f1(predicted: list[str], target: list[str]) -> float:
    shared = sum((Counter(predicted) & Counter(target)).values())
    return 2 * shared / (len(predicted) + len(target)) if shared else 0.0


TokenF1 = row_metric(__name__, __doc__, score, "SQuAD (Rajpurkar et al., 2016)")

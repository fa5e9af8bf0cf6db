"""Answer match: 1 if the answer contains an accepted answer as consecutive whole words."""

from .normalize import words
from .row_metric import row_metric


def score(prediction: str, accepted: list[str]) -> float:
    """Return 1 if the words of any accepted answer stand together in the prediction, else 0."""
    predicted = words(prediction)
    return float(any(_contains(predicted, words(target)) for target in accepted))


def _contains(predicted: list[str], target: list[str]) -> bool:
    starts = range(len(predicted) - len(target) + 1)
    return bool(target) and any(predicted[start : start + len(target)] == target for start in starts)


AnswerMatch = row_metric(__name__, __doc__, score)

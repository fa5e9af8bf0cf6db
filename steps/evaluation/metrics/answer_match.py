"""Answer match: 1 if the answer contains an accepted answer as consecutive whole words.

A number is one word and compares by its value: 1,000 is 1000, 3.5 is not 3, 5 is not -5. In scripts without spaces
between words every letter counts as a word. docs/scoring.md has the rules.
"""

from .normalize import contains
from .row_metric import row_metric


def score(prediction: str, accepted: list[str]) -> float:
    """Return 1 if the words of any accepted answer stand together in the prediction, else 0."""
    return float(any(contains(prediction, target) for target in accepted))


AnswerMatch = row_metric(__name__, __doc__, score)

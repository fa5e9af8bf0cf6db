"""chrF: F-score of character n-grams over all accepted answers, within 0..1.

Invisible characters do not count, and full-width and other forms of a character equal the plain one.
"""

from sacrebleu.metrics.chrf import CHRF

from .normalize import clean
from .row_metric import row_metric

SCORER = CHRF()


def score(prediction: str, accepted: list[str]) -> float:
    """Return sacrebleu's sentence chrF, scaled from percent."""
    return float(SCORER.sentence_score(clean(prediction), [clean(target) for target in accepted]).score) / 100


Chrf = row_metric(__name__, __doc__, score, "chrF (Popović, 2015), as implemented in sacrebleu")

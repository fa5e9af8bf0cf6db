"""chrF: F-score of character n-grams over all accepted answers, within 0..1."""

from sacrebleu.metrics.chrf import CHRF

from .row_metric import row_metric

SCORER = CHRF()


def score(prediction: str, accepted: list[str]) -> float:
    """Return sacrebleu's sentence chrF, scaled from percent."""
    return float(SCORER.sentence_score(prediction, accepted).score) / 100


Chrf = row_metric(__name__, __doc__, score, "chrF (Popović, 2015), as implemented in sacrebleu")

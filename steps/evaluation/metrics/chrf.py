"""chrF: F-score of character n-grams, over all accepted answers, within 0..1."""

import datasets
import evaluate
from sacrebleu.metrics import CHRF


class Chrf(evaluate.Metric):
    """chrF: F-score of character n-grams, over all accepted answers, within 0..1."""

    def _info(self):
        return evaluate.MetricInfo(
            description=__doc__,
            citation="chrF (Popović, 2015), as sacrebleu computes it",
            inputs_description="predictions: strings; references: a list of accepted strings for each.",
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Sequence(datasets.Value("string"))}
            ),
        )

    def _compute(self, predictions, references):
        scores = [_score(*pair) for pair in zip(predictions, references, strict=True)]
        return {"chrf": sum(scores) / len(scores), "scores": scores}


_CHRF = CHRF()


def _score(prediction: str, accepted: list[str]) -> float:
    return _CHRF.sentence_score(prediction, accepted).score / 100

"""Exact match: 1 where the answer is an accepted one but for case, punctuation and spaces."""

import datasets
import evaluate

from .normalize import words


class ExactMatch(evaluate.Metric):
    """Exact match: 1 where the answer is an accepted one but for case, punctuation and spaces."""

    def _info(self):
        return evaluate.MetricInfo(
            description=__doc__,
            citation="SQuAD (Rajpurkar et al., 2016)",
            inputs_description="predictions: strings; references: a list of accepted strings for each.",
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Sequence(datasets.Value("string"))}
            ),
        )

    def _compute(self, predictions, references):
        scores = [_score(*pair) for pair in zip(predictions, references, strict=True)]
        return {"exact_match": sum(scores) / len(scores), "scores": scores}


def _score(prediction: str, accepted: list[str]) -> float:
    return float(any(words(prediction) == words(target) for target in accepted))

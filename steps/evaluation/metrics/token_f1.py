"""Token F1: the harmonic mean of precision and recall over words, the best of the accepted answers."""

from collections import Counter

import datasets
import evaluate

from .normalize import words


class TokenF1(evaluate.Metric):
    """Token F1: the harmonic mean of precision and recall over words, the best of the accepted answers."""

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
        return {"token_f1": sum(scores) / len(scores), "scores": scores}


def _score(prediction: str, accepted: list[str]) -> float:
    return max(_f1(words(prediction), words(target)) for target in accepted)


def _f1(said: list[str], target: list[str]) -> float:
    shared = sum((Counter(said) & Counter(target)).values())
    return 2 * shared / (len(said) + len(target)) if shared else 0.0

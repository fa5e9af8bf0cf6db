"""Answer match: 1 where an accepted answer stands in the answer, whole words in a row."""

import datasets
import evaluate

from .normalize import words


class AnswerMatch(evaluate.Metric):
    """Answer match: 1 where an accepted answer stands in the answer, whole words in a row."""

    def _info(self):
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description="predictions: strings; references: a list of accepted strings for each.",
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Sequence(datasets.Value("string"))}
            ),
        )

    def _compute(self, predictions, references):
        scores = [_score(*pair) for pair in zip(predictions, references, strict=True)]
        return {"answer_match": sum(scores) / len(scores), "scores": scores}


def _score(prediction: str, accepted: list[str]) -> float:
    said = words(prediction)
    return float(any(_contains(said, words(target)) for target in accepted))


def _contains(said: list[str], target: list[str]) -> bool:
    return bool(target) and any(
        said[start : start + len(target)] == target for start in range(len(said) - len(target) + 1)
    )

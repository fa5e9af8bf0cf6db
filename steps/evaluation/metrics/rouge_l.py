"""ROUGE-L: F-measure of the longest common subsequence of words, the best of the accepted answers."""

import datasets
import evaluate
from rouge_score.rouge_scorer import RougeScorer

from .normalize import words


class RougeL(evaluate.Metric):
    """ROUGE-L: F-measure of the longest common subsequence of words, the best of the accepted answers."""

    def _info(self):
        return evaluate.MetricInfo(
            description=__doc__,
            citation="ROUGE (Lin, 2004)",
            inputs_description="predictions: strings; references: a list of accepted strings for each.",
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Sequence(datasets.Value("string"))}
            ),
        )

    def _compute(self, predictions, references):
        scores = [_score(*pair) for pair in zip(predictions, references, strict=True)]
        return {"rouge_l": sum(scores) / len(scores), "scores": scores}


class _Words:
    """Words as the other metrics see them; the scorer's own drop every letter beyond ASCII."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


_SCORER = RougeScorer(["rougeL"], tokenizer=_Words())


def _score(prediction: str, accepted: list[str]) -> float:
    return max(_SCORER.score(target, prediction)["rougeL"].fmeasure for target in accepted)

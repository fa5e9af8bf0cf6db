"""ROUGE-L: F-measure of the longest common subsequence of words, for the best accepted answer.

A number is one word and compares by its value. In scripts without spaces between words every letter counts as a word.
docs/scoring.md has the rules.
"""

from rouge_score.rouge_scorer import RougeScorer

from .normalize import comparable
from .row_metric import row_metric


class Words:
    """Take words as they come. The scorer's own tokenizer drops all letters beyond ASCII."""

    def tokenize(self, text: str) -> list[str]:
        """Return the words of a text that has spaces between them."""
        return text.split()


SCORER = RougeScorer(["rougeL"], tokenizer=Words())


def score(prediction: str, accepted: list[str]) -> float:
    """Return the highest F-measure between the prediction and an accepted answer."""
    return max(_f_measure(*comparable(prediction, target)) for target in accepted)


def _f_measure(predicted: list[str], target: list[str]) -> float:
    return float(SCORER.score(" ".join(target), " ".join(predicted))["rougeL"].fmeasure)


RougeL = row_metric(__name__, __doc__, score, "ROUGE (Lin, 2004)")

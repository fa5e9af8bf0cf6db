"""ROUGE-L: F-measure of the longest common subsequence of words, for the best accepted answer."""

from rouge_score.rouge_scorer import RougeScorer

from .normalize import words
from .row_metric import row_metric


class Words:
    """Tokenize as the other metrics do. The scorer's own tokenizer drops all letters beyond ASCII."""

    def tokenize(self, text: str) -> list[str]:
        """Return the words of a text."""
        return words(text)


SCORER = RougeScorer(["rougeL"], tokenizer=Words())


def score(prediction: str, accepted: list[str]) -> float:
    """Return the highest F-measure between the prediction and an accepted answer."""
    return max(float(SCORER.score(target, prediction)["rougeL"].fmeasure) for target in accepted)


RougeL = row_metric(__name__, __doc__, score, "ROUGE (Lin, 2004)")

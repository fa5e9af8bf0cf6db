"""Instruction match: 1 if the answer keeps every rule of its row, whatever its content."""

from .row_metric import row_metric
from .rules import keeps


def score(prediction: str, _accepted: list[str], rules: list[str]) -> float:
    """Return 1 if the prediction keeps all rules, else 0; raise ValueError if the row has none."""
    if not rules:
        raise ValueError("every row of the prompt set must have rules")
    return float(all(keeps(prediction, rule) for rule in rules))


InstructionMatch = row_metric(
    __name__, __doc__, score, "IFEval (Zhou et al., 2023), strict accuracy of a prompt", columns=("rules",)
)

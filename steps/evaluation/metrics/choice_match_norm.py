"""Choice match by length: 1 if the most likely choice of a row, per character, is an accepted answer.

It is `acc_norm` of lm-evaluation-harness: each sum of log-probabilities is divided by the characters of its choice.
"""

from .choices import score_by
from .row_metric import row_metric

ChoiceMatchNorm = row_metric(
    __name__,
    __doc__,
    score_by("norm"),
    "lm-evaluation-harness (Gao et al., 2024), acc_norm of multiple_choice",
    columns=("choices",),
    numbers=("choice_logprobs",),
)

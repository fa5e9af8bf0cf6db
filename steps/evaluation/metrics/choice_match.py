"""Choice match: 1 if the most likely choice of a row is an accepted answer. Nothing is generated.

It is `acc` of lm-evaluation-harness: the choice with the highest sum of log-probabilities, the first one of equals. Two
more means divide each sum by the length of its choice first: `norm` (`acc_norm` there) by its characters, `norm_bytes`
(`acc_bytes`) by its bytes in UTF-8. The metric choice_match_norm scores rows by the first of them.
"""

from .choices import LENGTHS, score_by
from .row_metric import row_metric

ChoiceMatch = row_metric(
    __name__,
    __doc__,
    score_by("whole"),
    "lm-evaluation-harness (Gao et al., 2024), acc of multiple_choice",
    columns=("choices",),
    numbers=("choice_logprobs",),
    means={name: score_by(name) for name in LENGTHS if name != "whole"},
)

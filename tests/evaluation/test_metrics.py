"""The metrics: each is a module of the `evaluate` library, loaded by path without a hub."""

import math

import pytest

from steps.errors import StepError
from steps.evaluation import scores
from steps.evaluation.answers import Answer
from steps.evaluation.prompt_row import Row
from steps.evaluation.prompt_set import PromptSet

SCORES = [
    # prediction, accepted, exact_match, answer_match, token_f1, rouge_l
    ("Madrid", ["Madrid"], 1, 1, 1, 1),
    ("madrid.", ["Madrid"], 1, 1, 1, 1),
    ("The capital is Madrid.", ["Madrid"], 0, 1, 0.4, 0.4),
    ("Madridista", ["Madrid"], 0, 0, 0, 0),
    ("New Delhi", ["Delhi", "New Delhi"], 1, 1, 1, 1),
    ("Delhi, the new one", ["New Delhi"], 0, 0, 2 / 3, 1 / 3),
    ("tête", ["tête"], 1, 1, 1, 1),
    ("tete", ["tête"], 0, 0, 0, 0),
    ("", ["Madrid"], 0, 0, 0, 0),
]
COLUMNS = {"exact_match": 2, "answer_match": 3, "token_f1": 4, "rouge_l": 5}


@pytest.mark.parametrize("name", COLUMNS)
def test_scores(name):
    metric = scores.load_metrics([name])[name]
    computed = metric.compute(predictions=[row[0] for row in SCORES], references=[row[1] for row in SCORES])
    expected = [row[COLUMNS[name]] for row in SCORES]
    assert computed["scores"] == pytest.approx(expected)
    assert computed[name] == pytest.approx(sum(expected) / len(expected))


def test_chrf_is_sacrebleus_within_0_and_1():
    from sacrebleu.metrics import CHRF

    metric = scores.load_metrics(["chrf"])["chrf"]
    pairs = [("Madrid", ["Madrid"]), ("Madird", ["Madrid", "Rome"]), ("", ["Madrid"])]
    computed = metric.compute(predictions=[p for p, _ in pairs], references=[r for _, r in pairs])
    assert computed["scores"] == pytest.approx([CHRF().sentence_score(p, r).score / 100 for p, r in pairs])
    assert computed["scores"][0] == pytest.approx(1)
    assert 0 < computed["scores"][1] < 1


def test_all_shipped_metrics_are_known():
    assert scores.local_metrics() == ["answer_match", "chrf", "exact_match", "instruction_match", "rouge_l", "token_f1"]


def test_unknown_metrics_are_told_together():
    with pytest.raises(StepError) as refusal:
        scores.load_metrics(["exact_mach", "chrf", "zzz"])
    first, second = refusal.value.faults
    assert first.startswith("Unknown metric 'exact_mach'. Did you mean 'exact_match'? Available: answer_match, chrf,")
    assert second.startswith("Unknown metric 'zzz'. Available:")


class _Metric:
    """A metric that says what it was made with, or raises it."""

    def __init__(self, said):
        self.said, self.features = said, {}

    def compute(self, predictions, references):
        if isinstance(self.said, Exception):
            raise self.said
        return dict(self.said)


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        ({}, "metric chrf gave no value."),
        ({"chrf": math.nan, "scores": [1.0]}, "metric chrf/mean is nan."),
        ({"chrf": 1.0, "scores": [math.nan]}, "metric chrf gave row 'a' the score nan."),
        ({"chrf": 1.0, "scores": [1.0, 1.0]}, "metric chrf gave 2 scores for 1 rows."),
        (ValueError("no such model"), "metric chrf failed: ValueError: no such model"),
    ],
    ids=["nothing", "NaN", "NaN of a row", "too many scores", "raised"],
)
def test_a_missing_or_broken_metric_is_no_scorecard(said, fault):
    rows = PromptSet("set", (Row("a", (("user", "q"),), ("t",), ()),))
    with pytest.raises(StepError) as refusal:
        scores.compute({"chrf": _Metric(said)}, rows, [[Answer("t")]])
    assert refusal.value.faults == (fault,)

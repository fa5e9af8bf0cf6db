"""The metrics: each is a module of the `evaluate` library, loaded by path without a hub."""

import math

import pytest

from steps import command_line
from steps.errors import StepError
from steps.evaluation import scores
from steps.evaluation.answers import Answer
from steps.evaluation.metrics import rules
from steps.evaluation.prompt_set import PromptSet
from steps.evaluation.prompt_set.row import Row

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


RULES = [
    # rule, answers that keep it, answers that do not
    ("one_word", ["Madrid", " Madrid.\n"], ["New Delhi", ""]),
    ("one_line", ["The capital.", "a\n"], ["a\nb", " "]),
    (
        "sentence",
        ["The capital is Madrid.", "Is it Madrid?"],
        ["It is.", "the capital is Madrid.", "It is so. Or not."],
    ),
    ("json", ['{"a": 1}', "[]", "\n[1]\n"], ["5", '"a"', "{", '{"a": 1} there', "[" * 100_000]),
    ("upper_case", ["MADRID", "IN 1 DAY"], ["Madrid", "1"]),
    ("lower_case", ["madrid", "in 1 day"], ["Madrid", "1"]),
    ("no_punctuation", ["New Delhi", "tête"], ["Madrid.", "it's"]),
    ("max_words=2", ["a", "a b"], ["a b c", ""]),
    ("min_words=2", ["a b", "a b c"], ["a", ""]),
    ("starts_with=The", ["The capital", " The"], ["the capital", "A capital"]),
    ("ends_with=.", ["It is.", "It is. "], ["It is", "It is?"]),
    ("contains=a=b", ["so a=b", "a=b"], ["a b", "A=B"]),
]


@pytest.mark.parametrize(("rule", "keeping", "breaking"), RULES, ids=[rule for rule, *_ in RULES])
def test_rules(rule, keeping, breaking):
    assert rules.fault(rule) is None
    assert [rules.keeps(answer, rule) for answer in keeping] == [True] * len(keeping)
    assert [rules.keeps(answer, rule) for answer in breaking] == [False] * len(breaking)


def test_every_rule_is_tested():
    assert {rule.partition("=")[0] for rule, *_ in RULES} == {*rules.RULES, *rules.VALUED}


def test_rows_without_what_a_metric_needs_are_told_by_their_line():
    rows = PromptSet(
        "set",
        tuple(
            Row(name, (("user", "q"),), ("t",), (), asked, number)
            for number, (name, asked) in enumerate([("a", ("json",)), ("b", ()), ("c", ())], start=1)
        ),
        "line",
    )
    scores.check_rows(rows, command_line.compose("evaluate", []))
    with pytest.raises(StepError) as refusal:
        scores.check_rows(rows, command_line.compose("evaluate", ["prompt_set=instructions"]))
    assert refusal.value.faults == tuple(
        f"set: line {place}: the metric instruction_match needs rules." for place in ("2 (id 'b')", "3 (id 'c')")
    )


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

"""Metrics: each is a module of the `evaluate` library, loaded by path without a hub."""

import math
import shutil

import pytest

from steps import command_line
from steps.errors import StepError
from steps.evaluation import metric_loading, ruler, scores
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
def test_a_metric_gives_the_score_of_each_row_and_their_mean(name):
    metric = metric_loading.load_metrics([name])[name]
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
def test_a_rule_accepts_and_rejects_answers(rule, keeping, breaking):
    assert rules.fault(rule) is None
    assert [rules.keeps(answer, rule) for answer in keeping] == [True] * len(keeping)
    assert [rules.keeps(answer, rule) for answer in breaking] == [False] * len(breaking)


def test_every_rule_is_tested():
    assert {rule.partition("=")[0] for rule, *_ in RULES} == {*rules.RULES, *rules.VALUED}


def test_rows_without_the_rules_that_a_metric_needs_are_reported_by_line():
    rows = PromptSet(
        "set",
        tuple(
            Row(name, (("user", "q"),), ("t",), (), asked, number)
            for number, (name, asked) in enumerate([("a", ("json",)), ("b", ()), ("c", ())], start=1)
        ),
        "line",
    )
    scores.check_rows(rows, ruler.make(command_line.compose("evaluate", [])).metrics)
    with pytest.raises(StepError) as refusal:
        scores.check_rows(rows, ruler.make(command_line.compose("evaluate", ["prompt_set=instructions"])).metrics)
    assert refusal.value.faults == tuple(
        f"set: line {place}: the metric instruction_match needs rules." for place in ("2 (id 'b')", "3 (id 'c')")
    )


def test_chrf_is_sacrebleus_score_scaled_to_0_and_1():
    from sacrebleu.metrics import CHRF

    metric = metric_loading.load_metrics(["chrf"])["chrf"]
    pairs = [("Madrid", ["Madrid"]), ("Madird", ["Madrid", "Rome"]), ("", ["Madrid"])]
    computed = metric.compute(predictions=[p for p, _ in pairs], references=[r for _, r in pairs])
    assert computed["scores"] == pytest.approx([CHRF().sentence_score(p, r).score / 100 for p, r in pairs])
    assert computed["scores"][0] == pytest.approx(1)
    assert 0 < computed["scores"][1] < 1


def test_all_shipped_metrics_are_listed():
    assert metric_loading.local_metrics() == [
        "answer_match",
        "choice_match",
        "choice_match_norm",
        "chrf",
        "exact_match",
        "instruction_match",
        "perplexity",
        "rouge_l",
        "token_f1",
    ]


MORE_COLUMNS = {
    "instruction_match": ["rules"],
    "choice_match": ["choices", "choice_logprobs"],
    "choice_match_norm": ["choices", "choice_logprobs"],
    "perplexity": ["target_logprobs", "target_tokens"],
}


@pytest.mark.parametrize("name", metric_loading.local_metrics())
def test_a_metric_describes_itself_and_has_the_name_of_its_file(name):
    metric = metric_loading.load_metrics([name])[name]
    assert metric.name == name
    assert metric.description
    columns = ["predictions", "references", *MORE_COLUMNS.get(name, ())]
    assert list(metric.features) == columns
    assert all(column in metric.inputs_description for column in columns)


def test_instruction_match_takes_the_rules_of_each_row():
    metric = metric_loading.load_metrics(["instruction_match"])["instruction_match"]
    inputs = {"predictions": ["Madrid", "New Delhi"], "references": [["x"], ["y"]]}
    computed = metric.compute(**inputs, rules=[["one_word", "contains=Mad"], ["one_line", "one_word"]])
    assert computed == {"instruction_match": 0.5, "scores": [1, 0]}
    with pytest.raises(ValueError, match="every row of the prompt set must have rules"):
        metric.compute(**inputs, rules=[["one_word"], []])


# choices, their log-probabilities, accepted, acc, acc_norm, acc_bytes
CHOICES = [
    (["a", "bb"], [-1.0, -1.5], "a", 1, 0, 0),
    (["ü", "bb"], [-1.0, -1.5], "ü", 1, 0, 1),
    (["a", "b"], [-1.0, -1.0], "b", 0, 0, 0),  # the first of equals
    (["a", "b", "c"], [-3.0, -2.0, -1.0], "c", 1, 1, 1),
]


def test_choice_match_takes_the_most_likely_choice_whole_and_by_length():
    metrics = metric_loading.load_metrics(["choice_match", "choice_match_norm"])
    inputs = {"predictions": [""] * len(CHOICES), "references": [[row[2]] for row in CHOICES]}
    inputs |= {"choices": [row[0] for row in CHOICES], "choice_logprobs": [row[1] for row in CHOICES]}
    computed, normed = (metric.compute(**inputs) for metric in metrics.values())
    assert computed["scores"] == [row[3] for row in CHOICES]
    assert normed["scores"] == [row[4] for row in CHOICES]
    assert (computed["norm"], computed["norm_bytes"]) == (normed["choice_match_norm"], 0.5)


def test_perplexity_is_that_of_the_accepted_answer_with_the_lowest():
    metric = metric_loading.load_metrics(["perplexity"])["perplexity"]
    inputs = {"predictions": ["", ""], "references": [["a", "b"], ["c"]]}
    logprobs = [[-2 * math.log(3), -math.log(4)], [-1e9]]
    computed = metric.compute(**inputs, target_logprobs=logprobs, target_tokens=[[2, 1], [1]])
    assert computed["scores"] == [pytest.approx(3), math.exp(700)]


NEW_METRIC = """
\"""Length: 1 if the answer has as many characters as an accepted answer.\"""

from .row_metric import row_metric


def score(prediction, accepted):
    return float(len(prediction) in map(len, accepted))


Length = row_metric(__name__, __doc__, score)
"""


def test_a_new_metric_is_one_file(monkeypatch, tmp_path):
    folder = tmp_path / "metrics"
    shutil.copytree(metric_loading.METRICS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "length.py").write_text(NEW_METRIC)
    monkeypatch.setattr(metric_loading, "METRICS", folder)
    assert "length" in metric_loading.local_metrics()
    metric = metric_loading.load_metrics(["length"])["length"]
    computed = metric.compute(predictions=["abc", "d"], references=[["xyz", "zz"], ["zz"]])
    assert computed == {"length": 0.5, "scores": [1, 0]}


def test_all_unknown_metrics_are_reported_at_once():
    with pytest.raises(StepError) as refusal:
        metric_loading.load_metrics(["exact_mach", "chrf", "zzz"])
    first, second = refusal.value.faults
    assert first.startswith("Unknown metric 'exact_mach'. Did you mean 'exact_match'? Available: answer_match, choi")
    assert second.startswith("Unknown metric 'zzz'. Available:")


class FakeMetric:
    """A metric that returns the result it was made with, or raises it."""

    def __init__(self, result):
        self.result, self.features = result, {}

    def compute(self, predictions, references):
        if isinstance(self.result, Exception):
            raise self.result
        return dict(self.result)


@pytest.mark.parametrize(
    ("result", "fault"),
    [
        ({}, "metric chrf gave no value."),
        ({"chrf": math.nan, "scores": [1.0]}, "metric chrf/mean is nan."),
        ({"chrf": 1.0, "scores": [math.nan]}, "metric chrf gave row 'a' the score nan."),
        ({"chrf": 1.0, "scores": [1.0, 1.0]}, "metric chrf failed: ValueError: it gave 2 scores for 1 rows"),
        (ValueError("no such model"), "metric chrf failed: ValueError: no such model"),
    ],
    ids=["nothing", "NaN", "NaN of a row", "too many scores", "raised"],
)
def test_a_metric_without_a_finite_result_makes_no_scorecard(result, fault):
    rows = PromptSet("set", (Row("a", (("user", "q"),), ("t",), ()),))
    with pytest.raises(StepError) as refusal:
        scores.compute({"chrf": FakeMetric(result)}, rows, [[Answer("t")]])
    assert refusal.value.faults == (fault,)


UNANSWERED = [Answer(""), Answer(" \n"), Answer("\u200b"), Answer(error="out of memory")]


@pytest.mark.parametrize("unanswered", UNANSWERED, ids=["empty", "spaces", "no width", "error"])
@pytest.mark.parametrize(
    ("result", "expected"),
    [({"own": 1.0, "scores": [1.0]}, [1.0, 0.0]), ({"own": 1.0}, None)],
    ids=["a score for each row", "no scores of rows"],
)
def test_an_answer_that_is_empty_or_an_error_has_the_score_0_whatever_the_metric(unanswered, result, expected):
    rows = PromptSet("set", tuple(Row(name, (("user", "q"),), ("t",), ()) for name in "abc"))
    answers = [Answer("t"), unanswered, Answer(skipped="too long")]
    (computed,) = scores.compute({"own": FakeMetric(result)}, rows, [answers])["own"]
    assert computed.scores == expected
    card = scores.scorecard(rows, [answers], {"own": [computed]})
    # The skipped row counts as 0 if rows have scores; a metric of all answers together never saw it.
    assert card.metrics["own/mean"] == pytest.approx(1 / 3 if expected else 0.5)
    assert card.scores.get("own", [None])[-1] is None


def test_a_metric_is_not_asked_if_nothing_was_answered():
    rows = PromptSet("set", (Row("a", (("user", "q"),), ("t",), ()),))
    metric = FakeMetric(ZeroDivisionError("no words"))
    (computed,) = scores.compute({"own": metric}, rows, [[Answer("")]])["own"]
    assert computed == scores.Computed([0.0], {"mean": 0.0})

"""Our verdict as MLflow 3.18 looks for it: quality criteria and the metrics of a comparison, on the variants' runs."""

import json

import mlflow
import pytest

from steps.config.schema import Promotion
from steps.promotion.candidate import Candidate
from steps.promotion.mlflow_verdict import CRITERIA, criteria
from tests.promotion.test_register import store  # noqa: F401  a fixture

CHAMPION = Candidate("a", "m-a", "f-a", {"answer_match/mean": 0.8, "size/bytes": 9.0}, {})
RULES = {
    "the margin": (Promotion(), [("answer_match/mean", "GTE", 0.75)]),
    "less is better": (Promotion(direction="lower"), [("answer_match/mean", "LTE", 0.85)]),
    "limits": (
        Promotion(limits={"bytes": {"max": 10}, "chrf": {"min": 0.1}}),
        [("answer_match/mean", "GTE", 0.75), ("size/bytes", "LTE", 10), ("chrf/mean", "GTE", 0.1)],
    ),
    "a limit of the metric itself": (
        Promotion(limits={"answer_match": {"min": 0.9}}),
        [("answer_match/mean", "GTE", 0.9)],
    ),
}


@pytest.mark.parametrize(("policy", "rules"), RULES.values(), ids=RULES)
def test_the_policy_is_written_as_mlflow_reads_quality_criteria(policy, rules):
    content = json.loads(criteria(policy, CHAMPION))
    assert content["schemaVersion"] == 1
    assert [(rule["metricKey"], rule["comparator"], rule["threshold"]) for rule in content["rules"]] == [
        (key, comparator, pytest.approx(threshold)) for key, comparator, threshold in rules
    ]
    assert content == json.loads(criteria(policy, CHAMPION))


def test_a_promotion_writes_the_criteria_and_the_comparison_to_the_runs_of_both(store):  # noqa: F811
    rows = store.score(3, 5)
    store.register()
    first, champion, better = (variant.run_id for variant in store.variants[:3])
    store.score(3, 5, 7)
    outcome = store.register()
    runs = {run_id: mlflow.get_run(run_id).data for run_id in (first, champion, better)}
    assert CRITERIA not in runs[first].tags
    for run_id in (champion, better):
        (rule,) = json.loads(runs[run_id].tags[CRITERIA])["rules"]
        assert rule == {"metricKey": "answer_match/mean", "comparator": "GTE", "threshold": pytest.approx(7 / 8 - 0.05)}
    gap, prefix = outcome.decision.difference, f"compare/{champion[:8]}/answer_match"
    expected = {"diff": gap.mean, "ci_low": gap.low, "ci_high": gap.high, "n_paired": len(rows.rows)}
    assert {name: runs[better].metrics[f"{prefix}/{name}"] for name in expected} == pytest.approx(expected)
    baseline = mlflow.artifacts.load_dict(f"runs:/{better}/compare/{champion[:8]}.json")
    assert baseline == {"baseline_run_id": champion}

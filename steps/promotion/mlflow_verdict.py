"""Write a verdict where MLflow's own views look for one, in the form of MLflow 3.18.

The tag `mlflow.genaiEvaluate.qualityCriteria` on the runs of the best variant and of the champion holds the policy as
MLflow's `quality_criteria`: the limits, and a mean score within the margin of the champion's. MLflow compares the run's
metrics with it. It knows no intervals, so our verdict can be stricter.

The metrics `compare/<first 8 of the baseline's run id>/<metric>/diff`, `ci_low`, `ci_high` and `n_paired`, and
`compare/….json` with the whole id, are those of `mlflow.genai.compare_evaluations(…, log_results=True)`: candidate
minus champion. The intervals are ours. There is no p value.
"""

from __future__ import annotations

import json
import time
import uuid
from typing import TYPE_CHECKING

from steps.config.schema import Promotion
from steps.promotion.candidate import Candidate, score
from steps.promotion.gate import Decision
from steps.store.collisions import retried
from steps.store.names import metric_key, row_metric
from steps.store.variants import Variant, lost_run

if TYPE_CHECKING:
    from mlflow import MlflowClient

CRITERIA = "mlflow.genaiEvaluate.qualityCriteria"
COMPARATORS = {"min": "GTE", "max": "LTE"}


def criteria(policy: Promotion, champion: Candidate) -> str:
    """Return the value of the tag: the rules that a variant has to meet to be as good as the champion."""
    metric, worse = metric_key(policy.metric), policy.margin if policy.less_is_better else -policy.margin
    bound = "max" if policy.less_is_better else "min"
    limits = [(metric_key(name), key, value) for name, limit in policy.limits.items() for key, value in limit.items()]
    # MLflow takes one rule for each metric.
    rules = {metric: (bound, score(champion, policy) + worse)} | {key: (kind, value) for key, kind, value in limits}
    listed = [
        {"metricKey": key, "comparator": COMPARATORS[kind], "threshold": value} for key, (kind, value) in rules.items()
    ]
    revision = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(listed))
    return json.dumps({"schemaVersion": 1, "revision": str(revision), "rules": listed}, separators=(",", ":"))


def comparison(decision: Decision, policy: Promotion, baseline: str, rows: int) -> dict[str, float]:
    """Return the metrics of a comparison with the run `baseline`; empty if nothing was compared."""
    if decision.difference is None:
        return {}
    gap, prefix = decision.difference, f"{_folder(baseline)}/{row_metric(policy.metric)}"
    numbers = {"diff": gap.mean, "ci_low": gap.low, "ci_high": gap.high, "n_paired": float(rows)}
    return {f"{prefix}/{name}": value for name, value in numbers.items()}


def log(
    client: MlflowClient,
    decision: Decision,
    policy: Promotion,
    best: Candidate,
    champion: Candidate | None,
    variants: dict[str, Variant],
) -> None:
    """Log the criteria and the comparison to the runs of the best and the champion, as far as they are still there.

    Args:
        client: The store.
        decision: What was decided about the best.
        policy: The policy that decided.
        best: The best candidate.
        champion: The champion before; None if there was none.
        variants: All variants by model id.
    """
    value = criteria(policy, best if decision.promote or champion is None else champion)
    present = {
        candidate.model_id: variants[candidate.model_id]
        for candidate in (best, champion)
        if candidate and not lost_run(client, variants[candidate.model_id])
    }
    for variant in present.values():
        retried(client.set_tag, variant.run_id, CRITERIA, value)
    if champion and best.model_id in present:
        rows = len(best.rows[row_metric(policy.metric)])
        _log_comparison(
            client, present[best.model_id].run_id, variants[champion.model_id].run_id, decision, policy, rows
        )


def _log_comparison(
    client: MlflowClient, run_id: str, baseline: str, decision: Decision, policy: Promotion, rows: int
) -> None:
    from mlflow.entities import Metric

    if values := comparison(decision, policy, baseline, rows):
        now = time.time_ns() // 1_000_000
        client.log_batch(run_id, metrics=[Metric(key, value, now, 0) for key, value in values.items()])
        client.log_dict(run_id, {"baseline_run_id": baseline}, f"{_folder(baseline)}.json")


def _folder(baseline: str) -> str:
    return f"compare/{baseline[:8]}"

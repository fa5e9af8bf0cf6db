"""Log a scorecard's scores to MLflow in one `mlflow.models.evaluate` call.

The scores are computed before. A callable hands the answers over, so that every variant is scored on one and the same
MLflow dataset, by which MLflow's views can compare the runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from steps.errors import StepError
from steps.evaluation.prompt_set import PromptSet
from steps.evaluation.scorecard import Scorecard
from steps.output import suppress_output
from steps.store.names import less_is_better

if TYPE_CHECKING:
    from mlflow.data.pandas_dataset import PandasDataset
    from mlflow.metrics import MetricValue

TABLE = "eval_results_table.json"


def dataset(prompt_set: PromptSet) -> PandasDataset:
    """Return the prompt set as MLflow's dataset: the same one for every variant."""
    import pandas as pd
    from mlflow.data.pandas_dataset import from_pandas

    rows = [(row.id, row.transcript, " | ".join(row.targets)) for row in prompt_set.rows]
    frame = pd.DataFrame(rows, columns=["id", "question", "target"])
    with suppress_output():
        return from_pandas(frame, name=prompt_set.name, targets="target", digest=prompt_set.sha256[:16])


def log(card: Scorecard, data: PandasDataset, latencies: list[float | None], model_id: str) -> None:
    """Log the metrics and the table of rows to the active run and to the model.

    Args:
        card: What to log.
        data: The dataset that the metrics belong to.
        latencies: Milliseconds by row.
        model_id: The LoggedModel.
    """
    import mlflow
    from mlflow.models import make_metric

    by_metric: dict[str, dict[str, float]] = {}
    for key, value in card.metrics.items():
        name, _, aggregate = key.partition("/")
        by_metric.setdefault(name, {})[aggregate] = value
    with suppress_output():
        result = mlflow.models.evaluate(  # type: ignore[no-untyped-call]
            model=lambda _: [answer or "" for answer in card.answers],
            data=data,
            extra_metrics=[
                make_metric(  # type: ignore[no-untyped-call]
                    eval_fn=_computed(card.scores.get(name), aggregates),
                    greater_is_better=not less_is_better(name),
                    name=name,
                )
                for name, aggregates in by_metric.items()
            ],
            evaluators="default",
            model_id=model_id,
        )
    if lost := sorted(set(card.metrics) - set(result.metrics)):
        raise StepError(f"MLflow did not log {', '.join(lost)}.")
    # MLflow itself would append to the table of an earlier evaluation.
    mlflow.log_text(table(card, data.df, latencies), TABLE)


def _computed(scores: list[float | None] | None, aggregates: dict[str, float]) -> Callable[..., MetricValue]:
    """Return an MLflow metric function that returns values that are known already."""
    from mlflow.metrics import MetricValue

    def eval_fn(predictions: Any, targets: Any, metrics: Any) -> MetricValue:  # noqa: ARG001  MLflow's names
        # MLflow tries a metric on the first row alone before it asks for all.
        rows: Any = scores and scores[: len(predictions)]
        return MetricValue(scores=rows, aggregate_results=aggregates)

    return eval_fn


def table(card: Scorecard, questions: Any, latencies: list[float | None] | None = None) -> str:
    """Return the table of rows for MLflow's views, as JSON."""
    # MLflow's table view compares the second column by the first until the user chooses others.
    frame = questions.copy()
    frame.insert(1, "outputs", [answer or "" for answer in card.answers])
    for name, rows in card.scores.items():
        frame[f"{name}/score"] = rows
    if latencies is not None:
        frame["latency_ms"] = latencies
    frame["error"] = [error or skipped or "" for error, skipped in zip(card.errors, card.skipped, strict=True)]
    return str(frame.to_json(orient="split", index=False))

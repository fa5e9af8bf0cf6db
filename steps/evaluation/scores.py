"""Score answers with metrics of the `evaluate` library, in one `mlflow.models.evaluate` call.

The answers are ready before: a callable hands them over, so that every variant is scored on one and the
same MLflow dataset and its runs can be compared by it.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from steps.errors import StepError, unknown
from steps.evaluation.prompt_set import PromptSet, as_dataset
from steps.quiet import quiet

METRICS = Path(__file__).parent / "metrics"


def local_metrics() -> list[str]:
    """Names of the metrics that need no hub."""
    return sorted(file.stem for file in METRICS.glob("*.py") if file.stem not in ("__init__", "normalize"))


def load_metrics(names: list[str]) -> dict[str, Any]:
    """Metrics of the `evaluate` library by name; all that cannot be had are told together."""
    missing = [name for name in names if name not in local_metrics()]
    reasons = {name: reason for name in missing if (reason := _hub_fault(name))}
    if reasons:
        raise StepError(*(f"{unknown('metric', name, local_metrics())} {why}" for name, why in reasons.items()))
    import evaluate

    return {name: evaluate.load(name if name in missing else str(METRICS / f"{name}.py")) for name in names}


def _hub_fault(name: str) -> str | None:
    """Why a metric that is not local cannot be loaded; None if it can."""
    import evaluate

    try:
        with quiet():
            evaluate.load(name)
    except Exception as error:  # whatever the hub's client raises, it is not there
        return f"Others are loaded from the hub, which gave: {type(error).__name__}."
    return None


def score(
    prompt_set: PromptSet, answers: list[str], metrics: dict[str, Any], model_id: str
) -> tuple[dict[str, float], str]:
    """Log metrics and the table of rows to the active run and to the model; returns metrics and digest."""
    import mlflow
    from mlflow.models import make_metric

    frame = as_dataset(prompt_set).to_pandas()
    references = [list(row.targets) for row in prompt_set.rows]
    with quiet():
        data = mlflow.data.from_pandas(
            frame[["id", "question", "target"]], name=prompt_set.name, targets="target", digest=prompt_set.sha256[:16]
        )
        result = mlflow.models.evaluate(
            model=lambda features: answers,
            data=data,
            extra_metrics=[
                make_metric(eval_fn=_eval_fn(name, metric, references), greater_is_better=True, name=name)
                for name, metric in metrics.items()
            ],
            evaluators="default",
            model_id=model_id,
        )
    _check_complete(result.metrics, list(metrics))
    return dict(result.metrics), data.digest


def _eval_fn(name: str, metric: Any, references: list[list[str]]) -> Callable:
    """An MLflow metric function around a metric of the `evaluate` library."""
    from mlflow.metrics import MetricValue

    def eval_fn(predictions, targets, metrics):
        said = list(predictions)
        # MLflow tries a metric on the first row alone before it asks for all.
        computed = metric.compute(predictions=said, references=references[: len(said)])
        scores = computed.pop("scores", None)
        numbers = {key: float(value) for key, value in computed.items() if isinstance(value, int | float)}
        means = {"mean" if key == name else key: value for key, value in numbers.items()}
        return MetricValue(scores=scores, aggregate_results=means)

    return eval_fn


def _check_complete(metrics: dict[str, float], names: list[str]) -> None:
    """MLflow leaves a metric out with a warning when it fails: that is no scorecard."""
    given = {key.partition("/")[0] for key in metrics}
    faults = [f"metric {name} gave no value." for name in names if name not in given]
    faults += [f"metric {key} is {value}." for key, value in metrics.items() if not math.isfinite(value)]
    if faults:
        raise StepError(*faults)

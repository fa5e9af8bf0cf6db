"""Score answers with metrics of the `evaluate` library, and log the scores in one `mlflow.models.evaluate` call.

The scores are ready before: a callable hands the answers over, and so every variant is scored on one and the
same MLflow dataset and its runs can be compared by it. A skipped row has no score; the answer of a row with an
error is empty. The score of a row is its mean over all repeats, so that rows stay independent of each other.
"""

import contextlib
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steps.config.schema import EvaluateConfig
from steps.errors import StepError, unknown
from steps.evaluation.answers import Answer
from steps.evaluation.prompt_set import PromptSet, shortened
from steps.evaluation.scorecard import Scorecard
from steps.evaluation.statistics import interval
from steps.output import suppress_output

METRICS = Path(__file__).parent / "metrics"
HELPERS = ("__init__", "normalize", "row_metric", "rules")
JUDGE = "judge"
# The metric that looks at the rules of a row.
RULED = "instruction_match"
TABLE = "eval_results_table.json"


@dataclass(frozen=True)
class Computed:
    """What one metric says of one repeat: a score for every row that was asked (if it gives such), and aggregates."""

    scores: list[float] | None
    aggregates: dict[str, float]


def names(config: EvaluateConfig) -> list[str]:
    """The metrics that are computed: those of `evaluate`, the prompt set's own, and the judge's."""
    judge = [JUDGE] if config.evaluate.judge.model else []
    return list(dict.fromkeys([*config.evaluate.metrics, *config.prompt_set.metrics, *judge]))


def first(config: EvaluateConfig) -> str:
    """The metric that variants are compared by: the prompt set's own, where it has one."""
    return [*config.prompt_set.metrics, *config.evaluate.metrics][0]


def check_rows(prompt_set: PromptSet, config: EvaluateConfig) -> None:
    """Raise StepError with every row that lacks what a metric needs, before any model loads."""
    if RULED not in names(config):
        return
    lacking = [prompt_set.place(index) for index, row in enumerate(prompt_set.rows) if not row.rules]
    if lacking:
        raise StepError(
            *shortened([f"{prompt_set.name}: {place}: the metric {RULED} needs rules." for place in lacking])
        )


def local_metrics() -> list[str]:
    """Names of the metrics that need no hub."""
    return sorted(file.stem for file in METRICS.glob("*.py") if file.stem not in HELPERS)


def load_metrics(names: list[str]) -> dict[str, Any]:
    """Metrics of the `evaluate` library by name (the judge is none of it); all that cannot be had are told together."""
    loaded: dict[str, Any] = {}
    faults: list[str] = []
    for name in names:
        if name == JUDGE:
            continue
        try:
            loaded[name] = _load(name)
        except Exception as error:  # whatever a module of the user's own or the hub's client raises
            faults.append(_load_fault(name, error))
    if faults:
        raise StepError(*faults)
    return loaded


def _load(name: str) -> Any:
    with _without("transformers"):
        import evaluate

    if name in local_metrics():
        return evaluate.load(str(METRICS / f"{name}.py"))
    with suppress_output():
        return evaluate.load(name)


@contextlib.contextmanager
def _without(package: str) -> Iterator[None]:
    """Keep a package that is optional to another out while that one is imported: ten seconds for nothing else."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None
    try:
        yield
    finally:
        del sys.modules[package]


def _load_fault(name: str, error: Exception) -> str:
    reason = type(error).__name__
    if name in local_metrics():
        return f"metric {name} cannot be loaded: {reason}: {error}"
    return f"{unknown('metric', name, local_metrics())} Others are loaded from the hub, which gave: {reason}."


def compute(metrics: dict[str, Any], prompt_set: PromptSet, repeats: list[list[Answer]]) -> dict[str, list[Computed]]:
    """By metric, what it says of each repeat; raises StepError with the reason where it fails or says NaN."""
    if all(said.skipped for said in repeats[0]):
        raise StepError(f"every row of {prompt_set.name} was skipped: {repeats[0][0].skipped}")
    faults: list[str] = []
    found: dict[str, list[Computed]] = {}
    for name, metric in metrics.items():
        try:
            with suppress_output():
                found[name] = [_compute(name, metric, prompt_set, answers) for answers in repeats]
        except Exception as error:  # whatever a metric of any origin raises
            faults.append(f"metric {name} failed: {type(error).__name__}: {error}")
        else:
            faults += _faults(name, found[name], prompt_set, repeats[0])
    if faults:
        raise StepError(*faults)
    return found


def _compute(name: str, metric: Any, prompt_set: PromptSet, answers: list[Answer]) -> Computed:
    pairs = [pair for pair in zip(prompt_set.rows, answers, strict=True) if not pair[1].skipped]
    inputs = {"predictions": [said.text for _, said in pairs], "references": [list(row.targets) for row, _ in pairs]}
    if "rules" in metric.features:
        inputs["rules"] = [list(row.rules) for row, _ in pairs]
    computed = metric.compute(**inputs)
    scores = computed.pop("scores", None)
    numbers = {key: float(value) for key, value in computed.items() if isinstance(value, int | float)}
    means = {"mean" if key == name else key: value for key, value in numbers.items()}
    return Computed(None if scores is None else [float(score) for score in scores], means)


def _faults(name: str, repeats: list[Computed], prompt_set: PromptSet, answers: list[Answer]) -> Iterator[str]:
    """MLflow would leave a metric out with a warning when it gives nothing, or no number: that is no scorecard."""
    asked = [row.id for row, said in zip(prompt_set.rows, answers, strict=True) if not said.skipped]
    for computed in repeats:
        if not computed.aggregates:
            yield f"metric {name} gave no value."
        for key, value in computed.aggregates.items():
            if not math.isfinite(value):
                yield f"metric {name}/{key} is {value}."
        scores = computed.scores or []
        if computed.scores is not None and len(scores) != len(asked):
            yield f"metric {name} gave {len(scores)} scores for {len(asked)} rows."
            continue
        broken = [place for place, score in enumerate(scores) if not math.isfinite(score)]
        if broken:
            yield f"metric {name} gave row {asked[broken[0]]!r} the score {scores[broken[0]]}."


def scorecard(prompt_set: PromptSet, repeats: list[list[Answer]], computed: dict[str, list[Computed]]) -> Scorecard:
    """Put answers and scores together, with intervals, and by tag."""
    first = repeats[0]
    scores = {name: _row_scores(first, found) for name, found in computed.items() if found[0].scores is not None}
    metrics = {f"{name}/{key}": value for name, found in computed.items() for key, value in _aggregates(found).items()}
    return Scorecard(
        prompt_set={"name": prompt_set.name, "sha256": prompt_set.sha256, "rows": len(prompt_set.rows)},
        ids=[row.id for row in prompt_set.rows],
        tags=[list(row.tags) for row in prompt_set.rows],
        answers=_texts(first),
        repeats=[_texts(answers) for answers in repeats[1:]],
        errors=[next((said.error for said in row if said.error), None) for row in zip(*repeats, strict=True)],
        skipped=[said.skipped for said in first],
        scores=scores,
        metrics=metrics | _summaries(scores, range(len(first))),
        by_tag=_by_tag(prompt_set, scores),
    )


def _texts(answers: list[Answer]) -> list[str | None]:
    return [None if said.skipped else said.text for said in answers]


def _row_scores(answers: list[Answer], repeats: list[Computed]) -> list[float | None]:
    """The mean of every row over the repeats; None for a row that was skipped."""
    means = (sum(scores) / len(scores) for scores in zip(*(computed.scores for computed in repeats), strict=True))
    return [None if said.skipped else next(means) for said in answers]


def _aggregates(repeats: list[Computed]) -> dict[str, float]:
    return {key: sum(computed.aggregates[key] for computed in repeats) / len(repeats) for key in repeats[0].aggregates}


def _summaries(scores: dict[str, list[float | None]], indices: Any) -> dict[str, float]:
    """Mean and 95 % interval of every metric over some rows, of those that were not skipped."""
    found = {}
    for name, rows in scores.items():
        asked = [rows[index] for index in indices if rows[index] is not None]
        if asked:
            low, high = interval(asked)
            mean = math.fsum(asked) / len(asked)
            found |= {f"{name}/mean": mean, f"{name}/ci_low": low, f"{name}/ci_high": high}
    return found


def _by_tag(prompt_set: PromptSet, scores: dict[str, list[float | None]]) -> dict[str, dict[str, float]]:
    places: dict[str, list[int]] = {}
    for index, row in enumerate(prompt_set.rows):
        for tag in row.tags:
            places.setdefault(tag, []).append(index)
    return {tag: {"rows": len(indices)} | _summaries(scores, indices) for tag, indices in sorted(places.items())}


def dataset(prompt_set: PromptSet) -> Any:
    """The prompt set as MLflow's dataset: one and the same for every variant."""
    import mlflow
    import pandas as pd

    rows = [(row.id, row.transcript, " | ".join(row.targets)) for row in prompt_set.rows]
    frame = pd.DataFrame(rows, columns=["id", "question", "target"])
    with suppress_output():
        return mlflow.data.from_pandas(frame, name=prompt_set.name, targets="target", digest=prompt_set.sha256[:16])


def log(card: Scorecard, data: Any, latencies: list[float | None], model_id: str) -> None:
    """Log the metrics and the table of rows to the active run and to the model."""
    import mlflow
    from mlflow.models import make_metric

    answers = [said or "" for said in card.answers]
    by_metric: dict[str, dict[str, float]] = {}
    for key, value in card.metrics.items():
        name, _, aggregate = key.partition("/")
        by_metric.setdefault(name, {})[aggregate] = value
    with suppress_output():
        result = mlflow.models.evaluate(
            model=lambda features: answers,
            data=data,
            extra_metrics=[
                make_metric(eval_fn=_prepared(card.scores.get(name), aggregates), greater_is_better=True, name=name)
                for name, aggregates in by_metric.items()
            ],
            evaluators="default",
            model_id=model_id,
        )
    if lost := sorted(set(card.metrics) - set(result.metrics)):
        raise StepError(f"MLflow did not log {', '.join(lost)}.")
    _log_table(card, data.df, latencies)


def _prepared(scores: list[float | None] | None, aggregates: dict[str, float]) -> Callable:
    """An MLflow metric function that hands over what is known already."""
    from mlflow.metrics import MetricValue

    def eval_fn(predictions, targets, metrics):
        # MLflow tries a metric on the first row alone before it asks for all.
        return MetricValue(scores=scores and scores[: len(predictions)], aggregate_results=aggregates)

    return eval_fn


def _log_table(card: Scorecard, questions: Any, latencies: list[float | None]) -> None:
    """The table of rows for MLflow's views, over the one that MLflow appends to whatever the run has already."""
    import mlflow

    scores = {f"{name}/score": rows for name, rows in card.scores.items()}
    # MLflow's table view compares the second column by the first, until it is told another.
    questions = questions.copy()
    questions.insert(1, "outputs", [said or "" for said in card.answers])
    table = questions.assign(
        **scores,
        latency_ms=latencies,
        error=[error or skipped or "" for error, skipped in zip(card.errors, card.skipped, strict=True)],
    )
    mlflow.log_text(table.to_json(orient="split", index=False), TABLE)

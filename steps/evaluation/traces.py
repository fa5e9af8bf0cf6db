"""Log one MLflow trace per row: the conversation, the answer, and the row's scores as assessments.

Enabled by `evaluate.traces=true`. Traces belong to the variant's run and LoggedModel. Those of an earlier evaluation of
the same rows are deleted once the new ones are written, so that MLflow's view shows one for each row.
"""

from collections.abc import Iterator
from time import time_ns
from typing import Any

from steps.errors import StepError
from steps.evaluation.prompt_set import PromptSet
from steps.evaluation.scorecard import Scorecard
from steps.store import connection, runs
from steps.store.variants import Variant

# Tag of a trace: the digest of the prompt set that its row belongs to.
SET = "phi3.prompt_set"


def log(variant: Variant, rows: PromptSet, card: Scorecard, latencies: list[float | None]) -> None:
    """Log a trace for every row that was asked; `latencies` are milliseconds by row.

    Raises:
        StepError: not all traces were written. The earlier ones are kept then.
    """
    import mlflow

    connection.write_traces_in_turn()
    earlier = _trace_ids(variant, rows)
    asked = list(timeline(card.skipped, latencies, time_ns()))
    for index, start_ns, end_ns in asked:
        _log_row(variant, rows, card, index, start_ns, end_ns)
    mlflow.flush_trace_async_logging()
    # MLflow only warns if it could not write a trace.
    missing = len(asked) - (len(_trace_ids(variant, rows)) - len(earlier))
    if missing:
        raise StepError(f"{missing} of {len(asked)} traces could not be written: evaluate it again.")
    if earlier:
        mlflow.MlflowClient().delete_traces(runs.experiment_id(), trace_ids=earlier)


def count(variant: Variant, rows: PromptSet) -> int:
    """Return how many rows already have a trace of this variant."""
    return len(_trace_ids(variant, rows))


def timeline(skipped: list[str | None], latencies: list[float | None], end_ns: int) -> Iterator[tuple[int, int, int]]:
    """Yield index, start and end (nanoseconds) of every row that was asked, one after another.

    The last one ends at `end_ns`: MLflow's view does not show traces that lie in the future.

    Args:
        skipped: by row, why it was not asked; None for a row that was.
        latencies: milliseconds by row; None counts as 0.
        end_ns: when the timeline ends, in nanoseconds since 1970.
    """
    start_ns = end_ns - int(sum(latency or 0 for latency in latencies) * 1e6)
    for index, (reason, latency) in enumerate(zip(skipped, latencies, strict=True)):
        if not reason:
            duration_ns = int((latency or 0) * 1e6)
            yield index, start_ns, start_ns + duration_ns
            start_ns += duration_ns


def _log_row(variant: Variant, rows: PromptSet, card: Scorecard, index: int, start_ns: int, end_ns: int) -> None:
    import mlflow
    from mlflow.entities import SpanType
    from mlflow.tracing.constant import TraceTagKey
    from mlflow.tracing.provider import with_active_span

    row, error = rows.rows[index], card.errors[index]
    span = mlflow.start_span_no_context(
        variant.name,
        span_type=SpanType.CHAT_MODEL,
        inputs={"messages": row.conversation},
        tags={
            SET: rows.sha256[:16],
            "variant": variant.name,
            "row": row.id,
            # By this MLflow pairs the rows of two runs, also rows that ask the same.
            TraceTagKey.EVAL_REQUEST_ID: f"{rows.sha256[:16]} {row.id}",
        },
        metadata={"mlflow.sourceRun": variant.run_id, "mlflow.modelId": variant.model_id},
        experiment_id=runs.experiment_id(),
        start_time_ns=start_ns,
    )
    # Assessments of the active trace are written together with it, not one by one afterwards.
    with with_active_span(span):
        mlflow.log_expectation(trace_id=span.trace_id, name="target", value=list(row.targets))
        for name, scores in card.scores.items():
            mlflow.log_feedback(trace_id=span.trace_id, name=name, value=scores[index])
    outputs: dict[str, Any] = {"choices": [{"message": {"role": "assistant", "content": card.answers[index]}}]}
    if error:
        outputs = {"error": error}
    span.end(outputs=outputs, status="ERROR" if error else "OK", end_time_ns=end_ns)


def _trace_ids(variant: Variant, rows: PromptSet) -> list[str]:
    """Return the ids of the traces of this variant for these rows."""
    import mlflow

    traces = mlflow.search_traces(
        locations=[runs.experiment_id()],
        run_id=variant.run_id,
        filter_string=f"tags.`{SET}` = '{rows.sha256[:16]}'",
        return_type="list",
        include_spans=False,
    )
    return [trace.info.trace_id for trace in traces]

"""One trace a row in MLflow's Traces view: the conversation, the answer, and the row's scores as assessments.

Written with `evaluate.traces=true` and tied to the variant's run and LoggedModel. The traces of an earlier evaluation
of the same rows are deleted, so that the view shows one for each row.
"""

from time import time_ns

from steps.errors import StepError
from steps.evaluation.prompt_set import PromptSet
from steps.evaluation.scorecard import Scorecard
from steps.store import connection, runs
from steps.store.variants import Variant

# A tag of each trace: which prompt set its row is of.
SET = "phi3.prompt_set"


def log(variant: Variant, rows: PromptSet, card: Scorecard, latencies: list[float | None]) -> None:
    """Log a trace for every row that was asked; `latencies` are milliseconds. Raises StepError where some got lost."""
    import mlflow

    connection.write_traces_in_turn()
    # Back from now: MLflow's view shows no trace of the future.
    earlier, started = _of(variant, rows), time_ns() - int(sum(latency or 0 for latency in latencies) * 1e6)
    for index, skipped in enumerate(card.skipped):
        if not skipped:
            taken = int((latencies[index] or 0) * 1e6)
            _log_row(variant, rows, card, index, started, taken)
            started += taken
    mlflow.flush_trace_async_logging()
    # MLflow only warns where it could not write a trace.
    written, asked = len(_of(variant, rows)) - len(earlier), sum(not skipped for skipped in card.skipped)
    if written != asked:
        raise StepError(f"{asked - written} of {asked} traces could not be written: evaluate it again.")
    if earlier:
        mlflow.MlflowClient().delete_traces(runs.experiment_id(), trace_ids=earlier)


def count(variant: Variant, rows: PromptSet) -> int:
    """How many of the rows have a trace of this variant already."""
    return len(_of(variant, rows))


def _log_row(variant: Variant, rows: PromptSet, card: Scorecard, index: int, started: int, taken: int) -> None:
    """One trace with its assessments, from `started` for `taken` nanoseconds."""
    import mlflow
    from mlflow.entities import SpanType
    from mlflow.tracing.provider import with_active_span

    row, error = rows.rows[index], card.errors[index]
    span = mlflow.start_span_no_context(
        variant.name,
        span_type=SpanType.CHAT_MODEL,
        inputs={"messages": row.conversation},
        tags={SET: rows.sha256[:16], "variant": variant.name, "row": row.id},
        metadata={"mlflow.sourceRun": variant.run_id, "mlflow.modelId": variant.model_id},
        experiment_id=runs.experiment_id(),
        start_time_ns=started,
    )
    # What is said of the active trace is written together with it, instead of one by one afterwards.
    with with_active_span(span):
        mlflow.log_expectation(trace_id=span.trace_id, name="target", value=list(row.targets))
        for name, scores in card.scores.items():
            mlflow.log_feedback(trace_id=span.trace_id, name=name, value=scores[index])
    answer = {"choices": [{"message": {"role": "assistant", "content": card.answers[index]}}]}
    span.end(
        outputs={"error": error} if error else answer, status="ERROR" if error else "OK", end_time_ns=started + taken
    )


def _of(variant: Variant, rows: PromptSet) -> list[str]:
    """The ids of the traces that the rows have of this variant."""
    import mlflow

    found = mlflow.search_traces(
        locations=[runs.experiment_id()],
        run_id=variant.run_id,
        filter_string=f"tags.`{SET}` = '{rows.sha256[:16]}'",
        return_type="list",
        include_spans=False,
    )
    return [trace.info.trace_id for trace in found]

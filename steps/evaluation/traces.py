"""Log one MLflow trace per row: the conversation, the answer, and the row's scores as assessments.

By default, for prompt sets of up to 300 rows; `evaluate.traces` decides for any. Traces belong to the variant's run and
LoggedModel, and are linked to the run of the evaluation. Those of an earlier evaluation of the same rows are deleted
once the new ones are written, so that MLflow's view shows one for each row.

They are written as whole traces: MLflow's exporter writes the spans of each first and the rest later, and takes four
times as long.
"""

import json
from base64 import b64encode
from collections.abc import Iterator
from time import time_ns
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from steps.checkpoints.cache import cache_directory
from steps.config.schema import Evaluation
from steps.evaluation.prompt_set import PromptSet
from steps.evaluation.scorecard import Scorecard
from steps.store import runs
from steps.store.variants import Variant

if TYPE_CHECKING:
    from filelock import FileLock
    from mlflow.entities import Span, TraceInfo

# Tag of a trace: the digest of the prompt set that its row belongs to.
SET = "phi3.prompt_set"
# The most rows that have traces if nobody asks for them: a trace takes about 10 ms.
DEFAULT_ROWS = 300
# The most that MLflow links to a run in one call.
LINKED_AT_ONCE = 100


def are_wanted(rows: PromptSet, settings: Evaluation) -> bool:
    """Return True if the rows of this prompt set have traces."""
    return len(rows.rows) <= DEFAULT_ROWS if settings.traces is None else settings.traces


def log(variant: Variant, rows: PromptSet, card: Scorecard, latencies: list[float | None]) -> None:
    """Log a trace for every row that was asked, and link it to the active run.

    Args:
        variant: The variant that answered.
        rows: What it was asked.
        card: Its answers and scores.
        latencies: Milliseconds by row; None where they are not known.
    """
    import mlflow
    from mlflow.tracing.client import TracingClient

    client, spans = TracingClient(), []
    with lock(variant, rows):
        earlier = trace_ids(variant, rows)
        for index, start_ns, end_ns in timeline(card.skipped, latencies, time_ns()):
            info, span = _trace(variant, rows, card, index, start_ns, end_ns)
            client.start_trace(info)
            spans.append(span)
        client.log_spans(runs.experiment_id(), spans)
        link([span.trace_id for span in spans])
        if earlier:
            mlflow.MlflowClient().delete_traces(runs.experiment_id(), trace_ids=earlier)


def lock(variant: Variant, rows: PromptSet) -> "FileLock":
    """Return the lock of a variant's traces for these rows.

    Another process of this machine would take traces that are not complete yet for earlier ones, and delete them.
    """
    from filelock import FileLock

    folder = cache_directory() / "traces"
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / f"{variant.model_id}-{rows.sha256[:16]}.lock")


def link(ids: list[str]) -> None:
    """Link traces to the active run."""
    import mlflow

    for start in range(0, len(ids), LINKED_AT_ONCE):
        mlflow.MlflowClient().link_traces_to_run(ids[start : start + LINKED_AT_ONCE], runs.active_run_id())


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


def trace_ids(variant: Variant, rows: PromptSet) -> list[str]:
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


def _trace(
    variant: Variant, rows: PromptSet, card: Scorecard, index: int, start_ns: int, end_ns: int
) -> tuple["TraceInfo", "Span"]:
    """Return the trace of a row, and its only span."""
    from mlflow.entities import Expectation, Feedback, TraceInfo, TraceLocation, TraceState
    from mlflow.tracing.constant import TRACE_REQUEST_RESPONSE_PREVIEW_MAX_LENGTH_OSS as PREVIEW
    from mlflow.tracing.constant import TRACE_SCHEMA_VERSION, TRACE_SCHEMA_VERSION_KEY, TraceMetadataKey, TraceTagKey

    row, error, answer = rows.rows[index], card.errors[index], card.answers[index]
    number = uuid4().hex
    info = TraceInfo(
        trace_id=f"tr-{number}",
        trace_location=TraceLocation.from_experiment_id(runs.experiment_id()),
        request_time=start_ns // 10**6,
        execution_duration=(end_ns - start_ns) // 10**6,
        state=TraceState.ERROR if error else TraceState.OK,
        request_preview=row.conversation[-1]["content"][:PREVIEW],
        response_preview=(error or answer or "")[:PREVIEW],
        trace_metadata={
            TRACE_SCHEMA_VERSION_KEY: str(TRACE_SCHEMA_VERSION),
            TraceMetadataKey.SOURCE_RUN: variant.run_id,
            TraceMetadataKey.MODEL_ID: variant.model_id,
        },
        tags={
            TraceTagKey.TRACE_NAME: variant.name,
            SET: rows.sha256[:16],
            "variant": variant.name,
            "row": row.id,
            # By this MLflow pairs the rows of two runs, also rows that ask the same.
            TraceTagKey.EVAL_REQUEST_ID: f"{rows.sha256[:16]} {row.id}",
        },
        assessments=[
            Expectation(name="target", value=list(row.targets)),
            *(Feedback(name=name, value=scores[index]) for name, scores in card.scores.items()),
        ],
    )
    outputs: dict[str, Any] = {"choices": [{"message": {"role": "assistant", "content": answer}}]}
    inputs = {"messages": row.conversation}
    return info, _span(number, variant.name, inputs, {"error": error} if error else outputs, (start_ns, end_ns))


def _span(number: str, name: str, inputs: dict[str, Any], outputs: dict[str, Any], times_ns: tuple[int, int]) -> "Span":
    """Return the root span of the trace with this number, 32 hexadecimal digits."""
    from mlflow.entities import Span, SpanType
    from mlflow.tracing.constant import SpanAttributeKey

    attributes = {
        SpanAttributeKey.REQUEST_ID: f"tr-{number}",
        SpanAttributeKey.SPAN_TYPE: SpanType.CHAT_MODEL,
        SpanAttributeKey.INPUTS: inputs,
        SpanAttributeKey.OUTPUTS: outputs,
    }
    return Span.from_dict(
        {
            "trace_id": b64encode(bytes.fromhex(number)).decode(),
            "span_id": b64encode(bytes.fromhex(number[:16])).decode(),
            "parent_span_id": "",
            "name": name,
            "start_time_unix_nano": times_ns[0],
            "end_time_unix_nano": times_ns[1],
            "status": {"code": "STATUS_CODE_ERROR" if "error" in outputs else "STATUS_CODE_OK"},
            "attributes": {key: json.dumps(value, ensure_ascii=False) for key, value in attributes.items()},
        }
    )

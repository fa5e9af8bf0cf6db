"""Which reports are finished: tags that are written last, so that an interrupted report is made again."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from steps.config.schema import Evaluation
from steps.digests import digest
from steps.evaluation import scorecard, traces
from steps.evaluation.prompt_set import PromptSet
from steps.evaluation.ruler import Ruler
from steps.store import names, runs
from steps.store.variants import Variant

if TYPE_CHECKING:
    from mlflow import MlflowClient


def invalidate(client: MlflowClient, variant: Variant, rows: PromptSet, keep_speed: bool = False) -> None:
    """Invalidate the previous scorecard and report before writing new ones; speed does not depend on the scores."""
    speed = {"speed": True} if keep_speed and _mark(variant, rows).get("speed") else {}
    marks = {names.REPORT: speed, names.SCORECARD: {}}
    tags = {names.of_prompt_set(tag, rows.sha256): json.dumps(mark) for tag, mark in marks.items()}
    client.set_logged_model_tags(variant.model_id, tags)


def mark_finished(
    client: MlflowClient, variant: Variant, rows: PromptSet, timed: bool, traced: bool, label: str
) -> None:
    """Mark a variant's report as finished. The evaluation's run tells several reports apart."""
    mark = {"speed": timed, "traces": traced, "evaluation": runs.active_run_id(), "label": label}
    client.set_logged_model_tags(variant.model_id, {names.of_prompt_set(names.REPORT, rows.sha256): json.dumps(mark)})


def is_finished(variant: Variant, rows: PromptSet) -> bool:
    """Return True if a variant's report is finished."""
    return "evaluation" in _mark(variant, rows)


def is_timed(variant: Variant, rows: PromptSet) -> bool:
    """Return True if a variant's speed is known."""
    return bool(_mark(variant, rows).get("speed"))


def is_unfinished(variant: Variant, rows: PromptSet, settings: Evaluation) -> bool:
    """Return True if a scored variant has no page yet, or lacks its speed or traces, as far as they are asked for.

    The report of an earlier version has no label: its run has no metrics by the name of the prompt set.
    """
    if "label" not in _mark(variant, rows) or (settings.speed and not is_timed(variant, rows)):
        return True
    if not traces.are_wanted(rows, settings):
        return False
    # They are counted only if they are asked for by name: it takes a moment for each variant.
    if not settings.traces:
        return not _mark(variant, rows).get("traces")
    metrics = scorecard.metrics_of(variant, rows.sha256) or {}
    asked = len(rows.rows) - metrics.get(names.SKIPPED.key, 0)
    return len(traces.trace_ids(variant, rows)) != asked


def mark_compared(variants: list[Variant], rows: PromptSet, ruler: Ruler) -> None:
    """Mark the active run as a finished comparison of the variants as they are now."""
    import mlflow

    mlflow.set_tag(names.of_prompt_set(names.COMPARED, rows.sha256), _digest(variants, rows, ruler))


def is_compared(client: MlflowClient, variants: list[Variant], rows: PromptSet, ruler: Ruler) -> bool:
    """Return True if some evaluation's run compares the variants as they are now, by the same metrics."""
    tag = names.of_prompt_set(names.COMPARED, rows.sha256)
    condition = f"tags.`{tag}` = '{_digest(variants, rows, ruler)}'"
    return bool(client.search_runs([runs.experiment_id()], condition, max_results=1))


def scored(variants: list[Variant], rows: PromptSet) -> list[Variant]:
    """Return the variants that are scored on these rows."""
    return [variant for variant in variants if scorecard.metrics_of(variant, rows.sha256) is not None]


def _digest(variants: list[Variant], rows: PromptSet, ruler: Ruler) -> str:
    """Return a digest of the scorecards and reports of all variants, and of the metrics that compare them."""
    tags = [names.of_prompt_set(tag, rows.sha256) for tag in (names.SCORECARD, names.REPORT)]
    marks = [[variant.model_id, *map(variant.tags.get, tags)] for variant in scored(variants, rows)]
    return digest([marks, ruler.first, ruler.metrics])


def _mark(variant: Variant, rows: PromptSet) -> dict[str, Any]:
    mark: dict[str, Any] = json.loads(variant.tags.get(names.of_prompt_set(names.REPORT, rows.sha256), "{}"))
    return mark

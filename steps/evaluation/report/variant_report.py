"""The report on one variant: its speed, its traces, and a page `scorecards/<first 16 of the sha256>.md` on its run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from steps.config.schema import Evaluation
from steps.evaluation import scorecard, speed, traces
from steps.evaluation.prompt_set import PromptSet
from steps.evaluation.report import by_set, state
from steps.evaluation.scorecard import Scorecard
from steps.evaluation.speed import Bench
from steps.store import runs
from steps.store.names import COSTS, NOTE
from steps.store.variants import Variant, read_variant

if TYPE_CHECKING:
    from mlflow import MlflowClient


def finish(client: MlflowClient, variant: Variant, rows: PromptSet, settings: Evaluation, bench: Bench) -> None:
    """Add what is asked for to a variant's scorecard: its speed, traces, and the page."""
    import mlflow

    # Another process may have timed it since.
    variant = read_variant(client, variant.model_id)
    timed = state.is_timed(variant, rows)
    # Traces show scores too.
    traced = traces.are_wanted(rows, settings) or bool(
        not state.is_finished(variant, rows) and traces.trace_ids(variant, rows)
    )
    label = by_set.label(client, rows)
    with runs.reopen(variant.run_id):
        if settings.speed and not timed:
            speed.log(variant, rows, bench.measure(variant, rows, settings), bench.machine)
        card = scorecard.read(variant, rows.sha256)
        metrics = scorecard.metrics_of(read_variant(client, variant.model_id), rows.sha256) or {}
        file = Path(scorecard.file(rows.sha256)).with_suffix(".md")
        text = page(variant, card, metrics)
        mlflow.log_text(text, str(file))
        mlflow.log_text(text, f"{label}/scorecard.md")
        mlflow.set_tag(NOTE, text)
        by_set.log(client, label, rows, card, metrics)
    if traced:
        traces.log(variant, rows, card, scorecard.read_latencies(variant, rows.sha256, len(card.ids)))
    state.mark_finished(client, variant, rows, timed or settings.speed, traced, label)


def page(variant: Variant, card: Scorecard, metrics: dict[str, float]) -> str:
    """Return a scorecard as Markdown."""
    asked = [skipped is None for skipped in card.skipped]
    costs = [[cost.key, f"{metrics[cost.key]:.5g}"] for cost in COSTS if cost.key in metrics]
    lines = [
        f"# {variant.name}",
        f"Scored on {card.prompt_set['name']}: {sum(asked)} of {len(asked)} rows asked, "
        f"{sum(error is not None for error in card.errors)} with an error. "
        f"Model `{variant.uri}`, prompt set `{card.prompt_set['sha256'][:16]}`.",
        "## Quality (mean and 95 % interval)",
        *_scores_table(card),
        "## Cost",
        *markdown_table(["", ""], costs),
    ]
    return "\n\n".join(lines).replace("|\n\n|", "|\n|") + "\n"


def markdown_table(head: list[str], body: list[list[str]]) -> list[str]:
    """Return the lines of a table in Markdown."""
    rows = [head, ["---"] * len(head), *body]
    return [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]


def _scores_table(card: Scorecard) -> list[str]:
    """Return a table of the means over all rows, then over the rows of each tag."""
    metrics = [key.removesuffix("/mean") for key in card.metrics if key.endswith("/mean")]
    parts = [("all", {"rows": len(card.ids)} | card.metrics), *card.by_tag.items()]
    body = [
        [part, f"{numbers['rows']:.0f}", *(_with_interval(numbers, name) for name in metrics)]
        for part, numbers in parts
    ]
    return markdown_table(["rows tagged", "rows", *metrics], body)


def _with_interval(numbers: dict[str, float], name: str) -> str:
    if f"{name}/mean" not in numbers:
        return "-"
    if f"{name}/ci_low" not in numbers:  # a metric without scores for rows
        return f"{numbers[f'{name}/mean']:.3f}"
    return f"{numbers[f'{name}/mean']:.3f} ({numbers[f'{name}/ci_low']:.3f} to {numbers[f'{name}/ci_high']:.3f})"

"""The leaderboard that main and evaluate print and log: what every variant scored, which is champion, and why."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from steps.evaluation import scorecard
from steps.evaluation.prompt_set import PromptSet
from steps.output import echo
from steps.store.names import (
    BYTES,
    CONTRACT_PASSED,
    CONTRACT_TOTAL,
    PEAK_MEMORY,
    TOKENS_PER_SECOND,
    Metric,
    metric_key,
)
from steps.store.variants import Variant

# The width of the table if the output is not a terminal.
COLUMNS = 80
# With fewer rows than this, a sentence says so.
FEW_ROWS = 50


@dataclass(frozen=True)
class Standing:
    """The order of the variants after a promotion or an evaluation.

    Attributes:
        ranked: The model ids of the candidates, the best first.
        champion_model_id: The champion's model, None if there is no champion.
        champion_version: The champion's version, None if none is registered.
        verdicts: By model id, how a variant compares, in a word.
        metric: The metric to sort by.
        less_is_better: Whether a lower value is better.
        reason: Why the champion is champion, in one sentence without its full stop.
    """

    ranked: Sequence[str]
    champion_model_id: str | None
    champion_version: str | None
    verdicts: Mapping[str, str] = field(default_factory=dict)
    metric: str = "answer_match"
    less_is_better: bool = False
    reason: str = ""


def rows_of(variants: list[Variant], rows: PromptSet, metrics: list[str], standing: Standing) -> list[dict[str, Any]]:
    """Return name, model id, verdict and metrics of every variant, the best score first."""
    costs = (CONTRACT_PASSED, CONTRACT_TOTAL, BYTES, TOKENS_PER_SECOND, PEAK_MEMORY)
    keys = dict.fromkeys([*map(metric_key, [standing.metric, *metrics]), *(metric.key for metric in costs)])
    table = []
    for variant in variants:
        values = scorecard.metrics_of(variant, rows.sha256) or {}
        row = {"variant": variant.name, "model_id": variant.model_id}
        row |= {"verdict": standing.verdicts.get(variant.model_id, "-")}
        table.append(row | {key: values.get(key) for key in keys})
    places = {model_id: index for index, model_id in enumerate(standing.ranked)}
    sign = 1 if standing.less_is_better else -1

    def order(row: dict[str, Any]) -> tuple[float, int]:
        score = row[metric_key(standing.metric)]
        return (math.inf if score is None else sign * score, places.get(row["model_id"], len(places)))

    return sorted(table, key=order)


def show(variants: list[Variant], rows: PromptSet, metrics: list[str], standing: Standing) -> None:
    """Print the leaderboard in 80 columns; the champion has a star, and a sentence says why."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"Leaderboard on {rows.name}, {len(rows.rows)} rows, best first",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("")
    table.add_column("variant", overflow="fold")
    for heading in (standing.metric, "verdict", "contract", "MB", "tok/s"):
        table.add_column(heading, justify="left" if heading == "verdict" else "right", no_wrap=True)
    for row in rows_of(variants, rows, metrics, standing):
        table.add_row(*_cells(row, standing))
    Console(width=None if Console().is_terminal else COLUMNS).print(table)
    for sentence in sentences(variants, rows, standing):
        echo(sentence)


def sentences(variants: list[Variant], rows: PromptSet, standing: Standing) -> list[str]:
    """Return what the table does not say: why the star is where it is, and whether the rows are few."""
    lines = []
    names = [variant.name for variant in variants if variant.model_id == standing.champion_model_id]
    if names and standing.reason:
        lines.append(f"★ {names[0]}: {standing.reason}.")
    undecided = sum(word == "undecided" for word in standing.verdicts.values())
    if undecided and len(rows.rows) < FEW_ROWS:
        lines.append(f"{len(rows.rows)} rows separate little: {undecided} of {len(variants)} variants are undecided.")
    return lines


def markdown(variants: list[Variant], rows: PromptSet, metrics: list[str], standing: Standing) -> str:
    """Return the leaderboard as Markdown, for the description of a run."""
    heads = ["", "variant", standing.metric, "verdict", "contract", "MB", "tokens/s"]
    lines = [f"**{rows.name}**, {len(rows.rows)} rows, best first", ""]
    lines += [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    table = rows_of(variants, rows, metrics, standing)
    lines += [f"| {' | '.join(_cells(row, standing))} |" for row in table]
    return "\n".join([*lines, "", *sentences(variants, rows, standing)]) + "\n"


def as_dict(variants: list[Variant], rows: PromptSet, metrics: list[str], standing: Standing) -> dict[str, Any]:
    """Return the full leaderboard for the main job's run."""
    return {
        "champion_version": standing.champion_version,
        "leaderboard": rows_of(variants, rows, metrics, standing),
    }


def _cells(row: dict[str, Any], standing: Standing) -> list[str]:
    return [
        "★" if row["model_id"] == standing.champion_model_id else "",
        row["variant"],
        Metric(metric_key(standing.metric), standing.metric, digits=3).show(row[metric_key(standing.metric)]),
        row["verdict"],
        _contract(row),
        BYTES.show(row[BYTES.key]),
        TOKENS_PER_SECOND.show(row[TOKENS_PER_SECOND.key]),
    ]


def _contract(row: dict[str, Any]) -> str:
    passed, total = row[CONTRACT_PASSED.key], row[CONTRACT_TOTAL.key]
    return "-" if total is None else f"{passed:.0f}/{total:.0f}"

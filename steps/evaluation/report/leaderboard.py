"""The leaderboard that the main job prints and logs: what every variant scored, and which is champion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from steps.evaluation import scorecard
from steps.evaluation.prompt_set import PromptSet
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
COLUMNS = 120


@dataclass(frozen=True)
class Standing:
    """Who is where after a promotion.

    Attributes:
        ranked: The model ids of the candidates, the best first.
        champion_model_id: The champion's model, None if there is no champion.
        champion_version: The champion's version, None if none is registered.
    """

    ranked: Sequence[str]
    champion_model_id: str | None
    champion_version: str | None


def rows_of(variants: list[Variant], rows: PromptSet, metrics: list[str], standing: Standing) -> list[dict[str, Any]]:
    """Return name, model id and metrics of every variant; the ranked ones first, in their order."""
    table = []
    for variant in variants:
        values = scorecard.metrics_of(variant, rows.sha256) or {}
        keys = [metric_key(name) for name in metrics]
        keys += [metric.key for metric in (CONTRACT_PASSED, CONTRACT_TOTAL, BYTES, TOKENS_PER_SECOND, PEAK_MEMORY)]
        table.append({"variant": variant.name, "model_id": variant.model_id} | {key: values.get(key) for key in keys})
    place = {model_id: index for index, model_id in enumerate(standing.ranked)}
    return sorted(table, key=lambda row: place.get(row["model_id"], len(place)))


def show(variants: list[Variant], rows: PromptSet, metrics: list[str], standing: Standing) -> None:
    """Print the leaderboard; the champion has a star."""
    from rich.console import Console
    from rich.table import Table

    columns = [Metric(metric_key(name), name, digits=3) for name in metrics]
    costs = [BYTES, TOKENS_PER_SECOND, PEAK_MEMORY]
    table = Table(title=f"Leaderboard on {rows.name}, best first")
    table.add_column("")
    table.add_column("variant", no_wrap=True)
    for heading in [*(column.label for column in columns), CONTRACT_PASSED.label, *(cost.label for cost in costs)]:
        table.add_column(heading, justify="right")
    for row in rows_of(variants, rows, metrics, standing):
        table.add_row(
            "★" if row["model_id"] == standing.champion_model_id else "",
            row["variant"],
            *(column.show(row[column.key]) for column in columns),
            _contract(row),
            *(cost.show(row[cost.key]) for cost in costs),
        )
    Console(width=None if Console().is_terminal else COLUMNS).print(table)


def as_dict(variants: list[Variant], rows: PromptSet, metrics: list[str], standing: Standing) -> dict[str, Any]:
    """Return the leaderboard for the main job's run."""
    return {
        "champion_version": standing.champion_version,
        "leaderboard": rows_of(variants, rows, metrics, standing),
    }


def _contract(row: dict[str, Any]) -> str:
    passed, total = row[CONTRACT_PASSED.key], row[CONTRACT_TOTAL.key]
    return "-" if total is None else f"{passed:.0f}/{total:.0f}"

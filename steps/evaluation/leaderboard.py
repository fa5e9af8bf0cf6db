"""The leaderboard: what every variant scored, who is champion, and how to go on."""

import json
from typing import Any
from urllib.parse import quote

from steps.config.schema import MainConfig
from steps.evaluation import prompt_set, scorecard, scores
from steps.output import echo
from steps.promotion.rank import metric_key
from steps.store.address import ui_address, ui_arguments
from steps.store.variants import Variant


def rows(variants: list[Variant], ranked: list[str], config: MainConfig) -> list[dict[str, Any]]:
    """Name, metrics, size and time of every variant; the ranked ones first, in their order."""
    questions = prompt_set.load(config.prompt_set)
    found = []
    for variant in variants:
        metrics = scorecard.scores(variant, questions.sha256) or {}
        means = {name: metrics.get(metric_key(name)) for name in scores.names(config)}
        found.append(
            {"variant": variant.name, "model_id": variant.model_id}
            | means
            | {"contract": _contract(metrics), "MB": metrics.get("size/bytes", 0) / 1e6}
            | {"tokens/s": metrics.get("speed/tokens_per_second"), "peak MB": metrics.get("memory/peak_mb")}
        )
    place = {model_id: index for index, model_id in enumerate(ranked)}
    return sorted(found, key=lambda row: place.get(row["model_id"], len(place)))


def show(variants: list[Variant], outcome: Any, config: MainConfig) -> None:
    """Print the leaderboard; the champion has a star."""
    from rich.console import Console
    from rich.table import Table

    ranked = [candidate.model_id for candidate in outcome.ranking.ranked]
    table = Table(title=f"Leaderboard on {prompt_set.name_of(config.prompt_set)}, best first")
    table.add_column("")
    table.add_column("variant", no_wrap=True)
    for name in [*scores.names(config), "contract", "MB", "tokens/s", "peak MB"]:
        table.add_column(name, justify="right")
    champion = outcome.champion_model_id
    for row in rows(variants, ranked, config):
        numbers = [_number(row[name], 3) for name in scores.names(config)]
        star = "★" if row["model_id"] == champion else ""
        costs = [_number(row["MB"], 1), _number(row["tokens/s"], 0), _number(row["peak MB"], 0)]
        table.add_row(star, row["variant"], *numbers, row["contract"], *costs)
    Console(width=None if Console().is_terminal else 120).print(table)


def as_dict(variants: list[Variant], outcome: Any, config: MainConfig) -> dict[str, Any]:
    """The leaderboard for the main job's run."""
    ranked = [candidate.model_id for candidate in outcome.ranking.ranked]
    return {"champion_version": outcome.version, "leaderboard": rows(variants, ranked, config)}


def say_next(variants: list[Variant], config: MainConfig, experiment: str) -> None:
    """The two commands to go on with; a dry run has made no champion to serve."""
    runs = quote(json.dumps([variant.run_id for variant in variants]))
    experiments = quote(json.dumps([experiment]))
    echo("\nCompare the runs:")
    address = ui_address()
    if address.startswith("http://127.0.0.1:5000"):
        echo(f"    mlflow ui --port 5000{ui_arguments()}")
    echo(f"    {address}/#/compare-runs?runs={runs}&experiments={experiments}")
    if not config.dry_run:
        echo("Serve the champion:")
        model = f"models:/{config.registered_model}@champion"
        echo(f"    mlflow models serve -m {model} --env-manager uv --port 5001")


def _contract(metrics: dict[str, float]) -> str:
    if "contract/total" not in metrics:
        return "-"
    return f"{metrics['contract/passed']:.0f}/{metrics['contract/total']:.0f}"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"

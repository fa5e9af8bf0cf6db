"""What people look at after an evaluation, written to MLflow.

On a variant's run a page about its scorecard (`scorecards/<first 16 of the prompt set's sha256>.md`), beside the
scorecard itself. On the evaluation's run every variant that is scored on these rows: the tables `leaderboard.json` and
`pairwise.json`, and the pictures `quality_against_speed.png` and `scores_by_tag.png`.
"""

from collections import Counter
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from steps import tracking
from steps.evaluation import plots, scorecard, scores, speed, traces
from steps.evaluation.plots import Point
from steps.evaluation.prompt_set import PromptSet
from steps.evaluation.scorecard import Scorecard
from steps.evaluation.speed import Bench
from steps.evaluation.statistics import difference
from steps.quiet import quiet
from steps.schema import EvaluateConfig
from steps.tracking import Variant

# The columns of the leaderboard beside the scores.
COSTS = {
    "contract_passed": "contract/passed",
    "contract_total": "contract/total",
    "tokens_per_second": "speed/tokens_per_second",
    "batch_tokens_per_second": "speed/batch_tokens_per_second",
    "time_to_first_token_ms": "speed/time_to_first_token_ms",
    "latency_p50_ms": "speed/latency_p50_ms",
    "latency_p95_ms": "speed/latency_p95_ms",
    "load_seconds": "speed/load_seconds",
    "bandwidth_fraction": "speed/bandwidth_fraction",
    "peak_memory_mb": "memory/peak_mb",
    "bytes": "size/bytes",
    "errors": "answers/errors",
    "skipped": "answers/skipped",
}


@dataclass(frozen=True)
class Entry:
    """A variant that is scored: its scorecard, and its metrics with those that are no scores."""

    name: str
    variant: Variant
    card: Scorecard
    metrics: dict[str, float]


def unfinished(client: Any, rows: PromptSet, config: EvaluateConfig, chosen: list[Variant]) -> list[Variant]:
    """Variants that need no scores (they are not among `chosen`), but their speed or traces."""
    others = {variant.model_id for variant in chosen}
    return [
        variant
        for variant in tracking.variants(client, tracking.experiment_id())
        if variant.model_id not in others and _is_unfinished(variant, rows, config)
    ]


def finish(client: Any, variant: Variant, rows: PromptSet, config: EvaluateConfig, bench: Bench) -> None:
    """Add to a variant's scorecard what is asked for: its speed, traces, and a page that says it all."""
    import mlflow

    with tracking.reopened(variant.run_id):
        if config.evaluate.speed:
            speed.log(variant, bench.measure(variant, rows, config.evaluate), bench.machine)
        entry = _entry(tracking.as_variant(client.get_logged_model(variant.model_id)), rows)
        mlflow.log_text(page(entry), str(Path(scorecard.file(rows.sha256)).with_suffix(".md")))
    if config.evaluate.traces:
        traces.log(variant, rows, entry.card, scorecard.read_latencies(variant, rows.sha256))


def compare(client: Any, rows: PromptSet, config: EvaluateConfig) -> None:
    """Log tables and pictures of all variants that are scored on these rows to the active run."""
    import mlflow

    variants = tracking.variants(client, tracking.experiment_id())
    scored = [_entry(variant, rows) for variant in variants if scorecard.scores(variant, rows.sha256) is not None]
    first = config.evaluate.metrics[0]
    entries = sorted(scored, key=lambda entry: entry.metrics.get(f"{first}/mean", float("-inf")), reverse=True)
    if not entries:
        return
    entries = _told_apart(entries)
    pairs = pairwise(entries, first)
    with quiet():
        mlflow.log_table(leaderboard(entries, scores.names(config)), "leaderboard.json")
        if pairs:
            mlflow.log_table({key: [pair[key] for pair in pairs] for key in pairs[0]}, "pairwise.json")
    _log_pictures(entries, first, rows.name)


def leaderboard(entries: list[Entry], metrics: list[str]) -> dict[str, list[Any]]:
    """Columns of a table, a row an entry: scores with their intervals, speed, memory and size; None where unknown."""
    table: dict[str, list[Any]] = {"variant": [entry.name for entry in entries]}
    for name in metrics:
        for aggregate in ("mean", "ci_low", "ci_high"):
            table[f"{name}/{aggregate}"] = [entry.metrics.get(f"{name}/{aggregate}") for entry in entries]
    for column, key in COSTS.items():
        table[column] = [entry.metrics.get(key) for entry in entries]
    table["model_id"] = [entry.variant.model_id for entry in entries]
    return table


def pairwise(entries: list[Entry], metric: str) -> list[dict[str, Any]]:
    """Of every two entries, how far the first is ahead in a metric: a paired bootstrap over the rows of both."""
    found = []
    for ours, theirs in combinations(entries, 2):
        both = [
            pair
            for pair in zip(ours.card.scores.get(metric, []), theirs.card.scores.get(metric, []), strict=True)
            if None not in pair
        ]
        if not both:
            continue
        apart = difference(*zip(*both, strict=True))
        verdict = "better" if apart.better else "worse" if apart.worse else "tied"
        found.append(
            {"variant": ours.name, "is": verdict, "than": theirs.name, "metric": metric}
            | {"difference": apart.mean, "ci_low": apart.low, "ci_high": apart.high, "rows": len(both)}
        )
    return found


def page(entry: Entry) -> str:
    """A scorecard for people, in Markdown."""
    card, variant = entry.card, entry.variant
    asked = [skipped is None for skipped in card.skipped]
    lines = [
        f"# {entry.name}",
        f"Scored on {card.prompt_set['name']}: {sum(asked)} of {len(asked)} rows asked, "
        f"{sum(error is not None for error in card.errors)} with an error. "
        f"Model `models:/{variant.model_id}`, prompt set `{card.prompt_set['sha256'][:16]}`.",
        "## Quality (mean and 95 % interval)",
        *_scores_table(card),
        "## Cost",
        *_table(
            ["", ""],
            [
                [name.replace("_", " "), f"{entry.metrics[key]:.5g}"]
                for name, key in COSTS.items()
                if key in entry.metrics
            ],
        ),
    ]
    return "\n\n".join(lines).replace("|\n\n|", "|\n|") + "\n"


def _scores_table(card: Scorecard) -> list[str]:
    """Means of every metric over all rows, and below over the rows of each tag."""
    names = list(card.scores)
    everything = {"rows": len(card.ids)} | card.metrics
    parts = [("all", everything), *card.by_tag.items()]
    body = [
        [part, f"{numbers['rows']:.0f}", *(_with_interval(numbers, name) for name in names)] for part, numbers in parts
    ]
    return _table(["rows tagged", "rows", *names], body)


def _with_interval(numbers: dict[str, float], name: str) -> str:
    if f"{name}/mean" not in numbers:
        return "-"
    return f"{numbers[f'{name}/mean']:.3f} ({numbers[f'{name}/ci_low']:.3f} to {numbers[f'{name}/ci_high']:.3f})"


def _table(head: list[str], body: list[list[str]]) -> list[str]:
    rows = [head, ["---"] * len(head), *body]
    return [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]


def _log_pictures(entries: list[Entry], metric: str, prompt_set: str) -> None:
    import mlflow

    points = [_point(entry, metric) for entry in entries if _has_point(entry, metric)]
    by_variant = {entry.name: entry.card.by_tag for entry in entries if entry.card.by_tag}
    with quiet():  # matplotlib tells that it builds its list of fonts
        if points:
            title = f"Quality against speed on {prompt_set}"
            mlflow.log_figure(plots.quality_against_speed(points, metric, title), "quality_against_speed.png")
        if by_variant:
            title = f"{metric} on {prompt_set}, by tag (rows)"
            mlflow.log_figure(plots.scores_by_tag(by_variant, metric, title), "scores_by_tag.png")


def _has_point(entry: Entry, metric: str) -> bool:
    return {f"{metric}/mean", f"{metric}/ci_low", speed.MAIN} <= set(entry.metrics)


def _point(entry: Entry, metric: str) -> Point:
    numbers = [entry.metrics[f"{metric}/{part}"] for part in ("mean", "ci_low", "ci_high")]
    numbers += [entry.metrics[f"{speed.MAIN}{part}"] for part in ("", "_p25", "_p75")]
    return Point(entry.name, entry.variant.params["mode"], *numbers, size=entry.metrics["size/bytes"])


def _entry(variant: Variant, rows: PromptSet) -> Entry:
    metrics = scorecard.scores(variant, rows.sha256) or {}
    return Entry(variant.name, variant, scorecard.read(variant, rows.sha256), metrics)


def _told_apart(entries: list[Entry]) -> list[Entry]:
    """Entries of which no two have the same name: a part of the model's id stands behind such."""
    names = Counter(entry.name for entry in entries)
    return [
        replace(entry, name=f"{entry.name} {entry.variant.model_id[2:8]}") if names[entry.name] > 1 else entry
        for entry in entries
    ]


def _is_unfinished(variant: Variant, rows: PromptSet, config: EvaluateConfig) -> bool:
    known = scorecard.scores(variant, rows.sha256)
    if known is None:
        return False
    untimed = config.evaluate.speed and speed.MAIN not in known
    asked = len(rows.rows) - known.get("answers/skipped", 0)
    return untimed or (config.evaluate.traces and traces.count(variant, rows) < asked)

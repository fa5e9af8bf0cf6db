"""What people look at after an evaluation, written to MLflow.

On a variant's run a page about its scorecard (`scorecards/<first 16 of the prompt set's sha256>.md`), beside the
scorecard itself. On the evaluation's run every variant that is scored on these rows: the tables `leaderboard.json` and
`pairwise.json`, and the pictures `quality_against_speed.png` and `scores_by_tag.png`.

A tag of the LoggedModel and one of the evaluation's run are written last and say that all of it is there: what was
interrupted before is done again by the next evaluation.
"""

import json
from collections import Counter
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from steps.config.schema import EvaluateConfig
from steps.digests import digest
from steps.errors import StepError
from steps.evaluation import plots, scorecard, scores, speed, traces
from steps.evaluation.plots import Point
from steps.evaluation.prompt_set import PromptSet
from steps.evaluation.scorecard import Scorecard
from steps.evaluation.speed import Bench
from steps.evaluation.statistics import difference
from steps.output import suppress_output
from steps.store import runs
from steps.store.variants import Variant, as_variant, find_variants

# A tag of a LoggedModel for each prompt set: what is whole beside the scorecard, and since which evaluation.
FINISHED = "phi3.report"
# A tag of an evaluation's run for each prompt set: the scorecards and reports that it compares.
COMPARED = "phi3.compared"
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
    "truncated": "answers/truncated",
    "skipped": "answers/skipped",
}


@dataclass(frozen=True)
class Entry:
    """A variant that is scored: its scorecard, and its metrics with those that are no scores."""

    name: str
    variant: Variant
    card: Scorecard
    metrics: dict[str, float]


def begin(client: Any, variant: Variant, rows: PromptSet) -> None:
    """Say that the scorecard is about to change: neither the one before nor its report is whole any longer."""
    client.set_logged_model_tags(variant.model_id, {_tag(FINISHED, rows): "{}", scorecard.tag(rows.sha256): "{}"})


def is_unfinished(variant: Variant, rows: PromptSet, config: EvaluateConfig) -> bool:
    """Whether a variant that is scored has no page yet, or lacks its speed or traces."""
    if not _finished(variant, rows) or is_untimed(variant, rows, config):
        return True
    known = scorecard.scores(variant, rows.sha256) or {}
    asked = len(rows.rows) - known.get("answers/skipped", 0)
    return config.evaluate.traces and traces.count(variant, rows) != asked


def is_untimed(variant: Variant, rows: PromptSet, config: EvaluateConfig) -> bool:
    """Whether a variant's speed is asked for and not known."""
    return config.evaluate.speed and not _finished(variant, rows).get("speed")


def is_compared(client: Any, variants: list[Variant], rows: PromptSet, config: EvaluateConfig) -> bool:
    """Whether the run of an evaluation compares the variants as they are now, by the same metrics."""
    condition = f"tags.`{_tag(COMPARED, rows)}` = '{_state(variants, rows, config)}'"
    return bool(client.search_runs([runs.experiment_id()], condition, max_results=1))


def finish(client: Any, variant: Variant, rows: PromptSet, config: EvaluateConfig, bench: Bench) -> None:
    """Add to a variant's scorecard what is asked for: its speed, traces, and a page that says it all."""
    import mlflow

    # Another process may have timed it since.
    variant = as_variant(client.get_logged_model(variant.model_id))
    timed = config.evaluate.speed or _finished(variant, rows).get("speed", False)
    with runs.reopen(variant.run_id):
        if is_untimed(variant, rows, config):
            speed.log(variant, rows, bench.measure(variant, rows, config.evaluate), bench.machine)
        entry = _entry(as_variant(client.get_logged_model(variant.model_id)), rows)
        mlflow.log_text(page(entry), str(Path(scorecard.file(rows.sha256)).with_suffix(".md")))
    if config.evaluate.traces:
        traces.log(variant, rows, entry.card, scorecard.read_latencies(variant, rows.sha256))
    _mark(client, variant, rows, timed)


def _mark(client: Any, variant: Variant, rows: PromptSet, timed: bool) -> None:
    """Say that a variant's report is whole, and with the evaluation which of several it is."""
    import mlflow

    mark = {"speed": timed, "evaluation": mlflow.active_run().info.run_id}
    client.set_logged_model_tags(variant.model_id, {_tag(FINISHED, rows): json.dumps(mark)})


def compare(client: Any, rows: PromptSet, config: EvaluateConfig) -> list[str]:
    """Log tables and pictures of all variants that are scored on these rows to the active run.

    Returns why variants are not among them: their scorecards cannot be read.
    """
    import mlflow

    variants = find_variants(client, runs.experiment_id())
    first = scores.first(config)
    entries, faults = _entries(variants, rows)
    entries.sort(key=lambda entry: entry.metrics.get(f"{first}/mean", float("-inf")), reverse=True)
    if entries:
        _log_comparison(_told_apart(entries), rows, config)
    if not faults:
        mlflow.set_tag(_tag(COMPARED, rows), _state(variants, rows, config))
    return faults


def _log_comparison(entries: list[Entry], rows: PromptSet, config: EvaluateConfig) -> None:
    import mlflow

    first = scores.first(config)
    pairs = pairwise(entries, first)
    with suppress_output():
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
    for ours, theirs in combinations([entry for entry in entries if metric in entry.card.scores], 2):
        scored = zip(ours.card.scores[metric], theirs.card.scores[metric], strict=True)
        both = [pair for pair in scored if None not in pair]
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
    names = [key.removesuffix("/mean") for key in card.metrics if key.endswith("/mean")]
    everything = {"rows": len(card.ids)} | card.metrics
    parts = [("all", everything), *card.by_tag.items()]
    body = [
        [part, f"{numbers['rows']:.0f}", *(_with_interval(numbers, name) for name in names)] for part, numbers in parts
    ]
    return _table(["rows tagged", "rows", *names], body)


def _with_interval(numbers: dict[str, float], name: str) -> str:
    if f"{name}/mean" not in numbers:
        return "-"
    if f"{name}/ci_low" not in numbers:  # a metric that has no score for a row
        return f"{numbers[f'{name}/mean']:.3f}"
    return f"{numbers[f'{name}/mean']:.3f} ({numbers[f'{name}/ci_low']:.3f} to {numbers[f'{name}/ci_high']:.3f})"


def _table(head: list[str], body: list[list[str]]) -> list[str]:
    rows = [head, ["---"] * len(head), *body]
    return [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]


def _log_pictures(entries: list[Entry], metric: str, prompt_set: str) -> None:
    import mlflow

    points = [_point(entry, metric) for entry in entries if _has_point(entry, metric)]
    by_variant = {entry.name: entry.card.by_tag for entry in entries if _has_tags(entry, metric)}
    with suppress_output():  # matplotlib tells that it builds its list of fonts
        if points:
            title = f"Quality against speed on {prompt_set}"
            mlflow.log_figure(plots.quality_against_speed(points, metric, title), "quality_against_speed.png")
        if by_variant:
            title = f"{metric} on {prompt_set}, {plots.which_tags(by_variant)} (rows)"
            mlflow.log_figure(plots.scores_by_tag(by_variant, metric, title), "scores_by_tag.png")


def _has_point(entry: Entry, metric: str) -> bool:
    return {f"{metric}/mean", f"{metric}/ci_low", speed.MAIN} <= set(entry.metrics)


def _has_tags(entry: Entry, metric: str) -> bool:
    return any(f"{metric}/mean" in numbers for numbers in entry.card.by_tag.values())


def _point(entry: Entry, metric: str) -> Point:
    numbers = [entry.metrics[f"{metric}/{part}"] for part in ("mean", "ci_low", "ci_high")]
    numbers += [entry.metrics[f"{speed.MAIN}{part}"] for part in ("", "_p25", "_p75")]
    return Point(entry.name, entry.variant.params["mode"], *numbers, size=entry.metrics["size/bytes"])


def _entries(variants: list[Variant], rows: PromptSet) -> tuple[list[Entry], list[str]]:
    """The variants that are scored on these rows, and why some of them cannot be read."""
    entries, faults = [], []
    for variant in _scored(variants, rows):
        try:
            entries.append(_entry(variant, rows))
        except StepError as error:
            faults += error.faults
    return entries, faults


def _scored(variants: list[Variant], rows: PromptSet) -> list[Variant]:
    return [variant for variant in variants if scorecard.scores(variant, rows.sha256) is not None]


def _entry(variant: Variant, rows: PromptSet) -> Entry:
    metrics = scorecard.scores(variant, rows.sha256) or {}
    return Entry(variant.name, variant, scorecard.read(variant, rows.sha256), metrics)


def _tag(name: str, rows: PromptSet) -> str:
    return f"{name}.{rows.sha256[:16]}"


def _finished(variant: Variant, rows: PromptSet) -> dict[str, Any]:
    """What the mark of a variant's report says; nothing where its report is not whole."""
    return json.loads(variant.tags.get(_tag(FINISHED, rows), "{}"))


def _state(variants: list[Variant], rows: PromptSet, config: EvaluateConfig) -> str:
    """A digest of the scorecards and reports of all variants as they are, and of what they are compared by."""
    tags = scorecard.tag(rows.sha256), _tag(FINISHED, rows)
    state = [[variant.model_id, *map(variant.tags.get, tags)] for variant in _scored(variants, rows)]
    return digest([state, scores.first(config), scores.names(config)])


def _told_apart(entries: list[Entry]) -> list[Entry]:
    """Entries of which no two have the same name: a part of the model's id stands behind such."""
    names = Counter(entry.name for entry in entries)
    return [
        replace(entry, name=f"{entry.name} {entry.variant.model_id[2:8]}") if names[entry.name] > 1 else entry
        for entry in entries
    ]

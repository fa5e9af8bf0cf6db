"""Compare all variants that are scored on a prompt set, on the evaluation's run.

Writes the tables `leaderboard.json` and `pairwise.json`, and the pictures `quality_against_speed.png` and
`scores_by_tag.png`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any, NamedTuple

from steps.errors import StepError
from steps.evaluation import plots, scorecard, scores
from steps.evaluation.plots import Point
from steps.evaluation.prompt_set import PromptSet
from steps.evaluation.report import by_set, state, views
from steps.evaluation.report import leaderboard as printed
from steps.evaluation.ruler import Ruler
from steps.evaluation.scorecard import Scorecard
from steps.evaluation.statistics import difference
from steps.output import echo, suppress_output
from steps.store import runs
from steps.store.names import BYTES, COSTS, NOTE, TOKENS_PER_SECOND, less_is_better
from steps.store.variants import Variant, find_variants

if TYPE_CHECKING:
    from mlflow import MlflowClient


@dataclass(frozen=True)
class Scored:
    """A variant with its scorecard and all metrics on these rows; `name` tells it apart from the others."""

    name: str
    variant: Variant
    card: Scorecard
    metrics: dict[str, float]


class Unreadable(NamedTuple):
    """A variant whose scorecard cannot be read, and why."""

    variant: Variant
    fault: str


def compare(client: MlflowClient, rows: PromptSet, ruler: Ruler, left_out: Container[str] = ()) -> list[Unreadable]:
    """Log tables and pictures of all scored variants to the active run.

    Args:
        client: The store.
        rows: The prompt set.
        ruler: What the variants are compared by.
        left_out: Model ids of variants that are known to have lost files.

    Returns:
        Each other variant whose scorecard cannot be read.
    """
    import mlflow

    variants = find_variants(client, runs.experiment_id())
    entries, unreadable = _entries(variants, rows, ruler, left_out)
    if entries:
        _log(disambiguate(entries), rows, ruler)
        mlflow.set_tag(NOTE, printed.markdown([entry.variant for entry in entries], rows, *_standing(entries, ruler)))
        views.prepare(client, by_set.label(client, rows), ruler.first, less_is_better(ruler.first))
    if not unreadable:
        state.mark_compared(variants, rows, ruler)
    return unreadable


def show(client: MlflowClient, rows: PromptSet, ruler: Ruler) -> None:
    """Print the leaderboard of all scored variants, and where to look at it."""
    entries, _ = _entries(find_variants(client, runs.experiment_id()), rows, ruler, (), quiet=True)
    if entries:
        printed.show([entry.variant for entry in entries], rows, *_standing(entries, ruler))
        echo("Compare the runs:")
        for line in views.link(views.prepare(client, by_set.label(client, rows), ruler.first)):
            echo(f"    {line}")


def _entries(
    variants: list[Variant], rows: PromptSet, ruler: Ruler, left_out: Container[str], *, quiet: bool = False
) -> tuple[list[Scored], list[Unreadable]]:
    """Return the variants that can be compared, the best score first, and those whose scorecard cannot be read."""
    entries: list[Scored] = []
    unreadable: list[Unreadable] = []
    for variant in state.scored(variants, rows):
        if not scorecard.is_comparable(scorecard.parts_of(variant, rows.sha256), ruler.parts(variant)):
            # A variant that is left out has its sentence already.
            if not quiet and variant.model_id not in left_out:
                echo(
                    f"Not compared: {variant.name} ({variant.uri}) is scored by another ruler. Evaluate without run_id."
                )
            continue
        try:
            card = scorecard.read(variant, rows.sha256)
        except StepError as error:
            if variant.model_id not in left_out:
                unreadable.append(Unreadable(variant, str(error)))
        else:
            metrics = scorecard.metrics_of(variant, rows.sha256) or {}
            entries.append(Scored(variant.name, variant, card, metrics))
    sign = 1 if less_is_better(ruler.first) else -1
    entries.sort(key=lambda entry: sign * entry.metrics.get(f"{ruler.first}/mean", sign * float("inf")))
    return entries, unreadable


def _log(entries: list[Scored], rows: PromptSet, ruler: Ruler) -> None:
    import mlflow

    pairs = pairwise(entries, ruler.first)
    with suppress_output():
        mlflow.log_table(leaderboard(entries, list(ruler.metrics)), "leaderboard.json")
        if pairs:
            mlflow.log_table({key: [pair[key] for pair in pairs] for key in pairs[0]}, "pairwise.json")
    log_pictures(entries, ruler.first, rows.name)


def _standing(entries: list[Scored], ruler: Ruler) -> tuple[list[str], printed.Standing]:
    """Return the metrics to show, and how each entry compares with the best score: in a word, paired by row."""
    metric, best = ruler.first, entries[0]
    words = {best.variant.model_id: "best score"}
    for entry in entries[1:]:
        if {metric} <= best.card.scores.keys() & entry.card.scores.keys():
            theirs, ours = (scores.counted(one.card.scores[metric], metric) for one in (best, entry))
            gap = difference(theirs, ours)
            worse = gap.worse if less_is_better(metric) else gap.better
            words[entry.variant.model_id] = "tied" if ours == theirs else "worse" if worse else "undecided"
    standing = printed.Standing([], None, None, words, metric, less_is_better(metric))
    return list(ruler.metrics), standing


def leaderboard(entries: list[Scored], metrics: list[str]) -> dict[str, list[Any]]:
    """Return the columns of a table with a row for each entry: scores with intervals, costs; None if unknown."""
    table: dict[str, list[Any]] = {"variant": [entry.name for entry in entries]}
    keys = [f"{name}/{aggregate}" for name in metrics for aggregate in ("mean", "ci_low", "ci_high")]
    for key in [*keys, *(cost.key for cost in COSTS)]:
        table[key] = [entry.metrics.get(key) for entry in entries]
    table["model_id"] = [entry.variant.model_id for entry in entries]
    return table


def pairwise(entries: list[Scored], metric: str) -> list[dict[str, Any]]:
    """Return, for every two entries, the difference in a metric, paired by row.

    A positive difference means that the first is higher. "undecided" means that the rows do not show which is higher.
    A skipped row counts as 0, as everywhere. The pairs are not corrected for their number.
    """
    pairs = []
    for ours, theirs in combinations([entry for entry in entries if metric in entry.card.scores], 2):
        our_rows, their_rows = (scores.counted(entry.card.scores[metric], metric) for entry in (ours, theirs))
        gap = difference(our_rows, their_rows)
        verdict = "better" if gap.better else "worse" if gap.worse else "undecided"
        pairs.append(
            {"variant": ours.name, "is": verdict, "than": theirs.name, "metric": metric}
            | {"difference": gap.mean, "ci_low": gap.low, "ci_high": gap.high, "rows": len(our_rows)}
        )
    return pairs


def log_pictures(entries: list[Scored], metric: str, prompt_set: str) -> None:
    """Log quality against speed, and scores by tag, as far as the entries have them."""
    import mlflow

    points = [_point(entry, metric) for entry in entries if _has_point(entry, metric)]
    by_variant = {entry.name: entry.card.by_tag for entry in entries if _has_tags(entry, metric)}
    with suppress_output():  # matplotlib reports that it builds its list of fonts
        if points:
            title = f"Quality against speed on {prompt_set}"
            mlflow.log_figure(plots.quality_against_speed(points, metric, title), "quality_against_speed.png")
        if by_variant:
            title = f"{metric} on {prompt_set}, {plots.which_tags(by_variant)} (rows)"
            mlflow.log_figure(plots.scores_by_tag(by_variant, metric, title), "scores_by_tag.png")


def _has_point(entry: Scored, metric: str) -> bool:
    return {f"{metric}/mean", f"{metric}/ci_low", TOKENS_PER_SECOND.key} <= set(entry.metrics)


def _has_tags(entry: Scored, metric: str) -> bool:
    return any(f"{metric}/mean" in numbers for numbers in entry.card.by_tag.values())


def _point(entry: Scored, metric: str) -> Point:
    return Point(
        name=entry.name,
        mode=entry.variant.mode.name,
        quality=entry.metrics[f"{metric}/mean"],
        quality_low=entry.metrics[f"{metric}/ci_low"],
        quality_high=entry.metrics[f"{metric}/ci_high"],
        speed=entry.metrics[TOKENS_PER_SECOND.key],
        speed_low=entry.metrics[f"{TOKENS_PER_SECOND.key}_p25"],
        speed_high=entry.metrics[f"{TOKENS_PER_SECOND.key}_p75"],
        size=entry.metrics[BYTES.key],
    )


def disambiguate(entries: list[Scored]) -> list[Scored]:
    """Disambiguate entries with the same name by appending part of the model id."""
    counts = Counter(entry.name for entry in entries)
    return [
        replace(entry, name=f"{entry.name} {entry.variant.model_id[2:8]}") if counts[entry.name] > 1 else entry
        for entry in entries
    ]

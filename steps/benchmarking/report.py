"""Say what was measured, and log it to the active run: a table, a plot of each section, all rounds."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from steps.benchmarking.comparison import DRIFT, Quartiles, Result
from steps.output import suppress_output
from steps.store.names import NOTE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TABLE, ROUNDS = "benchmark.json", "rounds.json"
COLUMNS = ("section", "ours", "against", "unit", "ours_median", "against_median", "ratio", "ratio_p25", "ratio_p75")
OURS, NOISY = "#0072B2", "#999999"


def sentence(result: Result) -> str:
    """Return a result as one line: both sides with their quartiles, and the ratio."""
    unit = "" if result.unit == "bytes" else f" {result.unit}"
    sides = [
        f"{name} {_spread(values)}{unit}"
        for name, values in zip(result.names, (result.ours, result.theirs), strict=True)
    ]
    return f"{result.section}: {sides[0]} against {sides[1]}: {verdict(result)}"


def verdict(result: Result) -> str:
    """Return the ratio in words, or why there is none."""
    if ratio := result.ratio:
        word = "small" if result.unit == "bytes" else "fast"
        return f"{_spread(ratio)} times as {word}"
    noisy = sum(not each.counts for each in result.rounds)
    return (
        f"no ratio, because the machine was too noisy: its own speed changed by more than {DRIFT:.0%} in {noisy} of "
        f"{len(result.rounds)} rounds"
    )


def machine(facts: dict[str, Any]) -> str:
    """Return the processor in words, and the GPU if it is measured too."""
    processor = f"{facts['cores']} cores of {facts['processor']}"
    return f"{processor} and a GPU, {facts['gpu']}" if "gpu" in facts else processor


def log(results: list[Result], facts: dict[str, Any]) -> None:
    """Log the results to the active run.

    Args:
        results: What was measured.
        facts: About the machine.
    """
    import mlflow

    mlflow.log_dict(facts, "machine.json")
    rows = [_row(result) for result in results]
    with suppress_output():
        mlflow.log_table({column: [row[place] for row in rows] for place, column in enumerate(COLUMNS)}, TABLE)
    mlflow.log_dict({"results": [_rounds(result) for result in results]}, ROUNDS)
    mlflow.log_metrics(_metrics(results))
    for section in dict.fromkeys(result.section for result in results):
        mlflow.log_figure(plot([each for each in results if each.section == section]), f"{section}.png")
    mlflow.set_tag(NOTE, markdown(results, facts))


def markdown(results: list[Result], facts: dict[str, Any]) -> str:
    """Return the table for the page of the run, and for a document."""
    lines = [
        f"{machine(facts)}. {facts['memory_bytes'] / 1e9:.0f} GB of memory, reads "
        f"{facts['read_bandwidth'] / 1e9:.0f} GB/s. Medians (quartiles).",
        "",
        "| section | ours | | against | | unit | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        ratio = _spread(result.ratio) if result.ratio else "too noisy"
        ours, theirs = result.names
        cells = [result.section, ours, _spread(result.ours), theirs, _spread(result.theirs), result.unit]
        lines.append(f"| {' | '.join([*cells, ratio])} |")
    return "\n".join(lines)


def plot(results: list[Result]) -> Figure:
    """Plot the ratios of a section with their quartiles; what was too noisy has no bar."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.2 + 0.5 * len(results)), layout="constrained")
    axes = figure.subplots()
    names = [result.name for result in results]
    for place, ratio in enumerate(result.ratio for result in results):
        if ratio:
            errors = [[ratio.median - ratio.low], [ratio.high - ratio.median]]
            axes.barh(place, ratio.median, color=OURS, xerr=errors, capsize=3)
    axes.axvline(1, color=NOISY, linewidth=1)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("ratio: above 1 ours is faster or smaller (bars: quartiles of the rounds)")
    axes.set_title(results[0].section)
    return figure


def _row(result: Result) -> tuple[Any, ...]:
    ratio = result.ratio
    ratios = (ratio.median, ratio.low, ratio.high) if ratio else (None, None, None)
    return (result.section, *result.names, result.unit, result.ours.median, result.theirs.median, *ratios)


def _rounds(result: Result) -> dict[str, Any]:
    rounds = [{"ours": each.ours, "against": each.theirs, "drift": each.drift} for each in result.rounds]
    return {"section": result.section, "name": result.name, "unit": result.unit, "rounds": rounds}


def _metrics(results: list[Result]) -> dict[str, float]:
    """Return the ratios by name of metric, so that MLflow's view compares two benchmarks."""
    metrics: dict[str, float] = {}
    for result in results:
        if ratio := result.ratio:
            name = re.sub(r"[^\w.]+", "_", result.name).strip("_")
            metrics[f"{result.section}/{name}"] = ratio.median
    return metrics


def _spread(values: Quartiles) -> str:
    low, median, high = (_number(each) for each in (values.low, values.median, values.high))
    return median if low == high else f"{median} ({low} to {high})"


def _number(value: float) -> str:
    """Return a number with three digits, and all of them if it has more before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"

"""Pictures of a comparison of variants, as matplotlib figures. Pure functions of numbers."""

from dataclasses import dataclass
from typing import Any

# Told apart by those who do not see every colour too (Okabe and Ito's palette), the mode by its mark as well.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")
MARKS = {"transformers": "s", "pyfunc": "o", "onnx": "^"}
LARGEST_MARK, SMALLEST_MARK = 600.0, 30.0  # square points
SHOWN_TAGS = 20


@dataclass(frozen=True)
class Point:
    """A variant in the picture of quality against speed; `low` and `high` are the ends of its error bars."""

    name: str
    mode: str
    quality: float
    quality_low: float
    quality_high: float
    speed: float
    speed_low: float
    speed_high: float
    size: float  # bytes


def quality_against_speed(points: list[Point], quality: str, title: str) -> Any:
    """A figure: tokens per second against quality with error bars, marks by size, and the Pareto front."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    largest = max(point.size for point in points)
    for index, point in enumerate(points):
        _draw_point(axes, point, COLOURS[index % len(COLOURS)], largest)
    if max(point.speed for point in points) > 10 * min(point.speed for point in points):
        axes.set_xscale("log")
    _draw_front(axes, pareto_front(points))
    axes.set_xlabel("tokens per second, one request at a time (bars: quartiles of the calls)")
    axes.set_ylabel(f"{quality} (bars: 95 % interval)")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    legend = figure.legend(loc="outside right upper", title="area of a mark = bytes on disk", frameon=False)
    for handle in legend.legend_handles:
        if hasattr(handle, "set_sizes"):
            handle.set_sizes([50])
    return figure


def pareto_front(points: list[Point]) -> list[Point]:
    """The points that no other one beats in quality without being slower, the slowest first."""
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.speed, point.quality), reverse=True):
        if not front or point.quality > front[-1].quality:
            front.append(point)
    return front[::-1]


def scores_by_tag(by_variant: dict[str, dict[str, dict[str, float]]], metric: str, title: str) -> Any:
    """A figure: a metric's mean and half its interval for each variant (row) and tag (column, with how many rows).

    `by_variant` maps a variant to its tags, and a tag to `rows`, `<metric>/mean`, `<metric>/ci_low`, `/ci_high`.
    """
    import numpy as np
    from matplotlib.figure import Figure

    counts = _counts(by_variant)
    tags = sorted(sorted(counts, key=counts.get, reverse=True)[:SHOWN_TAGS])
    means = np.array([[cells(tags_of, tag, f"{metric}/mean") for tag in tags] for tags_of in by_variant.values()])
    figure = Figure(figsize=(3 + 1.0 * len(tags), 1.8 + 0.42 * len(by_variant)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(means, vmin=0, vmax=max(1.0, np.nanmax(means)), cmap="viridis", aspect="auto")
    axes.set_xticks(range(len(tags)), [f"{tag}\n({counts[tag]:.0f})" for tag in tags])
    axes.set_yticks(range(len(by_variant)), list(by_variant))
    for row, tags_of in enumerate(by_variant.values()):
        for column, tag in enumerate(tags):
            mean = means[row, column]
            half = (cells(tags_of, tag, f"{metric}/ci_high") - cells(tags_of, tag, f"{metric}/ci_low")) / 2
            colour = "white" if mean < 0.6 * image.get_clim()[1] else "black"
            axes.text(column, row, f"{mean:.2f}\n±{half:.2f}", ha="center", va="center", color=colour, fontsize=8)
    axes.set_title(title)
    figure.colorbar(image, label=metric)
    return figure


def which_tags(by_variant: dict[str, dict[str, dict[str, float]]]) -> str:
    """Of how many tags the picture shows which, for its title."""
    number = len(_counts(by_variant))
    return "by tag" if number <= SHOWN_TAGS else f"the {SHOWN_TAGS} most frequent of {number} tags"


def _counts(by_variant: dict[str, dict[str, dict[str, float]]]) -> dict[str, float]:
    return {tag: numbers["rows"] for tags in by_variant.values() for tag, numbers in tags.items()}


def cells(tags: dict[str, dict[str, float]], tag: str, key: str) -> float:
    """A number of a tag; NaN where a variant has none."""
    return tags.get(tag, {}).get(key, float("nan"))


def _draw_front(axes: Any, front: list[Point]) -> None:
    """Steps from the left edge over the points of the front down to the lower edge."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    speeds = [left, *(point.speed for point in front), front[-1].speed]
    qualities = [front[0].quality, *(point.quality for point in front), bottom]
    axes.step(speeds, qualities, where="pre", color="grey", ls="--", zorder=1, label="Pareto front")
    axes.set(xlim=(left, right), ylim=(bottom, top))


def _draw_point(axes: Any, point: Point, colour: str, largest: float) -> None:
    axes.errorbar(
        point.speed,
        point.quality,
        xerr=[[max(0, point.speed - point.speed_low)], [max(0, point.speed_high - point.speed)]],
        yerr=[[max(0, point.quality - point.quality_low)], [max(0, point.quality_high - point.quality)]],
        color=colour,
        capsize=3,
        lw=1,
        zorder=2,
    )
    axes.scatter(
        point.speed,
        point.quality,
        s=max(SMALLEST_MARK, LARGEST_MARK * point.size / largest),
        marker=MARKS.get(point.mode, "o"),
        color=colour,
        alpha=0.6,
        edgecolors="black",
        linewidths=0.8,
        zorder=3,
        label=f"{point.name} ({point.size / 1e6:.1f} MB)",
    )

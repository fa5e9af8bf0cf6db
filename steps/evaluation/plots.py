"""Plots of a comparison of variants, as matplotlib figures. Pure functions of numbers."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Variant → tag → `rows`, `<metric>/mean`, `<metric>/ci_low`, `<metric>/ci_high`.
ByVariant = dict[str, dict[str, dict[str, float]]]

# Okabe and Ito's palette, which colour-blind readers can distinguish.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")
# One for each mode, in order of appearance; they repeat if there are more modes.
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LARGEST_MARKER, SMALLEST_MARKER = 600.0, 30.0  # square points
SHOWN_TAGS = 20


@dataclass(frozen=True)
class Point:
    """A variant in the plot of quality against speed; `low` and `high` are the ends of its error bars.

    `quality` is a mean score, `speed` in tokens per second, `size` in bytes on disk.
    """

    name: str
    mode: str
    quality: float
    quality_low: float
    quality_high: float
    speed: float
    speed_low: float
    speed_high: float
    size: float


def quality_against_speed(points: list[Point], quality: str, title: str) -> "Figure":
    """Plot quality against speed with error bars and the Pareto front.

    A colour stands for a variant, a marker for a mode, the area of a marker for the size on disk.
    """
    from matplotlib.collections import PathCollection
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    largest = max(point.size for point in points)
    modes = list(dict.fromkeys(point.mode for point in points))
    for index, point in enumerate(points):
        marker = MARKERS[modes.index(point.mode) % len(MARKERS)]
        _draw_point(axes, point, COLOURS[index % len(COLOURS)], marker, largest)
    if max(point.speed for point in points) > 10 * min(point.speed for point in points):
        axes.set_xscale("log")
    _draw_front(axes, pareto_front(points))
    axes.set_xlabel("tokens per second, one request at a time (bars: quartiles of the calls)")
    axes.set_ylabel(f"{quality} (bars: 95 % interval)")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    legend = figure.legend(loc="outside right upper", title="area of a marker = bytes on disk", frameon=False)
    for handle in legend.legend_handles:
        if isinstance(handle, PathCollection):
            handle.set_sizes([50])
    return figure


def pareto_front(points: list[Point]) -> list[Point]:
    """Return the points that no other point beats in quality without being slower, slowest first."""
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.speed, point.quality), reverse=True):
        if not front or point.quality > front[-1].quality:
            front.append(point)
    return front[::-1]


def scores_by_tag(by_variant: ByVariant, metric: str, title: str) -> "Figure":
    """Plot a metric's mean and half the width of its interval by variant (row) and tag (column).

    The label of a tag includes its number of rows. At most SHOWN_TAGS tags are shown, the most frequent ones.
    """
    import numpy as np
    from matplotlib.figure import Figure

    counts = _rows_by_tag(by_variant)
    tags = sorted(sorted(counts, key=lambda tag: counts[tag], reverse=True)[:SHOWN_TAGS])
    means = np.array([[_value(by_tag, tag, f"{metric}/mean") for tag in tags] for by_tag in by_variant.values()])
    figure = Figure(figsize=(3 + 1.0 * len(tags), 1.8 + 0.42 * len(by_variant)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(means, vmin=0, vmax=max(1.0, np.nanmax(means)), cmap="viridis", aspect="auto")
    axes.set_xticks(range(len(tags)), [f"{tag}\n({counts[tag]:.0f})" for tag in tags])
    axes.set_yticks(range(len(by_variant)), list(by_variant))
    for row, by_tag in enumerate(by_variant.values()):
        for column, tag in enumerate(tags):
            mean = means[row, column]
            half = (_value(by_tag, tag, f"{metric}/ci_high") - _value(by_tag, tag, f"{metric}/ci_low")) / 2
            colour = "white" if mean < 0.6 * image.get_clim()[1] else "black"
            axes.text(column, row, f"{mean:.2f}\n±{half:.2f}", ha="center", va="center", color=colour, fontsize=8)
    axes.set_title(title)
    figure.colorbar(image, label=metric)
    return figure


def which_tags(by_variant: ByVariant) -> str:
    """Return the title fragment: "by tag", or "the 20 most frequent of N tags"."""
    number = len(_rows_by_tag(by_variant))
    return "by tag" if number <= SHOWN_TAGS else f"the {SHOWN_TAGS} most frequent of {number} tags"


def _rows_by_tag(by_variant: ByVariant) -> dict[str, float]:
    return {tag: numbers["rows"] for tags in by_variant.values() for tag, numbers in tags.items()}


def _value(by_tag: dict[str, dict[str, float]], tag: str, key: str) -> float:
    """Return NaN if a variant has no such tag or number."""
    return by_tag.get(tag, {}).get(key, float("nan"))


def _draw_front(axes: "Axes", front: list[Point]) -> None:
    """Draw steps from the left edge through the points of the front down to the lower edge."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    speeds = [left, *(point.speed for point in front), front[-1].speed]
    qualities = [front[0].quality, *(point.quality for point in front), bottom]
    axes.step(speeds, qualities, where="pre", color="grey", ls="--", zorder=1, label="Pareto front")
    axes.set(xlim=(left, right), ylim=(bottom, top))


def _draw_point(axes: "Axes", point: Point, colour: str, marker: str, largest: float) -> None:
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
        s=max(SMALLEST_MARKER, LARGEST_MARKER * point.size / largest),
        marker=marker,
        color=colour,
        alpha=0.6,
        edgecolors="black",
        linewidths=0.8,
        zorder=3,
        label=f"{point.name} ({point.size / 1e6:.1f} MB)",
    )

"""Plots: a marker for each mode, whatever its name."""

from matplotlib.collections import PathCollection

from steps.evaluation import plots
from steps.evaluation.plots import MARKERS, Point


def _markers(*modes):
    """Return the marker shapes of one point for each mode, drawn in this order."""
    points = [
        Point(f"v{number}", mode, 0.5, 0.4, 0.6, 10.0 + number, 9.0, 11.0 + number, 1e6)
        for number, mode in enumerate(modes)
    ]
    (axes,) = plots.quality_against_speed(points, "chrf", "A title").axes
    drawn = [marks for marks in axes.collections if isinstance(marks, PathCollection)]
    return [marks.get_paths()[0].vertices.tolist() for marks in drawn]


def test_each_mode_has_a_marker_of_its_own_in_order_of_appearance():
    first, second, again, third = _markers("onnx", "a new mode", "onnx", "pyfunc")
    assert first == again
    assert first != second != third != first
    assert [first, second] == _markers("pyfunc", "onnx")


def test_markers_repeat_when_there_are_more_modes_than_markers():
    drawn = _markers(*(f"mode {number}" for number in range(len(MARKERS) + 1)))
    assert drawn[0] == drawn[-1]
    assert all(drawn[index] != drawn[other] for index in range(len(MARKERS)) for other in range(index))


def test_a_tag_that_one_variant_lacks_has_an_empty_cell():
    numbers = {"rows": 2, "chrf/mean": 0.5, "chrf/ci_low": 0.4, "chrf/ci_high": 0.7}
    figure = plots.scores_by_tag({"a": {"x": numbers, "y": numbers}, "b": {"x": numbers}}, "chrf", "A title")
    assert [text.get_text() for text in figure.axes[0].texts] == ["0.50\n±0.15"] * 3 + ["nan\n±nan"]
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["x\n(2)", "y\n(2)"]

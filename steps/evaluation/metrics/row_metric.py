"""Make a metric of the `evaluate` library from a function that scores one row."""

from collections.abc import Callable, Mapping
from typing import Any

import datasets
import evaluate
import regex

# Not `normalize`: `evaluate` copies only the helpers that the metric itself imports.
VISIBLE = regex.compile(r"[^\p{Z}\p{Cc}\p{Cf}\p{DI}\u2800]")
NO_MEANS: Mapping[str, Callable[..., float]] = {}


def row_metric(
    module: str,
    description: str | None,
    score: Callable[..., float],
    citation: str = "",
    columns: tuple[str, ...] = (),
    numbers: tuple[str, ...] = (),
    means: Mapping[str, Callable[..., float]] = NO_MEANS,
) -> type:
    """Return a metric class that gives the score of every row and their mean.

    An empty answer scores 0, whatever the function says, as does an error; a metric of `numbers` reads none.
    A function, not a base class: `evaluate.load` takes the first metric class in a module, also an imported one.

    Args:
        module: `__name__` of the metric's module; the last part is the metric's name.
        description: docstring of the metric's module.
        score: function of a prediction, its accepted answers and the row's `columns`, with a result within 0..1.
        citation: source of the method.
        columns: inputs in addition to predictions and references; each has a list of strings for every row.
        numbers: the same for lists of numbers; the last arguments of the function.
        means: more functions like `score`, of which only the mean is returned, by its name.
    """
    name = module.rpartition(".")[2]
    inputs = ("predictions", "references", *columns, *numbers)

    class RowMetric(evaluate.Metric):  # type: ignore[misc]
        __doc__ = description

        def _info(self) -> evaluate.MetricInfo:
            return _info_of(description, citation, ("references", *columns), numbers)

        def _compute(self, **values: list[Any]) -> dict[str, Any]:
            rows = list(zip(*(values[column] for column in inputs), strict=True))
            scores = [score(*row) if numbers or VISIBLE.search(row[0]) else 0.0 for row in rows]
            others = {other: sum(function(*row) for row in rows) / len(rows) for other, function in means.items()}
            return {name: sum(scores) / len(scores), "scores": scores} | others

    RowMetric.__name__ = name  # `evaluate` names a metric after its class
    return RowMetric


def _info_of(
    description: str | None, citation: str, texts: tuple[str, ...], numbers: tuple[str, ...]
) -> evaluate.MetricInfo:
    """Return what `evaluate` has to know of a metric whose inputs are lists of texts and of numbers."""
    text = datasets.Value("string")
    lists = {column: datasets.Sequence(text) for column in texts}
    lists |= {column: datasets.Sequence(datasets.Value("float64")) for column in numbers}
    features = datasets.Features({"predictions": text, **lists})
    described = f"For each row: predictions, a string; {', '.join(lists)}, a list each."
    return evaluate.MetricInfo(description, citation, features, inputs_description=described)

"""Make a metric of the `evaluate` library from a function that scores one row."""

from collections.abc import Callable
from typing import Any

import datasets
import evaluate
import regex

# Not `normalize`: `evaluate` copies only the helpers that the metric itself imports.
VISIBLE = regex.compile(r"[^\p{Z}\p{Cc}\p{Cf}\p{DI}\u2800]")


def row_metric(
    module: str,
    description: str | None,
    score: Callable[..., float],
    citation: str = "",
    columns: tuple[str, ...] = (),
) -> type:
    """Return a metric class that gives the score of every row and their mean.

    An empty answer scores 0, whatever the function says: an answer with an error is empty too.
    A function, not a base class: `evaluate.load` takes the first metric class in a module, also an imported one.

    Args:
        module: `__name__` of the metric's module; the last part is the metric's name.
        description: docstring of the metric's module.
        score: function of a prediction, its accepted answers and the row's `columns`, with a result within 0..1.
        citation: source of the method.
        columns: inputs in addition to predictions and references; each has a list of strings for every row.
    """
    name = module.rpartition(".")[2]
    inputs = ("predictions", "references", *columns)

    class RowMetric(evaluate.Metric):  # type: ignore[misc]
        __doc__ = description

        def _info(self) -> evaluate.MetricInfo:
            text = datasets.Value("string")
            lists = {column: datasets.Sequence(text) for column in inputs[1:]}
            features = datasets.Features({"predictions": text, **lists})
            described = f"For each row: predictions, a string; {', '.join(lists)}, a list of strings."
            return evaluate.MetricInfo(description, citation, features, inputs_description=described)

        def _compute(self, **values: list[Any]) -> dict[str, Any]:
            rows = zip(*(values[column] for column in inputs), strict=True)
            scores = [score(*row) if VISIBLE.search(row[0]) else 0.0 for row in rows]
            return {name: sum(scores) / len(scores), "scores": scores}

    RowMetric.__name__ = name  # `evaluate` names a metric after its class
    return RowMetric

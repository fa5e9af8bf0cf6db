"""One stream against what the memory allows: every token reads all weights once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from steps.benchmarking.comparison import Comparison, Side
from steps.benchmarking.place import Place
from steps.benchmarking.sections.engines import answer
from steps.evaluation.machine import read_bandwidth

VARIANTS = (("mode=pyfunc", "precision=bf16"), ("mode=pyfunc", "precision=int8"), ("mode=onnx", "precision=int4"))
# An answer is long, so that reading its prompt is a small part of it.
TOKENS = 4
WEIGHTS = (".safetensors", ".onnx", ".data")


def comparisons(place: Place) -> Iterator[Comparison]:
    """Yield one stream of each variant against reading its weights. On a GPU there is nothing to compare yet."""
    if place.device != "cpu":
        return
    for overrides in VARIANTS:
        with place.loaded(*overrides) as loaded:
            scheduler = loaded.unwrap_python_model().scheduler
            # The answer is drawn: a random model repeats itself, and speculation would be better than it is.
            tokens = TOKENS * place.size.tokens
            size = weights_bytes(place.model(*overrides))
            name = " ".join(word.partition("=")[2] for word in overrides)
            yield Comparison(
                Side(f"{name}, one stream", lambda: answer(place, scheduler, 1, tokens, temperature=1.0)),  # noqa: B023
                Side("reading its weights from memory", lambda: read_bandwidth() / size),  # noqa: B023
            )


def weights_bytes(folder: Path) -> int:
    """Return the bytes of the files with weights in a model's folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.suffix in WEIGHTS)

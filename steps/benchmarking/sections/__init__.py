"""The sections of the benchmark, a file each: `comparisons(place)` yields what it compares, one after the other.

A comparison holds what it needs (models, servers) until the next one is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module

from steps.benchmarking.comparison import Comparison
from steps.benchmarking.place import Place


def get_section(name: str) -> Callable[[Place], Iterator[Comparison]]:
    """Return the function that yields the comparisons of a section. Its file is imported only now."""
    comparisons: Callable[[Place], Iterator[Comparison]] = import_module(f"{__name__}.{name}").comparisons
    return comparisons

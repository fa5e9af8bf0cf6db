"""What a further variant of a checkpoint adds to the store, against the first one: bytes and seconds."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from time import perf_counter

from steps.benchmarking.comparison import Comparison, Side
from steps.benchmarking.place import Place, short_name

# Each is a setting that no variant had before, or a new folder.
NUMBERS = itertools.count(1)


def comparisons(place: Place) -> Iterator[Comparison]:
    """Yield seconds of the whole command, then the bytes that it added. The cache has the export to ONNX already."""
    for overrides in place.variants if place.device == "cpu" else ():
        place.model(*overrides)
        name = short_name(overrides)
        further, first = Build(partial(_further, place, overrides)), Build(partial(_first, place, overrides))
        sides = Side(f"building a further {name}", further.seconds), Side("the first", first.seconds)
        yield Comparison(*sides, "s", warm_up=False)
        sides = Side(f"bytes of a further {name}", further.added_bytes), Side("the first", first.added_bytes)
        yield Comparison(*sides, "bytes", warm_up=False, rounds=1)


class Build:
    """Builds a variant whenever its seconds are measured.

    Args:
        build: Build a variant that is not there yet; return the seconds, and by how many bytes its store grew.
    """

    def __init__(self, build: Callable[[], tuple[float, float]]) -> None:
        self._build, self._added = build, 0.0

    def seconds(self) -> float:
        """Build a variant; return the seconds."""
        seconds, self._added = self._build()
        return seconds

    def added_bytes(self) -> float:
        """Return by how many bytes the store grew at the last build."""
        return self._added


def _further(place: Place, overrides: tuple[str, ...]) -> tuple[float, float]:
    """Build one more variant of the checkpoint in the store that has some."""
    store = place.folder / "store"
    return _built(place, store, *overrides, f"generation.temperature={next(NUMBERS) / 1000}")


def _first(place: Place, overrides: tuple[str, ...]) -> tuple[float, float]:
    """Build the variant in a new store, and delete it."""
    store = place.folder / f"store-{next(NUMBERS)}"
    try:
        return _built(place, store, *overrides)
    finally:
        shutil.rmtree(store, ignore_errors=True)


def _built(place: Place, store: Path, *overrides: str) -> tuple[float, float]:
    before, started = _size(store), perf_counter()
    place.build(store, *overrides)
    return perf_counter() - started, _size(store) - before


def _size(store: Path) -> float:
    """Return the bytes of the artifacts of a store; a file with two names there counts once."""
    files = [file.stat() for file in store.glob("mlruns/**/*") if file.is_file()]
    return sum({file.st_ino: file.st_size for file in files}.values())

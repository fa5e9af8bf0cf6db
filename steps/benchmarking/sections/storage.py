"""What a further variant of a checkpoint adds to the store, against the first one: bytes and seconds."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from time import perf_counter

from steps.benchmarking.comparison import Comparison, Side
from steps.benchmarking.place import Place

# Each is a setting that no variant had before, or a new folder.
NUMBERS = itertools.count(1)


def comparisons(place: Place) -> Iterator[Comparison]:
    """Yield seconds of the whole command, then the bytes that it added. The cache has the export to ONNX already."""
    for overrides in place.variants:
        place.model(*overrides)
        name = " ".join(word.partition("=")[2] for word in overrides[:2])
        further, first = (
            Build(place, partial(_further, place, overrides)),
            Build(place, partial(_first, place, overrides)),
        )
        sides = Side(f"building a further {name}", further.seconds), Side("the first", first.seconds)
        yield Comparison(*sides, "s", warm_up=False)
        sides = Side(f"bytes of a further {name}", further.added_bytes), Side("the first", first.added_bytes)
        yield Comparison(*sides, "bytes", warm_up=False, rounds=1)


class Build:
    """Builds a variant whenever its seconds are measured.

    Args:
        place: Where.
        build: Build a variant that is not there yet.
    """

    def __init__(self, place: Place, build: Callable[[], None]) -> None:
        self._folder, self._build = place.folder, build
        self._added = 0.0

    def seconds(self) -> float:
        """Build a variant; return the seconds."""
        before, started = _size(self._folder), perf_counter()
        self._build()
        seconds = perf_counter() - started
        self._added = _size(self._folder) - before
        return seconds

    def added_bytes(self) -> float:
        """Return by how many bytes all stores together grew at the last build."""
        return self._added


def _further(place: Place, overrides: tuple[str, ...]) -> None:
    """Build one more variant of the checkpoint in the store that has some."""
    place.build(place.folder / "store", *overrides, f"generation.temperature={next(NUMBERS) / 1000}")


def _first(place: Place, overrides: tuple[str, ...]) -> None:
    """Build the variant in a new store."""
    place.build(place.folder / f"store-{next(NUMBERS)}", *overrides)


def _size(folder: Path) -> float:
    """Return the bytes of the artifacts of the stores in a folder; a file with two names counts once."""
    files = [file.stat() for file in folder.glob("store*/mlruns/**/*") if file.is_file()]
    return sum({file.st_ino: file.st_size for file in files}.values())

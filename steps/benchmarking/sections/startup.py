"""A command with nothing to do, against a process that only imports MLflow."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from time import perf_counter

from steps.benchmarking.comparison import Comparison, Side
from steps.benchmarking.place import Place


def comparisons(place: Place) -> Iterator[Comparison]:
    """Yield a build of a variant that exists, and the history of a name that has none."""
    if place.device != "cpu":
        return
    store, overrides = place.folder / "store", place.variants[0]
    place.model(*overrides)
    commands = (
        ("build of what exists", partial(place.build, store, *overrides)),
        ("register action=history", partial(place.run, store, "steps.register", "action=history")),
    )
    for name, command in commands:
        yield Comparison(
            Side(name, partial(_timed, command)), Side("import mlflow", partial(_import, place)), "s", False
        )


def _import(place: Place) -> float:
    command = [sys.executable, "-c", "import mlflow"]
    environment = place.environment(place.folder / "store")
    return _timed(lambda: subprocess.run(command, env=environment, check=True))


def _timed(call: Callable[[], object]) -> float:
    started = perf_counter()
    call()
    return perf_counter() - started

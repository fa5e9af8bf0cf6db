"""The sections of the benchmark, a file each: `comparisons(place)` yields what it compares, one after the other.

A comparison holds what it needs (models, servers) until the next one is asked for.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from importlib import import_module

from steps.benchmarking.comparison import Comparison
from steps.benchmarking.place import Place
from steps.errors import StepError
from steps.modes.requirements import is_installed


def check_installed(sections: list[str]) -> None:
    """Raise StepError if a section needs a package or a program that is not installed."""
    faults = []
    for section in sections:
        # What a section needs and this project does not install.
        module = import_module(f"{__name__}.{section}")
        if lacking := [package for package in getattr(module, "PACKAGES", ()) if not is_installed(package)]:
            faults.append(
                f"The section {section} needs what is not installed here: `pip install {' '.join(lacking)}`, and then "
                "`--env-manager local`."
            )
        if lacking := [program for program in getattr(module, "PROGRAMS", ()) if shutil.which(program) is None]:
            faults.append(f"The section {section} needs the program {lacking[0]}: `pip install {lacking[0]}`.")
    if faults:
        raise StepError(*faults)


def get_section(name: str) -> Callable[[Place], Iterator[Comparison]]:
    """Return the function that yields the comparisons of a section. Its file is imported only now."""
    comparisons: Callable[[Place], Iterator[Comparison]] = import_module(f"{__name__}.{name}").comparisons
    return comparisons

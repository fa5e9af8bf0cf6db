"""The sections of the benchmark, a file each: `comparisons(place)` yields what it compares, one after the other.

A comparison holds what it needs (models, servers) until the next one is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec

from steps.benchmarking.comparison import Comparison
from steps.benchmarking.place import Place
from steps.errors import StepError

# What a section imports that this project does not install, by the name of the package.
PACKAGES = {"llama_cpp": {"llama_cpp": "llama-cpp-python", "gguf": "gguf"}}


def check_installed(sections: list[str]) -> None:
    """Raise StepError if a section needs a package that is not installed."""
    faults = []
    for section in sections:
        lacking = [package for module, package in PACKAGES.get(section, {}).items() if find_spec(module) is None]
        if lacking:
            faults.append(
                f"The section {section} needs what is not installed here: `pip install {' '.join(lacking)}`, and then "
                "`--env-manager local`."
            )
    if faults:
        raise StepError(*faults)


def get_section(name: str) -> Callable[[Place], Iterator[Comparison]]:
    """Return the function that yields the comparisons of a section. Its file is imported only now."""
    comparisons: Callable[[Place], Iterator[Comparison]] = import_module(f"{__name__}.{name}").comparisons
    return comparisons

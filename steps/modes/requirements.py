"""The pip requirements of a logged model: whole, so that its environment is the one in which it was tested."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from steps.config.paths import PROJECT


@cache
def pin(package: str) -> str:
    """Return a package with its installed version, without the label of a local build such as +cpu."""
    return f"{package}=={version(package).partition('+')[0]}"


def pin_all(packages: tuple[str, ...]) -> list[str]:
    """Return the pins of packages, in their order, and then of everything that they depend on, by name.

    Of what the packages of requirements.txt depend on, only what is in that file too is added: the rest belongs to this
    machine, for example what CUDA needs, and would keep the model from being installed on another one.
    """
    direct = {canonicalize_name(package) for package in packages}
    optional = tuple(sorted(direct - _locked()))
    indirect = _dependencies(packages) & (_locked() | _dependencies(optional)) - direct
    return [pin(package) for package in (*packages, *sorted(indirect))]


@cache
def _dependencies(packages: tuple[str, ...]) -> frozenset[str]:
    """Return the names of all installed packages that packages depend on."""
    open_requirements = [Requirement(package) for package in packages]
    visited: set[tuple[str, str]] = set()
    while open_requirements:
        requirement = open_requirements.pop()
        for extra in ("", *requirement.extras):
            visit = (canonicalize_name(requirement.name), extra)
            if visit not in visited:
                visited.add(visit)
                open_requirements += _required(*visit)
    return frozenset(name for name, _ in visited if is_installed(name))


def _required(name: str, extra: str) -> Iterator[Requirement]:
    """Yield what an installed package requires here, with one of its extras or, if that is empty, without."""
    for line in (requires(name) or []) if is_installed(name) else []:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            yield requirement


def is_installed(name: str) -> bool:
    """Return whether a package is installed."""
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


@cache
def _locked() -> set[str]:
    """Return the names of the packages in requirements.txt."""
    lines = (PROJECT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return {canonicalize_name(line.partition("==")[0]) for line in lines if "==" in line}

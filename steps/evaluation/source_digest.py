"""Digest a Python module with everything that it imports: its own helpers by their code, libraries by their versions.

The code is parsed, not imported, so a digest costs no import of a library. Comments and the layout do not count.
"""

import ast
import importlib.util
import platform
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path

from steps.digests import digest, digest_file

# Folders of installed libraries.
INSTALLED = {"site-packages", "dist-packages"}


def digest_module(*files: Path) -> str:
    """Return one digest of modules, of the modules that they import, and of the versions of their libraries.

    Raises:
        OSError: A file cannot be read.
        SyntaxError: A file is not Python.
    """
    parts: dict[str, str] = {"python": platform.python_version()}
    for file in files:
        _collect(file.resolve(), file.resolve().parent, parts)
    return digest(parts)


def digest_folder(folder: Path) -> str:
    """Return one digest of every file below a folder, and of the libraries that its modules import."""
    parts: dict[str, str] = {"python": platform.python_version()}
    for file in sorted(folder.rglob("*")):
        if file.is_file() and "__pycache__" not in file.parts:
            parts[file.relative_to(folder).as_posix()] = digest_file(file)
            if file.suffix == ".py":
                _collect(file, folder, parts)
    return digest(parts)


def _collect(file: Path, base: Path, parts: dict[str, str]) -> None:
    """Add a module and everything that it imports to `parts`; `base` is the folder that names are relative to."""
    name = file.relative_to(base).as_posix() if file.is_relative_to(base) else file.as_posix()
    if f"code {name}" in parts:
        return
    tree = ast.parse(file.read_text(encoding="utf-8"))
    parts[f"code {name}"] = digest(ast.dump(tree))
    for level, module in _imports(tree):
        if level:
            folder = file.parents[level - 1]
            if helper := _module_file(folder.joinpath(*module.split(".")) if module else folder):
                _collect(helper, base, parts)
        else:
            _collect_absolute(module, base, parts)


def _imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the level and the name of each imported module. A name after `from … import` may be a module too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            yield node.level, module
            yield from ((node.level, f"{module}.{alias.name}".lstrip(".")) for alias in node.names)


def _collect_absolute(module: str, base: Path, parts: dict[str, str]) -> None:
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names:
        return
    try:
        parts[f"library {top}"] = metadata.version(top)
        return
    except metadata.PackageNotFoundError:
        files = _imported_files(module)
    if any(INSTALLED & set(file.parts) for file in files):
        parts[f"library {top}"] = _version(top)
        return
    for file in files:
        _collect(file, base, parts)


def _version(package: str) -> str:
    """Return the version of the library that a package belongs to, such as scikit-learn for sklearn."""
    return ", ".join(f"{name} {metadata.version(name)}" for name in sorted(set(_distributions().get(package, []))))


@cache
def _distributions() -> Mapping[str, list[str]]:
    """Return the libraries by their packages. It reads the file lists of all of them, which takes seconds."""
    return metadata.packages_distributions()


def _imported_files(module: str) -> list[Path]:
    """Return the files of a module on Python's path and of the packages that it is in. None of them is imported."""
    top, *inner = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return []
    files = [Path(spec.origin)] if spec and spec.origin and spec.origin.endswith(".py") else []
    for folder in (spec.submodule_search_locations or []) if spec else []:
        places = [Path(folder).joinpath(*inner[:depth]) for depth in range(1, len(inner) + 1)]
        files += [file for place in places if (file := _module_file(place))]
    return files


def _module_file(path: Path) -> Path | None:
    """Return the file of a helper module at a path without its suffix, also of a package."""
    candidates = (path.with_name(f"{path.name}.py"), path / "__init__.py")
    return next((candidate for candidate in candidates if candidate.is_file()), None)

"""Compute sha256 digests of files and of settings, so that checkpoints and variants can be compared."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path


def digest(content: object) -> str:
    """Return the sha256 of a JSON-like value. The order of dictionary keys does not matter."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def digest_file(path: Path) -> str:
    """Return the sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_files(paths: Iterable[Path]) -> str:
    """Return one sha256 over the names and contents of several files."""
    return digest({path.name: digest_file(path) for path in paths})


def digest_code(folder: Path) -> str:
    """Return one sha256 over all Python files below a folder, keyed by their relative paths."""
    return digest({path.relative_to(folder).as_posix(): digest_file(path) for path in folder.rglob("*.py")})

"""The sha256 of files and of settings: what a checkpoint or a variant is, in a form that can be compared."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(content: object) -> str:
    """The sha256 of anything that JSON can write, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def digest_files(paths: Iterable[Path]) -> str:
    """The sha256 over names and contents of some files."""
    return digest({path.name: sha256_of(path) for path in paths})


def digest_code(folder: Path) -> str:
    """The sha256 over the Python files below a folder, by their paths in it."""
    return digest({path.relative_to(folder).as_posix(): sha256_of(path) for path in folder.rglob("*.py")})

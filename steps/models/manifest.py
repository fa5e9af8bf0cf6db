"""The sha256 of every file of a folder: what a checkpoint is, in a form that can be checked."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path


def write_manifest(directory: Path) -> dict[str, str]:
    """Map each file under `directory`, by its path inside, to the sha256 of its bytes."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): sha256_of(path) for path in files}


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(content: object) -> str:
    """The sha256 of anything that JSON can write, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def digest_files(paths: Iterable[Path]) -> str:
    """The sha256 over names and contents of some files."""
    return digest({path.name: sha256_of(path) for path in paths})

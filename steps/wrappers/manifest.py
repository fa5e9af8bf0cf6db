"""The manifest of a checkpoint: `phi3_manifest.json` in its folder holds the size and sha256 of every file.

The manifest travels inside each model. A model that was damaged on its way is refused when it is loaded, by the names
of the files, instead of giving wrong answers. It is always checked, several files at once.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypedDict

MANIFEST = "phi3_manifest.json"
# Where the files of the manifest are that a model shares with others; see shared_weights.py.
POINTER = "shared_weights.json"


class FileEntry(TypedDict):
    """The entry of one file: its size and its digest."""

    bytes: int
    sha256: str


class DamagedCheckpoint(Exception):
    """A checkpoint is not as its manifest describes it; the message names each file."""


def write_manifest(directory: str | Path, known: Mapping[str, FileEntry] | None = None) -> None:
    """Write the manifest of the files that are in a folder now; `known` are entries that need not be computed."""
    (Path(directory) / MANIFEST).unlink(missing_ok=True)
    entries, files = dict(known or {}), _files(directory)
    files = {name: file for name, file in files.items() if name not in entries}
    with ThreadPoolExecutor() as pool:
        entries |= dict(zip(files, pool.map(describe_file, files.values()), strict=True))
    (Path(directory) / MANIFEST).write_text(json.dumps(entries, indent=2), encoding="utf-8")


def read_manifest(directory: str | Path) -> dict[str, FileEntry]:
    """Return the entry of each file by its name; raise DamagedCheckpoint if there is no readable manifest."""
    try:
        content = json.loads((Path(directory) / MANIFEST).read_text(encoding="utf-8"))
        return {name: {"bytes": int(entry["bytes"]), "sha256": entry["sha256"]} for name, entry in content.items()}
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise DamagedCheckpoint(f"{MANIFEST} cannot be read ({type(error).__name__})") from None


def check(directory: str | Path, others_allowed: bool = False, elsewhere: Collection[str] = ()) -> None:
    """Raise DamagedCheckpoint unless every file of the manifest is there and unchanged.

    Other files are refused too, unless `others_allowed`. Files that are `elsewhere` are not looked at.
    """
    entries, files = read_manifest(directory), _files(directory)
    if others_allowed:
        files = {name: file for name, file in files.items() if name in entries}
    looked_at = sorted((entries | files).keys() - set(elsewhere))
    with ThreadPoolExecutor() as pool:
        results = pool.map(lambda name: file_damage(name, entries.get(name), files.get(name)), looked_at)
    if damages := [damage for damage in results if damage]:
        raise DamagedCheckpoint("; ".join(damages))


def describe_file(file: Path) -> FileEntry:
    """Return the entry of a file."""
    return {"bytes": file.stat().st_size, "sha256": _sha256(file)}


def file_damage(name: str, entry: FileEntry | None, file: Path | None) -> str | None:
    """Return how a file differs from its entry, or None."""
    if entry is None:
        return f"{name} is not in {MANIFEST}"
    if file is None or not file.is_file():
        return f"{name} is missing"
    # A wrong size saves reading the file.
    if (size := file.stat().st_size) != entry["bytes"]:
        return f"{name} is {'cut short' if size < entry['bytes'] else 'too long'}: {size} of {entry['bytes']} bytes"
    return None if _sha256(file) == entry["sha256"] else f"{name} was changed: its sha256 is another one"


def _files(directory: str | Path) -> dict[str, Path]:
    """Return the files of a folder by name, without the manifest; a checkpoint has no folders inside."""
    others = (MANIFEST, POINTER)
    return {file.name: file for file in Path(directory).iterdir() if file.is_file() and file.name not in others}


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()

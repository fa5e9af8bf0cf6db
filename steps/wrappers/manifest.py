"""Whether a checkpoint's folder is whole: `phi3_manifest.json` in it has the size and sha256 of every file.

The manifest travels inside each model, so a model that was damaged on its way is refused when it is loaded,
by the name of the file, instead of giving wrong answers. It is checked always, several files at once.
"""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

MANIFEST = "phi3_manifest.json"


class BrokenCheckpoint(Exception):
    """A checkpoint is not what it was when it was made; the text names each file."""


def write_manifest(directory: str | Path) -> None:
    """Write the manifest of the files that are in a folder now."""
    (Path(directory) / MANIFEST).unlink(missing_ok=True)
    files = _files(directory)
    with ThreadPoolExecutor() as pool:
        digests = dict(zip(files, pool.map(_sha256, files.values()), strict=True))
    content = {name: {"bytes": file.stat().st_size, "sha256": digests[name]} for name, file in files.items()}
    (Path(directory) / MANIFEST).write_text(json.dumps(content, indent=2), encoding="utf-8")


def read_manifest(directory: str | Path) -> dict[str, dict]:
    """`bytes` and `sha256` of each file by its name; raises BrokenCheckpoint where there is no manifest."""
    try:
        content = json.loads((Path(directory) / MANIFEST).read_text(encoding="utf-8"))
        return {name: {"bytes": int(entry["bytes"]), "sha256": entry["sha256"]} for name, entry in content.items()}
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise BrokenCheckpoint(f"{MANIFEST} cannot be read ({type(error).__name__})") from None


def check(directory: str | Path, others_allowed: bool = False) -> None:
    """Raise BrokenCheckpoint unless every file is there, whole and unchanged, and no other one."""
    logged, files = read_manifest(directory), _files(directory)
    if others_allowed:
        files = {name: file for name, file in files.items() if name in logged}
    with ThreadPoolExecutor() as pool:
        found = pool.map(lambda name: _fault(name, logged.get(name), files.get(name)), sorted(logged | files))
    if faults := [fault for fault in found if fault]:
        raise BrokenCheckpoint("; ".join(faults))


def _fault(name: str, logged: dict | None, file: Path | None) -> str | None:
    if logged is None:
        return f"{name} does not belong to it"
    if file is None:
        return f"{name} is missing"
    if (size := file.stat().st_size) != logged["bytes"]:
        return f"{name} is {'cut short' if size < logged['bytes'] else 'too long'}: {size} of {logged['bytes']} bytes"
    return None if _sha256(file) == logged["sha256"] else f"{name} was changed: its sha256 is another one"


def _files(directory: str | Path) -> dict[str, Path]:
    """The files of a folder but the manifest; it has no folders inside."""
    return {file.name: file for file in Path(directory).iterdir() if file.is_file() and file.name != MANIFEST}


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()

"""Find damaged files in a checkpoint before anything loads them.

Four sources of truth are compared with the files: this project's own manifest, the sha256 that the hub's cache uses
as the name of a large file, the header of a safetensors file, and the index of shards. JSON files must parse.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from steps.wrappers.manifest import MANIFEST, DamagedCheckpoint, FileEntry, check

SHA256 = re.compile("[0-9a-f]{64}")


def checkpoint_faults(directory: Path, manifest: Mapping[str, FileEntry]) -> list[str]:
    """Return one sentence for each damaged file of a checkpoint.

    Args:
        directory: Folder of the checkpoint.
        manifest: Size and sha256 of its files as they are now, by name.
    """
    faults = []
    if (directory / MANIFEST).is_file():
        try:
            check(directory, others_allowed=True)
        except DamagedCheckpoint as fault:
            faults.append(
                f"'{directory}' does not match its {MANIFEST}: {fault}. Fetch it again; if you changed it yourself, "
                f"remove {MANIFEST}."
            )
    for name, entry in manifest.items():
        file = directory / name
        faults += [f"{file} is damaged: {fault}." for fault in _file_faults(file, entry["sha256"])]
    return faults


def _file_faults(file: Path, sha256: str) -> Iterator[str]:
    blob = file.resolve()
    if SHA256.fullmatch(blob.name) and blob.name != sha256:
        yield f"the hub lists sha256 {blob.name}, the file has {sha256}; delete {blob} to download it again"
    elif file.suffix == ".json":
        yield from _json_faults(file)
    elif file.suffix == ".safetensors":
        yield from _safetensors_faults(file)


def _json_faults(file: Path) -> Iterator[str]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        yield f"it is not JSON ({error})"
        return
    if not isinstance(content, dict):
        yield "it is not a JSON object"
    elif file.name.endswith(".index.json"):
        places = content.get("weight_map")
        if not isinstance(places, dict) or not places:
            yield "its weight_map must be an object with the file of each tensor"
            return
        shards = {str(name) for name in places.values()}
        # A file of another folder would not be logged.
        missing = sorted(name for name in shards if Path(name).name != name or not (file.parent / name).is_file())
        if missing:
            yield f"it lists files that do not exist ({', '.join(missing)})"


def _safetensors_faults(file: Path) -> Iterator[str]:
    """Open a weights file: its header records the length, so a truncated file is refused."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy"):
            pass
    except SafetensorError as error:
        yield str(error)

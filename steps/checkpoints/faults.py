"""What is wrong with the files of a checkpoint, as far as they tell it themselves: by the name of the file.

Reads the manifest that this project leaves in its own folders, the sha256 that the hub's cache gives to large files
as their names, the header of safetensors, the index of shards, and whether JSON is JSON.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from steps.wrappers import manifest as whole

SHA256 = re.compile("[0-9a-f]{64}")


def faults(directory: Path, manifest: dict[str, str]) -> list[str]:
    """Every fault of a checkpoint's folder; `manifest` is the sha256 of each of its files."""
    found = []
    if (directory / whole.MANIFEST).is_file():
        found += _changed(directory)
    for name, sha256 in manifest.items():
        found += [f"{directory / name} is damaged: {fault}." for fault in _file_faults(directory / name, sha256)]
    return found


def _changed(directory: Path) -> Iterator[str]:
    try:
        whole.check(directory, others_allowed=True)
    except whole.DamagedCheckpoint as fault:
        yield (
            f"'{directory}' is not what its {whole.MANIFEST} says: {fault}. Fetch it again; if you changed it "
            f"yourself, remove {whole.MANIFEST}."
        )


def _file_faults(file: Path, sha256: str) -> Iterator[str]:
    blob = file.resolve().name
    if SHA256.fullmatch(blob) and blob != sha256:
        yield f"the hub gave it the sha256 {blob}, it has {sha256}; delete {file.resolve()} to have it fetched again"
    elif file.suffix == ".json":
        yield from _json_faults(file)
    elif file.suffix == ".safetensors":
        yield from _safetensors_faults(file)


def _json_faults(file: Path) -> Iterator[str]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        yield f"it is no JSON ({error})"
        return
    if not isinstance(content, dict):
        yield "it is no JSON object"
    elif file.name.endswith(".index.json"):
        shards = {str(name) for name in content.get("weight_map", {}).values()}
        lost = sorted(name for name in shards if not (file.parent / name).is_file())
        if lost:
            yield f"it names files that are not there ({', '.join(lost)})"


def _safetensors_faults(file: Path) -> Iterator[str]:
    """A file that was cut short: its header tells how long it must be."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy"):
            pass
    except SafetensorError as error:
        yield str(error)

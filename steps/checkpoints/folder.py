"""Checkpoints that are already on this machine: `-P model=local -P model.path=FOLDER`."""

from pathlib import Path

from steps.config.schema import FolderModel
from steps.errors import StepError


def fetch(model: FolderModel) -> tuple[Path, None]:
    """Return the folder `model.path`, and no revision."""
    if not model.path:
        raise StepError("model.path must be the folder of a checkpoint, got nothing: -P model.path=FOLDER.")
    return Path(model.path).expanduser(), None

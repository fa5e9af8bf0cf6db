"""Recognize pickles, which can run any code when they are loaded. No file is unpickled to find out."""

import contextlib
import zipfile
from pathlib import Path, PurePosixPath

PICKLES = (".pkl", ".pickle", ".bin", ".pt", ".pth", ".ckpt", ".joblib", ".dill", ".cloudpickle")


def is_named_as_pickle(path: str) -> bool:
    """Return True if a path has the ending of a pickle."""
    return PurePosixPath(path).suffix.lower() in PICKLES


def holds_pickle(file: Path) -> bool:
    """Return True if a file is a pickle (protocol 2 or later) or an archive with one, whatever its name."""
    with file.open("rb") as opened:
        start = opened.read(4)
    if start == b"PK\x03\x04":
        with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(file) as archive:
            return any(is_named_as_pickle(name) for name in archive.namelist())
    return len(start) > 1 and start[0] == 0x80 and start[1] in range(2, 6)

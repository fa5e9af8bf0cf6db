"""Where the project's own files are, and where the user stands."""

import contextlib
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import psutil

PROJECT = Path(__file__).resolve().parents[2]
CONF = PROJECT / "conf"


def user_directory() -> Path:
    """Return the folder in which the user typed the command.

    `mlflow run DIR` starts a step in DIR, with the environment variable MLFLOW_RUN_ID. The first process above the
    step that was started without this run is `mlflow run` itself, or the program that called `mlflow.projects.run`,
    and it stands where the user does. The variable PWD does not tell: the shell in between sets it to DIR.
    """
    here = Path.cwd()
    with contextlib.suppress(psutil.Error, OSError):
        step = psutil.Process()
        run_id = step.environ().get("MLFLOW_RUN_ID")
        if run_id and here == PROJECT:
            return next((folder for process in step.parents() if (folder := _folder_outside(process, run_id))), here)
    return here


def from_user(path: str) -> str:
    """Return a path that a user typed as an absolute one if it exists where the user stands; otherwise as it is.

    It may be a `file:` address, or have spaces around it.
    """
    bare = path.strip()
    address = [url2pathname(urlsplit(bare).path)] if bare.startswith("file:") else []
    for name in dict.fromkeys(filter(None, [path if bare else "", bare, *address])):
        with contextlib.suppress(OSError, RuntimeError, ValueError):  # a name that no file can have
            target = user_directory() / Path(name).expanduser()
            if target.exists():
                return str(target)
    return path


def _folder_outside(process: psutil.Process, run_id: str) -> Path | None:
    """Return the folder of a process; None if it belongs to the run, or may not be examined."""
    try:
        return None if process.environ().get("MLFLOW_RUN_ID") == run_id else Path(process.cwd())
    except (psutil.Error, OSError):
        return None

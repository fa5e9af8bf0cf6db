"""Environment variables for child processes: with access to this store, or without any store and secrets."""

import os
import sys
from pathlib import Path

from steps.redaction import SECRET
from steps.store import address


def child_environment(folder: Path) -> dict[str, str]:
    """Return the environment of a process that uses this store, but neither this project's code nor its run.

    Args:
        folder: Working directory of the process; its temporary files go there too.
    """
    import mlflow

    own = ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "PYTHONPATH")
    inherited = {name: value for name, value in os.environ.items() if name not in own}
    uris = {"MLFLOW_TRACKING_URI": mlflow.get_tracking_uri(), "MLFLOW_REGISTRY_URI": mlflow.get_registry_uri()}
    absolute = {name: address.absolute(uri, Path.cwd()) for name, uri in uris.items()}
    # This Python's environment need not be activated, so its programs may not be on the PATH.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return inherited | absolute | {"TMPDIR": str(folder), "PATH": path}


def storeless_environment() -> dict[str, str]:
    """Return the environment of a process that needs no store: without MLflow's settings and without secrets."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_") and not SECRET.search(name)
    }
    return inherited | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}

"""Addresses of the store: its web interface, and the file of the model registry."""

import re
from pathlib import Path
from urllib.parse import unquote

from steps.config.paths import user_directory
from steps.redaction import without_secrets


def ui_address() -> str:
    """Return the address of MLflow's web interface: the tracking server, or `mlflow ui` on this machine."""
    import mlflow

    uri = mlflow.get_tracking_uri()
    return without_secrets(uri).rstrip("/") if uri.startswith("http") else "http://127.0.0.1:5000"


def ui_arguments() -> str:
    """Return the arguments that `mlflow ui` needs to show this store; "" if its defaults are enough."""
    import mlflow

    uri = mlflow.get_tracking_uri()
    is_default = uri in ("sqlite:///mlflow.db", f"sqlite:///{user_directory() / 'mlflow.db'}")
    if is_default or uri.startswith("http") or "://" not in uri:
        return ""
    # The variable rather than its value, because the address can hold a password.
    return ' --backend-store-uri "$MLFLOW_TRACKING_URI"'


def absolute(uri: str, folder: Path) -> str:
    """Return the URI of a SQLite file with an absolute path, which starts in a folder if it was relative."""
    # In another working directory, a relative path would name another file.
    return re.sub(r"^sqlite:///(?=[^/:?])(?![A-Za-z]:)", f"sqlite:///{folder}/", uri)


def sqlite_file(uri: str) -> Path | None:
    """Return the file of a SQLite address; None for any other address."""
    scheme, _, path = uri.partition(":///")
    is_file = scheme == "sqlite" and path and not path.startswith((":memory:", "file:"))
    return Path(unquote(path.partition("?")[0])).resolve() if is_file else None


def registry_file() -> Path | None:
    """Return the SQLite file of the model registry; None if it is on a server or in another database."""
    import mlflow

    return sqlite_file(mlflow.get_registry_uri())

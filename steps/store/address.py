"""Addresses of the store: its web interface, and the file of the model registry."""

from pathlib import Path

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
    is_default = uri in ("sqlite:///mlflow.db", f"sqlite:///{Path('mlflow.db').resolve()}")
    if is_default or uri.startswith("http") or "://" not in uri:
        return ""
    # The variable rather than its value, because the address can hold a password.
    return ' --backend-store-uri "$MLFLOW_TRACKING_URI"'


def registry_file() -> Path | None:
    """Return the SQLite file of the model registry; None if it is on a server or in another database."""
    import mlflow

    scheme, _, path = mlflow.get_registry_uri().partition(":///")
    return Path(path.partition("?")[0]).resolve() if scheme == "sqlite" and path else None

"""Load a registered version into the ASGI app that `mlflow models serve` would make of it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from steps.errors import StepError
from steps.output import suppress_output
from steps.store.commands import step_command

if TYPE_CHECKING:
    from mlflow import MlflowClient

# The wrappers read it: MLflow hands on no alias.
ALIAS = "PHI3_SERVED_ALIAS"
QUESTION = "Hello"


@dataclass(frozen=True)
class Loaded:
    """A version that can be served."""

    version: str
    app: Any


def version_of(client: MlflowClient, name: str, alias: str) -> str:
    """Return the number of the version that an alias names; raise StepError if it names none."""
    from mlflow.exceptions import MlflowException

    try:
        return str(client.get_model_version_by_alias(name, alias).version)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise StepError(
            f"models:/{name}@{alias} does not exist, so there is nothing to serve. Promote a variant first "
            f"(`{step_command('register')}`), or name another registered_model or alias."
        ) from None


def load(name: str, version: str, alias: str) -> Loaded:
    """Load a version, ask it a question, and return its app; raise StepError if it does not answer."""
    import mlflow

    os.environ[ALIAS] = alias
    try:
        with suppress_output():
            model = mlflow.pyfunc.load_model(f"models:/{name}/{version}")
            wrapper = model.unwrap_python_model()
            if not hasattr(wrapper, "server_class"):
                raise StepError("it is not a model of this project's custom modes that can be served by this step")
            wrapper.predict(None, QUESTION, {"max_tokens": 1})
            return Loaded(version, _app(model, wrapper.server_class))
    except Exception as error:  # whatever a damaged or a foreign model raises
        reason = error.faults[0] if isinstance(error, StepError) else str(error).strip().splitlines()[:1]
        reason = reason if isinstance(reason, str) else "".join(reason)
        raise StepError(
            f"Version {version} of {name} cannot be served: {reason or type(error).__name__}. Promote another version, "
            "or serve it with `mlflow models serve`."
        ) from error


def _app(model: Any, server_class: Any) -> Any:
    """Return MLflow's app for a model, made of the extended class."""
    import fastapi
    from mlflow.pyfunc import scoring_server

    original = fastapi.FastAPI
    fastapi.FastAPI = server_class(original)  # type: ignore[misc]
    try:
        return scoring_server.init(model)
    finally:
        fastapi.FastAPI = original  # type: ignore[misc]

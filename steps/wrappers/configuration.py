"""The configuration of a model: what `load_model(model_config=…)` gives, completed by what was logged.

MLflow replaces a whole section, such as `generation`, by the one that is given. Here a section keeps the logged values
of the keys that are not given.
"""

from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

from .contract.errors import RequestError
from .contract.fields import check_settings, short, shown_name, without_none
from .contract.requests import SETTINGS

# Settings that may be given although no model is logged with all of them.
OPTIONAL_KEYS = {"generation": SETTINGS}
# The signature belongs to the interface, and the files to the engine.
FIXED_KEYS = ("interface", "engine.name")
ENGINE_BOUNDS = {"max_batch_size": (1, 256), "prefix_cache_mb": (0, 2**20)}


def complete_config(config: dict[str, Any], model_folder: Path) -> dict[str, Any]:
    """Return the configuration of the model in a folder with every key.

    Raises:
        MlflowException: A key is unknown, or a value cannot be used.
    """
    logged: dict[str, Any] = Model.load(model_folder).flavors["python_function"]["config"]
    complete = {key: _complete_value(key, config.get(key), value) for key, value in logged.items()}
    for key in FIXED_KEYS:
        if (got := _look_up(complete, key)) != (expected := _look_up(logged, key)):
            raise _invalid(key, f"must stay {expected!r}, got {short(got)}")
    for name, (lowest, highest) in ENGINE_BOUNDS.items():
        number = complete["engine"][name]
        if isinstance(number, bool) or not isinstance(number, int) or not lowest <= number <= highest:
            bounds = f"at least {lowest} and at most {highest}"
            raise _invalid(f"engine.{name}", f"must be a whole number, {bounds}, got {short(number)}")
    try:
        check_settings(complete["generation"], explicit_max_tokens=False, context=1, used=0)
    except RequestError as error:
        reason = error.message.removeprefix(f"[{error.code}] ")
        raise _invalid("generation", f"cannot be used: {reason}") from None
    return complete


def _complete_value(key: str, given: Any, logged: Any) -> Any:
    """Return the value of a key; if it is a section, with all of its keys."""
    if given is None:
        return logged
    if not isinstance(given, type(logged)):
        kind = "an object" if isinstance(logged, dict) else "a string"
        raise _invalid(key, f"must be {kind}, got {short(given)}")
    if not isinstance(logged, dict):
        return given
    known = dict.fromkeys([*logged, *OPTIONAL_KEYS.get(key, ())])
    if unknown := [name for name in given if name not in known]:
        raise _invalid(f"{key}.{shown_name(unknown[0])}", f"is not a known key; known keys: {', '.join(known)}")
    return logged | without_none(given)


def _look_up(config: dict[str, Any], dotted_key: str) -> Any:
    value: Any = config
    for key in dotted_key.split("."):
        value = value[key]
    return value


def _invalid(key: str, problem: str) -> MlflowException:
    return MlflowException(f"model_config.{key} {problem}", error_code=INVALID_PARAMETER_VALUE)

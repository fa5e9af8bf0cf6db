"""The engines that complete sequences, by the name that a logged model asks for.

An engine's libraries are imported only when that engine is loaded: no model needs those of another.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .threads import wait_briefly

if TYPE_CHECKING:
    from .scheduler import Engine

# Name → module of this package, and what to call in it with the folder and the rest of `engine` in `model_config`.
ENGINES = {
    "torch": ("torch_engine", "TorchEngine"),
    "onnxruntime": ("onnx_providers", "load"),
    "llama.cpp": ("llama_cpp_engine", "load"),
    "OpenVINO": ("openvino_engine", "load"),
}


# Before an engine loads torch.
wait_briefly()


class UnusableDevice(ValueError):
    """This machine does not have the device of an engine, or the engine cannot use it."""


class MissingPackage(ValueError):
    """A package that an engine needs is not installed."""


def load_engine(directory: str, name: str, **arguments: Any) -> "Engine":
    """Return the engine of that name over the checkpoint in a folder.

    Raises:
        UnusableDevice: The engine cannot run on the device that it is given.
        MissingPackage: A package that the engine needs is not installed.
    """
    module, attribute = ENGINES[name]
    try:
        make = getattr(import_module(f".{module}", __name__), attribute)
    except ModuleNotFoundError as error:
        raise MissingPackage(
            f"the model needs {name}, and this environment has no module {error.name!r}: install the model's own "
            "requirements.txt, or let MLflow make its environment"
        ) from error
    engine: Engine = make(directory, **arguments)
    return engine

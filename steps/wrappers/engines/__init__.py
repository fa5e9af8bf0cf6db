"""The engines that complete sequences, by the name that a logged model asks for.

An engine's libraries are imported only when that engine is loaded: no model needs those of another.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .scheduler import Engine

# Name → module of this package, and what to call in it with the folder and the rest of `engine` in `model_config`.
ENGINES = {
    "torch": ("torch_engine", "TorchEngine"),
    "onnxruntime": ("onnx_providers", "load"),
}


class UnusableDevice(ValueError):
    """This machine does not have the device of an engine, or the engine cannot use it."""


def load_engine(directory: str, name: str, **arguments: Any) -> "Engine":
    """Return the engine of that name over the checkpoint in a folder.

    Raises:
        UnusableDevice: The engine cannot run on the device that it is given.
    """
    module, attribute = ENGINES[name]
    engine: Engine = getattr(import_module(f".{module}", __name__), attribute)(directory, **arguments)
    return engine

"""What clients send and get: `chat` (MLflow's chat schemas) or `prompt` (a text in, a text out). One file each."""

from importlib import import_module

from steps.errors import StepError, unknown
from steps.interfaces.interface import Interface

# Where each interface is; `interface=NAME` chooses one.
INTERFACES = {
    "chat": "steps.interfaces.chat",
    "prompt": "steps.interfaces.prompt",
}


def get_interface(name: str) -> Interface:
    """Return an interface by name; raises StepError with the nearest name."""
    if name not in INTERFACES:
        raise StepError(unknown("interface", name, INTERFACES))
    interface: Interface = import_module(INTERFACES[name]).INTERFACE
    return interface

"""The ways to wrap a checkpoint. A mode is one file and one line of the map below."""

from collections.abc import Iterator
from dataclasses import asdict
from importlib import import_module

import yaml

from steps.config.paths import CONF
from steps.config.schema import BuildConfig, HubModel, QuantizedPrecision
from steps.errors import StepError, unknown
from steps.interfaces import INTERFACES
from steps.modes.mode import Mode

# Where each mode is; `mode=NAME` chooses one.
MODES = {
    "transformers": "steps.modes.transformers",
    "pyfunc": "steps.modes.pyfunc",
    "onnx": "steps.modes.onnx",
    "openvino": "steps.modes.openvino",
    "llama_cpp": "steps.modes.llama_cpp",
}


def get_mode(name: str) -> Mode:
    """Return a mode by name; raises StepError with the nearest name."""
    if name not in MODES:
        raise StepError(unknown("mode", name, MODES))
    mode: Mode = import_module(MODES[name]).MODE
    return mode


def build_faults(config: BuildConfig) -> Iterator[str]:
    """Yield what cannot be built: an unknown interface, a precision that the mode does not have, missing packages."""
    if config.interface not in INTERFACES:
        yield f"interface must be one of {', '.join(INTERFACES)}, got {config.interface!r}."
    mode, precision = get_mode(config.mode.name), config.precision.name
    if precision not in mode.precisions:
        offering = [name for name in MODES if precision in get_mode(name).precisions]
        yield (
            f"precision={precision} is not offered by mode={mode.name}, which has {', '.join(mode.precisions)}. "
            f"Modes that have {precision}: {', '.join(offering) or 'none'}."
        )
    elif isinstance(config.precision, QuantizedPrecision) and not mode.has_blocks:
        yield from _block_faults(config.precision, mode)
    yield from _export_faults(config, mode)
    if mode.lacking:
        yield (
            f"mode={mode.name} needs packages that are not installed here: "
            f"`pip install {' '.join(mode.lacking)}`, and then `--env-manager local`."
        )


def _block_faults(precision: QuantizedPrecision, mode: Mode) -> Iterator[str]:
    """Yield the keys of a precision that were changed although the mode does not read them."""
    shipped = yaml.safe_load((CONF / "precision" / f"{precision.name}.yaml").read_text(encoding="utf-8"))
    reading = " or ".join(f"mode={name}" for name in MODES if get_mode(name).has_blocks)
    for key, value in asdict(precision).items():
        if value != shipped[key]:
            yield f"precision.{key} is for {reading}, got {value} with mode={mode.name}: leave it out."


def _export_faults(config: BuildConfig, mode: Mode) -> Iterator[str]:
    """Yield why a checkpoint in ONNX GenAI layout cannot be taken, before it is downloaded."""
    exported = config.model.exported if isinstance(config.model, HubModel) else None
    if exported is None:
        return
    taking = " or ".join(f"mode={name}" for name in MODES if get_mode(name).takes_exports)
    if not mode.takes_exports:
        yield f"model={config.model.name} is exported to ONNX already, which is for {taking}, got mode={mode.name}."
    if config.precision.name != exported:
        yield (
            f"model={config.model.name} is exported in {exported}, got precision={config.precision.name}: give "
            f"precision={exported}."
        )

"""The config.json of a checkpoint in Hugging Face layout: which are supported, and how transformers reads them."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steps.errors import StepError, reason
from steps.output import suppress_output

if TYPE_CHECKING:
    from transformers import Phi3Config

    from steps.wrappers.engines.sampling import FloatArray

# Phi-3-mini and -medium, Phi-3.5-mini, Phi-4 and Phi-4-mini. Answers are held against transformers for these only.
MODEL_TYPE = "phi3"
# What the tools that quantise a checkpoint add to its configuration.
QUANTIZATION_KEYS = ("quantization_config", "compression_config")
# Names that LongRoPE had in earlier revisions of Phi-3. transformers knows them and fails on them.
OLD_LONGROPE = ("su", "yarn")
ROPE_KEYS = ("rope_scaling", "rope_parameters")
ADAPTER = "adapter_config.json"


def refuse_adapter(directory: Path) -> None:
    """Raise StepError if a folder holds an adapter, alone or next to a whole model."""
    if (directory / ADAPTER).is_file():
        raise StepError(
            f"'{directory}' holds an adapter ({ADAPTER}): merge it into its base model first (PEFT's merge_and_unload) "
            "and give the folder of the merged checkpoint."
        )


def support_faults(directory: Path) -> Iterator[str]:
    """Yield why no mode can use a checkpoint: another architecture, quantised weights."""
    if not (directory / "config.json").is_file():
        return
    config = _read(directory / "config.json")
    model_type = config.get("model_type")
    if model_type != MODEL_TYPE:
        yield f"'{directory}' has model_type {model_type!r} in its config.json: only {MODEL_TYPE!r} is supported."
    for key in QUANTIZATION_KEYS:
        if config.get(key) is not None:
            method = config[key].get("quant_method") if isinstance(config[key], dict) else None
            yield (
                f"The weights in '{directory}' are quantised ({method or key}): give the checkpoint before it was "
                "quantised, and the precision that you want (for example mode=onnx precision=int4)."
            )


def load_config(directory: Path) -> "Phi3Config":
    """Return the configuration as transformers reads it; raise StepError if it is not valid."""
    from transformers import Phi3Config

    try:
        with suppress_output():
            config = Phi3Config.from_dict(read_config(directory / "config.json"))
    except Exception as error:  # transformers validates with every kind of error
        raise invalid_config(directory, error) from error
    if config.sliding_window is not None and config.sliding_window < 1:
        raise StepError(f"sliding_window in '{directory}/config.json' must be at least 1, got {config.sliding_window}.")
    theta = (config.rope_parameters or {}).get("rope_theta")
    if theta is not None and not 0 < theta < math.inf:
        raise StepError(f"rope_theta in '{directory}/config.json' must be above 0, got {theta}.")
    return config


def head_size(config: "Phi3Config") -> int:
    """Return the size of an attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def attention_scaling(config: "Phi3Config") -> float:
    """Return what transformers multiplies the cosines and sines of a rotary embedding by."""
    return rotary_embedding(config)[1]


def rotary_embedding(config: "Phi3Config") -> tuple["FloatArray", float]:
    """Return the frequencies of transformers' rotary embedding [rotated / 2], and what it multiplies its waves by.

    With LongRoPE they are those of the short factors.
    """
    from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

    rotary = Phi3RotaryEmbedding(config)
    return rotary.inv_freq.float().numpy(), float(rotary.attention_scaling)


def invalid_config(directory: Path, error: Exception) -> StepError:
    """Return the error for a configuration that transformers refuses."""
    return StepError(f"'{directory}/config.json' is not a valid configuration ({reason(error)}).")


def read_config(file: Path) -> dict[str, Any]:
    """Return a JSON file without references to code of the checkpoint's own, and with today's name for LongRoPE."""
    # transformers has Phi-3's code itself.
    content = {key: value for key, value in _read(file).items() if key != "auto_map"}
    for key in ROPE_KEYS:
        rope = content.get(key)
        if isinstance(rope, dict) and "short_factor" in rope:
            content[key] = {name: "longrope" if value in OLD_LONGROPE else value for name, value in rope.items()}
    return content


def _read(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content

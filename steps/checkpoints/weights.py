"""Hold the weights of a checkpoint against its configuration: every tensor there, no other, each in its shape.

transformers fills in random numbers for a tensor that is missing, and ignores one that it does not know. If all of them
fit, the weights are read once: each has to be a finite number.
"""

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from steps.checkpoints.configuration import invalid_config, load_config
from steps.errors import StepError
from steps.output import suppress_output

if TYPE_CHECKING:
    from transformers import Phi3Config, Phi3ForCausalLM

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
# The types that a weight can have. Any other means that it is quantised, and nothing here undoes that.
DTYPES = ("F64", "F32", "F16", "BF16")
# Computed from the configuration, whatever an old checkpoint has stored.
COMPUTED = ".rotary_emb.inv_freq"
# How many names of one kind a fault shows.
SHOWN = 3


@dataclass(frozen=True)
class StoredTensor:
    """What the header of a safetensors file says about one tensor, and the name that it has there."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]


def check_weights(directory: Path) -> None:
    """Raise StepError with everything in a checkpoint in Hugging Face layout that does not fit its configuration."""
    config = load_config(directory)
    model, tensors = empty_model(directory, config), list(_tensors(directory))
    stored = dict(tensors)
    copies = Counter(name for name, _ in tensors)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    optional = {EMBEDDING, HEAD} if config.tie_word_embeddings and stored.keys() & {EMBEDDING, HEAD} else set()
    kinds = {
        "missing": [name for name in expected if name not in stored and name not in optional],
        "unexpected": [name for name in stored if name not in expected and not name.endswith(COMPUTED)],
        "misshapen": [
            f"{name} {list(tensor.shape)} instead of {list(expected[name])}"
            for name, tensor in stored.items()
            if name in expected and tensor.shape != expected[name]
        ],
        f"stored as none of {', '.join(DTYPES)}": [
            f"{name} {tensor.dtype}" for name, tensor in stored.items() if tensor.dtype not in DTYPES
        ],
        "stored more than once": [name for name, count in copies.items() if count > 1],
    }
    if not any(kinds.values()):
        kinds["with values that are not finite numbers"] = [*_not_finite(stored)]
    if faults := [f"{len(names)} {kind} ({_shortened(names)})" for kind, names in kinds.items() if names]:
        raise StepError(
            f"The weights in '{directory}' do not fit its config.json, which asks for {len(expected)} tensors: "
            f"{'; '.join(faults)}. Give the checkpoint whole, as it was saved with this config.json."
        )


def stored_tensors(directory: Path) -> dict[str, StoredTensor]:
    """Return the tensors in the files that transformers loads, by their names in the whole model."""
    return dict(_tensors(directory))


def _tensors(directory: Path) -> Iterator[tuple[str, StoredTensor]]:
    """Yield the tensors of one file, or of the shards that an index lists."""
    from safetensors import safe_open

    if (directory / WEIGHTS).is_file():
        files = {WEIGHTS}
    elif (directory / INDEX).is_file():
        files = set(json.loads((directory / INDEX).read_text(encoding="utf-8")).get("weight_map", {}).values())
    else:
        names = ", ".join(sorted(file.name for file in directory.glob("*.safetensors")))
        raise StepError(f"'{directory}' must hold its weights in {WEIGHTS} or list them in {INDEX}, got {names}.")
    for file in (directory / name for name in sorted(files)):
        with safe_open(file, framework="numpy") as opened:
            for name in opened.keys():  # noqa: SIM118 (it is no dictionary)
                header = opened.get_slice(name)
                yield _full_name(name), StoredTensor(file, name, header.get_dtype(), tuple(header.get_shape()))


def _not_finite(stored: Mapping[str, StoredTensor]) -> Iterator[str]:
    """Yield the names of the tensors with a value that is infinite or not a number."""
    import torch
    from safetensors import safe_open

    for name, tensor in stored.items():
        with safe_open(tensor.file, framework="pt") as opened:
            lowest, highest = torch.aminmax(opened.get_tensor(tensor.name))  # both are NaN if any value is
        if not (lowest.isfinite() and highest.isfinite()):
            yield name


def _full_name(name: str) -> str:
    """Return a tensor's name in the whole model. transformers also loads one saved without its head."""
    return f"model.{name}" if name.startswith(("embed_tokens.", "layers.", "norm.")) else name


def empty_model(directory: Path, config: "Phi3Config") -> "Phi3ForCausalLM":
    """Return the model without memory for its weights."""
    import torch
    from transformers import Phi3ForCausalLM

    try:
        with suppress_output(), torch.device("meta"):
            return Phi3ForCausalLM(config)  # type: ignore[no-untyped-call]
    except Exception as error:  # every layer has assertions of its own
        raise invalid_config(directory, error) from error


def _shortened(names: Collection[str]) -> str:
    rest = len(names) - SHOWN
    return ", ".join(sorted(names)[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")

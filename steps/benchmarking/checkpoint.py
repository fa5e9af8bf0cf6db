"""Write a checkpoint of a Phi-3 shape with random weights, one shard after the other.

It has the size and the speed of the real one, and says nonsense that never ends. The tokenizer is that of the
miniature. Memory: one shard (1 GB), whatever the size of the checkpoint.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steps.checkpoints.miniature import fetch
from steps.config.schema import MiniatureModel
from steps.output import activity

if TYPE_CHECKING:
    from torch import Generator, Tensor

SHARD_BYTES = 1_000_000_000
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
END_TOKEN = 6
MINI: dict[str, Any] = {
    "vocab_size": 32064,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "original_max_position_embeddings": 4096,
}


def _longrope(pairs: int) -> dict[str, Any]:
    """Return LongRoPE's parameters for as many pairs of rotated numbers."""
    return {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * pairs,
        "long_factor": [1.0 + 30.0 * pair / pairs for pair in range(pairs)],
    }


SHAPES: dict[str, dict[str, Any]] = {
    "phi3_mini": MINI,
    "phi3_mini_128k": MINI | {"max_position_embeddings": 131072, "rope_parameters": _longrope(48)},
    "phi35_mini": MINI | {"max_position_embeddings": 131072, "rope_parameters": _longrope(48)},
    "phi4_mini": MINI
    | {
        "vocab_size": 200064,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "tie_word_embeddings": True,
        "max_position_embeddings": 131072,
        "rope_parameters": _longrope(48) | {"partial_rotary_factor": 0.75},
    },
    "1b": MINI | {"num_hidden_layers": 7},
    "medium": MINI | {"num_hidden_layers": 8},
    "small": MINI
    | {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 15, "num_attention_heads": 12}
    | {"num_key_value_heads": 12},
}


def write_checkpoint(shape: dict[str, Any], target: Path) -> int:
    """Write a random checkpoint in bf16 to a new folder; return its bytes."""
    import torch
    from safetensors.torch import save_file
    from transformers import Phi3Config, Phi3ForCausalLM

    config = Phi3Config(**shape, bos_token_id=1, eos_token_id=END_TOKEN, pad_token_id=3, dtype=torch.bfloat16)
    with torch.device("meta"):
        model = Phi3ForCausalLM(config)  # type: ignore[no-untyped-call]
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name not in tied}
    target.mkdir(parents=True)
    config.architectures = ["Phi3ForCausalLM"]
    config.save_pretrained(target)
    generator = torch.Generator().manual_seed(0)
    places: dict[str, str] = {}
    shards = list(_shards(shapes))
    for place, names in enumerate(shards, 1):
        file = f"model-{place:05}-of-{len(shards):05}.safetensors"
        with activity(f"writing random weights, file {place} of {len(shards)}"):
            tensors = {name: _random(name, shapes[name], generator) for name in names}
            save_file(tensors, target / file, {"format": "pt"})
        places |= dict.fromkeys(names, file)
    size = sum(2 * torch.Size(shape).numel() for shape in shapes.values())
    index = {"metadata": {"total_size": size}, "weight_map": places}
    (target / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    tokenizer, _ = fetch(MiniatureModel(name="miniature", seed=0))
    for name in TOKENIZER_FILES:
        shutil.copy(tokenizer / name, target)
    return size


def _shards(shapes: dict[str, tuple[int, ...]]) -> Iterator[list[str]]:
    """Yield names of tensors that together have at most SHARD_BYTES, unless it is one tensor alone."""
    import torch

    names: list[str] = []
    size = 0
    for name, shape in shapes.items():
        bytes_needed = 2 * torch.Size(shape).numel()
        if names and size + bytes_needed > SHARD_BYTES:
            yield names
            names, size = [], 0
        names.append(name)
        size += bytes_needed
    yield names


def _random(name: str, shape: tuple[int, ...], generator: Generator) -> Tensor:
    import torch

    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    tensor = torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)
    if name == "lm_head.weight":
        # The end token is never the likeliest, so every greedy answer has full length.
        tensor[END_TOKEN] = 0
    return tensor

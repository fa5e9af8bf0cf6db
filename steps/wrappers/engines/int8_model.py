"""Load a checkpoint whose linear layers are stored as int8.

In its safetensors files, LAYER.int8_weight [outputs, inputs] and LAYER.int8_scale [outputs] stand in place of
LAYER.weight. Every other tensor is as in the original checkpoint. These names keep transformers from loading int8
numbers as if they were weights.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM

from . import grouped_attention
from .int8_linear import int8_linear, report_kernel

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WEIGHT, SCALE = ".int8_weight", ".int8_scale"


def load_int8_model(directory: str, device: torch.device) -> "PreTrainedModel":
    """Return the model of a folder for a device, still on the CPU: int8 layers within fp32, or all bf16 for a GPU.

    Tensors are loaded one by one, so no second copy of the weights is ever in memory.

    Raises:
        ValueError: The files lack a tensor.
    """
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    report_kernel(dtype)
    config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config, dtype=dtype, attn_implementation=grouped_attention.NAME, trust_remote_code=False
        )
    for file in sorted(Path(directory).glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            names = set(tensors.keys())
            for name in sorted(names):
                if name.endswith(WEIGHT):
                    layer = name.removesuffix(WEIGHT)
                    bias = tensors.get_tensor(f"{layer}.bias").to(dtype) if f"{layer}.bias" in names else None
                    linear = int8_linear(tensors.get_tensor(name), tensors.get_tensor(layer + SCALE), bias, dtype)
                    model.set_submodule(layer, linear)
                elif not name.endswith(SCALE) and f"{name.removesuffix('.bias')}{WEIGHT}" not in names:
                    module, _, parameter = name.rpartition(".")
                    tensor = torch.nn.Parameter(tensors.get_tensor(name).to(dtype), requires_grad=False)
                    setattr(model.get_submodule(module), parameter, tensor)
    _compute_rotations(model)
    if missing := [name for name, tensor in model.state_dict().items() if tensor.is_meta]:
        raise ValueError(f"the checkpoint in {directory} lacks {', '.join(missing[:3])}")
    return model


def _compute_rotations(model: "PreTrainedModel") -> None:
    """Make the rotary embedding anew: its buffers follow from the configuration and are stored nowhere."""
    for name, module in list(model.named_modules()):
        if any(buffer.is_meta for buffer in module.buffers(recurse=False)):
            model.set_submodule(name, type(module)(model.config))

"""Write a checkpoint as a GGUF file, the format of llama.cpp, so that the file computes what transformers computes.

The file holds no vocabulary: the wrapper has the checkpoint's own tokenizer, and hands over token ids. Needs the
packages `gguf` and `llama-cpp-python`.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from steps.checkpoints.configuration import attention_scaling, head_size, load_config, read_config
from steps.checkpoints.weights import COMPUTED, check_weights, stored_tensors
from steps.errors import StepError
from steps.output import suppress_output

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import Phi3Config

FILE = "model.gguf"
# precision → what llama.cpp calls the kind. As in all of its files, the head has more bits than the rest.
KINDS = {"fp32": "ALL_F32", "int4": "MOSTLY_Q4_0", "int4_mixed": "MOSTLY_Q4_K_M", "int8": "MOSTLY_Q8_0"}
# Types that are written as they are stored. The others are written in fp32.
SHORT_TYPES = ("F16", "BF16")
# The only activation that llama.cpp has for Phi-3.
ACTIVATION = "silu"


def export_to_gguf(checkpoint: Path, target: Path, precision: str) -> None:
    """Write the weights of a checkpoint in Hugging Face layout to `model.gguf` in a folder.

    Args:
        checkpoint: Its folder.
        target: A folder with the checkpoint's other files. Its config.json ends the context where llama.cpp would
            compute something else than transformers.
        precision: A key of KINDS.

    Raises:
        StepError: The weights do not fit the configuration, or llama.cpp cannot take them.
    """
    check_weights(checkpoint)
    config = load_config(checkpoint)
    if faults := [*_faults(checkpoint, config)]:
        raise StepError(*faults)
    with TemporaryDirectory(prefix="phi3-", dir=target) as temporary:
        whole = Path(temporary) / FILE
        write_gguf(checkpoint, config, whole)
        _quantize(whole, target / FILE, KINDS[precision])
    end_context(config, target / "config.json")


def write_gguf(checkpoint: Path, config: Phi3Config, file: Path) -> None:
    """Write a checkpoint as it is. Only one tensor is in memory at a time."""
    from gguf import MODEL_ARCH, GGMLQuantizationType, GGUFWriter, get_tensor_name_map
    from gguf.quants import quantize
    from safetensors import safe_open

    writer = GGUFWriter(file, "phi3", use_temp_file=True)
    _write_shape(writer, config)
    names = get_tensor_name_map(MODEL_ARCH.PHI3, config.num_hidden_layers)
    for name, tensor in stored_tensors(checkpoint).items():
        if name.endswith(COMPUTED):
            continue
        with safe_open(tensor.file, "pt") as weights:
            values = weights.get_tensor(tensor.name).float().numpy()
        is_short = values.ndim > 1 and tensor.dtype in SHORT_TYPES
        kind = GGMLQuantizationType[tensor.dtype if is_short else "F32"]
        theirs = str(names.get_name(name, try_suffixes=(".weight",)))
        writer.add_tensor(theirs, quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _faults(checkpoint: Path, config: Phi3Config) -> Iterator[str]:
    """Yield what llama.cpp would refuse, and only when the file is loaded, or would compute in another way."""
    heads, size = config.num_attention_heads, head_size(config)
    if heads * size != config.hidden_size:
        yield (
            f"llama.cpp cannot compute '{checkpoint}': its heads together must be as wide as the model, got {heads} "
            f"heads of {size} and a model of {config.hidden_size}. Take another mode."
        )
    if config.hidden_act != ACTIVATION:
        yield (
            f"llama.cpp cannot compute '{checkpoint}': hidden_act must be {ACTIVATION!r}, got {config.hidden_act!r}. "
            "Take another mode."
        )


def _write_shape(writer: GGUFWriter, config: Phi3Config) -> None:
    import numpy as np

    rope: dict[str, Any] = dict(config.rope_parameters or {})
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads or config.num_attention_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(int(head_size(config) * rope["partial_rotary_factor"]))
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    if "short_factor" in rope:
        # The wrappers end the context where the short factors end, so llama.cpp gets no other ones.
        factors = np.array(rope["short_factor"], dtype=np.float32)
        writer.add_tensor("rope_factors_short.weight", factors)
        writer.add_tensor("rope_factors_long.weight", factors)
        writer.add_rope_scaling_attn_factors(attention_scaling(config))


def _quantize(source: Path, target: Path, kind: str) -> None:
    """Have llama.cpp write a file with weights of fewer bits."""
    import llama_cpp

    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_{kind}")
    with suppress_output():
        failed = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(settings))
    if failed:
        raise StepError(f"llama.cpp cannot quantise the checkpoint as {kind.partition('_')[2]}: take another mode.")


def end_context(config: Phi3Config, file: Path) -> None:
    """End the context at the sliding window, if the checkpoint has one that is shorter.

    From there on transformers forgets the first tokens, and llama.cpp does not.
    """
    window = config.sliding_window
    if window is None or window >= config.max_position_embeddings:
        return
    content = read_config(file) | {"max_position_embeddings": window}
    # Never through the link into the checkpoint.
    file.unlink()
    file.write_text(json.dumps(content, indent=2), encoding="utf-8")

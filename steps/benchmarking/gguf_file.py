"""Write a Phi-3 checkpoint as a GGUF file, the format of llama.cpp, with weights of four bits (Q4_0) or in fp32.

The file holds no vocabulary, so prompts must be token ids. Needs the package `gguf`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gguf import GGUFWriter


def write_gguf(checkpoint: Path, target: Path, kind: str = "Q4_0") -> None:
    """Write the checkpoint of a Phi-3 without LongRoPE to a file. All of its tensors are in memory at once.

    Args:
        checkpoint: A folder with config.json and safetensors.
        target: The file to write.
        kind: Of the matrices, by gguf's name. Vectors stay in fp32.
    """
    from gguf import MODEL_ARCH, GGMLQuantizationType, GGUFWriter, get_tensor_name_map
    from gguf.quants import quantize
    from safetensors import safe_open
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(checkpoint)
    writer = GGUFWriter(target, "phi3")
    _write_shape(writer, config)
    names = get_tensor_name_map(MODEL_ARCH.PHI3, config.num_hidden_layers)
    for file in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(file, "pt") as weights:
            for name in weights.keys():  # noqa: SIM118
                values = weights.get_tensor(name).float().numpy()
                form = GGMLQuantizationType[kind] if values.ndim > 1 else GGMLQuantizationType.F32
                theirs = names.get_name(name, try_suffixes=(".weight",))
                writer.add_tensor(theirs, quantize(values, form), raw_dtype=form)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_shape(writer: GGUFWriter, config: Any) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")

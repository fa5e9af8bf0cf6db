"""Write a Phi-3 checkpoint as a GGUF file, the format of llama.cpp, with weights of four bits (Q4_0) or in fp32.

It has no vocabulary: whoever loads it works with token ids. Needs the package `gguf`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gguf import GGUFWriter

# The names of llama.cpp, by those of the checkpoint.
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write_gguf(checkpoint: Path, target: Path, kind: str = "Q4_0") -> None:
    """Write the checkpoint of a Phi-3 without LongRoPE to a file, one tensor after the other.

    Args:
        checkpoint: A folder with config.json and safetensors.
        target: The file to write.
        kind: Of the matrices, by gguf's name. Vectors stay in fp32.
    """
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.quants import quantize
    from safetensors import safe_open
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(checkpoint)
    writer = GGUFWriter(target, "phi3")
    _write_shape(writer, config)
    for file in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(file, "pt") as weights:
            for name in weights.keys():  # noqa: SIM118
                values = weights.get_tensor(name).float().numpy()
                form = GGMLQuantizationType[kind] if values.ndim > 1 else GGMLQuantizationType.F32
                writer.add_tensor(llama_name(name), quantize(values, form), raw_dtype=form)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llama_name(name: str) -> str:
    """Return llama.cpp's name of a tensor of the checkpoint.

    `model.layers.3.mlp.down_proj.weight` is `blk.3.ffn_down.weight`.
    """
    layer = re.fullmatch(r"model\.layers\.(\d+)\.(.*)\.weight", name)
    return f"blk.{layer[1]}.{NAMES[layer[2]]}.weight" if layer else f"{NAMES[name.removesuffix('.weight')]}.weight"


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

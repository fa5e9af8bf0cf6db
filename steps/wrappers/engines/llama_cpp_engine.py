"""The engine of a GGUF file: llama.cpp computes, and this project batches and draws the tokens."""

from pathlib import Path

from . import flat_engine
from .llama_context import LlamaContext, Memory


def load(directory: str, max_batch_size: int, prefix_cache_mb: int = 512) -> flat_engine.FlatEngine[Memory]:
    """Return the engine of a folder with model.gguf.

    Args:
        directory: The folder.
        max_batch_size: The number of rows, at most 255.
        prefix_cache_mb: How many megabytes the beginnings that prompts share may take.
    """
    longest_pass = max(flat_engine.PREFILL_TOKENS, max_batch_size)
    context = LlamaContext(str(Path(directory) / "model.gguf"), max_batch_size + 1, longest_pass)
    return flat_engine.FlatEngine(context, max_batch_size, prefix_cache_mb * 2**20)

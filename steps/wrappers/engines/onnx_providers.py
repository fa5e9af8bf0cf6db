"""Choose the engine for a model in ONNX Runtime GenAI's layout by its execution provider."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .scheduler import Engine


def load(directory: str, max_batch_size: int, execution_provider: str, prefix_cache_mb: int) -> "Engine":
    """Return our own engine for the CPU, where GenAI's cannot batch continuously, or GenAI's engine otherwise."""
    if execution_provider == "cpu":
        from .onnx_engine import OnnxEngine

        return OnnxEngine(directory, max_batch_size, prefix_cache_mb)
    from .genai_engine import GenaiEngine

    return GenaiEngine(directory, max_batch_size, execution_provider)

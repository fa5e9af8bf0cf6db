"""Choose the engine for a model in ONNX Runtime GenAI's layout by its execution provider."""

from typing import TYPE_CHECKING

from . import UnusableDevice

if TYPE_CHECKING:
    from .scheduler import Engine


def load(directory: str, max_batch_size: int, execution_provider: str, prefix_cache_mb: int) -> "Engine":
    """Return our own engine for the CPU, where GenAI's cannot batch continuously, or GenAI's engine otherwise.

    Raises:
        UnusableDevice: ONNX Runtime GenAI does not have the provider here.
    """
    if execution_provider == "cpu":
        from .onnx_engine import OnnxEngine

        return OnnxEngine(directory, max_batch_size, prefix_cache_mb)
    from .genai_engine import GenaiEngine

    try:
        return GenaiEngine(directory, max_batch_size, execution_provider)
    except RuntimeError as error:
        raise UnusableDevice(
            f"execution_provider cannot be used here: got {execution_provider!r}; use cpu, or install what it needs"
        ) from error

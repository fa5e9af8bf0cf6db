"""The engine of a graph of OpenVINO: OpenVINO computes, and this project batches and draws the tokens."""

from pathlib import Path

from ..tokenizer import ChatTokenizer
from .flat_engine import FlatEngine
from .openvino_context import OpenVinoContext
from .paged_cache import Blocks


def load(directory: str, max_batch_size: int, prefix_cache_mb: int = 512) -> FlatEngine[Blocks]:
    """Return the engine of a folder with model.xml and model.weights.

    Args:
        directory: The folder.
        max_batch_size: The number of rows.
        prefix_cache_mb: How many megabytes the beginnings that prompts share may take, as long as there is memory.
    """
    graph, weights = (str(Path(directory) / name) for name in ("model.xml", "model.weights"))
    length = ChatTokenizer(directory).context_length
    context = OpenVinoContext(graph, weights, length, max_batch_size + 1, prefix_cache_mb * 2**20)
    return FlatEngine(context, max_batch_size, context.state_bytes)

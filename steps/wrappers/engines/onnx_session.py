"""Open a graph in ONNX Runtime, and tell whether its weights have few bits."""

import mmap
import os
from pathlib import Path
from typing import Any

# It would start a thread that sends events, for which a forked process would wait at its end.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime
from onnxruntime import IOBinding as IOBinding

from .threads import thread_limit

# The operator that multiplies with weights of 4 or 8 bits.
QUANTIZED = b"MatMulNBits"
SPIN_MICROSECONDS = "20"


def open_session(file: Path, config: dict[str, Any]) -> onnxruntime.InferenceSession:
    """Return a session on the CPU with the session options of a model's configuration."""
    return onnxruntime.InferenceSession(file, session_options(config), providers=["CPUExecutionProvider"])


def session_options(config: dict[str, Any]) -> onnxruntime.SessionOptions:
    """Return session options with as many threads as the model's configuration asks for, or as there may be."""
    options = onnxruntime.SessionOptions()
    # Only what is fatal: everything else that it prints, it raises too.
    options.log_severity_level = 4
    options.intra_op_num_threads = config.get("intra_op_num_threads", 0) or thread_limit() or 0
    # Waking a thread for each operator costs a fifth of a small model's speed. A thread that spins until the next
    # operator comes saves that. Longer than SPIN_MICROSECONDS, or between two tokens, it would hold up the threads that
    # serve requests and a second engine.
    options.add_session_config_entry("session.intra_op.spin_duration_us", SPIN_MICROSECONDS)
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def has_few_bits(file: Path) -> bool:
    """Return True if a graph has weights of few bits. Its results depend on how many tokens a pass has."""
    with file.open("rb") as graph, mmap.mmap(graph.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(QUANTIZED) >= 0

"""Choose the type to compute in: bf16 weights become fp32 on a processor that could only emulate bf16."""

import logging
from pathlib import Path

import psutil
import torch

CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

logger = logging.getLogger(__name__)


def compute_dtype(precision: str, device: torch.device, directory: str) -> torch.dtype:
    """Return the type for a checkpoint in a folder; fp32 instead of slow bf16 if it fits into half of the memory."""
    if precision not in DTYPES:
        raise ValueError(f"precision must be one of {', '.join(DTYPES)}, got {precision!r}")
    if precision == "bf16" and device.type == "cpu" and not has_native_bf16():
        needed = 2 * sum(file.stat().st_size for file in Path(directory).glob("*.safetensors"))
        memory = total_memory()
        if needed <= memory / 2:
            return torch.float32
        logger.warning(
            "This processor computes bf16 slowly. As fp32 the weights would take %.1f GB, more than half of the "
            "memory (%.1f GB). mode=onnx precision=int4 is faster here.",
            needed / 1e9,
            memory / 1e9,
        )
    return DTYPES[precision]


def has_native_bf16() -> bool:
    """Return True if the processor computes bf16 without emulating it."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def total_memory() -> int:
    """Return the bytes of memory that this process may use: the machine's, or its container's limit if lower."""
    limit = CONTAINER_LIMIT.read_text(encoding="ascii").strip() if CONTAINER_LIMIT.is_file() else ""
    total = psutil.virtual_memory().total
    return min(total, int(limit)) if limit.isdigit() else total

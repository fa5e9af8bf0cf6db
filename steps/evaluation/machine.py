"""Facts about this machine that decide how fast a model runs: cores, instruction sets, memory and its bandwidth.

python -m steps.evaluation.machine
"""

import json
import os
import platform
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter
from typing import Any

from steps.output import echo

# Those that decide how fast a CPU multiplies matrices.
INSTRUCTION_SETS = (
    *("sse4_2", "avx", "avx2", "f16c", "fma", "avx_vnni", "amx_tile", "amx_int8", "amx_bf16"),
    *("avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("asimd", "asimddp", "asimdhp", "bf16", "i8mm", "sve", "sve2"),
)
READ_BYTES, READS = 512 * 2**20, 5


def facts() -> dict[str, Any]:
    """Return the processor, usable cores, instruction sets, memory (bytes) and read bandwidth (bytes/s)."""
    import psutil

    processor, flags = _processor()
    return {
        "processor": processor,
        "cores": _cores(),
        "instruction_sets": [name for name in INSTRUCTION_SETS if name in flags],
        "memory_bytes": psutil.virtual_memory().total,
        "read_bandwidth": read_bandwidth(),
    }


def read_bandwidth() -> float:
    """Measure how many bytes per second all cores together read sequentially from memory: the best of READS reads."""
    import numpy as np

    cores = _cores()
    parts = np.array_split(np.ones(READ_BYTES // 8), cores)
    best = 0.0
    with ThreadPoolExecutor(cores) as threads:
        for _ in range(READS):
            started = perf_counter()
            list(threads.map(np.sum, parts))  # NumPy releases the interpreter's lock during a sum
            best = max(best, READ_BYTES / (perf_counter() - started))
    return best


def _cores() -> int:
    """Return how many cores this process may use, not how many the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> tuple[str, set[str]]:
    """Return name and flags of the processor from Linux; on other systems the name alone."""
    fields: dict[str, str] = {}
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []:
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = fields.get("flags", fields.get("Features", ""))
    return fields.get("model name", platform.processor() or platform.machine()), set(flags.split())


if __name__ == "__main__":
    echo(json.dumps(facts(), indent=2))

"""What the machine is that speed is measured on: cores, instruction sets, memory and how fast it is read.

python -m steps.evaluation.machine
"""

import json
import os
import platform
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter
from typing import Any

# Those that decide how fast matrices are multiplied on a CPU.
INSTRUCTION_SETS = (
    *("sse4_2", "avx", "avx2", "f16c", "fma", "avx_vnni", "amx_tile", "amx_int8", "amx_bf16"),
    *("avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("asimd", "asimddp", "asimdhp", "bf16", "i8mm", "sve", "sve2"),
)
READ_BYTES, READS = 512 * 2**20, 5


def facts() -> dict[str, Any]:
    """Processor, cores that this process may use, instruction sets, memory in bytes, read bandwidth in bytes/s."""
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
    """Bytes per second that all cores together read from memory, plainly one after another: the best of a few reads."""
    import numpy as np

    cores = _cores()
    parts = np.array_split(np.ones(READ_BYTES // 8), cores)
    best = 0.0
    with ThreadPoolExecutor(cores) as threads:
        for _ in range(READS):
            started = perf_counter()
            list(threads.map(np.sum, parts))  # NumPy lets go of the interpreter's lock while it adds
            best = max(best, READ_BYTES / (perf_counter() - started))
    return best


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> tuple[str, set[str]]:
    """The processor's name and flags as Linux tells them; elsewhere the name alone."""
    known: dict[str, str] = {}
    information = Path("/proc/cpuinfo")
    for line in information.read_text().splitlines() if information.is_file() else []:
        key, _, value = line.partition(":")
        known.setdefault(key.strip(), value.strip())
    flags = known.get("flags", known.get("Features", ""))
    return known.get("model name", platform.processor() or platform.machine()), set(flags.split())


if __name__ == "__main__":
    print(json.dumps(facts(), indent=2))

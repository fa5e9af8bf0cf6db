"""Measure the peak memory of a command with everything that it starts.

    python -m tests.benchmarks.memory python -m steps.build model=local model.path=FOLDER mode=onnx precision=int4

Several times a second it adds up the memory of the process tree (each page once, also a page of a file that is mapped).
Prints the seconds, the peak, and the exit code of the command, which is its own exit code too.
"""

import contextlib
import subprocess
import sys
import time

import psutil

PAUSE = 0.2


def main(command: list[str]) -> int:
    """Run the command and print what it took; return its exit code."""
    started, peak = time.perf_counter(), 0
    process = subprocess.Popen(command)
    try:
        while process.poll() is None:
            peak = max(peak, _memory(psutil.Process(process.pid)))
            time.sleep(PAUSE)
    finally:
        process.terminate()
        process.wait()
    seconds = time.perf_counter() - started
    print(f"peak memory {peak / 1e9:.2f} GB in {seconds:.0f} s, exit code {process.returncode}: {' '.join(command)}")
    return process.returncode


def _memory(root: psutil.Process) -> int:
    """Return the bytes of a process and of all its descendants; a page that several have is shared among them."""
    size = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in [root, *root.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                size += process.memory_full_info().pss
    return size


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

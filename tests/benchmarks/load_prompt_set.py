"""Load a prompt set and print its rows, the seconds, and the peak memory before and after, in MB.

    python -m tests.benchmarks.load_prompt_set FILE

Run as a process of its own, so that nothing else counts as its memory. Linux only.
"""

import sys
import time
from pathlib import Path

from steps.config.schema import PromptSet
from steps.evaluation import prompt_set


def main(file: str) -> None:
    """Load the prompt set, with its digest."""
    before = peak_memory()
    started = time.perf_counter()
    rows = prompt_set.load(PromptSet("large", file))
    assert rows.sha256
    seconds = time.perf_counter() - started
    print(len(rows.rows), seconds, before, peak_memory())


def peak_memory() -> float:
    """Return the peak memory of this process in MB. `getrusage` would count the process that it was forked from."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


if __name__ == "__main__":
    main(sys.argv[1])

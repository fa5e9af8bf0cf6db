"""How many threads an engine may start: what the user asks for, or what a container's quota has processor time for.

The libraries take one thread for each core that they see. They see all cores of the machine, also if a container may
use only the time of two: then its threads wait for each other most of the time.
"""

import contextlib
import ctypes
import math
import os
import sys
from pathlib import Path

from . import container

# The file of cgroup version 2 holds "QUOTA PERIOD" or "max PERIOD"; those of version 1 a number each, -1 for no quota.
QUOTA, OLD_QUOTA, OLD_PERIOD = "cpu.max", "cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"
# OpenMP's omp_pause_soft: end the threads, keep the settings.
SOFT = 1
# How often a helper of GNU's OpenMP looks for work before it sleeps. The library's own 300,000 looks keep a busy core
# from the threads that the helper waits for.
SPINS = "2000"


def thread_limit() -> int | None:
    """Return OMP_NUM_THREADS, or else the container's quota in whole cores if it is below those that there are."""
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if asked.isdigit() and int(asked) > 0:
        return int(asked)
    files = [[folder / QUOTA] for folder in container.group_folders()]
    files.append([container.GROUPS / OLD_QUOTA, container.GROUPS / OLD_PERIOD])
    quota = min((quota for quota in map(_quota, files) if quota is not None), default=math.inf)
    return max(1, math.ceil(quota)) if quota < cores() else None


def cores() -> int:
    """Return the number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def wait_briefly() -> None:
    """Have OpenMP's helpers sleep soon, unless the user has chosen. This counts only if torch is not loaded yet."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)


def release_helpers() -> None:
    """End the helper threads that torch has started for this thread. Its next computation starts new ones.

    OpenMP keeps helpers for each thread that has computed. If a process has more of them than cores, all of them go to
    sleep at the end of every operator, and waking them takes time.
    """
    if sys.platform != "linux":
        return  # other systems have other kinds of OpenMP
    with contextlib.suppress(AttributeError):  # torch is not loaded, or has an OpenMP without this function
        ctypes.CDLL(None).omp_pause_resource_all(SOFT)


def _quota(files: list[Path]) -> float | None:
    """Return the cores that the quota in a file, or in two, amounts to; None if there is none."""
    numbers = [number for file in files for number in container.numbers_in(file) or ()]
    if len(numbers) != 2 or min(numbers) <= 0:
        return None
    return numbers[0] / numbers[1]

"""How many threads an engine may start: what the user asks for, or what a container's quota has processor time for.

The libraries take one thread for each core that they see. They see all cores of the machine, also if a container may
use only the time of two: then its threads wait for each other most of the time.
"""

import math
import os
from pathlib import Path

GROUPS, OWN_GROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
# The file of cgroup version 2 holds "QUOTA PERIOD" or "max PERIOD"; those of version 1 a number each, -1 for no quota.
QUOTA, OLD_QUOTA, OLD_PERIOD = "cpu.max", "cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"


def thread_limit() -> int | None:
    """Return OMP_NUM_THREADS, or else the container's quota in whole cores if it is below those that there are."""
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if asked.isdigit() and int(asked) > 0:
        return int(asked)
    quota = min((quota for quota in map(_quota, _files()) if quota is not None), default=math.inf)
    return max(1, math.ceil(quota)) if quota < _cores() else None


def _cores() -> int:
    """Return the number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _files() -> list[Path]:
    """Return the files that may hold a quota: of the process's own group, and of all groups around it."""
    own = OWN_GROUP.read_text(encoding="utf-8").splitlines() if OWN_GROUP.is_file() else []
    group = GROUPS
    for line in own:
        if line.startswith("0::/"):
            group = GROUPS / line[len("0::/") :]
    groups = [folder for folder in (group, *group.parents) if folder.is_relative_to(GROUPS)]
    return [*(folder / QUOTA for folder in groups), GROUPS / OLD_QUOTA]


def _quota(file: Path) -> float | None:
    """Return the cores that the quota in a file amounts to; None if there is none."""
    try:
        words = file.read_text(encoding="ascii").split()
        if file.name != QUOTA:
            words += (GROUPS / OLD_PERIOD).read_text(encoding="ascii").split()
        quota, period = (float(word) for word in words)
    except (OSError, ValueError):
        return None
    return quota / period if quota > 0 and period > 0 else None

"""Which process is at work on a run, in a form that tells for sure whether it is gone.

A process is known by its number and by when it began, within one boot and one namespace of numbers: a
number that was given again is another process, and no other machine or container is mistaken for this one.
"""

import json
import os
import socket
import time
from pathlib import Path

import psutil

# A process of another machine cannot be asked; no step goes on for so long.
LONGEST_STEP = 7 * 24 * 3600


def identity() -> str:
    """This process."""
    pid = os.getpid()
    return json.dumps({"place": _place(), "pid": pid, "began": _began(pid), "seen": int(time.time())})


def is_gone(identity: str) -> bool:
    """Whether a process has ended; of another machine's it is said only after LONGEST_STEP seconds."""
    try:
        process = json.loads(identity)
        if process["place"] == _place():
            return _began(process["pid"]) != process["began"]
        return time.time() - process["seen"] > LONGEST_STEP
    except (ValueError, KeyError, TypeError):
        return False  # somebody else's words: nothing is known of it


def _place() -> str:
    """Where a process number means something: this machine since it started, and this container."""
    place = socket.gethostname()
    # Where there is no /proc, there are no namespaces of numbers either.
    if Path("/proc/self/ns/pid").is_symlink():
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        place += f" {boot} {Path('/proc/self/ns/pid').readlink()}"
    return place


def _began(pid: int) -> str | None:
    """When a process began, as a number that no change of the clock moves; None if it has ended."""
    stat = Path(f"/proc/{pid}/stat")
    try:
        if Path("/proc/self/stat").is_file():
            fields = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            return None if fields[0] in "ZX" else fields[19]  # state, and ticks since the boot
        return f"{psutil.Process(pid).create_time():.0f}"
    except (OSError, psutil.Error):
        return None

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

# The tag of a run that holds its process.
TAG = "phi3.process"
# A process of another machine cannot be asked; no step goes on for so long.
LONGEST_STEP = 7 * 24 * 3600


def identity() -> str:
    """This process."""
    pid = os.getpid()
    content = {"machine": _machine(), "boot": _boot(), "namespace": _namespace(), "pid": pid, "began": _began(pid)}
    return json.dumps(content | {"seen": int(time.time())})


def is_gone(identity: str) -> bool:
    """Whether a process has ended; of another machine's it is said only after LONGEST_STEP seconds."""
    try:
        process = json.loads(identity)
        if process["machine"] == _machine() and process["boot"] != _boot():
            return True
        if (process["machine"], process["namespace"]) == (_machine(), _namespace()):
            return not _is_unseen(process["pid"]) and _began(process["pid"]) != process["began"]
        return time.time() - process["seen"] > LONGEST_STEP
    except (ValueError, KeyError, TypeError):
        return False  # somebody else's words: nothing is known of it


def _machine() -> str:
    """This machine, or this container."""
    number = Path("/etc/machine-id")
    return f"{socket.gethostname()} {number.read_text(encoding='ascii').strip() if number.is_file() else ''}"


def _boot() -> str:
    """What differs each time that the machine starts; nothing where the system does not tell."""
    number = Path("/proc/sys/kernel/random/boot_id")
    return number.read_text(encoding="ascii").strip() if number.is_file() else ""


def _namespace() -> str:
    """Within which process numbers mean something: where there is no /proc, there is only one."""
    link = Path("/proc/self/ns/pid")
    return str(link.readlink()) if link.is_symlink() else ""


def _is_unseen(pid: int) -> bool:
    """Whether a process is there of which the system tells this user nothing (Linux can be set to)."""
    if not Path("/proc/self/stat").is_file():
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:
        return not Path(f"/proc/{pid}/stat").exists()
    except (OSError, OverflowError):
        return False
    return False


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

"""Identify the process that owns a run, so that a later step can tell whether it has died.

A process is identified by its number and start time, within one boot and one pid namespace. A reused number is
therefore another process, and a process on another machine or in another container is never confused with a local one.
"""

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import psutil

# Processes on other machines cannot be examined. No step takes longer than this many seconds.
LONGEST_STEP = 7 * 24 * 3600


def identity() -> str:
    """Return the identity of this process, as JSON."""
    content = {
        "machine": _machine(),
        "boot": _boot(),
        "namespace": _namespace(),
        "pid": os.getpid(),
        "started": _started(psutil.Process()),
        "seen": int(time.time()),
    }
    return json.dumps(content)


def is_gone(recorded_identity: str) -> bool:
    """Return True only if the process has certainly ended.

    A process on another machine, or in another container, counts as gone LONGEST_STEP seconds after it was recorded.
    An identity in an unknown format never counts as gone.
    """
    try:
        recorded = json.loads(recorded_identity)
        if recorded["machine"] == _machine():
            if recorded["boot"] != _boot():
                return True
            if recorded["namespace"] == _namespace():
                return _has_ended(recorded["pid"], recorded.get("started"))
        return bool(time.time() - recorded["seen"] > LONGEST_STEP)
    except (ValueError, KeyError, TypeError, AttributeError):
        return False


def _has_ended(pid: int, started: Any) -> bool:
    """Return True if no process has this number, it is only waiting to be reaped, or it started at another time."""
    try:
        process = psutil.Process(pid)
        if process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            return True
        # Earlier versions recorded no `started`; then only the number can be checked.
        return isinstance(started, float) and _started(process) != started
    except psutil.NoSuchProcess:
        return not _is_hidden(pid)
    except (psutil.AccessDenied, OSError):
        return False  # it exists, but cannot be examined


def _started(process: psutil.Process) -> float:
    """Return when a process started, in a form that stays the same when the system clock is set.

    On Linux, psutil adds the boot time to the kernel's count of seconds since the boot, and the boot time moves with
    the clock. Subtracting it gives the kernel's count again, in its steps of 0.01 s. Elsewhere the kernel records a
    time of day, which does not change afterwards.
    """
    created = process.create_time()
    return round(created - psutil.boot_time(), 2) if psutil.LINUX else round(created, 2)


def _is_hidden(pid: int) -> bool:
    """Return True if the process exists but is hidden from this user (Linux `hidepid`).

    psutil reports a hidden process as missing, even with `pid_exists`, because /proc does not list it.
    """
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        pass
    return False


# psutil has no equivalent of the following three.


def _machine() -> str:
    """Return the name of this machine or container, with its machine id if it has one."""
    file = Path("/etc/machine-id")
    return f"{socket.gethostname()} {file.read_text(encoding='ascii').strip() if file.is_file() else ''}"


def _boot() -> str:
    """Return an id that changes at each boot; "" if the system has none."""
    file = Path("/proc/sys/kernel/random/boot_id")
    return file.read_text(encoding="ascii").strip() if file.is_file() else ""


def _namespace() -> str:
    """Return the pid namespace, in which process numbers are unique; "" if the system has only one."""
    link = Path("/proc/self/ns/pid")
    return str(link.readlink()) if link.is_symlink() else ""

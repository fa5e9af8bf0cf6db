"""A process counts as gone only if that is certain."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from steps.store import processes
from tests.conftest import PROJECT

NO_SUCH_PID = 2**22 + 1


def _identity(**changes):
    return json.dumps(json.loads(processes.identity()) | changes)


def _earlier_format(**changes):
    """An identity as earlier versions wrote it: the start as text, in ticks since the boot."""
    content = json.loads(_identity(began="154806"))
    del content["started"]
    return json.dumps(content | changes)


def _long_ago():
    return int(time.time()) - processes.LONGEST_STEP - 60


@pytest.mark.parametrize(
    ("identity", "gone"),
    [
        (processes.identity, False),
        (lambda: _identity(pid=NO_SUCH_PID), True),
        (lambda: _identity(pid=2**70), True),
        (lambda: _identity(started=1.0), True),
        (lambda: _identity(boot="before"), True),
        (lambda: _identity(machine="elsewhere"), False),
        (lambda: _identity(machine="elsewhere", boot="another", pid=NO_SUCH_PID), False),
        (lambda: _identity(namespace="pid:[1]", pid=NO_SUCH_PID), False),
        (lambda: _identity(machine="elsewhere", seen=_long_ago()), True),
        (lambda: _identity(namespace="pid:[1]", seen=_long_ago()), True),
        (lambda: _identity(seen=_long_ago()), False),
        (_earlier_format, False),
        (lambda: _earlier_format(pid=NO_SUCH_PID), True),
        (lambda: _earlier_format(boot="before"), True),
        (lambda: _identity(started="in words"), False),
        (lambda: _identity(pid="in words"), False),
        (lambda: _identity(pid=-1), False),
        (lambda: "not an identity", False),
        (lambda: "{}", False),
        (lambda: "[]", False),
    ],
    ids=[
        "this process",
        "no such number",
        "a number beyond any system",
        "a reused number",
        "before a reboot",
        "another machine",
        "a number of another machine",
        "a number of another container",
        "another machine, long ago",
        "another container, long ago",
        "this process, running for long",
        "earlier format",
        "earlier format, no such number",
        "earlier format, before a reboot",
        "unknown start time",
        "a number in words",
        "a negative number",
        "text",
        "an empty object",
        "a list",
    ],
)
def test_is_gone(identity, gone):
    assert processes.is_gone(identity()) is gone


def test_a_killed_process_is_gone_before_its_parent_reaps_it():
    code = "from steps.store import processes; print(processes.identity(), flush=True); input()"
    command = [sys.executable, "-c", code]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=PROJECT)
    with child:
        identity = child.stdout.readline()
        assert json.loads(identity)["pid"] == child.pid != os.getpid()
        assert not processes.is_gone(identity)
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert processes.is_gone(identity)


linux = pytest.mark.skipif(not psutil.LINUX, reason="/proc is Linux's")


@pytest.fixture
def proc(tmp_path, monkeypatch):
    """A copy of this process's entry in /proc, which psutil reads instead of the real one."""
    folder = tmp_path / "proc"
    own = folder / str(os.getpid())
    own.mkdir(parents=True)
    shutil.copyfile("/proc/stat", folder / "stat")
    for name in ("stat", "status"):
        shutil.copyfile(f"/proc/self/{name}", own / name)
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(folder))
    return folder


def _set_clock(proc: Path, seconds: int):
    """Move the boot time, as Linux does when the clock is set."""
    lines = (proc / "stat").read_text().splitlines()
    moved = [f"btime {int(line.split()[1]) + seconds}" if line.startswith("btime") else line for line in lines]
    (proc / "stat").write_text("\n".join(moved) + "\n")


@linux
@pytest.mark.parametrize("seconds", [-86400, -1, 1, 3600])
def test_setting_the_clock_does_not_make_a_process_gone(proc, seconds):
    identity, created = processes.identity(), psutil.Process().create_time()
    _set_clock(proc, seconds)
    assert psutil.Process().create_time() == pytest.approx(created + seconds)  # what psutil says does move
    assert not processes.is_gone(identity)
    shutil.rmtree(proc / str(os.getpid()))
    assert processes.is_gone(identity)


@linux
def test_a_process_hidden_from_this_user_is_not_gone(proc, monkeypatch):
    identity = processes.identity()
    shutil.rmtree(proc / str(os.getpid()))

    def refuse(pid, signal):
        assert (pid, signal) == (os.getpid(), 0)
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    assert not processes.is_gone(identity)


@linux
def test_a_process_that_may_not_be_examined_is_not_gone(monkeypatch):
    def refuse(process):
        raise psutil.AccessDenied(process.pid)

    identity = processes.identity()
    monkeypatch.setattr(psutil.Process, "status", refuse)
    assert not processes.is_gone(identity)

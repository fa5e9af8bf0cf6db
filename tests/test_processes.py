"""Whether a process is gone is known for sure, or not said."""

import json
import os
import subprocess
import sys
import time

import pytest

from steps.store import processes
from tests.conftest import PROJECT


def _changed(**changes):
    return json.dumps(json.loads(processes.identity()) | changes)


@pytest.mark.parametrize(
    ("identity", "gone"),
    [
        (processes.identity, False),
        (lambda: _changed(pid=2**22 + 1), True),
        (lambda: _changed(began="1"), True),
        (lambda: _changed(boot="before"), True),
        (lambda: _changed(machine="elsewhere"), False),
        (lambda: _changed(machine="elsewhere", boot="another", pid=2**22 + 1), False),
        (lambda: _changed(namespace="pid:[1]", pid=2**22 + 1), False),
        (lambda: _changed(machine="elsewhere", seen=int(time.time()) - processes.LONGEST_STEP - 60), True),
        (lambda: _changed(seen=int(time.time()) - processes.LONGEST_STEP - 60), False),
        (lambda: "not ours", False),
        (lambda: "{}", False),
    ],
    ids=[
        "this one",
        "no such number",
        "a number that was given again",
        "this machine before it was started again",
        "another machine",
        "another machine's number",
        "another container's number",
        "another machine long ago",
        "this one, long at work",
        "other words",
        "nothing",
    ],
)
def test_is_gone(identity, gone):
    assert processes.is_gone(identity()) is gone


def test_a_killed_process_is_gone_even_before_its_parent_asks_for_it():
    code = "from steps import processes; print(processes.identity(), flush=True); input()"
    words = [sys.executable, "-c", code]
    child = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=PROJECT)
    with child:
        identity = child.stdout.readline()
        assert json.loads(identity)["pid"] == child.pid != os.getpid()
        assert not processes.is_gone(identity)
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert processes.is_gone(identity)

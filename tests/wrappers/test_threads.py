"""Engines start no more threads than the user or the container allows."""

import os
import subprocess
import sys

import pytest
import torch

from steps.config.paths import PROJECT
from steps.wrappers.engines import container, onnx_session, threads, torch_engine
from steps.wrappers.engines.torch_engine import TorchEngine

V2, V1 = {"cpu.max": "150000 100000\n"}, {"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}


@pytest.mark.parametrize(
    ("asked", "files", "limit"),
    [
        (None, {}, None),
        (None, {"cpu.max": "max 100000\n"}, None),
        (None, V2, 2),
        (None, {"cpu.max": "20000 100000\n"}, 1),
        (None, {"cpu.max": "nonsense\n"}, None),
        (None, V1, 3),
        (None, V1 | {"cpu/cpu.cfs_quota_us": "-1\n"}, None),
        (None, {"pod/box/cpu.max": "max 100000\n", "pod/cpu.max": "400000 100000\n"}, 4),
        (None, {"pod/box/cpu.max": "200000 100000\n", "pod/cpu.max": "400000 100000\n"}, 2),
        (None, {"other/cpu.max": "100000 100000\n"}, None),
        ("3", V2, 3),
        ("3,2", {}, 3),
        ("0", V2, 2),
        ("many", {}, None),
        # Eight cores are no fewer than the quota: the library's own number is right.
        (None, {"cpu.max": "800000 100000\n"}, None),
        (None, {"cpu.max": "1600000 100000\n"}, None),
        ("16", {}, 16),
    ],
)
def test_the_limit_is_the_users_or_the_containers(monkeypatch, tmp_path, asked, files, limit):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    (tmp_path / "own").write_text("1:cpu:/elsewhere\n0::/pod/box\n")
    monkeypatch.setattr(threads, "cores", lambda: 8)
    monkeypatch.setattr(container, "GROUPS", tmp_path)
    monkeypatch.setattr(container, "OWN_GROUP", tmp_path / "own")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if asked is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert threads.thread_limit() == limit


@pytest.mark.parametrize(
    ("configured", "limit", "expected"), [({}, None, 0), ({}, 1, 1), ({"intra_op_num_threads": 3}, 1, 3)]
)
def test_onnx_sessions_have_as_many_threads(monkeypatch, configured, limit, expected):
    monkeypatch.setattr(onnx_session, "thread_limit", lambda: limit)
    assert onnx_session.session_options(configured).intra_op_num_threads == expected


def test_the_torch_engine_lowers_torchs_number_and_never_raises_it(monkeypatch, checkpoint):
    before = torch.get_num_threads()
    try:
        for limit, expected in ((None, before), (before + 5, before), (1, 1)):
            monkeypatch.setattr(torch_engine, "thread_limit", lambda limit=limit: limit)
            TorchEngine(str(checkpoint.directory), "fp32", 16, "cpu")
            assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)


LOAD = """
import os, sys, time
from functools import partial
from steps.wrappers.engines import load_engine
import torch

def threads():
    # Threads that loading has used may take a moment to end; helpers do not end by themselves.
    counts = []
    while len(counts) < 5 or len(set(counts[-5:])) > 1:
        counts.append(len(os.listdir("/proc/self/task")))
        time.sleep(0.1)
    return counts[-1]

load = partial(load_engine, sys.argv[1], "torch", precision="fp32", max_batch_size=16, device="cpu")
load()  # the libraries start some threads once
before = threads()
torch.ones(1000, 1000) @ torch.ones(1000, 1000)
print(threads() - before)
load()
print(threads() - before)
"""


def test_helpers_sleep_soon_and_loading_leaves_none(checkpoint):
    """Helpers that look for work too long take time from other processes; too many of them look for none at all."""
    own = {"OMP_NUM_THREADS": "2", "OMP_DISPLAY_ENV": "verbose"}
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))} | own
    command = [sys.executable, "-c", LOAD, str(checkpoint.directory)]
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "0"]
    counts = {line.split("'")[1] for line in done.stderr.splitlines() if "GOMP_SPINCOUNT" in line}
    assert counts == {threads.SPINS}


@pytest.mark.parametrize(
    ("own", "count"),
    [({}, threads.SPINS), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "PASSIVE"}, None)],
)
def test_the_user_may_choose_how_long_helpers_look_for_work(monkeypatch, own, count):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    threads.wait_briefly()
    assert os.environ.get("GOMP_SPINCOUNT") == count

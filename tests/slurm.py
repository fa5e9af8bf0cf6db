"""A real Slurm of one node, from Debian's packages: munged, slurmctld and slurmd on free ports."""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.support import free_port, wait_until

# Debian keeps the servers where only root looks.
SEARCH = f"{os.environ.get('PATH', '')}{os.pathsep}/usr/sbin{os.pathsep}/sbin"
PROGRAMS = {name: shutil.which(name, path=SEARCH) for name in ("munged", "slurmctld", "slurmd", "sbatch", "sinfo")}
PARTITION = "tests"
# What `sacct` prints, which submitit asks for the state of its jobs.
NO_ACCOUNTING = "Slurm accounting storage is disabled"


def missing() -> str | None:
    """Return why Slurm cannot be started here; None if it can."""
    if os.geteuid() != 0:
        return "only root can start slurmd"
    if lacking := [name for name, path in PROGRAMS.items() if path is None]:
        return f"{', '.join(lacking)} not installed: apt-get install slurm-wlm munge"
    return None


def configuration(folder: Path) -> str:
    """Return a slurm.conf of one node with all of this machine's cores and 4 GB."""
    host = socket.gethostname().partition(".")[0]
    return f"""
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={free_port()}
SlurmdPort={free_port()}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={os.cpu_count()} RealMemory=4096 State=UNKNOWN
PartitionName={PARTITION} Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@contextlib.contextmanager
def running() -> Iterator[dict[str, str]]:
    """Run Slurm until the end of the block; yield the environment of its clients."""
    folder = Path(tempfile.mkdtemp(prefix="phi3-slurm-"))
    environment = {"SLURM_CONF": str(folder / "slurm.conf")}
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "slurm.conf").write_text(configuration(folder))
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    files = {"socket": "socket", "key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    places = [f"--{option}={folder}/munge.{suffix}" for option, suffix in files.items()]
    try:
        with (
            _started(folder, "munged", "--foreground", "--force", *places),
            _started(folder, "slurmctld", "-D", "-i", "-f", str(folder / "slurm.conf")),
            _started(folder, "slurmd", "-D", "-f", str(folder / "slurm.conf")),
        ):
            wait_until(lambda: _is_idle(environment), seconds=60, pause=0.5)
            yield environment
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _started(folder: Path, name: str, *words: str) -> Iterator[None]:
    with (folder / f"{name}.log").open("w") as log:
        process = subprocess.Popen([PROGRAMS[name], *words], cwd=folder, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _is_idle(environment: dict[str, str]) -> bool:
    """Return True if the node takes jobs."""
    command = [PROGRAMS["sinfo"], "--noheader", "--format=%t"]
    states = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=False, timeout=60
    )
    return states.stdout.split() == ["idle"]

"""A real Ray cluster, on the loopback address or on hosts with a network between them, whose nodes can be killed."""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

from tests.network import Host
from tests.support import free_port, wait_until

LOOPBACK = "127.0.0.1"
# Ray needs a token by default: every node and every client of a cluster has the same one.
ENVIRONMENT = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a-token-of-the-tests-only", "RAY_USAGE_STATS_ENABLED": "0"}


class RayCluster:
    """Nodes on this machine. The first one is the head."""

    def __init__(self, folder: Path, head: Host | None = None):
        self._folder, self._nodes = folder, []
        self.address = f"{head.address if head else LOOPBACK}:{free_port()}"

    def add_node(self, cpus: int = 1, host: Host | None = None) -> psutil.Process:
        """Start a node; return its raylet, the process that starts the workers."""
        head = ["--head", f"--port={self.address.rpartition(':')[2]}", "--include-dashboard=false"]
        # Ray's sockets must have short paths.
        words = [f"--address={self.address}"] if self._nodes else [*head, f"--temp-dir={self._folder}"]
        own_address = host.address if host else LOOPBACK
        words += [f"--node-ip-address={own_address}", f"--num-cpus={cpus}", "--disable-usage-stats", "--block"]
        log = self._folder / f"node-{len(self._nodes)}.log"
        with log.open("w") as output:
            command = [shutil.which("ray"), "start", *words]
            command = host.command(command) if host else command
            process = subprocess.Popen(command, env=os.environ | ENVIRONMENT, stdout=output, stderr=output)
        node = psutil.Process(process.pid)
        self._nodes.append((process, node))
        wait_until(lambda: process.poll() is not None or "Ray runtime started" in log.read_text(), seconds=90)
        assert process.poll() is None, log.read_text()
        return next(child for child in node.children(recursive=True) if child.name() == "raylet")

    def end(self) -> None:
        """End every process of every node."""
        for process, node in reversed(self._nodes):
            children = node.children(recursive=True) if process.poll() is None else []
            process.terminate()
            _, alive = psutil.wait_procs(children, timeout=10)
            for child in alive:
                child.kill()
            process.wait(timeout=30)


@contextlib.contextmanager
def running(head: Host | None = None) -> Iterator[RayCluster]:
    """Give a cluster without nodes until the end of the block."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    cluster = RayCluster(folder, head)
    try:
        yield cluster
    finally:
        cluster.end()
        shutil.rmtree(folder, ignore_errors=True)

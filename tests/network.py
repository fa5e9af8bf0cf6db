"""Two hosts with a network between them, on one machine: two network namespaces of Linux that a virtual cable joins.

Each has an address and a loopback of its own, so what listens on the loopback of one cannot be reached from the other.
They share the machine's folders. It takes the super-user, and the package iproute2.
"""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

PREFIX = f"phi3-{os.getpid()}"


@dataclass(frozen=True)
class Host:
    """One of the two hosts."""

    name: str
    address: str

    def command(self, words: list[str]) -> list[str]:
        """Return the command that runs `words` on this host."""
        return ["ip", "netns", "exec", self.name, *words]


def missing() -> str | None:
    """Return why there can be no hosts here; None if there can."""
    if not shutil.which("ip"):
        return "iproute2 is not installed"
    if os.getuid():
        return "only the super-user may make a network"
    tried = subprocess.run(["unshare", "--net", "true"], capture_output=True)
    return "this machine allows no network namespaces" if tried.returncode else None


@contextlib.contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Give two hosts with a network until the end of the block."""
    hosts = tuple(Host(f"{PREFIX}-{number}", f"10.77.0.{number}") for number in (1, 2))
    try:
        for host in hosts:
            _ip("netns", "add", host.name)
        cable = [f"p3a{os.getpid()}"[:15], f"p3b{os.getpid()}"[:15]]
        _ip("link", "add", cable[0], "type", "veth", "peer", "name", cable[1])
        for host, end in zip(hosts, cable, strict=True):
            _ip("link", "set", end, "netns", host.name)
            _ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", end)
            _ip("-n", host.name, "link", "set", end, "up")
            _ip("-n", host.name, "link", "set", "lo", "up")
        yield hosts
    finally:
        for host in hosts:
            # Its end of the cable goes with it.
            subprocess.run(["ip", "netns", "delete", host.name], capture_output=True)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)

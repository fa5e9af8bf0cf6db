"""A real PostgreSQL server on a free port, from Debian's package, with a database for each that asks."""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.support import free_port, wait_until

# Debian keeps the programs of each version in a folder of its own.
FOLDERS = [*map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), ""]
INITDB = next((path for folder in FOLDERS if (path := shutil.which("initdb", path=folder or None))), None)
REASON = "PostgreSQL is not installed: apt-get install postgresql, pip install 'psycopg[binary]'"


class Postgresql:
    """A running server."""

    def __init__(self, port: int):
        self._port = port

    def database(self, name: str) -> str:
        """Make a database; return its address."""
        import psycopg

        with contextlib.closing(psycopg.connect(self._address("postgres"), autocommit=True)) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return self._address(name)

    def _address(self, name: str) -> str:
        return f"postgresql://postgres@127.0.0.1:{self._port}/{name}"


@contextlib.contextmanager
def running() -> Iterator[Postgresql]:
    """Run a server until the end of the block."""
    folder, port = Path(tempfile.mkdtemp(prefix="phi3-postgresql-")), free_port()
    # PostgreSQL refuses to run as root.
    user = {"user": "postgres"} if os.geteuid() == 0 else {}
    if user:
        shutil.chown(folder, "postgres")
    try:
        data = str(folder / "data")
        make = [INITDB, "-D", data, "-U", "postgres", "--auth=trust", "--no-sync"]
        subprocess.run(make, check=True, capture_output=True, cwd=folder, **user)
        serve = [str(Path(INITDB).resolve().with_name("postgres")), "-D", data, "-p", str(port), "-k", str(folder)]
        with (folder / "log").open("w") as log:
            process = subprocess.Popen([*serve, "-F"], stdout=log, stderr=log, cwd=folder, **user)
        try:
            wait_until(lambda: "ready to accept" in (folder / "log").read_text(), seconds=60)
            yield Postgresql(port)
        finally:
            process.terminate()
            process.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)

"""Run a command until it ends or whoever started this is gone; then leave no process and no file of it behind.

    python watcher.py COMMAND …     (in a directory that is deleted in the end)

Standard input is a pipe that the starter holds: a killed starter cannot stop its server, but its end of the pipe
closes.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path


def main() -> int:
    """Returns the command's exit code."""
    command = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=True)
    alone = threading.Event()

    def kill() -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(command.pid, signal.SIGKILL)

    def kill_when_alone() -> None:
        # Not through sys.stdin, whose lock this thread would hold when the interpreter ends.
        while os.read(0, 1024):
            pass
        alone.set()
        kill()

    threading.Thread(target=kill_when_alone, daemon=True).start()
    code = command.wait()
    kill()
    if alone.is_set():
        shutil.rmtree(Path.cwd(), ignore_errors=True)
    return code


if __name__ == "__main__":
    sys.exit(main())

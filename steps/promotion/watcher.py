"""Run a command until it ends or the process that started this one ends; then leave no process and no file behind.

    python watcher.py COMMAND …     (in a directory that may be deleted afterwards)

Standard input is a pipe held by the starter. A killed starter cannot stop its server, but its end of the pipe closes.
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
    """Return the command's exit code."""
    command = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=True)
    starter_ended = threading.Event()

    def kill() -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(command.pid, signal.SIGKILL)

    def kill_when_starter_ends() -> None:
        # Not through sys.stdin: this thread would hold its lock when the interpreter ends.
        while os.read(0, 1024):
            pass
        starter_ended.set()
        kill()

    threading.Thread(target=kill_when_starter_ends, daemon=True).start()
    code = command.wait()
    kill()
    if starter_ended.is_set():
        shutil.rmtree(Path.cwd(), ignore_errors=True)
    return code


if __name__ == "__main__":
    sys.exit(main())

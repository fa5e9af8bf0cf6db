"""What a step prints arrives as far as it can, and never ends the step."""

import io
import subprocess
import sys

import pytest

from steps.output import LastingStream
from tests.conftest import PROJECT

LINES = """
import sys
from steps.command_line import exit_on_error
from steps.output import echo

def step():
    for number in range(20000):
        echo(f"{number} ★ … 北京")
    print("done", file=sys.stderr)

exit_on_error(step)
"""
# What a shell appends to a command, and the encoding of the output.
OUTPUTS = {
    "read to its end": ("| tail -n 1", "utf-8", "19999 ★ … 北京"),
    "in Latin-1": ("| tail -n 1", "latin-1", r"19999 * ... \u5317\u4eac"),
    "in ASCII": ("| tail -n 1", "ascii", r"19999 * ... \u5317\u4eac"),
    "left after its first line": ("| head -n 1", "utf-8", "0 ★ … 北京"),
    "closed": (">&-", "utf-8", ""),
    "closed, with its input": ("<&- >&-", "utf-8", ""),
    "on a full disk": (">/dev/full", "utf-8", ""),
}


@pytest.mark.parametrize(("redirection", "encoding", "last"), OUTPUTS.values(), ids=OUTPUTS)
def test_a_step_outlasts_its_output(monkeypatch, redirection, encoding, last):
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    command = f'set -o pipefail; {sys.executable} -c "$0" {redirection}'
    done = subprocess.run(["bash", "-c", command, LINES], cwd=PROJECT, capture_output=True, check=False)
    assert (done.returncode, done.stderr.decode()) == (0, "done\n")
    assert done.stdout.decode().strip() == last


def test_a_stream_changes_only_what_its_encoding_lacks():
    written = io.BytesIO()
    stream = LastingStream(io.TextIOWrapper(written, encoding="latin-1", newline=""))
    assert stream.write("größe ★\n") == len("größe ★\n")
    assert stream.write("größe\n") == len("größe\n")
    stream.flush()
    assert written.getvalue().decode("latin-1") == "größe *\ngröße\n"
    assert stream.encoding == "latin-1"

"""Ctrl-C at several points of a step: one line, exit code 130, and runs and models that read FAILED."""

import os
import re
import signal
import subprocess
import sys
import time

import mlflow
import pytest

from steps.interrupts import EXIT_CODE, INTERRUPTED
from tests.conftest import PROJECT
from tests.support import wait_until


def _start(*words):
    """Start a command in a process group of its own, as a shell does."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(words, cwd=PROJECT, start_new_session=True, **pipes)


def _interrupt(process):
    os.killpg(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=120)
    # On a slow machine a step says that it is still working.
    sign_of_life = re.compile(r"… [\w -]+ \(\d+ s so far\)\n")
    lines = [line for line in output.splitlines(keepends=True) if not sign_of_life.fullmatch(line)]
    return process.returncode, "".join(lines), errors


def _models():
    return list(mlflow.MlflowClient().search_logged_models(["0"]))


def _run_names():
    return [run.info.run_name for run in mlflow.MlflowClient().search_runs(["0"])]


MOMENTS = {
    "before its run": lambda: False,
    "with a run": _run_names,
    "with a model": _models,
}


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS.values(), ids=MOMENTS)
def test_an_interrupted_build_leaves_nothing_unfinished(checkpoint, moment):
    process = _start(sys.executable, "-m", "steps.build", "mode=transformers")
    if moment is MOMENTS["before its run"]:
        time.sleep(0.5)
    else:
        wait_until(moment, 120)
    assert _interrupt(process) == (EXIT_CODE, "", f"{INTERRUPTED}\n")
    assert {run.info.status for run in mlflow.MlflowClient().search_runs(["0"])} <= {"FAILED"}
    assert {str(model.status) for model in _models()} <= {"FAILED"}


@pytest.mark.slow
def test_an_interrupted_sweep_keeps_what_is_built(checkpoint):
    process = _start(sys.executable, "-m", "steps.build", "mode=onnx,transformers")
    wait_until(lambda: len(_models()) == 2, 120)
    code, output, errors = _interrupt(process)
    assert (code, errors) == (EXIT_CODE, f"{INTERRUPTED}\n")
    assert output.startswith("Built onnx-fp32-chat")
    assert {model.name: str(model.status) for model in _models()} == {
        "onnx-fp32-chat": "READY",
        "transformers-fp32-chat": "FAILED",
    }


@pytest.mark.slow
def test_an_interrupted_mlflow_run_leaves_nothing_unfinished(checkpoint):
    """It sends its step a SIGTERM while the step cleans up after the interrupt."""
    process = _start("mlflow", "run", ".", "--env-manager", "local", "-e", "build", "-P", "mode=transformers")
    wait_until(_models, 120)
    code, _, errors = _interrupt(process)
    assert code != 0
    assert INTERRUPTED in errors
    assert "Traceback" not in errors
    assert [str(model.status) for model in _models()] == ["FAILED"]
    assert [run.info.status for run in mlflow.MlflowClient().search_runs(["0"])] == ["FAILED"]


LOST = """
import time
from steps.command_line import exit_on_error

class Careless:
    def __del__(self):
        import os, signal
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0)

def step():
    Careless()
    time.sleep(30)

exit_on_error(step)
"""


def test_an_interrupt_that_python_ignores_is_repeated():
    process = _start(sys.executable, "-c", LOST)
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (EXIT_CODE, f"{INTERRUPTED}\n")


IN_A_STRING = """
from steps.command_line import exit_on_error

def step():
    exec("import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(30)")

exit_on_error(step)
"""


def test_an_interrupt_in_a_string_that_python_runs_keeps_the_exit_code(tmp_path):
    """A dataclass runs its methods as a string, and the first half second of a step is full of dataclasses."""
    (tmp_path / "interrupted.py").write_text(IN_A_STRING)
    done = subprocess.run(
        [sys.executable, "-m", "interrupted"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (EXIT_CODE, f"{INTERRUPTED}\n")


LOCKING = """
import os, signal, sys, time
import sqlalchemy
from sqlalchemy.orm import Session
from steps.interrupts import clean_end

engine = sqlalchemy.create_engine("sqlite:///locked.db", connect_args={"timeout": 0})
moment, armed = sys.argv[1], False

def interrupt(*_):
    global armed
    if armed:
        armed = False
        os.kill(os.getpid(), signal.SIGINT)

sqlalchemy.event.listen(engine, moment, interrupt)
with Session(engine) as session, session.begin():
    session.execute(sqlalchemy.text("create table numbers (number int)"))
armed = True
try:
    with clean_end():
        for number in range(100):
            with Session(engine) as session:
                session.execute(sqlalchemy.text("insert into numbers values (1)"))
                if moment == "commit" or number % 2:
                    session.commit()
            time.sleep(0.02)
except KeyboardInterrupt as error:
    # The error keeps the frames alive, and with them whatever they hold.
    with Session(engine) as session, session.begin():
        session.execute(sqlalchemy.text("insert into numbers values (2)"))
    print("written")
"""


@pytest.mark.parametrize("moment", ["begin", "before_cursor_execute", "commit", "rollback", "checkin"])
def test_an_interrupt_leaves_no_lock_on_the_database(moment, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", LOCKING, moment],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("written\n", "")

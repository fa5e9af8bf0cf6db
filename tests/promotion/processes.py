"""Processes that register and are killed, or race. They are forked from one that has paid for the imports.

    python -m tests.promotion.processes race STORE_ADDRESS FOLDER ROUNDS
    python -m tests.promotion.processes kill STORE FOLDER EVERY OVERRIDES…     → one line of JSON on standard output

The parent never opens the store, so that no child inherits a connection.
"""

import itertools
import json
import multiprocessing
import os
import random
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from threading import BrokenBarrierError
from unittest.mock import patch

import mlflow
import mlflow.store.model_registry.sqlalchemy_store
import mlflow.store.tracking.sqlalchemy_store
import scipy.stats  # noqa: F401  imported once, here
from sqlalchemy import event
from sqlalchemy.engine import Engine

from steps import command_line, register
from steps.config.schema import PromptSet
from steps.errors import StepError
from steps.evaluation import prompt_set
from steps.promotion import history, registry
from steps.store import connection
from steps.store.names import FINGERPRINT
from steps.store.variants import find_variants
from tests.promotion.store import copied, write_prompt_set, write_scorecard

WORKERS = 8
# No round takes minutes, but a machine may be busy.
PATIENCE = 400
FORK = multiprocessing.get_context("fork")


def race(address: str, folder: Path, rounds: int) -> None:
    """Start eight processes. In each round, each scores its own variant and registers, all at the same time."""
    config = command_line.compose("register", ["promotion.smoke=false"])
    for number in range(rounds):
        write_prompt_set(folder / f"{number}.jsonl", str(number))
    barrier = FORK.Barrier(WORKERS)
    workers = [
        FORK.Process(target=_racer, args=(index, address, folder, rounds, config, barrier)) for index in range(WORKERS)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    sys.exit(max(abs(worker.exitcode) for worker in workers))


def _racer(index, address, folder, rounds, config, barrier) -> None:
    try:
        _enter(address)
        mine = find_variants(mlflow.MlflowClient(), "0")[index]
        for number in range(rounds):
            barrier.wait(PATIENCE)
            settings = PromptSet(f"round-{number}", str(folder / f"{number}.jsonl"))
            write_scorecard(mine, prompt_set.load(settings), places(number)[index] + 1)
            register.register(replace(config, prompt_set=settings, registered_model=f"race-{number}"))
    except BrokenBarrierError:
        sys.exit(1)  # the process that broke it prints the reason
    except BaseException:
        barrier.abort()
        raise


def places(number: int) -> list[int]:
    """Return the score of each worker's variant in a round: all differ."""
    return random.Random(number).sample(range(WORKERS), WORKERS)


def kill(store: Path, folder: Path, every: int, overrides: list[str]) -> None:
    """Kill register before its first write to the store, then `every` writes later, …, each time on a fresh copy.

    After each kill, look at the registry, register again, and look once more. Prints what was seen as JSON.
    """
    config = command_line.compose("register", ["promotion.smoke=false", *overrides])
    looks = []
    for point in itertools.count(1, every):
        address = copied(store, folder / str(point))
        killed = _forked(_register_until, address, config, point) == -signal.SIGKILL
        started = time.perf_counter()
        seen = folder / str(point) / "seen.json"
        assert _forked(_look_and_register_again, address, config, seen) == 0
        looks.append({"killed": killed, "seconds": time.perf_counter() - started} | json.loads(seen.read_text()))
        if not killed:
            break
    print(json.dumps(looks))


def _register_until(address: str, config, point: int) -> None:
    """Register, and be killed at this write: before its transaction is committed, or its file is written."""
    _enter(address)
    writes = itertools.count(1)

    def count_write() -> None:
        if next(writes) == point:
            os.kill(os.getpid(), signal.SIGKILL)

    _before_each_commit(count_write)
    log_dict = mlflow.MlflowClient.log_dict

    def log_dict_later(*arguments) -> None:
        count_write()
        log_dict(*arguments)

    with patch.object(mlflow.MlflowClient, "log_dict", log_dict_later):
        register.register(config)


def _before_each_commit(act) -> None:
    """Call `act` before each commit of a transaction that has written something."""

    @event.listens_for(Engine, "before_cursor_execute")
    def note_write(connection, cursor, statement, *rest):
        if statement.startswith(("INSERT", "UPDATE", "DELETE")):
            connection.info["wrote"] = True

    @event.listens_for(Engine, "commit")
    def before_commit(connection):
        if connection.info.pop("wrote", False):
            act()


def _look_and_register_again(address: str, config, seen: Path) -> None:
    _enter(address)
    before = _look(config.registered_model)
    refused = None
    try:
        register.register(config)
    except StepError as error:
        refused = str(error)
    seen.write_text(json.dumps({"before": before, "refused": refused, "after": _look(config.registered_model)}))


def _enter(address: str) -> None:
    """Open the store in this process, and print nothing."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    mlflow.set_tracking_uri(address)
    connection.connect()


def _look(name: str) -> dict:
    """Return the registry's aliases, the models of its versions, its history, and which versions are complete."""
    client = mlflow.MlflowClient()
    current = registry.read(client, name)
    complete = [
        version.number
        for version in current.versions
        if str(client.get_logged_model(version.model_id).status) == "READY" and version.tags.get(FINGERPRINT)
    ]
    return {
        "aliases": current.aliases,
        "models": {version.number: version.model_id for version in current.versions},
        "history": [[change.action, change.version] for change in history.changes(current)],
        "complete": complete,
    }


def _forked(task, *arguments) -> int:
    """Run a task in a child process; returns its exit code, negative for a signal."""
    child = FORK.Process(target=task, args=arguments)
    child.start()
    child.join()
    return child.exitcode


if __name__ == "__main__":
    action, where, into, *rest = sys.argv[1:]
    if action == "race":
        race(where, Path(into), int(rest[0]))
    else:
        kill(Path(where), Path(into), int(rest[0]), rest[1:])

"""Processes that register and are killed, or race: forked from one that has paid for the imports.

    python -m tests.promotion.processes race STORE_ADDRESS FOLDER ROUNDS
    python -m tests.promotion.processes kill STORE FOLDER OVERRIDES…     → one line of JSON on standard output

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

import mlflow
import mlflow.store.model_registry.sqlalchemy_store
import mlflow.store.tracking.sqlalchemy_store
import scipy.stats  # noqa: F401  paid once, here
from sqlalchemy import event
from sqlalchemy.engine import Engine

from steps import command_line, register
from steps.config.schema import PromptSet
from steps.errors import StepError
from steps.evaluation import prompt_set
from steps.promotion import history, registry
from steps.store import connection
from steps.store.variants import find_variants
from tests.promotion.store import copied, write_prompt_set, write_scorecard

WORKERS = 8
# No round takes minutes, but a machine may be busy.
PATIENCE = 400
FORK = multiprocessing.get_context("fork")


def race(address: str, folder: Path, rounds: int) -> None:
    """Eight processes: in each round each scores its own variant and registers at once, whatever the others do."""
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
        _race(index, address, folder, rounds, config, barrier)
    except BrokenBarrierError:
        sys.exit(1)  # another one says what happened
    except BaseException:
        barrier.abort()
        raise


def _race(index, address, folder, rounds, config, barrier) -> None:
    _enter(address)
    mine = find_variants(mlflow.MlflowClient(), "0")[index]
    for number in range(rounds):
        barrier.wait(PATIENCE)
        settings = PromptSet(f"round-{number}", str(folder / f"{number}.jsonl"))
        write_scorecard(mine, prompt_set.load(settings), places(number)[index] + 1)
        register.register(replace(config, prompt_set=settings, registered_model=f"race-{number}"))


def places(number: int) -> list[int]:
    """What each worker's variant scores in a round: all differ."""
    return random.Random(number).sample(range(WORKERS), WORKERS)


def kill(store: Path, folder: Path, overrides: list[str]) -> None:
    """Kill register before its first, second, … write to the store; after each kill look, start it anew, look again."""
    config = command_line.compose("register", ["promotion.smoke=false", *overrides])
    found = []
    for point in itertools.count(1):
        address = copied(store, folder / str(point))
        killed = _forked(_register_until, address, config, point) == -signal.SIGKILL
        started = time.perf_counter()
        seen = folder / str(point) / "seen.json"
        assert _forked(_look_and_go_on, address, config, seen) == 0
        found.append({"killed": killed, "seconds": time.perf_counter() - started} | json.loads(seen.read_text()))
        if not killed:
            break
    print(json.dumps(found))


def _register_until(address: str, config, point: int) -> None:
    """Register, and be killed at the given write: before its transaction is committed, or its file is written."""
    _enter(address)
    writes = itertools.count(1)

    def strike() -> None:
        if next(writes) == point:
            os.kill(os.getpid(), signal.SIGKILL)

    @event.listens_for(Engine, "before_cursor_execute")
    def notice(connection, cursor, statement, *rest):
        if statement.startswith(("INSERT", "UPDATE", "DELETE")):
            connection.info["wrote"] = True

    @event.listens_for(Engine, "commit")
    def committing(connection):
        if connection.info.pop("wrote", False):
            strike()

    log_file = mlflow.MlflowClient.log_dict
    mlflow.MlflowClient.log_dict = lambda *given: (strike(), log_file(*given))[1]
    register.register(config)


def _look_and_go_on(address: str, config, seen: Path) -> None:
    _enter(address)
    before = _seen(config.registered_model)
    refused = None
    try:
        register.register(config)
    except StepError as error:
        refused = str(error)
    seen.write_text(json.dumps({"before": before, "refused": refused, "after": _seen(config.registered_model)}))


def _enter(address: str) -> None:
    """Open the store in this process, and say nothing."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    mlflow.set_tracking_uri(address)
    connection.connect()


def _seen(name: str) -> dict:
    """What the registry says: aliases, models of the versions, history; and which of the versions are whole."""
    client = mlflow.MlflowClient()
    known = registry.read(client, name)
    whole = [
        version.number
        for version in known.versions
        if str(client.get_logged_model(version.model_id).status) == "READY" and version.tags.get("phi3.fingerprint")
    ]
    changes = [[change.action, change.version] for change in history.changes(known)]
    return {
        "aliases": known.aliases,
        "models": {version.number: version.model_id for version in known.versions},
        "history": changes,
        "whole": whole,
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
        kill(Path(where), Path(into), rest)

"""Register on a real `mlflow server`: eight processes at once without a lock, and a server that is killed."""

import threading
import time

import mlflow
import pytest

from steps import command_line, register
from steps.evaluation import prompt_set
from steps.promotion import lock, registry
from steps.store.variants import find_variants
from tests.mlflow_server import running
from tests.promotion.store import copied, write_prompt_set, write_scorecard
from tests.promotion.test_race import verdict

ROUNDS = 2


@pytest.fixture(scope="module")
def server(built, tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    copied(built, folder)
    with running(folder) as server:
        yield server


@pytest.fixture
def waiting(server, tmp_path, monkeypatch):
    """A variant that is better than the champion and not promoted yet. The store is a server's, without a lock."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
    path = write_prompt_set(tmp_path / "rows.jsonl", tmp_path.name)
    overrides = ["promotion.smoke=false", "prompt_set.name=made", f"prompt_set.path={path}"]
    config = command_line.compose("register", [*overrides, f"registered_model={tmp_path.name}"])
    rows = prompt_set.load(config.prompt_set)
    low, high, *_ = find_variants(mlflow.MlflowClient(), "0")
    write_scorecard(low, rows, 3)
    register.register(config)
    write_scorecard(high, rows, 7)
    return config, high.model_id


@pytest.mark.slow
def test_the_best_wins_without_a_lock(server, built, processes, tmp_path, figure):
    started = time.perf_counter()
    processes("race", server.address, tmp_path, ROUNDS)
    wrong, doubles = verdict(server.address, ROUNDS)
    seconds = time.perf_counter() - started
    figure(f"race on a server: wrong champions {wrong} of {ROUNDS} rounds, duplicates {doubles}, {seconds:.0f} s")
    assert (wrong, doubles) == (0, 0)


def test_the_password_in_a_servers_address_is_never_printed_or_stored(server, waiting, monkeypatch, typed):
    config, _ = waiting
    canary = "canary%2Fzq7f3akw"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address.replace("://", f"://me:{canary}@"))
    words = ["promotion.smoke=false", "prompt_set.name=made", f"prompt_set.path={config.prompt_set.path}"]
    done = typed("register", *words, f"registered_model={config.registered_model}")
    assert done.returncode == 0, done.stderr
    assert f"Run register-{config.registered_model}: {server.address}/#/experiments/0/runs/" in done.stdout
    written = [file.read_bytes() for file in server.folder.rglob("*") if file.is_file()]
    assert not [text for text in (done.stdout, done.stderr) if "zq7f3akw" in text]
    assert not [content for content in written if b"zq7f3akw" in content]


@pytest.mark.slow
def test_register_waits_for_a_server_that_is_away_for_five_seconds(server, waiting, monkeypatch, figure):
    config, better = waiting
    assert lock.file(config.registered_model) is None
    moments = {}

    def killed_first(*arguments):
        monkeypatch.setattr(registry, "create", create)
        server.kill()
        moments["killed"] = time.perf_counter()
        # Starting takes a few more seconds.
        threading.Timer(3, come_back).start()
        return create(*arguments)

    def come_back():
        server.start()
        server.wait()
        moments["back"] = time.perf_counter()

    create = registry.create
    monkeypatch.setattr(registry, "create", killed_first)
    register.register(config)
    away, promoted = (moment - moments["killed"] for moment in (moments["back"], time.perf_counter()))
    figure(f"server killed: back {away:.1f} s after, promoted {promoted:.1f} s after")
    assert away >= 5
    known = registry.read(mlflow.MlflowClient(), config.registered_model)
    assert known.champion.model_id == better
    assert len(known.versions) == 2


def test_a_lost_server_is_reported_in_one_line_and_nothing_is_half_done(server, waiting, monkeypatch, typed):
    config, _ = waiting
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    create = registry.create

    def killed_first(*arguments):
        server.kill()
        return create(*arguments)

    monkeypatch.setattr(registry, "create", killed_first)
    words = ["promotion.smoke=false", "prompt_set.name=made", f"prompt_set.path={config.prompt_set.path}"]
    done = typed("register", *words, f"registered_model={config.registered_model}")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: The tracking server {server.address} went away and ")
    # Read from the file, because the server stays dead. This is the last test that uses it.
    known = registry.read(mlflow.MlflowClient(f"sqlite:///{server.folder}/mlflow.db"), config.registered_model)
    assert known.champion.number == "1"
    assert len(known.versions) == 1

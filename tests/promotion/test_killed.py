"""Register is killed with -9 before each of its writes: the champion stays valid, and the same command finishes."""

import json

import mlflow
import pytest

from steps import command_line, register
from steps.evaluation import prompt_set
from steps.store.variants import find_variants
from tests.promotion.store import copied, write_prompt_set, write_scorecard


@pytest.fixture(scope="module")
def store(built, tmp_path_factory):
    """Version 1 is champion and 2 challenger; a third variant is better, and not registered yet."""
    folder = tmp_path_factory.mktemp("killed")
    path = write_prompt_set(folder / "rows.jsonl", "killed")
    overrides = ["prompt_set.name=made", f"prompt_set.path={path}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", copied(built, folder))
        config = command_line.compose("register", ["promotion.smoke=false", *overrides])
        rows = prompt_set.load(config.prompt_set)
        low, middle, high, *_ = find_variants(mlflow.MlflowClient(), "0")
        write_scorecard(low, rows, 3)
        write_scorecard(middle, rows, 5)
        register.register(config)
        write_scorecard(high, rows, 7)
    return folder, overrides, [middle.model_id, high.model_id]


# Before each write, or before every eighth: the first of them, and one of every part of a register.
EVERY = pytest.mark.parametrize("every", [8, pytest.param(1, marks=pytest.mark.slow)])


def _each_kill(processes, tmp_path, folder, every, *overrides):
    *killed, finished = json.loads(processes("kill", folder, tmp_path, every, *overrides))
    assert all(look["killed"] for look in killed)
    assert not finished["killed"]
    return killed


def _valid(look, models):
    """Return True if the alias names a complete version of one of these models."""
    champion = look["aliases"]["champion"]
    return champion in look["complete"] and look["models"][champion] in models


@EVERY
def test_the_next_register_finishes_a_killed_promotion(store, processes, tmp_path, figure, every):
    folder, overrides, (old, new) = store
    killed = _each_kill(processes, tmp_path, folder, every, *overrides)
    valid = sum(_valid(look["before"], [old, new]) and _valid(look["after"], [new]) for look in killed)
    models = [list(look["after"]["models"].values()) for look in killed]
    doubles = sum(len(registered) - len(set(registered)) for registered in models)
    slowest = max(look["seconds"] for look in killed)
    figure(
        f"promotion killed at {len(killed)} points: champions valid {valid}/{len(killed)}, duplicates {doubles}, "
        f"recovered in {slowest:.1f} s at most"
    )
    assert (valid, doubles) == (len(killed), 0)
    assert len(killed) * every >= 10
    for look in killed:
        assert look["refused"] is None
        assert look["after"]["aliases"] == {"champion": "3", "challenger": "1"}
        assert look["after"]["history"] == [["promote", "1"], ["promote", "3"]]


@pytest.mark.slow
@pytest.mark.parametrize("every", [1])
def test_the_same_command_finishes_a_killed_rollback(store, processes, tmp_path, monkeypatch, figure, every):
    """It finishes the rollback that was begun, and does not roll back once more."""
    folder, overrides, (_, new) = store
    monkeypatch.setenv("MLFLOW_TRACKING_URI", copied(folder, tmp_path / "promoted"))
    config = command_line.compose("register", ["promotion.smoke=false", *overrides])
    register.register(config)
    best = find_variants(mlflow.MlflowClient(), "0")[3]
    write_scorecard(best, prompt_set.load(config.prompt_set), 8)
    register.register(config)
    killed = _each_kill(processes, tmp_path, tmp_path / "promoted", every, "action=rollback", *overrides)
    valid = sum(_valid(look["before"], [new, best.model_id]) and _valid(look["after"], [new]) for look in killed)
    figure(f"rollback killed at {len(killed)} points: champions valid {valid}/{len(killed)}")
    assert valid == len(killed)
    for look in killed:
        assert look["after"]["history"] == [["promote", "1"], ["promote", "3"], ["promote", "4"], ["rollback", "3"]]
        assert look["refused"] is None

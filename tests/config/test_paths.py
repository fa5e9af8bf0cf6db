"""Where a relative path starts: in the folder in which the user typed the command."""

import os
import subprocess
import sys

import pytest

from steps.command_line import parse
from steps.config.paths import from_user, user_directory
from tests.conftest import PROJECT

PRINT = f"{sys.executable} -c 'from steps.config.paths import user_directory; print(user_directory())'"
# What `mlflow run` does, without MLflow: a shell in the project's folder, with the variable of a run.
STARTED_BY_MLFLOW = """
import os, subprocess, sys
command, folder = sys.argv[1:]
subprocess.run(["bash", "-c", command], cwd=folder, env=os.environ | {"MLFLOW_RUN_ID": "inner"}, check=True)
"""

COMMANDS = {
    "a shell that becomes the step": PRINT,
    "a shell that activates an environment first": f"true && {PRINT}",
    "a shell in a shell": f'bash -c "true && {PRINT}"',
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize("outer", [{}, {"MLFLOW_RUN_ID": "outer"}], ids=["typed", "called from another run"])
def test_a_step_of_mlflow_run_finds_the_folder_of_its_caller(tmp_path, command, outer):
    typed = [sys.executable, "-c", STARTED_BY_MLFLOW, command, str(PROJECT)]
    # Shells keep these two for the folders of their own.
    misleading = {"PWD": "/", "OLDPWD": "/"}
    done = subprocess.run(
        typed, cwd=tmp_path, env=os.environ | misleading | outer, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(tmp_path)


def test_a_step_that_is_not_in_the_project_stands_where_the_user_does(tmp_path):
    typed = [sys.executable, "-c", STARTED_BY_MLFLOW, PRINT, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    done = subprocess.run(typed, cwd="/", env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(tmp_path)


def test_a_step_that_is_typed_stands_where_it_is_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert user_directory() == tmp_path


def test_a_path_becomes_absolute_if_it_exists_where_the_user_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "größe, neu.jsonl").touch()
    assert from_user("größe, neu.jsonl") == str(tmp_path / "größe, neu.jsonl")
    for path in ("", "OWNER/NAME", "conf/prompt_set/facts.jsonl", "~nobody-of-this-name/x", "a\0b", "x" * 5000):
        assert from_user(path) == path


def test_a_path_may_be_an_address_of_a_file_or_have_spaces_around_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "two words ü.jsonl"
    file.touch()
    for path in (file.as_uri(), f" {file} ", " two words ü.jsonl", "~/two words ü.jsonl", "./two words ü.jsonl"):
        assert from_user(path) == str(file), path
    for path in ("file:///nowhere.jsonl", "file:", "   "):
        assert from_user(path) == path


@pytest.mark.parametrize("key", ["prompt_set.path", "model.path"])
def test_typed_paths_become_absolute(tmp_path, monkeypatch, key):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "it's here").mkdir()
    path = str(tmp_path / "it's here").replace("'", "\\'")
    assert parse([f"{key}=it's here"]) == ([], [f"{key}='{path}'"])
    assert parse([f"--{key}", "elsewhere"]) == ([], [f"{key}='elsewhere'"])

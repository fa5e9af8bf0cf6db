"""The cache: folders are made once, completely or not at all, and made again if they are damaged."""

import multiprocessing
import os
from pathlib import Path

import pytest

from steps.checkpoints.cache import cached
from tests.support import cut, flip


def test_an_unusable_cache_is_reported_in_one_line(typed, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("PHI3_CACHE_DIR", str(tmp_path / "file"))
    done = typed("build")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: The cache {tmp_path / 'file'} cannot be used (")
    assert line.endswith("): set PHI3_CACHE_DIR to a writable folder.")


def _make(directory):
    (directory / "file").write_text(str(os.getpid()))


def _make_in_process(cache):
    os.environ["PHI3_CACHE_DIR"] = str(cache)
    cached("thing", _make)


def _make_and_die(cache):
    os.environ["PHI3_CACHE_DIR"] = str(cache)

    def half(directory):
        _make(directory)
        os.kill(os.getpid(), 9)

    cached("thing", half)


def _spawn(target, cache, count):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=target, args=(cache,)) for _ in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


@pytest.fixture
def cache(tmp_path):
    folder = tmp_path / "cache"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink], ids=["flipped", "cut short", "missing"])
def test_a_damaged_folder_is_made_again(cache, monkeypatch, capsys, damage):
    monkeypatch.setenv("PHI3_CACHE_DIR", str(cache))
    made = cached("thing", lambda directory: (directory / "file").write_text("x" * 200))
    damage(made / "file")
    again = cached("thing", lambda directory: (directory / "file").write_text("y" * 200))
    assert (again / "file").read_text() == "y" * 200
    assert f"{made} in the cache is damaged and is made again: file " in capsys.readouterr().out
    assert cached("thing", lambda directory: pytest.fail("made again")) == made


def _folders(cache):
    return [path.name for path in cache.iterdir() if path.is_dir()]


def test_two_processes_at_once_make_a_folder_once(cache):
    assert _spawn(_make_in_process, cache, 2) == [0, 0]
    assert _folders(cache) == ["thing"]


def test_a_folder_whose_making_was_killed_is_made_from_scratch(cache, monkeypatch):
    assert _spawn(_make_and_die, cache, 1) == [-9]
    assert not (cache / "thing").exists()
    monkeypatch.setenv("PHI3_CACHE_DIR", str(cache))
    made = cached("thing", _make)
    assert (made / "file").read_text() == str(os.getpid())
    assert _folders(cache) == ["thing"]

"""Digests of large files are remembered, and never those of a file that was changed."""

import os
import time

import pytest

from steps.checkpoints import known_digests
from steps.digests import digest_file
from tests.support import cut, flip

SIZE = known_digests.LARGE


@pytest.fixture
def reads(monkeypatch):
    """Count the files that are read."""
    counted = []
    read = known_digests.describe_file
    monkeypatch.setattr(known_digests, "describe_file", lambda file: counted.append(file.name) or read(file))
    return counted


def _age(file, seconds=60):
    past = time.time() - seconds
    os.utime(file, (past, past))


def _large(folder, name="weights", size=SIZE):
    file = folder / name
    with file.open("wb") as out:
        out.truncate(size)
    _age(file)
    return file


def _sha256(file, cache):
    (entry,) = known_digests.describe([file], cache)
    assert entry["bytes"] == file.stat().st_size
    return entry["sha256"]


def test_a_large_file_is_read_once(tmp_path, reads):
    file, cache = _large(tmp_path), tmp_path / "cache"
    assert {_sha256(file, cache) for _ in range(3)} == {digest_file(file)}
    os.link(file, tmp_path / "other name")
    assert _sha256(tmp_path / "other name", cache) == digest_file(file)
    assert reads == ["weights"]


@pytest.mark.parametrize("damage", [flip, cut, lambda file: file.write_bytes(b"x" * SIZE)], ids=["bit", "cut", "other"])
def test_a_changed_file_is_read_again(tmp_path, damage):
    file, cache = _large(tmp_path), tmp_path / "cache"
    before = _sha256(file, cache)
    damage(file)
    assert before != _sha256(file, cache) == digest_file(file)
    _age(file, 30)
    assert _sha256(file, cache) == digest_file(file)


def test_a_file_that_was_just_written_is_not_remembered(tmp_path, reads):
    file, cache = _large(tmp_path), tmp_path / "cache"
    os.utime(file)
    for _ in range(2):
        _sha256(file, cache)
    assert len(reads) == 2
    assert not cache.exists()


def test_a_small_file_is_read_each_time(tmp_path, reads):
    file = _large(tmp_path, size=100)
    for _ in range(2):
        _sha256(file, tmp_path / "cache")
    assert len(reads) == 2


@pytest.mark.parametrize("damage", [lambda file: file.write_text("short"), lambda file: file.unlink()])
def test_a_damaged_memory_is_made_anew(tmp_path, damage):
    file, cache = _large(tmp_path), tmp_path / "cache"
    _sha256(file, cache)
    (remembered,) = (cache / "digests").iterdir()
    damage(remembered)
    assert _sha256(file, cache) == digest_file(file)


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path):
    (tmp_path / "cache").write_text("a file")
    file = _large(tmp_path)
    assert _sha256(file, tmp_path / "cache") == digest_file(file)

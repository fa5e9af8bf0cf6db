"""The journal: what it holds after any end of the process that wrote it."""

import contextlib
import multiprocessing
import os
import resource
import shutil
import signal
import sqlite3

import pytest

from steps.errors import StepError
from steps.evaluation import journal
from steps.evaluation.journal import Journal

KEY = {"model_id": "m", "generation": {"max_tokens": "8"}}
ROWS = "0123456789abcdef0123"
TWO = {"answer 0 0": {"text": "é\n"}, "answer 0 1": {"text": "b"}}


def _write(path, entries, key=KEY):
    with contextlib.closing(Journal(path, key)) as written:
        written.add(entries)


def _entries(path, key=KEY):
    with contextlib.closing(Journal(path, key)) as opened:
        return opened.entries


def _execute(path, *statements):
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        for statement in statements:
            connection.execute(statement)


def _overwrite(path, offset, content):
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def _truncate(path):
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size * 2 // 3)


DAMAGE = {
    "zeros of a file system": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "an empty file": lambda path: path.write_bytes(b""),
    "a short file": _truncate,
    "text": lambda path: path.write_text('{"key": {}}\n' * 1000),
    "a destroyed header": lambda path: _overwrite(path, 0, b"\0" * 16),
    "a destroyed schema": lambda path: _overwrite(path, 100, b"\xff" * 400),
    "a destroyed page": lambda path: _overwrite(path, path.stat().st_size - 4096, b"\xff" * 4096),
    "half an entry": lambda path: _execute(path, "INSERT INTO entries VALUES ('answer 0 2', '{\"text\": \"c')"),
    "an entry that is no text": lambda path: _execute(path, "INSERT INTO entries VALUES ('a', CAST(x'ff' AS TEXT))"),
    "no key": lambda path: _execute(path, "DELETE FROM journal"),
    "two keys": lambda path: _execute(path, "INSERT INTO journal SELECT key FROM journal"),
    "no table": lambda path: _execute(path, "DROP TABLE entries"),
    "other columns": lambda path: _execute(path, "DROP TABLE entries", "CREATE TABLE entries (id, value)"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_or_foreign_file_is_replaced(tmp_path, damage):
    path = tmp_path / "journal.sqlite"
    _write(path, TWO | {f"answer 1 {number}": {"text": "long " * 100} for number in range(50)})
    damage(path)
    second = Journal(path, KEY)
    assert second.entries == {}
    second.add({"answer 0 2": {"text": "d"}})
    second.close()
    assert _entries(path) == {"answer 0 2": {"text": "d"}}


def test_entries_survive_closing_and_a_later_one_of_the_same_name_wins(tmp_path):
    path = tmp_path / "journal.sqlite"
    _write(path, TWO)
    assert _entries(path) == TWO
    _write(path, {"answer 0 1": {"text": "again"}})
    assert _entries(path) == TWO | {"answer 0 1": {"text": "again"}}


class DyingEntries(dict):
    """Entries that end the process by kill -9 when half of them are written."""

    def items(self):
        for number, item in enumerate(super().items()):
            if number == len(self) // 2:
                os.kill(os.getpid(), signal.SIGKILL)
            yield item


def _die_while_adding(path, size):
    with contextlib.closing(Journal(path, KEY)) as mortal:
        mortal.add(TWO)
        mortal.add(DyingEntries({f"answer 1 {number}": {"text": "x" * size} for number in range(100)}))


@pytest.mark.parametrize("size", [1, 300_000])  # what SQLite cannot hold in memory is in the file before the commit
def test_a_killed_process_leaves_all_of_its_finished_batches_and_nothing_of_the_last(tmp_path, size):
    path = tmp_path / "journal.sqlite"
    killed = multiprocessing.get_context("spawn").Process(target=_die_while_adding, args=(path, size))
    killed.start()
    killed.join(60)
    assert killed.exitcode == -signal.SIGKILL
    unfinished = path.with_name(f"{path.name}-journal")
    assert unfinished.is_file()
    assert (path.stat().st_size > 5_000_000) == (size > 1)
    copy = tmp_path / "other.sqlite"
    shutil.copy(path, copy)
    shutil.copy(unfinished, tmp_path / "other.sqlite-journal")
    with contextlib.closing(Journal(tmp_path / "mine.sqlite", KEY, [copy])) as mine:
        assert mine.entries == TWO
    assert _entries(path) == TWO
    _write(path, {"answer 0 2": 1})
    assert _entries(path) == TWO | {"answer 0 2": 1}


def test_nothing_of_a_killed_process_survives_the_removal_of_its_journal(tmp_path, monkeypatch):
    monkeypatch.setenv("PHI3_CACHE_DIR", str(tmp_path))
    with journal.opened(KEY, ROWS, lambda: None) as written:
        written.add(TWO)
    (path,) = (tmp_path / "journals").glob("*.sqlite")
    killed = multiprocessing.get_context("spawn").Process(target=_die_while_adding, args=(path, 300_000))
    killed.start()
    killed.join(60)
    assert len(list(path.parent.glob(f"{path.name}*"))) > 1
    journal.forget(KEY, ROWS)
    assert [file for file in path.parent.iterdir() if file.suffix != ".lock"] == []
    with journal.opened(KEY, ROWS, lambda: None) as again:
        assert again.entries == {}
        again.add(TWO)
        again.remove()
    assert [file for file in path.parent.iterdir() if file.suffix != ".lock"] == []


def test_a_rollback_journal_without_its_database_is_ignored(tmp_path):
    path = tmp_path / "journal.sqlite"
    killed = multiprocessing.get_context("spawn").Process(target=_die_while_adding, args=(path, 300_000))
    killed.start()
    killed.join(60)
    path.unlink()
    _write(path, {"a": 1})
    assert _entries(path) == {"a": 1}


def test_a_batch_that_cannot_be_written_as_json_is_not_added_in_part(tmp_path):
    path = tmp_path / "journal.sqlite"
    with contextlib.closing(Journal(path, KEY)) as opened:
        with pytest.raises(TypeError):
            opened.add({"a": 1, "b": object()})
        assert opened.entries == {}
        opened.add({"c": 2})
    assert _entries(path) == {"c": 2}


def test_a_full_disk_is_reported_with_the_path_and_what_to_do(tmp_path):
    path = tmp_path / "journal.sqlite"
    with contextlib.closing(Journal(path, KEY)) as opened:
        opened.add(TWO)
        with _file_limit(path.stat().st_size), pytest.raises(StepError) as refusal:
            opened.add({"answer 0 2": {"text": "long " * 10_000}})
        assert opened.entries == TWO
        opened.add({"answer 0 2": {"text": "c"}})
    (fault,) = refusal.value.faults
    assert fault.startswith(f"The journal {path} cannot be written (")
    assert fault.endswith("): free some disk space, or set PHI3_CACHE_DIR to another folder.")
    assert _entries(path) == TWO | {"answer 0 2": {"text": "c"}}


@contextlib.contextmanager
def _file_limit(size):
    """Let no file of this process grow beyond `size` bytes, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_entries_of_another_key_are_not_reused(tmp_path):
    path = tmp_path / "journal.sqlite"
    _write(path, {"answer 0 0": {"text": "a"}})
    assert _entries(path, KEY | {"generation": {}}) == {}


def test_entries_of_other_rows_are_reused_but_for_errors_and_stay_in_their_file(tmp_path, monkeypatch):
    monkeypatch.setenv("PHI3_CACHE_DIR", str(tmp_path))
    for key, rows, text in ((KEY, "1" * 16, "of the others"), (KEY | {"generation": {}}, ROWS, "of another model")):
        with journal.opened(key, rows, lambda: None) as other:
            other.add({text: 1, "failed": {"text": "", "error": "RuntimeError: out of memory"}})
    with journal.opened(KEY, ROWS, lambda: None) as mine:
        assert mine.entries == {"of the others": 1}
        mine.add({"mine": 2})
        mine.remove()
    with journal.opened(KEY, ROWS, lambda: None) as mine:
        assert mine.entries == {"of the others": 1}
    journal.forget(KEY, "1" * 16)
    with journal.opened(KEY, ROWS, lambda: None) as mine:
        assert mine.entries == {}


def test_an_error_of_other_rows_does_not_hide_an_answer(tmp_path):
    answered, failed = tmp_path / "1.sqlite", tmp_path / "2.sqlite"
    _write(answered, {"answer": {"text": "a", "error": None}})
    _write(failed, {"answer": {"text": "", "error": "RuntimeError: out of memory"}})
    with contextlib.closing(Journal(tmp_path / "mine.sqlite", KEY, [failed, answered])) as mine:
        assert mine.entries == {"answer": {"text": "a", "error": None}}


def test_a_damaged_file_of_other_rows_is_ignored_and_stays(tmp_path):
    damaged = tmp_path / "1.sqlite"
    damaged.write_text("no database" * 1000)
    with contextlib.closing(Journal(tmp_path / "mine.sqlite", KEY, [damaged, tmp_path / "removed.sqlite"])) as mine:
        assert mine.entries == {}
    assert damaged.read_text() == "no database" * 1000
    assert not (tmp_path / "removed.sqlite").exists()


def test_entries_of_other_rows_are_ignored_on_request(tmp_path, monkeypatch):
    monkeypatch.setenv("PHI3_CACHE_DIR", str(tmp_path))
    with journal.opened(KEY, "1" * 16, lambda: None) as other:
        other.add({"of the others": 1})
    with journal.opened(KEY, ROWS, lambda: None, ignore_other_rows=True) as mine:
        assert mine.entries == {}


def test_dropped_entries_are_gone_from_the_file(tmp_path):
    path = tmp_path / "journal.sqlite"
    opened = Journal(path, KEY)
    opened.add({"a": 1, "b": 2})
    opened.drop(["a"])
    assert opened.entries == {"b": 2}
    opened.close()
    assert _entries(path) == {"b": 2}


def test_a_batch_is_one_transaction_in_the_file_when_add_returns(tmp_path):
    path = tmp_path / "journal.sqlite"
    with contextlib.closing(Journal(path, KEY)) as opened:
        before = _transactions(path)
        opened.add({f"answer 0 {number}": {"text": "a"} for number in range(64)})
        assert _transactions(path) == before + 1
        # What another process reads now would be there after a kill, too.
        shutil.copy(path, tmp_path / "copy.sqlite")
    assert len(_entries(tmp_path / "copy.sqlite")) == 64


def test_commits_survive_a_power_loss(tmp_path):
    with contextlib.closing(journal.connect(tmp_path / "journal.sqlite")) as connection:
        assert connection.execute("PRAGMA synchronous").fetchone() == (3,)  # EXTRA: the directory is synced, too
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)


def _transactions(path):
    """Return SQLite's file change counter, which each transaction raises by one (section 1.3.8 of its file format)."""
    return int.from_bytes(path.read_bytes()[24:28], "big")


def _hold(inside, leave):
    with journal.opened(KEY, ROWS, lambda: None) as held:
        held.add({"answer 0 0": {"text": "first"}})
        inside.set()
        leave.wait(60)


def test_a_second_process_waits_and_then_reads_what_the_first_wrote():
    spawn = multiprocessing.get_context("spawn")
    inside, leave = spawn.Event(), spawn.Event()
    other = spawn.Process(target=_hold, args=(inside, leave))
    other.start()
    assert inside.wait(60)
    # Waiting itself releases the other process: without a lock `on_wait` would never be called.
    with journal.opened(KEY, ROWS, leave.set) as mine:
        assert leave.is_set()
        assert mine.entries == {"answer 0 0": {"text": "first"}}
        mine.remove()
    other.join(60)
    with journal.opened(KEY, ROWS, leave.set) as mine:
        assert mine.entries == {}
        mine.remove()


def test_a_journal_that_another_process_has_open_is_not_forgotten():
    spawn = multiprocessing.get_context("spawn")
    inside, leave = spawn.Event(), spawn.Event()
    other = spawn.Process(target=_hold, args=(inside, leave))
    other.start()
    assert inside.wait(60)
    journal.forget(KEY, ROWS)
    leave.set()
    other.join(60)
    with journal.opened(KEY, ROWS, leave.set) as mine:
        assert mine.entries == {"answer 0 0": {"text": "first"}}
        mine.remove()

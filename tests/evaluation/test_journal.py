"""The journal: what it holds after any end of the process that wrote it."""

import multiprocessing

import pytest

from steps.evaluation import journal
from steps.evaluation.journal import Journal

KEY = {"model_id": "m", "generation": {"max_tokens": "8"}}
ROWS = "0123456789abcdef0123"
TORN = {
    "half a line": b'{"name": "answer 0 2", "ent',
    "a whole line without its end": b'{"name": "answer 0 2", "entry": {"text": "c"}}',
    "zeros of a file system": b"\0\0\0\0\n",
    "a line of something else": b'{"other": 1}\n',
}


def _entries(path, key=KEY):
    opened = Journal(path, key)
    opened.close()
    return opened.entries


@pytest.mark.parametrize("torn", TORN.values(), ids=TORN)
def test_what_was_added_is_there_and_a_torn_end_is_not(tmp_path, torn):
    path = tmp_path / "journal.jsonl"
    first = Journal(path, KEY)
    first.add({"answer 0 0": {"text": "é\n"}, "answer 0 1": {"text": "b"}})
    first.close()
    with path.open("ab") as file:
        file.write(torn)
    second = Journal(path, KEY)
    assert second.entries == {"answer 0 0": {"text": "é\n"}, "answer 0 1": {"text": "b"}}
    second.add({"answer 0 2": {"text": "d"}})
    second.close()
    assert _entries(path)["answer 0 2"] == {"text": "d"}
    assert len(_entries(path)) == 3


def test_a_file_of_another_key_counts_for_nothing(tmp_path):
    path = tmp_path / "journal.jsonl"
    first = Journal(path, KEY)
    first.add({"answer 0 0": {"text": "a"}})
    first.close()
    assert _entries(path, KEY | {"generation": {}}) == {}


def test_what_is_known_of_other_rows_is_known_too_and_stays_theirs(tmp_path, monkeypatch):
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


def test_what_is_known_of_other_rows_is_left_out_where_all_is_asked_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("PHI3_CACHE_DIR", str(tmp_path))
    with journal.opened(KEY, "1" * 16, lambda: None) as other:
        other.add({"of the others": 1})
    with journal.opened(KEY, ROWS, lambda: None, anew=True) as mine:
        assert mine.entries == {}


def test_what_was_dropped_is_forgotten_for_good(tmp_path):
    opened = Journal(tmp_path / "journal.jsonl", KEY)
    opened.add({"a": 1, "b": 2})
    opened.drop(["a"])
    assert opened.entries == {"b": 2}
    opened.close()
    assert _entries(tmp_path / "journal.jsonl") == {"b": 2}


def test_what_was_added_is_on_the_disk_once_for_all_of_it(tmp_path, monkeypatch):
    opened = Journal(tmp_path / "journal.jsonl", KEY)
    flushed = []
    monkeypatch.setattr(journal.os, "fsync", lambda _: flushed.append((tmp_path / "journal.jsonl").stat().st_size))
    opened.add({"a": 1, "b": 2})
    opened.close()
    assert flushed == [(tmp_path / "journal.jsonl").stat().st_size]


def _hold(inside, leave):
    with journal.opened(KEY, ROWS, lambda: None) as held:
        held.add({"answer 0 0": {"text": "first"}})
        inside.set()
        leave.wait(60)


def test_a_second_process_waits_and_then_finds_what_the_first_wrote():
    spawn = multiprocessing.get_context("spawn")
    inside, leave = spawn.Event(), spawn.Event()
    other = spawn.Process(target=_hold, args=(inside, leave))
    other.start()
    assert inside.wait(60)
    # The one that waits is who lets the other go: without a lock it would never be called.
    with journal.opened(KEY, ROWS, leave.set) as mine:
        assert leave.is_set()
        assert mine.entries == {"answer 0 0": {"text": "first"}}
        mine.remove()
    other.join(60)
    with journal.opened(KEY, ROWS, leave.set) as mine:
        assert mine.entries == {}
        mine.remove()

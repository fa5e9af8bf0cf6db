"""Files of every kind as prompt sets: what stands in the file is the text."""

import codecs
import datetime
import json
import os
import threading
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from steps import command_line
from steps.config.schema import Columns, PromptSet
from steps.errors import StepError
from steps.evaluation import prompt_set

# What `pandas` and `datasets` take for a number, a date, a truth value or nothing.
TEXTS = [
    "18",
    "007",
    "1.50",
    "1e5",
    "NA",
    "N/A",
    "null",
    "None",
    "nan",
    "true",
    "False",
    "2024-01-31",
    "1,000",
    "-0",
    "∞",
]
ROWS = [{"id": f"0{n}", "prompt": f"Question {n}?", "target": text, "tags": text} for n, text in enumerate(TEXTS)]


# A file that is one JSON value: rows, or columns as pandas writes them.
TWO = [{"question": "a", "answer": "007"}, {"question": "b", "answer": "NA"}]
SHAPES = {
    "rows": TWO,
    "an object with rows": {"data": TWO},
    "lists": {"question": ["a", "b"], "answer": ["007", "NA"]},
    "objects": {"question": {"0": "a", "1": "b"}, "answer": {"0": "007", "1": "NA"}},
    "split": {"columns": ["question", "answer"], "index": [0, 1], "data": [["a", "007"], ["b", "NA"]]},
}


@pytest.mark.parametrize("content", SHAPES.values(), ids=SHAPES)
def test_json_is_read_by_rows_and_by_columns(tmp_path, content):
    file = tmp_path / "set.json"
    file.write_text(json.dumps(content))
    assert [(row.question, row.targets) for row in _load(file).rows] == [("a", ("007",)), ("b", ("NA",))]


def test_a_short_float_of_parquet_is_the_text_that_it_was_made_of(tmp_path):
    answers = pa.array([0.1, 2.7, 3.0], pa.float32())
    parquet.write_table(pa.table({"question": ["a", "b", "c"], "answer": answers}), tmp_path / "set.parquet")
    assert [row.targets for row in _load(tmp_path / "set.parquet").rows] == [("0.1",), ("2.7",), ("3",)]


def test_a_row_of_a_table_that_ends_early_lacks_its_last_cells(tmp_path):
    file = tmp_path / "set.csv"
    file.write_text("question,answer\na\n")
    with pytest.raises(StepError, match=r"line 2 .*: target is missing"):
        _load(file)


def _csv(delimiter, line_end="\n", quote=True):
    def write(file):
        mark = '"' if quote else ""
        lines = [
            delimiter.join(ROWS[0]),
            *(delimiter.join(f"{mark}{cell}{mark}" for cell in row.values()) for row in ROWS),
        ]
        file.write_bytes((line_end.join(lines) + line_end).encode())

    return write


def _text(content):
    return lambda file: file.write_bytes(content if isinstance(content, bytes) else content.encode())


WRITTEN = {
    "set.csv": _csv(","),
    "semicolons.csv": _csv(";", "\r\n"),
    "tabs.tsv": _csv("\t", quote=False),
    "tabs.csv": _csv("\t"),
    "set.parquet": lambda file: parquet.write_table(pa.Table.from_pylist(ROWS), file),
    "set.json": _text(json.dumps(ROWS)),
    "pretty.json": _text(json.dumps(ROWS, indent=2, ensure_ascii=False)),
    "wrapped.json": _text(json.dumps({"version": "1.1", "data": ROWS})),
    "lines.json": _text("\n".join(map(json.dumps, ROWS))),
    "array.jsonl": _text(json.dumps(ROWS)),
    "set.ndjson": _text("\n".join(json.dumps(row | {"topic": 1}) for row in ROWS)),
}


def _load(file, **settings):
    return prompt_set.load(PromptSet(None, str(file), **settings))


@pytest.mark.parametrize("source", ["jsonl", "datasets"])
@pytest.mark.parametrize("name", WRITTEN)
def test_what_stands_in_a_file_is_the_text(tmp_path, name, source):
    WRITTEN[name](tmp_path / name)
    # A column that is named is read leniently, so that a single tag may be a string.
    loaded = _load(tmp_path / name, source=source, columns=Columns(prompt="prompt", tags="tags", rules=None))
    assert [(row.id, row.targets, row.tags) for row in loaded.rows] == [
        (row["id"], (row["target"],), (row["tags"],)) for row in ROWS
    ]
    assert loaded.name == name.partition(".")[0]


@pytest.mark.parametrize("ending", ["jsonl", "json"])
def test_values_of_json_are_text_as_they_are_written(tmp_path, ending):
    file = tmp_path / f"set.{ending}"
    rows = '{"id": 007.5, "question": "q", "answer": 1.50}'.replace("007.5", "7"), '{"question": 5, "answer": true}'
    file.write_text("\n".join(rows) if ending == "jsonl" else f"[{', '.join(rows)}]")
    assert [(row.id, row.question, row.targets) for row in _load(file).rows] == [
        ("7", "q", ("1.50",)),
        ("2", "5", ("true",)),
    ]


TYPED = [18, 1.5, True, datetime.date(2024, 1, 31), Decimal("1.50"), "007", b"bytes"]


@pytest.mark.parametrize("value", TYPED, ids=lambda value: type(value).__name__)
def test_values_of_parquet_are_text_as_their_type_writes_them(tmp_path, value):
    file = tmp_path / "set.parquet"
    parquet.write_table(pa.table({"id": [1], "tags": [value], "question": ["q"], "answer": [value]}), file)
    (row,) = _load(file).rows
    text = {True: "true", b"bytes": "bytes"}.get(value, str(value))
    assert (row.id, row.targets, row.tags) == ("1", (text,), (text,))


def test_a_missing_value_of_parquet_is_reported_by_row(tmp_path):
    file = tmp_path / "set.parquet"
    pd.DataFrame({"question": ["q", "r", "s"], "answer": [1.5, None, 2]}).to_parquet(file)
    with pytest.raises(StepError) as refusal:
        _load(file)
    assert refusal.value.faults == ("set.parquet: row 2 (id '2'): target is missing.",)


ENCODED = {
    "utf-8": "utf-8",
    "utf-8 with a byte order mark": "utf-8-sig",
    "utf-16": "utf-16",
    "utf-16 without a byte order mark": "utf-16-le",
    "utf-32": "utf-32",
}
CONTENT = {
    "csv": "question,answer\nWas trägt man im café?,Geschirr € naïve\n",
    "tsv": "question\tanswer\nWas trägt man im café?\tGeschirr € naïve\n",
    "json": '[{"question": "Was trägt man im café?", "answer": "Geschirr € naïve"}]',
    "jsonl": '{"question": "Was trägt man im café?", "answer": "Geschirr € naïve"}\n',
}


@pytest.mark.parametrize("ending", CONTENT)
@pytest.mark.parametrize("encoding", ENCODED.values(), ids=ENCODED)
def test_unicode_is_recognised(tmp_path, ending, encoding):
    file = tmp_path / f"set.{ending}"
    file.write_bytes(CONTENT[ending].encode(encoding))
    (row,) = _load(file).rows
    assert (row.question, row.targets) == ("Was trägt man im café?", ("Geschirr € naïve",))


@pytest.mark.parametrize("ending", CONTENT)
def test_another_encoding_is_named_in_one_sentence_and_can_be_given(tmp_path, ending):
    file = tmp_path / f"set.{ending}"
    file.write_bytes(CONTENT[ending].encode("cp1252"))
    with pytest.raises(StepError) as refusal:
        _load(file)
    (sentence,) = refusal.value.faults
    assert sentence.lower().endswith("give its encoding, such as -p prompt_set.encoding=cp1252 (windows).")
    (row,) = _load(file, encoding="cp1252").rows
    assert (row.question, row.targets) == ("Was trägt man im café?", ("Geschirr € naïve",))


@pytest.mark.parametrize("encoding", ["cp12522", "base64", "a\0b"])
def test_an_unknown_encoding_is_refused(tmp_path, encoding):
    (tmp_path / "set.csv").write_text(CONTENT["csv"])
    with pytest.raises(StepError, match=r"prompt_set\.encoding must be an encoding such as cp1252, got "):
        _load(tmp_path / "set.csv", encoding=encoding)


def test_an_encoding_that_does_not_fit_is_refused(tmp_path):
    (tmp_path / "set.csv").write_text(CONTENT["csv"], encoding="utf-8")
    with pytest.raises(StepError, match=r"set.csv: line 2: byte 0xC3 is not ascii text\."):
        _load(tmp_path / "set.csv", encoding="ascii")


@pytest.mark.parametrize(
    ("source", "as_folder"),
    [("jsonl", False), ("datasets", False), ("datasets", True)],
    ids=["file", "file as a dataset", "folder"],
)
def test_a_changed_file_with_its_old_time_is_read_anew(tmp_path, source, as_folder):
    folder = tmp_path / "data"
    folder.mkdir()
    file = folder / "test.csv"
    for answer in ("one", "two"):
        file.write_text(f"question,answer\nq,{answer}\n")
        os.utime(file, (1e9, 1e9))
        (row,) = _load(folder if as_folder else file, source=source).rows
        assert row.targets == (answer,)


def test_a_folder_gives_the_files_of_a_split(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("train", "test"):
        (folder / f"{name}.csv").write_text("question,answer\n" + "".join(f"{name} {n},00{n}\n" for n in range(4)))
    for split, questions in {
        "test": ["test 0", "test 1", "test 2", "test 3"],
        "train[1:3]": ["train 1", "train 2"],
        "test[:25%]+train[-1:]": ["test 0", "train 3"],
    }.items():
        rows = _load(folder, source="datasets", split=split).rows
        assert [row.question for row in rows] == questions
        assert rows[0].targets[0].startswith("00")
    with pytest.raises(StepError, match=r"A folder needs prompt_set=dataset\."):
        _load(folder)


def test_a_file_of_a_kind_that_only_the_library_knows_is_left_to_it(tmp_path):
    from datasets import Dataset

    folder = tmp_path / "data"
    folder.mkdir()
    Dataset.from_dict({"question": ["q"], "answer": ["007"]}).save_to_disk(tmp_path / "saved")
    next((tmp_path / "saved").glob("*.arrow")).rename(folder / "test.arrow")
    (row,) = _load(folder, source="datasets").rows
    assert row.targets == ("007",)


TABLES = {
    "line breaks and quotes in a cell": ('question,answer\n"a\n""b"", c",d\n', "line 2", [('a\n"b", c', "d")]),
    "spaces around names": (" question , answer \nq,a\n", None, [("q", "a")]),
    "blank lines and rows": ("question,answer\n\nq,a\n,\n\nr,b\n", None, [("q", "a"), ("r", "b")]),
    "a column without a name": (",question,answer\n0,q,a\n1,r,b\n", None, [("q", "a"), ("r", "b")]),
    "a declared delimiter": ("sep=;\r\nquestion;answer\r\nq, r;a\r\n", None, [("q, r", "a")]),
    "commas in cells with semicolons": (
        "question;answer\na, b, c;d, e\nf;g\n",
        None,
        [("a, b, c", "d, e"), ("f", "g")],
    ),
    "old line ends": ("question,answer\rq,a\r", None, [("q", "a")]),
    "a long cell": (f"question,answer\n{'q' * 200_000},a\n", None, [("q" * 200_000, "a")]),
    "empty cells at the end": ("question,answer,note\nq,a\n", None, [("q", "a")]),
    "a decimal comma": ("question;answer\nq;3,5\n", None, [("q", "3,5")]),
}


@pytest.mark.parametrize(("content", "place", "expected"), TABLES.values(), ids=TABLES)
def test_tables_as_programs_write_them(tmp_path, content, place, expected):
    (tmp_path / "set.csv").write_bytes(content.encode())
    loaded = _load(tmp_path / "set.csv")
    assert [(row.question, *row.targets) for row in loaded.rows] == expected
    if place:
        assert loaded.place(0).startswith(place)


def test_quotes_are_text_in_a_table_with_tabs(tmp_path):
    (tmp_path / "set.tsv").write_text('question\tanswer\n"Star Wars" is by?\tGeorge "L"\n"unclosed\tx\n')
    assert [row.question for row in _load(tmp_path / "set.tsv").rows] == ['"Star Wars" is by?', '"unclosed']


TABLE_FAULTS = {
    "too many cells": (
        "question,answer\nq,a\nq, r,a\n",
        "set.csv: line 3: it has 3 cells, the first line has 2. Put a cell that contains ',' in quotes.",
    ),
    "an open quote": (
        'question,answer\nq,"a\nr,b\n',
        'set.csv: line 3: its quotes are broken: unexpected end of data. A quote inside a cell is written twice: "".',
    ),
    "a column twice": (
        "question,answer,answer\nq,a,b\n",
        "set.csv: its first line has the column 'answer' twice. Rename one.",
    ),
    "a missing answer": ("question,answer\nq,\n", "set.csv: line 2 (id '1'): target is missing."),
    "only names": ("question,answer\n", "set.csv: it holds no row."),
    "nothing": ("", "set.csv: it holds no row."),
    "an id twice": (
        "id,question,answer\n7,q,a\n7,r,b\n",
        "set.csv: line 3 (id '7'): id '7' is already used on line 2.",
    ),
}


@pytest.mark.parametrize(("content", "fault"), TABLE_FAULTS.values(), ids=TABLE_FAULTS)
def test_a_fault_of_a_table_is_reported_in_one_sentence(tmp_path, content, fault):
    (tmp_path / "set.csv").write_text(content)
    with pytest.raises(StepError) as refusal:
        _load(tmp_path / "set.csv")
    assert refusal.value.faults == (fault,)


OTHER_KINDS = {
    "set.xlsx": (b"PK\x03\x04rest", "an Excel workbook or a zip archive. Save its rows as CSV or JSON lines."),
    "set.xls": (b"\xd0\xcf\x11\xe0rest", "an old Excel workbook. Save its rows as CSV."),
    "set.jsonl.gz": (b"\x1f\x8brest", "compressed. Decompress it first."),
}


@pytest.mark.parametrize("name", OTHER_KINDS)
def test_another_kind_of_file_is_refused_in_one_sentence(tmp_path, name):
    content, reason = OTHER_KINDS[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(StepError) as refusal:
        _load(tmp_path / name)
    assert refusal.value.faults == (f"prompt_set.path: {name} is {reason}",)


BROKEN_FILES = {
    "broken.json": ('[{"question": "q",\n "answer"}]', r"broken.json: broken JSON: .* of line 2\."),
    "cut.json": ('[{"question": "q", "answer": "a"}', r"cut.json: broken JSON: "),
    "deep.json": ("[" * 100_000, r"deep.json: broken JSON: it is nested too deeply\."),
    "twice.json": (
        '[{"question": "q", "question": "r"}]',
        r"twice.json: broken JSON: the key 'question' stands twice\.",
    ),
    "broken.parquet": (b"PAR1 and nothing else", r"broken.parquet: it cannot be read as Parquet: "),
}


@pytest.mark.parametrize("name", BROKEN_FILES)
def test_a_broken_file_is_reported_in_one_sentence(tmp_path, name):
    content, sentence = BROKEN_FILES[name]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(StepError, match=sentence) as refusal:
        _load(tmp_path / name)
    assert len(refusal.value.faults) == 1
    assert "\n" not in refusal.value.faults[0]


CELL = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).map("x{}".format)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(CELL, CELL), min_size=1, max_size=5))
def test_any_text_comes_back_from_any_kind_of_file(tmp_path_factory, cells):
    folder = tmp_path_factory.mktemp("any")
    frame = pd.DataFrame(cells, columns=["question", "answer"])
    frame.to_csv(folder / "set.csv", index=False)
    frame.to_csv(folder / "set.tsv", index=False, sep="\t")
    frame.to_parquet(folder / "set.parquet")
    frame.to_json(folder / "set.json", orient="records")
    frame.to_json(folder / "set.jsonl", orient="records", lines=True)
    for file in sorted(folder.iterdir()):
        assert [(row.question, *row.targets) for row in _load(file).rows] == cells, file.name


def test_a_file_given_as_the_path_needs_no_other_key(tmp_path):
    file = tmp_path / "quiz.csv"
    file.write_text("Question;Answer\nHow many?;18\n", encoding="utf-8-sig")
    assert file.read_bytes().startswith(codecs.BOM_UTF8)
    loaded = prompt_set.load(command_line.compose("evaluate", [f"prompt_set.path={file}"]).prompt_set)
    assert (loaded.name, loaded.rows[0].question, loaded.rows[0].targets) == ("quiz", "How many?", ("18",))


class _Hub(BaseHTTPRequestHandler):
    """The few routes that `datasets` needs, serving the files of one folder as a dataset."""

    commit = "0a67737cc96d2554230f90338b163bc6380a2a85"

    def do_GET(self):
        self._answer(body=True)

    def do_HEAD(self):
        self._answer(body=False)

    def do_POST(self):
        self._answer(body=True)

    def _answer(self, body):
        path = unquote(self.path.partition("?")[0])
        files = sorted(self.folder.iterdir())
        entries = [{"type": "file", "path": file.name, "size": file.stat().st_size, "oid": "1"} for file in files]
        if "/tree/" in path or "/paths-info/" in path:
            return self._send(json.dumps(entries).encode(), body, "application/json")
        if path.startswith("/api/datasets/"):
            facts = {"id": "owner/quiz", "sha": self.commit, "siblings": [{"rfilename": file.name} for file in files]}
            return self._send(json.dumps(facts).encode(), body, "application/json")
        file = self.folder / path.rpartition("/")[2]
        if not file.is_file():
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        return self._send(file.read_bytes(), body, "application/octet-stream")

    def _send(self, content, body, kind):
        self.send_response(200)
        headers = {
            "Content-Type": kind,
            "Content-Length": str(len(content)),
            "X-Repo-Commit": self.commit,
            "ETag": '"1"',
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.mark.slow
def test_a_dataset_of_a_hub_is_text_too(tmp_path, step):
    """In a process of its own, because the hub's client reads its address when it is imported."""
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "test.csv").write_text("question,answer\nq,007\nr,NA\n")
    (folder / "train.csv").write_text("question,answer\ns,1\n")
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Hub", (_Hub,), {"folder": folder}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        address = f"http://127.0.0.1:{server.server_port}"
        keys = ["prompt_set=dataset", "prompt_set.path=owner/quiz", "prompt_set.target_pattern=(none)"]
        done = step("evaluate", *keys, HF_ENDPOINT=address, HF_HUB_OFFLINE="0", HF_HOME=str(tmp_path / "hf"))
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert done.stderr == (
        "error: owner/quiz: row 1 (id '1') and 1 more: prompt_set.target_pattern '(none)' does not match the target, "
        "which ends with '007'.\n"
    )

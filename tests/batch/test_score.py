"""The score step: a table in, the same rows with the champion's answers out, whatever happens on the way."""

import csv
import json
import os
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import mlflow
import pyarrow
import pytest
from pyarrow import parquet

from steps.batch import questions, source
from steps.batch.source import Row
from steps.evaluation.asking import Asker
from steps.interfaces import get_interface
from steps.modes import get_mode
from tests.batch.conftest import promote
from tests.conftest import PROJECT, SPAIN
from tests.support import EchoModel, wait_until

COUNTRIES = ("Spain", "France", "Italy", "Japan", "Peru")
TEXTS = [f"What is the capital of {COUNTRIES[number % 5]}? ({number})" for number in range(20)]


def write_table(path: Path, texts, column="prompt") -> Path:
    rows = [{"key": f"{number:03}", column: text} for number, text in enumerate(texts)]
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["key", column])
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read_table(path: Path) -> list[dict]:
    if path.suffix == ".parquet":
        return parquet.read_table(path).to_pylist()
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            return [{key: value or None for key, value in row.items()} for row in csv.DictReader(file)]
    return [json.loads(line) for line in path.read_text().splitlines()]


def predicted(name, texts):
    model = mlflow.pyfunc.load_model(f"models:/{name}@champion")
    if name == "text":
        return [model.predict({"prompt": text}) for text in texts]
    replies = [model.predict({"messages": [{"role": "user", "content": text}]}) for text in texts]
    return [reply["choices"][0]["message"]["content"] for reply in replies]


@pytest.mark.parametrize("name", ["talk", "text"])
@pytest.mark.parametrize(
    ("read", "written"), [("csv", "parquet"), ("jsonl", "csv"), ("parquet", "jsonl"), ("parquet", "parquet")]
)
def test_answers_are_those_of_predict_in_every_format(champions, typed, tmp_path, name, read, written):
    table, output = write_table(tmp_path / f"questions.{read}", TEXTS), tmp_path / f"answers.{written}"
    done = typed(
        "score", f"input={table}", f"output={output}", f"registered_model={name}", "part_rows=8", "batch_size=3"
    )
    assert done.returncode == 0, done.stderr
    rows = read_table(output)
    assert [row["answer"] for row in rows] == predicted(name, TEXTS)
    assert [row["key"] for row in rows] == [f"{number:03}" for number in range(20)]
    assert {row["error"] for row in rows} == {None}
    assert [file.name for file in tmp_path.iterdir() if "questions" not in file.name and "store" not in file.name] == [
        output.name
    ]


def test_a_row_that_cannot_be_answered_has_its_error_in_a_column(champions, typed, tmp_path):
    table, output = tmp_path / "rows.jsonl", tmp_path / "answers.jsonl"
    conversation = [{"role": "user", "content": SPAIN}]
    rows = [
        *({"prompt": SPAIN}, {"prompt": ""}, {"prompt": 7}, {"other": "x"}, {"prompt": "<|end|> you"}),
        *({"prompt": conversation}, {"prompt": SPAIN, "extra": "\ud800"}),
    ]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{broken\n[1]\n")
    done = typed("score", f"input={table}", f"output={output}", "registered_model=talk")
    assert (done.returncode, done.stderr) == (3, "error: 6 rows have an error; the column 'error' says why.\n")
    written = read_table(output)
    (madrid,) = predicted("talk", [SPAIN])
    assert [row["answer"] for row in written] == [madrid, None, None, None, None, madrid, madrid, None, None]
    errors = [row["error"] for row in written if row["error"]]
    assert errors[:3] == [
        f"prompt must be a text or a list of messages, got {got}" for got in ("nothing", "int '7'", "nothing")
    ]
    assert "control token" in errors[3]
    assert errors[4:] == ["the line is broken JSON (JSONDecodeError)", "the line is no JSON object"]
    assert written[6]["extra"] == "\ud800"


REFUSED = {
    "no file": ({"input": "none.csv"}, "input must be a file, got '{}/none.csv', which does not exist."),
    "a suffix": ({"output": "answers.xlsx"}, "output must have the suffix .csv, .jsonl, .parquet, got"),
    "no such column": (
        {"question": "ask"},
        "question must name a column of questions.csv, got ask. It has: key, prompt.",
    ),
    "a taken column": ({"answer_column": "key"}, "questions.csv has a column 'key' already: give another name"),
    "no champion": ({"registered_model": "nobody"}, "nobody has no champion yet: `python -m steps.main` makes one."),
    "the same names": ({"answer_column": "error"}, "answer_column and error_column must differ, got 'error' for both."),
    "an output": ({"output": "there.csv"}, "output must be a new file, got '{}/there.csv', which exists."),
    "errors": (
        {"max_errors": "0", "question": "key", "input": "bad.csv"},
        "1 rows have an error, more than max_errors=0",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_scored_is_one_sentence_and_leaves_nothing(champions, typed, tmp_path, monkeypatch, case):
    changes, sentence = REFUSED[case]
    write_table(tmp_path / "questions.csv", TEXTS[:2])
    (tmp_path / "there.csv").touch()
    (tmp_path / "bad.csv").write_text("key,text\n,x\n")
    monkeypatch.chdir(tmp_path)
    words = {"input": "questions.csv", "output": "answers.csv", "registered_model": "talk"} | changes
    done = typed("score", *(f"{key}={value}" for key, value in words.items()))
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {sentence.format(tmp_path)}"), done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "answers.csv").exists()


@pytest.mark.slow
def test_a_killed_job_goes_on_with_its_parts_and_its_model(champions, tmp_path, figure):
    """Kill it three times with -9, and let another variant become champion in between."""
    table, output = write_table(tmp_path / "questions.parquet", TEXTS * 30), tmp_path / "answers.parquet"
    words = [f"input={table}", f"output={output}", "registered_model=moving", "part_rows=16"]
    promote({"moving": "chat"})
    parts, counts = tmp_path / "answers.parquet.parts", [0]
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-m", "steps.score", *words],
            cwd=PROJECT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_until(lambda: len(list(parts.glob("0*"))) > counts[-1] + 2, seconds=100, pause=0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        counts.append(len(list(parts.glob("0*"))))
        promote({"moving": "prompt"})
    assert not output.exists()
    assert counts == sorted(set(counts))
    done = subprocess.run([sys.executable, "-m", "steps.score", *words], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"Going on with version 1 of moving: {counts[-1]} parts are done." in done.stdout
    assert [row["answer"] for row in read_table(output)] == predicted("talk", TEXTS) * 30
    assert not parts.exists()
    figure(f"score: killed with -9 after {counts[1:]} of 38 parts, every row answered once by one model")


def test_parts_of_another_input_are_refused_and_those_of_the_same_go_on(champions, typed, tmp_path, monkeypatch):
    table, output = write_table(tmp_path / "questions.csv", TEXTS), tmp_path / "answers.csv"
    words = [f"input={table}", f"output={output}", "registered_model=talk", "part_rows=4"]
    with monkeypatch.context() as patch:
        patch.setattr(questions, "answers", _failing_after(2))
        with pytest.raises(MemoryError):
            typed("score", *words)
    write_table(table, TEXTS[:19])
    done = typed("score", *words)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"error: {output}.parts was begun with another input. Delete the folder to begin again")
    write_table(table, TEXTS)
    done = typed("score", *words)
    assert done.returncode == 0, done.stderr
    assert "2 parts are done." in done.stdout
    assert len(read_table(output)) == 20


def _failing_after(calls):
    left = iter(range(calls))
    original = questions.answers

    def answers(*arguments):
        if next(left, None) is None:
            raise MemoryError
        return original(*arguments)

    return answers


def test_one_bad_row_costs_few_calls():
    model = EchoModel("bad")
    asker = Asker(model, get_mode("onnx"), get_interface("chat"))
    rows = [Row({"prompt": "bad" if number == 77 else f"{number}"}) for number in range(256)]
    results = questions.answers(asker, get_interface("chat"), rows, "prompt")
    assert [result.text for result in results] == [None if number == 77 else f"{number}" for number in range(256)]
    assert results[77].error == "ValueError: no bad with details"
    assert len(model.calls) <= 2 * 8 + 1


@pytest.mark.parametrize("suffix", source.FORMATS)
def test_memory_does_not_grow_with_the_table(tmp_path, suffix):
    def peak(rows):
        table = source.opened(
            write_table(tmp_path / f"{rows}{suffix}", (f"{number} {'x' * 200}" for number in range(rows)))
        )
        tracemalloc.start()
        try:
            assert sum(map(len, table.chunks(100))) == rows == table.rows
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(200)  # what is imported once
    assert peak(20_000) < 3 * peak(2_000) + 1_000_000

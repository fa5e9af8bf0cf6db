"""Prompt sets from the `datasets` library: columns are chosen by name, faults are reported by row."""

import pytest
from datasets import Dataset

from steps import command_line
from steps.config import schema, validation
from steps.errors import StepError
from steps.evaluation import prompt_set

ROWS = {
    "question": ["What is the capital of Spain?", "And of France?"],
    "answers": [{"text": ["Madrid"], "at": [0]}, {"text": ["Paris", "Paris, France"], "at": [1]}],
    "topic": [["capital"], []],
}


def _load(folder, *overrides, rows=ROWS):
    Dataset.from_dict(rows).to_parquet(folder / "test.parquet")
    _, words = command_line.parse([f"prompt_set.path={folder}", *overrides])
    config = command_line.compose("evaluate", ["prompt_set=dataset", *words])
    assert validation.faults(config) == []
    return prompt_set.load(config.prompt_set)


NAMED = [
    "prompt_set.columns.prompt=question",
    "prompt_set.columns.target=answers.text",
    "prompt_set.columns.tags=topic",
]


@pytest.fixture(autouse=True)
def datasets_cache(monkeypatch, tmp_path):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


def test_columns_are_read_by_their_configured_names(folder):
    loaded = _load(folder, *NAMED)
    assert [row.id for row in loaded.rows] == ["1", "2"]
    assert [row.question for row in loaded.rows] == ROWS["question"]
    assert [row.targets for row in loaded.rows] == [("Madrid",), ("Paris", "Paris, France")]
    assert [row.tags for row in loaded.rows] == [("capital",), ()]


def test_a_dataset_has_the_digest_of_a_file_with_the_same_rows(folder, tmp_path):
    file = tmp_path / "same.jsonl"
    file.write_text(
        '{"id": "1", "prompt": "What is the capital of Spain?", "target": ["Madrid"], "tags": ["capital"]}\n'
        '{"id": "2", "prompt": "And of France?", "target": ["Paris", "Paris, France"], "tags": []}\n'
    )
    assert prompt_set.load(schema.PromptSet("same", str(file))).sha256 == _load(folder, *NAMED).sha256


def test_faults_are_reported_by_row(folder):
    rows = {"id": ["a", "a", "c"], "prompt": ["q", "", "x\0"], "target": ["t", None, "t"]}
    with pytest.raises(StepError) as refusal:
        _load(folder, rows=rows)
    assert [fault.partition(": ")[2] for fault in refusal.value.faults] == [
        "row 2 (id 'a'): prompt is empty.",
        "row 2 (id 'a'): target is missing.",
        "row 2 (id 'a'): id 'a' is already used on row 1.",
        "row 3 (id 'c'): prompt holds a NUL character.",
    ]


QUESTIONS = {
    "messages": [[{"role": "user", "content": "talked"}]],
    "prompt": ["typed"],
    "question": ["asked"],
    "talk": [[{"role": "user", "content": "chatted"}]],
    "target": ["t"],
}
CHOSEN = {
    "messages before a prompt": ([], "talked"),
    "the prompt that is named": (["prompt_set.columns.prompt=question"], "asked"),
    "the messages that are named": (["prompt_set.columns.messages=talk"], "chatted"),
    "both named": (["prompt_set.columns.prompt=question", "prompt_set.columns.messages=talk"], "chatted"),
    "no messages": (["prompt_set.columns.messages=null"], "typed"),
}


@pytest.mark.parametrize(("overrides", "question"), CHOSEN.values(), ids=CHOSEN)
def test_one_of_two_columns_with_a_question_is_read(folder, overrides, question):
    (row,) = _load(folder, *overrides, rows=QUESTIONS).rows
    assert row.question == question


def test_incidental_columns_are_converted_or_can_be_ignored(folder):
    rows = {"id": [7, 8], "prompt": ["q", "r"], "target": ["t", "u"], "tags": ["x", None], "rules": [1.5, 2.5]}
    with pytest.raises(StepError, match=r"row 1 \(id '7'\): rules must be a list of strings"):
        _load(folder, rows=rows)
    loaded = _load(folder, "prompt_set.columns.rules=null", rows=rows)
    assert [(row.id, row.tags, row.rules) for row in loaded.rows] == [("7", ("x",), ()), ("8", (), ())]
    loaded = _load(folder, *[f"prompt_set.columns.{name}=null" for name in ("id", "tags", "rules")], rows=rows)
    assert [(row.id, row.tags) for row in loaded.rows] == [("1", ()), ("2", ())]


@pytest.mark.parametrize("split", ["test", "train", "anything", "test[:1]"])
@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet"])
def test_a_file_is_a_dataset_whatever_the_name_of_the_split(tmp_path, ending, split):
    dataset = Dataset.from_dict({"id": [7, 8], "prompt": ["q", "r"], "target": ["t", "u"]})
    file = tmp_path / f"mine.{ending}"
    {"csv": dataset.to_csv, "parquet": dataset.to_parquet}.get(ending, dataset.to_json)(file)
    config = schema.PromptSet("mine", str(file), "datasets", split=split)
    assert [row.id for row in prompt_set.load(config).rows] == (["7"] if "[" in split else ["7", "8"])


def test_a_missing_file_is_reported():
    with pytest.raises(StepError, match=r"the dataset 'no.csv' .* could not be loaded: FileNotFoundError"):
        prompt_set.load(schema.PromptSet("mine", "no.csv", "datasets"))


def test_a_set_without_question_or_target_is_refused_with_its_columns(folder):
    with pytest.raises(StepError) as refusal:
        _load(folder, *[f"prompt_set.columns.{name}=null" for name in ("target", "prompt", "messages")])
    choices = "must name a column of question, answers.text, answers.at, topic."
    assert sorted(refusal.value.faults) == [
        f"prompt_set.columns.prompt or .messages {choices}",
        f"prompt_set.columns.target {choices}",
    ]


def test_all_missing_columns_are_reported_at_once(folder):
    rows = {"question": ["q"], "reply": ["t"]}
    with pytest.raises(StepError) as refusal:
        _load(folder, "prompt_set.columns.prompt=questoin", "prompt_set.columns.tags=topics", rows=rows)
    first, second, third, fourth = refusal.value.faults
    assert first.startswith("prompt_set.columns.prompt: Unknown column 'questoin'. Did you mean 'question'?")
    assert second.startswith("prompt_set.columns.tags: Unknown column 'topics'.")
    assert third == "prompt_set.columns.prompt or .messages must name a column of question, reply."
    assert fourth == "prompt_set.columns.target must name a column of question, reply."


@pytest.mark.parametrize("override", ["prompt_set.path=no/such", "prompt_set.split=nothing"])
def test_a_missing_dataset_is_reported_in_one_line(folder, override):
    with pytest.raises(StepError, match=r"the dataset '.*' \(subset None, split (test|nothing)\) could not be loaded:"):
        _load(folder, *NAMED, override)

"""The shapes of well-known prompt sets: their columns are found, or asked for in one sentence."""

import json
import re

import pytest
from pyarrow import Table, parquet

from steps import command_line
from steps.errors import StepError
from steps.evaluation import prompt_set

CAPITAL = [("user", "What is the capital of Spain?")]
LETTERS = "How many?\n\nA. one\nB. two\nC. three\nD. four"
# name of the file, its content, messages and accepted answers of the first row
SHAPES = {
    "GSM8K": (
        "set.jsonl",
        [{"question": "How many eggs?", "answer": "16 - 3 = 13\n#### 13"}],
        [("user", "How many eggs?")],
        ("16 - 3 = 13\n#### 13",),
    ),
    "TriviaQA": (
        "set.jsonl",
        [
            {
                "question": CAPITAL[0][1],
                "question_id": "tc_1",
                "answer": {"aliases": ["Madrid", "Madrit"], "value": "Madrid"},
            }
        ],
        CAPITAL,
        ("Madrid", "Madrit"),
    ),
    "TriviaQA's own file": (
        "set.json",
        {"Data": [{"Question": CAPITAL[0][1], "Answer": {"Aliases": ["Madrid"], "Value": "Madrid"}}], "Version": 1.0},
        CAPITAL,
        ("Madrid",),
    ),
    "TruthfulQA": (
        "set.csv",
        "Type,Category,Question,Best Answer,Correct Answers,Incorrect Answers,Source\n"
        "Adversarial,Misc,Is it?,No,No; It is not; Never,Yes; Always,https://a.b\n",
        [("user", "Is it?")],
        ("No", "It is not", "Never"),
    ),
    "MMLU as a table": (
        "set.csv",
        "question,A,B,C,D,answer\nHow many?,one,two,three,four,B\n",
        [("user", LETTERS)],
        ("B", "B. two", "two"),
    ),
    "MMLU of the hub": (
        "set.parquet",
        [{"question": "How many?", "subject": "counting", "choices": ["one", "two", "three", "four"], "answer": 1}],
        [("user", LETTERS)],
        ("B", "B. two", "two"),
    ),
    "ARC": (
        "set.jsonl",
        [
            {
                "id": "M1",
                "question": "How many?",
                "choices": {"text": ["one", "two"], "label": ["1", "2"]},
                "answerKey": "1",
            }
        ],
        [("user", "How many?\n\n1. one\n2. two")],
        ("1", "1. one", "one"),
    ),
    "SQuAD": (
        "set.jsonl",
        [
            {
                "id": "5",
                "context": "It is Madrid.",
                "question": "What?",
                "answers": {"text": ["Madrid"], "answer_start": [6]},
            }
        ],
        [("user", "It is Madrid.\n\nWhat?")],
        ("Madrid",),
    ),
    "SQuAD with objects": (
        "set.json",
        [{"id": "5", "question": "What?", "answers": [{"text": "Madrid", "answer_start": 6}, {"text": "the city"}]}],
        [("user", "What?")],
        ("Madrid", "the city"),
    ),
    "BoolQ": (
        "set.jsonl",
        [{"question": "is it", "passage": "It is.", "answer": True}],
        [("user", "It is.\n\nis it")],
        ("true",),
    ),
    "promptfoo": ("set.csv", "question,__expected\nCapital?,contains: Madrid\n", [("user", "Capital?")], ("Madrid",)),
    "OpenAI evals": (
        "set.jsonl",
        [
            {
                "input": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Capital?"}],
                "ideal": "Madrid",
            }
        ],
        [("system", "Be brief."), ("user", "Capital?")],
        ("Madrid",),
    ),
    "OpenAI evals with text": (
        "set.jsonl",
        [{"input": "Capital?", "ideal": ["Madrid", "the city"]}],
        [("user", "Capital?")],
        ("Madrid", "the city"),
    ),
    "Alpaca": (
        "set.json",
        [{"instruction": "Translate.", "input": "Hund", "output": "dog"}],
        [("user", "Translate.\n\nHund")],
        ("dog",),
    ),
    "Alpaca without input": (
        "set.json",
        [{"instruction": "Name a colour.", "input": "", "output": "red"}],
        [("user", "Name a colour.")],
        ("red",),
    ),
    "Dolly": (
        "set.jsonl",
        [{"instruction": "Who?", "context": "", "response": "He", "category": "qa"}],
        [("user", "Who?")],
        ("He",),
    ),
    "ShareGPT": (
        "set.json",
        [
            {
                "id": "abc",
                "conversations": [
                    {"from": "system", "value": "Be kind."},
                    {"from": "human", "value": "Hi"},
                    {"from": "gpt", "value": "Hello!"},
                ],
            }
        ],
        [("system", "Be kind."), ("user", "Hi")],
        ("Hello!",),
    ),
    "OpenAI fine-tuning": (
        "set.jsonl",
        [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}],
        [("user", "Hi")],
        ("Hello!",),
    ),
    "a conversation with its answer elsewhere": (
        "set.jsonl",
        [
            {
                "messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "It is 4."}],
                "answer": 4,
            }
        ],
        [("user", "2+2?")],
        ("4",),
    ),
    "a conversation in a table": (
        "set.csv",
        'messages,answer\n"[{""role"": ""user"", ""content"": ""Hi""}]",Hello\n',
        [("user", "Hi")],
        ("Hello",),
    ),
    "prompt and completion": ("set.csv", "prompt,completion\nq,a\n", [("user", "q")], ("a",)),
    "query and response": ("set.tsv", "query\tresponse\nq\ta\n", [("user", "q")], ("a",)),
    "MATH": ("set.jsonl", [{"problem": "q", "level": 1, "solution": "so", "answer": "a"}], [("user", "q")], ("a",)),
    "a written list": ("set.csv", "question,answers\nq,\"['a', 'b; c']\"\n", [("user", "q")], ("a", "b; c")),
    "names in capitals": ("set.csv", "ID,QUESTION,Expected Output\n7,q,a; b\n", [("user", "q")], ("a; b",)),
}


def _write(file, content):
    if isinstance(content, str):
        file.write_text(content)
    elif file.suffix == ".parquet":
        parquet.write_table(Table.from_pylist(content), file)
    elif file.suffix == ".jsonl":
        file.write_text("\n".join(map(json.dumps, content)))
    else:
        file.write_text(json.dumps(content))
    return file


def _load(file, *overrides):
    _, words = command_line.parse([f"prompt_set.path={file}", *overrides])
    return prompt_set.load(command_line.compose("evaluate", words).prompt_set)


@pytest.mark.parametrize(("name", "content", "messages", "targets"), SHAPES.values(), ids=SHAPES)
def test_the_usual_columns_are_found(tmp_path, name, content, messages, targets):
    row = _load(_write(tmp_path / name, content)).rows[0]
    assert list(row.messages) == messages
    assert row.targets == targets


def test_columns_that_were_found_are_printed(tmp_path, capsys):
    _load(_write(tmp_path / "quiz.csv", "context,question,Correct Answers\nc,q,a; b\n"))
    assert capsys.readouterr().out == "Reading quiz.csv: prompt from context+question, target from Correct Answers.\n"


NAMED = "ask,background,A,B,C,reply,group\nq,b,x,y,z,y,9\n"
CHOSEN = {
    "one column": (["prompt_set.columns.prompt=ask"], "q\n\nA. x\nB. y\nC. z", ("B", "B. y", "y")),
    "several columns": (
        ["prompt_set.columns.prompt=background + ask"],
        "b\n\nq\n\nA. x\nB. y\nC. z",
        ("B", "B. y", "y"),
    ),
    "other choices": (
        ["prompt_set.columns.prompt=ask", "prompt_set.columns.choices=B+C"],
        "q\n\nB. y\nC. z",
        ("B", "B. y", "y"),
    ),
    "no choices": (["prompt_set.columns.prompt=ask", "prompt_set.columns.choices=null"], "q", ("y",)),
}


@pytest.mark.parametrize(("overrides", "question", "targets"), CHOSEN.values(), ids=CHOSEN)
def test_named_columns_are_read(tmp_path, overrides, question, targets):
    keys = [*overrides, "prompt_set.columns.target=reply", "prompt_set.columns.tags=group"]
    (row,) = _load(_write(tmp_path / "set.csv", NAMED), *keys).rows
    assert (row.question, row.targets, row.tags) == (question, targets, ("9",))


FAULTS = {
    "unknown names": (
        "ask,reply\nq,a\n",
        [
            "prompt_set.columns.prompt or .messages must name a column of ask, reply.",
            "prompt_set.columns.target must name a column of ask, reply.",
        ],
    ),
    "no answers": (
        "question,note\nq,a\n",
        ["prompt_set.columns.target must name a column of question, note."],
    ),
    "no names": (
        f"{'Which of these is the right one? ' * 3},x,y\nq,a,b\n",
        [
            "prompt_set.columns.prompt or .messages must name a column of "
            "Which of these is the right one? Which o…, x, y.",
            "prompt_set.columns.target must name a column of Which of these is the right one? Which o…, x, y.",
        ],
    ),
    "an answer that is no choice": (
        "question,A,B,C,D,answer\nq,w,x,y,z,E\n",
        ["set.csv: line 2: target must be one of the choices A, B, C, D, got 'E'."],
    ),
    "an assertion that compares with no text": (
        "question,__expected\nq,javascript: output.length > 3\n",
        [
            "set.csv: line 2: 'javascript: output.length > 3' compares with no text. "
            "Only equals, contains and icontains are known."
        ],
    ),
}


@pytest.mark.parametrize(("content", "faults"), FAULTS.values(), ids=FAULTS)
def test_what_is_not_found_is_asked_for_with_the_columns_that_there_are(tmp_path, content, faults):
    with pytest.raises(StepError) as refusal:
        _load(_write(tmp_path / "set.csv", content))
    assert list(refusal.value.faults) == faults


@pytest.mark.parametrize("name", ["prompt_set.columns.target=answr", "prompt_set.columns.prompt=context+questin"])
def test_a_column_that_does_not_exist_is_refused(tmp_path, name):
    file = _write(tmp_path / "set.csv", "context,question,answer\nc,q,a\n")
    with pytest.raises(StepError, match=r"Unknown column '.*'\. Did you mean '(answer|question)'\?"):
        _load(file, name)


PROMPT, TALK = {"prompt": "typed"}, {"messages": [{"role": "user", "content": "talked"}]}
MIXED = [{"id": "1", "target": "a"} | PROMPT, {"id": "2", "target": "b"} | TALK]


@pytest.mark.parametrize("rows", [MIXED, MIXED[::-1]], ids=["prompt first", "messages first"])
@pytest.mark.parametrize("filled", [False, True], ids=["absent", "null"])
@pytest.mark.parametrize("name", ["set.jsonl", "set.json", "set.parquet"])
@pytest.mark.parametrize("keys", [[], ["prompt_set=dataset"]], ids=["file", "dataset"])
def test_rows_with_a_prompt_and_rows_with_messages_may_be_mixed(tmp_path, rows, filled, name, keys):
    empty = {"prompt": None, "messages": None} if filled or name == "set.parquet" else {}
    file = _write(tmp_path / name, [empty | row for row in rows])
    loaded = _load(file, *keys)
    assert {row.id: row.question for row in loaded.rows} == {"1": "typed", "2": "talked"}


@pytest.mark.parametrize("keys", [[], ["prompt_set=dataset"]], ids=["file", "dataset"])
def test_null_stands_for_nothing_in_rows_and_messages(tmp_path, keys):
    message = {"role": "user", "content": "q", "name": None, "tool_calls": None}
    row = {"id": "1", "messages": [message], "target": "a", "tags": None, "rules": None, "prompt": None}
    (loaded,) = _load(_write(tmp_path / "set.jsonl", [row]), *keys).rows
    assert (loaded.messages, loaded.tags) == ((("user", "q"),), ())


@pytest.mark.parametrize("extra", [{"name": "Bob"}, {"content": None}])
def test_a_message_with_more_or_less_is_refused(tmp_path, extra):
    row = {"id": "1", "messages": [{"role": "user", "content": "q"} | extra], "target": "a"}
    with pytest.raises(StepError, match=r"must hold role and content, and nothing else|content is missing"):
        _load(_write(tmp_path / "set.jsonl", [row]))


FINAL = [
    {"id": "1", "question": "q", "answer": "5 + 13 = 18\n#### 18"},
    {"id": "2", "question": "r", "answer": "#### 1,000 "},
]
PATTERN = "prompt_set.target_pattern=#### (.+)"


@pytest.mark.parametrize("name", ["set.jsonl", "set.json", "set.parquet"])
def test_the_group_of_the_pattern_is_the_accepted_answer(tmp_path, name):
    file = _write(tmp_path / name, FINAL)
    loaded = _load(file, PATTERN)
    assert [row.targets for row in loaded.rows] == [("18",), ("1,000",)]
    assert loaded.sha256 != _load(file).sha256


def test_the_pattern_applies_to_rows_of_our_own_and_to_every_accepted_answer(tmp_path):
    rows = [{"id": "1", "prompt": "q", "target": ["a #### 18", "b #### 19"]}]
    (row,) = _load(_write(tmp_path / "set.jsonl", rows), PATTERN).rows
    assert row.targets == ("18", "19")


PATTERN_FAULTS = {
    "#### (.+": "prompt_set.target_pattern must be a regular expression, got '#### (.+': ",
    "#### .+": "prompt_set.target_pattern must have one group, which is the accepted answer, such as '#### (.+)'; "
    "got '#### .+', which has 0.",
    "(#+) (.+)": "prompt_set.target_pattern must have one group, which is the accepted answer, such as '#### (.+)'; "
    "got '(#+) (.+)', which has 2.",
    "= (.+)": "set.jsonl: line 2 (id '2'): prompt_set.target_pattern '= (.+)' does not match the target, "
    "which ends with '#### 1,000 '.",
    "boxed(.*)": "set.jsonl: line 1 (id '1') and 1 more: prompt_set.target_pattern 'boxed(.*)' does not match",
    "####( *)": "set.jsonl: line 1 (id '1') and 1 more: prompt_set.target_pattern '####( *)' does not match",
    "####(x)?": "set.jsonl: line 1 (id '1') and 1 more: prompt_set.target_pattern '####(x)?' does not match",
}


@pytest.mark.parametrize("pattern", PATTERN_FAULTS)
def test_a_pattern_that_does_not_fit_is_refused_in_one_sentence(tmp_path, pattern):
    with pytest.raises(StepError, match=re.escape(PATTERN_FAULTS[pattern])) as refusal:
        _load(_write(tmp_path / "set.jsonl", FINAL), f"prompt_set.target_pattern={pattern}")
    assert len(refusal.value.faults) == 1
    assert "\n" not in refusal.value.faults[0]


REPEATED = {
    "in a row": '{"id": "a", "id": "b", "prompt": "q", "target": "t"}',
    "in a message": '{"id": "a", "messages": [{"role": "user", "content": "q", "content": "r"}], "target": "t"}',
}


@pytest.mark.parametrize("line", REPEATED.values(), ids=REPEATED)
def test_a_key_that_stands_twice_is_reported_by_line(tmp_path, line):
    good = '{"id": "x", "prompt": "q", "target": "t"}\n'
    with pytest.raises(StepError, match=r"set.jsonl: line 2: broken JSON: the key '(id|content)' stands twice\."):
        _load(_write(tmp_path / "set.jsonl", good + line))


@pytest.mark.parametrize("field", ["id", "prompt", "target"])
def test_text_that_shows_nothing_is_empty(tmp_path, field):
    row = {"id": "x", "prompt": "q", "target": "t"} | {field: "\u200b\ufeff "}
    with pytest.raises(StepError, match=rf"{field} is empty\."):
        _load(_write(tmp_path / "set.jsonl", [row]))

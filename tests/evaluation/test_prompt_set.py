"""Prompt sets: every fault is reported with its line, before any model loads."""

import json
import re
from dataclasses import replace

import pytest

from steps import command_line
from steps.config.schema import PromptSet
from steps.errors import StepError
from steps.evaluation import prompt_set, ruler, scores, scores_log
from steps.evaluation.prompt_set import files


def _line(**fields):
    row = {"id": "a", "messages": [{"role": "user", "content": "q"}], "target": "t"} | fields
    return json.dumps({key: value for key, value in row.items() if value is not ...})


def _load(tmp_path, *lines):
    file = tmp_path / "set.jsonl"
    content = b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines)
    file.write_bytes(content)
    return prompt_set.load(PromptSet("set", str(file)))


FAULTS = {
    "broken JSON": ('{"id": ', "broken JSON: Expecting value at column 8."),
    "not UTF-8": (b'{"id": "\xff"}', files.NOT_UTF8),
    "not an object": ("[1]", "expected a JSON object, got list."),
    "missing id": (_line(id=...), "id is missing."),
    "missing target": (_line(target=...), "target is missing."),
    "missing question": (_line(messages=...), "needs either messages or prompt."),
    "both questions": (_line(prompt="q"), "needs either messages or prompt."),
    "empty target": (_line(target=" "), "target is empty."),
    "number for target": (_line(target=5), "target must be text, got int."),
    "one bad target of many": (_line(target=["a", 5]), "target[1] must be text, got int."),
    "empty text": (_line(messages=[{"role": "user", "content": ""}]), "messages[0].content is empty."),
    "not text": (_line(messages=[{"role": "user", "content": 5}]), "messages[0].content must be text, got int."),
    "NUL": (_line(messages=...)[:-1] + ', "prompt": "a\\u0000"}', "prompt holds a NUL character."),
    "surrogate": (_line(messages=...)[:-1] + ', "prompt": "a\\ud800"}', "prompt holds a lone surrogate."),
    "unknown role": (
        _line(messages=[{"role": "tool", "content": "q"}]),
        "messages[0].role must be one of assistant, system, user, got 'tool'.",
    ),
    "role that is no text": (
        _line(messages=[{"role": ["user"], "content": "q"}]),
        "messages[0].role must be one of assistant, system, user, got ['user'].",
    ),
    "assistant last": (
        _line(messages=[{"role": "assistant", "content": "q"}]),
        "the last message must be the user's, got role 'assistant'.",
    ),
    "no message": (_line(messages=[]), "messages must be a list of at least one message."),
    "half a message": (
        _line(messages=[{"role": "user"}]),
        "messages[0] must hold role and content, and nothing else.",
    ),
    "unknown field": (
        _line(targte="t"),
        "unknown field 'targte'; known are choices, id, messages, prompt, rules, tags, target.",
    ),
    "tags": (_line(tags="x"), "tags must be a list of strings."),
    "number for a tag": (_line(tags=["x", 5]), "tags[1] must be text, got int."),
    "empty tag": (_line(tags=[" "]), "tags[0] is empty."),
    "NUL in a tag": (_line(tags=["x\0"]), "tags[0] holds a NUL character."),
    "surrogate in a tag": (_line(tags=["x\ud800"]), "tags[0] holds a lone surrogate."),
    "a tag twice": (_line(tags=["x", "y", "x"]), "tags[2] is 'x' again."),
    "choices": (_line(choices="t"), "choices must be a list of at least 2 strings."),
    "one choice": (_line(choices=["t"]), "choices must be a list of at least 2 strings."),
    "number for a choice": (_line(choices=["t", 5]), "choices[1] must be text, got int."),
    "a choice twice": (_line(choices=["t", "u", "t"]), "choices[2] is 't' again."),
    "no right choice": (
        _line(target=["a", "b"], choices=["t", "u"]),
        "target must be one of the choices, got ['a', 'b'].",
    ),
    "rules": (_line(rules="json"), "rules must be a list of strings."),
    "unknown rule": (
        _line(rules=["jsn"]),
        "rules[0] must be one of one_word, one_line, sentence, json, upper_case, lower_case, no_punctuation, "
        "max_words=…, min_words=…, starts_with=…, ends_with=…, contains=…, got 'jsn'.",
    ),
    "NUL in a rule": (_line(rules=["json", "contains=\0"]), "rules[1] holds a NUL character."),
    "surrogate in a rule": (_line(rules=["contains=\ud800"]), "rules[0] holds a lone surrogate."),
    "rule without a number": (_line(rules=["max_words=x"]), "rules[0] needs a whole number, got 'max_words=x'."),
    "nested beyond all bounds": ("[" * 100_000, "broken JSON: it is nested too deeply."),
    "a number beyond all bounds": ('{"id": ' + "1" * 5000 + "}", "broken JSON: a number has too many digits."),
}


@pytest.mark.parametrize(("line", "fault"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_reported_with_its_line(tmp_path, line, fault):
    with pytest.raises(StepError) as refusal:
        _load(tmp_path, _line(id="good"), line)
    (reported,) = refusal.value.faults
    assert re.fullmatch(r"set\.jsonl: line 2( \(id '\w'\))?: (.*)", reported)[2] == fault


def test_all_faults_are_reported_at_once(tmp_path):
    with pytest.raises(StepError) as refusal:
        _load(tmp_path, _line(), "{", _line(target=5), _line())
    assert [fault.split(": ")[1] for fault in refusal.value.faults] == [
        "line 2",
        "line 3 (id 'a')",
        "line 3 (id 'a')",
        "line 4 (id 'a')",
    ]
    assert refusal.value.faults[-1].endswith("id 'a' is already used on line 1.")


def test_a_long_list_of_faults_is_shortened_with_the_number_of_the_others(tmp_path):
    with pytest.raises(StepError, match="and 10 more faults"):
        _load(tmp_path, *["{"] * 60)


def test_an_empty_file_is_refused(tmp_path):
    with pytest.raises(StepError, match="it holds no row"):
        _load(tmp_path, "", "  ")


def test_a_missing_file_is_reported_by_name():
    with pytest.raises(
        StepError, match=r"prompt_set.path must be a file of rows, got 'no.jsonl', which does not exist"
    ):
        prompt_set.load(PromptSet("set", "no.jsonl"))


def test_prompt_is_short_for_one_user_message(tmp_path):
    loaded = _load(tmp_path, _line(messages=..., prompt="q", target=["t", "u"], tags=["x"]))
    (row,) = loaded.rows
    assert row.conversation == [{"role": "user", "content": "q"}]
    assert (row.targets, row.tags) == (("t", "u"), ("x",))


def test_the_table_shows_all_turns_and_all_accepted_answers(tmp_path):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    loaded = _load(tmp_path, _line(), _line(id="b", messages=turns, target=["t", "u"]))
    table = scores_log.dataset(loaded).df
    assert list(table["question"]) == ["q", "user: a\nassistant: b\nuser: c"]
    assert list(table["target"]) == ["t", "t | u"]


SHIPPED = {
    "facts": (118, lambda row: row.is_plain and row.tags),
    "instructions": (84, lambda row: row.rules and row.tags),
    "chat": (42, lambda row: len(row.messages) >= 3 and row.tags),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_set_has_its_rows_and_their_fields(name):
    config = command_line.compose("evaluate", [f"prompt_set={name}"])
    rows, (count, is_complete) = prompt_set.load(config.prompt_set), SHIPPED[name]
    scores.check_rows(rows, ruler.make(config).metrics)
    assert rows.name == name
    assert len(rows.rows) == count
    assert [row.id for row in rows.rows if not is_complete(row)] == []


def test_a_set_has_the_name_of_its_file_unless_it_is_named(tmp_path):
    (tmp_path / "my.jsonl").write_text(_line())
    for words, name in (([], "my"), (["prompt_set.name=mine"], "mine")):
        config = command_line.compose("evaluate", [f"prompt_set.path={tmp_path / 'my.jsonl'}", *words])
        assert prompt_set.load(config.prompt_set).name == name


def test_a_dot_in_the_name_of_a_dataset_is_kept():
    words = ["prompt_set=dataset", "prompt_set.path=owner/squad_v1.1"]
    assert prompt_set.name_of(command_line.compose("evaluate", words).prompt_set) == "squad_v1.1"


def test_a_row_knows_its_line(tmp_path):
    loaded = _load(tmp_path, _line(), "", _line(id="b"))
    assert [loaded.place(index) for index in range(2)] == ["line 1 (id 'a')", "line 3 (id 'b')"]
    assert loaded.rows[0] == replace(loaded.rows[0], number=7)


def test_the_digest_depends_on_the_content_but_not_on_the_layout(tmp_path):
    one = _load(tmp_path, _line())
    other = _load(tmp_path, "", json.dumps(json.loads(_line()), indent=None, sort_keys=True))
    assert one.sha256 == other.sha256
    assert one.sha256 != _load(tmp_path, _line(target="u")).sha256

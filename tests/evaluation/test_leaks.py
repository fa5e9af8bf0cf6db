"""Promptings that hold the answers of rows."""

import pytest

from steps import command_line
from steps.config.schema import Example, Prompting
from steps.config.schema import PromptSet as PromptSetConfig
from steps.evaluation import leaks, prompt_set
from steps.evaluation.prompt_set import PromptSet
from steps.evaluation.prompt_set.row import Row
from tests.conftest import PROJECT
from tests.support import make_variant

FILES = sorted(path.stem for path in (PROJECT / "conf/prompt_set").glob("*.jsonl"))
PROMPTINGS = sorted(path.stem for path in (PROJECT / "conf/prompting").glob("*.yaml"))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("prompting", PROMPTINGS)
def test_no_prompting_of_the_project_holds_answers_of_its_prompt_sets(name, prompting):
    rows = prompt_set.load(PromptSetConfig(name, f"conf/prompt_set/{name}.jsonl"))
    config = command_line.compose("build", [f"prompting={prompting}"])
    assert leaks.leaked_rows(config.prompting, rows) == []


def _row(question, *targets):
    return Row(question, (("user", question),), targets, ())


CAPITAL = _row("Which city is Italy's capital?", "Rome", "Roma")
OTHERS = [_row(f"What is the capital of {country}?", city) for country, city in (("Spain", "Madrid"), ("Peru", "Lima"))]
REVIEWS = [
    _row(f"Is this review good? {word} film", "yes" if number % 2 else "no") for number, word in enumerate("abcdefgh")
]
# The prompting, the rows, whether the first row's answer is in it.
CASES = {
    "the same question": (Example("Which city is Italy's capital?", "Rome"), [CAPITAL, *OTHERS], True),
    "the same question in other words": (Example("The capital of Italy?", "It is Rome."), [CAPITAL, *OTHERS], True),
    "another accepted answer": (Example("capital of ITALY", "roma"), [CAPITAL, *OTHERS], True),
    "another answer": (Example("Which city is Italy's largest?", "Milan"), [CAPITAL, *OTHERS], False),
    "another question": (Example("Where did Nero live?", "Rome"), [CAPITAL, *OTHERS], False),
    "in the system prompt": ("You know that Rome is the capital of Italy.", [CAPITAL, *OTHERS], True),
    "a system prompt about the form": ("Answer with the city alone, please.", [CAPITAL, *OTHERS], False),
    "a label": (Example("Is this review good? a play", "no"), REVIEWS, False),
    "a label of the very question": (Example("is this review good - a film", "no"), REVIEWS, True),
    "a script without spaces": (Example("中国的首都在哪里", "北京"), [_row("中国的首都是哪座城市", "北京")], True),
}


@pytest.mark.parametrize(("prompting", "rows", "leaks_first"), CASES.values(), ids=CASES)
def test_a_prompting_leaks_a_row_if_it_answers_its_question(prompting, rows, leaks_first):
    config = Prompting("mine", prompting) if isinstance(prompting, str) else Prompting("mine", "", [prompting])
    assert (rows[0] in leaks.leaked_rows(config, PromptSet("set", tuple(rows)))) is leaks_first


def test_the_warning_names_the_prompting_and_the_rows(capsys):
    variants = [make_variant(overrides=["prompting.name=mine", "prompting.system='Italy: Rome'"])] * 2
    leaks.warn(variants, PromptSet("set", (CAPITAL, *OTHERS)))
    assert capsys.readouterr().out == (
        "Warning: the prompting 'mine' holds the answers of 1 of the 3 rows of set (\"Which city is Italy's "
        'capital?"): its variants score too high on them.\n'
    )


def test_a_large_prompt_set_is_checked_in_seconds():
    rows = tuple(_row(f"What is {number} plus one?", str(number + 1)) for number in range(50_000))
    prompting = Prompting("mine", "Count well.", [Example("What is 7 plus one?", "8")])
    assert [row.id for row in leaks.leaked_rows(prompting, PromptSet("sums", rows))] == ["What is 7 plus one?"]

"""Comparing answers: docs/scoring.md has the cases."""

import re
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from steps.evaluation import metric_loading
from steps.evaluation.metrics.normalize import VANISHING, comparable
from tests.conftest import PROJECT

DOCUMENT = (PROJECT / "docs" / "scoring.md").read_text()
BY_WORDS = ("answer_match", "exact_match", "token_f1", "rouge_l")


def _cases():
    """Yield accepted answer, answer, answer_match and exact_match of every row of the document's tables."""
    for line in DOCUMENT.splitlines():
        if re.match(r"\| `", line):
            accepted, answer, within, equal = line.strip("| ").split(" | ")[:4]
            texts = [re.sub(r"\\u(\w{4})", lambda code: chr(int(code[1], 16)), text) for text in (accepted, answer)]
            # Two backticks around a text that has some.
            yield (*(text.removeprefix(m := re.match("`+", text)[0]).removesuffix(m) for text in texts), within, equal)


CASES = list(_cases())


@pytest.fixture(scope="module")
def metrics():
    return metric_loading.load_metrics([*BY_WORDS, "chrf"])


def _scores(metric, answers, accepted):
    return metric.compute(predictions=answers, references=[[target] for target in accepted])["scores"]


@pytest.mark.parametrize("name", ["answer_match", "exact_match"])
def test_the_documented_cases_hold(metrics, name):
    column = {"answer_match": 2, "exact_match": 3}[name]
    given_scores = _scores(metrics[name], [case[1] for case in CASES], [case[0] for case in CASES])
    wrong = [case for case, score in zip(CASES, given_scores, strict=True) if score != float(case[column])]
    assert wrong == []
    assert len(CASES) > 100


@pytest.mark.parametrize("name", ["token_f1", "rouge_l"])
def test_overlap_metrics_agree_with_the_documented_cases(metrics, name):
    overlaps = _scores(metrics[name], [case[1] for case in CASES], [case[0] for case in CASES])
    for (accepted, answer, within, equal), overlap in zip(CASES, overlaps, strict=True):
        words = comparable(answer, accepted)[1]
        expected = overlap == 1 if equal == "1" else overlap > 0 if within == "1" else overlap < 1
        assert expected, (accepted, answer)
        if within == "0" and len(words) == 1:
            assert overlap == 0, (accepted, answer)


# answer, accepted: the same text to a reader
SAME_CHARACTERS = [
    ("Ｍａｄｒｉｄ", "Madrid"),  # noqa: RUF001
    ("Mad\u200brid", "Madrid"),
    ("tête", "te\u0302te"),
    ("ｶﾞﾗｽ", "ガラス"),
    ("كـتـاب", "كتاب"),
    ("Madrid\x00", "Madrid"),
    ("１０００", "1000"),  # noqa: RUF001
]


@pytest.mark.parametrize("name", [*BY_WORDS, "chrf"])
def test_every_metric_sees_the_same_text_as_a_reader(metrics, name):
    assert _scores(metrics[name], *zip(*SAME_CHARACTERS, strict=True)) == pytest.approx([1] * len(SAME_CHARACTERS))


DIFFERENT_CHARACTERS = [("की", "का"), ("👎", "👍"), ("-", "+"), ("C", "C#"), ("²", "2"), ("10²", "102"), ("½", "12")]


@pytest.mark.parametrize("name", [*BY_WORDS, "chrf"])
def test_no_metric_takes_one_character_for_another(metrics, name):
    assert max(_scores(metrics[name], *zip(*DIFFERENT_CHARACTERS, strict=True))) < 1


@pytest.mark.parametrize("name", [*BY_WORDS, "chrf"])
@pytest.mark.parametrize("answer", ["", " ", "\n", "\u200b", "\ufeff", "\u3164", "\u2800", "\x00", "\ufe0f"])
def test_an_empty_answer_is_never_right(metrics, name, answer):
    accepted = ["Madrid", "+", "👍", "?", "*", "-5", "\u200b", "“”", "。"]
    assert _scores(metrics[name], [answer] * len(accepted), accepted) == [0] * len(accepted)


def test_an_empty_answer_scores_0_in_any_metric_of_rows():
    from steps.evaluation.metrics.row_metric import row_metric

    metric = row_metric("generous", "Generous.", lambda prediction, accepted: 1.0)()
    assert _scores(metric, ["", " ", "\u200b", "\u3164", "x"], ["a"] * 5) == [0, 0, 0, 0, 1]


def test_each_accepted_answer_is_compared_by_itself(metrics):
    references = [["C#", "C++"], ["+", "plus"], ["1000", "thousand"]]
    answers = ["C++", "plus", "1,000"]
    assert metrics["exact_match"].compute(predictions=answers, references=references)["scores"] == [1, 1, 1]


def _equal(answer, accepted):
    words, target = comparable(answer, accepted)
    return bool(target) and words == target


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs", "Cc", "Cn", "Co"])))
def test_a_visible_text_is_equal_to_itself(text):
    assume(VANISHING.sub("", text).strip())
    assert _equal(text, text)


@settings(deadline=None)
@given(st.decimals(-(10**12), 10**12, allow_nan=False, places=3))
def test_a_number_is_equal_to_itself_in_every_notation(number):
    plain = f"{number:f}"
    grouped = f"{number:,f}"
    swiss, german = grouped.replace(",", "'"), grouped.translate(str.maketrans(",.", ".,"))
    wide = plain.translate({ord(digit): ord(digit) + 0xFEE0 for digit in "0123456789.-"})
    notations = [grouped, swiss, wide, f"{number:f}0", f"{number:f} €"]
    # 1.000 and 1,000 with three decimals and nothing else are read as English.
    notations += [german] if abs(number) >= 1000 else []
    assert [notation for notation in notations if not _equal(f"It is {notation}", f"It is {plain}")] == []


@settings(deadline=None)
@given(st.decimals(-(10**6), 10**6, places=2), st.decimals(-(10**6), 10**6, places=2))
def test_two_numbers_are_equal_only_if_their_values_are(one, other):
    assert _equal(f"{one:,f}", f"{other:f}") == (Fraction(one) == Fraction(other))


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_a_number_is_not_found_in_another_one(one, other):
    assume(one != other)
    words, target = comparable(f"The answer is {one:,}.", str(other))
    assert target[0] not in words


@pytest.mark.parametrize("text", ["1" * 5000, "1," * 5000, "9e999", "-" * 5000, "1/" * 5000, "½" * 5000, "1e" * 5000])
def test_what_a_looping_model_writes_is_compared_too(text):
    assert _equal(text, text)
    assert not _equal(text, "1")
    assert str(Decimal(7)) not in comparable(text, "7")[0]

"""Who is best, and whether the champion makes way."""

import pytest

from steps.promotion.gate import decide
from steps.promotion.rank import Candidate, Ranking, missing_metrics, rank
from steps.schema import Promotion


def _candidate(name, score=0.5, size=10.0, **metrics):
    return Candidate(name, f"m-{name}", f"f-{name}", {"answer_match/mean": score, "size/bytes": size} | metrics)


def _policy(**changes):
    return Promotion(**{"name": "test", "prefer": ["size/bytes"]} | changes)


@pytest.mark.parametrize(
    ("candidates", "policy", "order"),
    [
        ([_candidate("low", 0.1), _candidate("high", 0.9)], _policy(), ["high", "low"]),
        ([_candidate("large", size=20), _candidate("small", size=5)], _policy(), ["small", "large"]),
        ([_candidate("older"), _candidate("newer")], _policy(), ["older", "newer"]),
        (
            [_candidate("high", 0.9, 50), _candidate("low", 0.5, 5)],
            _policy(limits={"size/bytes": {"max": 20}}),
            ["low"],
        ),
        ([_candidate("low", 0.1), _candidate("high", 0.9)], _policy(limits={"answer_match": {"min": 0.9}}), ["high"]),
        ([_candidate("a", speed=1.0), _candidate("b", speed=2.0)], _policy(metric="size/bytes", prefer=[]), ["a", "b"]),
    ],
    ids=["metric", "cheaper", "age", "limit on size", "limit on quality", "metric by its full key"],
)
def test_rank(candidates, policy, order):
    assert [candidate.name for candidate in rank(candidates, policy).ranked] == order


def test_all_violations_are_told_together():
    ranking = rank(
        [_candidate("bad", 0.1, 50)], _policy(limits={"answer_match": {"min": 0.5}, "size/bytes": {"max": 20}})
    )
    assert ranking.ranked == []
    assert ranking.violations == {"m-bad": ["answer_match 0.1 is below 0.5", "size/bytes 50 is above 20"]}


def test_metrics_that_are_not_there_are_named_with_their_key():
    faults = missing_metrics([_candidate("a")], _policy(metric="answer_mach", prefer=["size/byte"], limits={"x": {}}))
    assert [fault.partition(".")[0] + "." + fault.split(".")[1] for fault in faults] == [
        "promotion.metric: Unknown metric 'answer_mach'",
        "promotion.prefer: Unknown metric 'size/byte'",
        "promotion.limits: Unknown metric 'x'",
    ]


@pytest.mark.parametrize(
    ("best", "champion", "promote", "reason"),
    [
        (_candidate("a", 0.7), None, True, "there was no champion; answer_match 0.7000 is the best of this prompt set"),
        (_candidate("a"), _candidate("a"), False, "the champion a is the best already: answer_match 0.5000"),
        (
            _candidate("a", 0.7),
            _candidate("b", 0.6),
            True,
            "a is better than the champion b: answer_match 0.7 against 0.6",
        ),
        (
            _candidate("a", 0.5, 5),
            _candidate("b", 0.5, 9),
            True,
            "a is better than the champion b: size/bytes 5 against 9",
        ),
        (_candidate("a"), _candidate("b"), False, "a is not better than the champion b: they are alike in all"),
    ],
)
def test_decide(best, champion, promote, reason):
    decision = decide(best, champion, _policy(), Ranking([best], {}))
    assert decision.promote is promote
    assert decision.reason.startswith(reason)


def test_a_champion_beyond_the_limits_makes_way():
    champion = _candidate("big", 0.9, 50)
    decision = decide(_candidate("a", 0.5), champion, _policy(), Ranking([], {"m-big": ["size/bytes 50 is above 20"]}))
    assert decision.promote
    assert decision.reason == "the champion big is beyond the limits: size/bytes 50 is above 20"

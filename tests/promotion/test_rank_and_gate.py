"""Which candidate is best, and whether it replaces the champion."""

import math

import pytest

from steps.config.schema import Promotion
from steps.promotion.gate import decide
from steps.promotion.rank import Candidate, policy_faults, rank
from steps.store.names import metric_key

ROWS = 40


def _rows(right):
    return [1.0] * right + [0.0] * (ROWS - right)


def _candidate(name, right=20, size=10.0, rows=None, faults=(), **metrics):
    """A candidate that answered the first `right` of 40 rows."""
    rows = _rows(right) if rows is None else rows
    metrics = {"answer_match/mean": sum(rows) / ROWS, "size/bytes": size} | metrics
    return Candidate(name, f"m-{name}", f"f-{name}", metrics, {"answer_match": rows}, faults)


def _policy(**changes):
    return Promotion(**{"name": "test", "prefer": ["bytes"]} | changes)


ORDERS = {
    "metric": ([_candidate("low", 10), _candidate("high", 30)], _policy(), ["high", "low"], 1),
    "cheaper": ([_candidate("large", size=20), _candidate("small", size=5)], _policy(), ["small", "large"], 2),
    "age": ([_candidate("older"), _candidate("newer")], _policy(), ["older", "newer"], 2),
    "a tie goes to the cheaper": (
        [_candidate("high", 21, 50), _candidate("low", 20, 5)],
        _policy(),
        ["low", "high"],
        2,
    ),
    "tied at this alpha only": (
        # 3 rows of 40 more: its interval holds 0 at the level 0.01 and not at 0.2
        [_candidate("high", 23, 50), _candidate("low", 20, 5)],
        _policy(alpha=0.2),
        ["high", "low"],
        1,
    ),
    "tied at a stricter alpha": (
        [_candidate("high", 23, 50), _candidate("low", 20, 5)],
        _policy(alpha=0.01),
        ["low", "high"],
        2,
    ),
    "as many right rows, but different ones": (
        [_candidate("front", size=20), _candidate("back", size=5, rows=_rows(20)[::-1])],
        _policy(),
        ["back", "front"],
        2,
    ),
    "second preference": (
        [
            _candidate("slow", **{"speed/latency_p95_ms": 9.0}),
            _candidate("fast", **{"speed/latency_p95_ms": 5.0}),
        ],
        _policy(prefer=["bytes", "latency"]),
        ["fast", "slow"],
        2,
    ),
    "more tokens a second": (
        [
            _candidate("slow", **{"speed/tokens_per_second": 5.0}),
            _candidate("fast", **{"speed/tokens_per_second": 9.0}),
        ],
        _policy(prefer=["speed/tokens_per_second"]),
        ["fast", "slow"],
        2,
    ),
    "limit": (
        [_candidate("high", 30, 50), _candidate("low", 10, 5)],
        _policy(limits={"bytes": {"max": 20}}),
        ["low"],
        1,
    ),
    "a value equal to its limits": (
        [_candidate("a", 20)],
        _policy(limits={"answer_match": {"min": 0.5, "max": 0.5}}),
        ["a"],
        1,
    ),
}


@pytest.mark.parametrize(("candidates", "policy", "order", "tied"), ORDERS.values(), ids=ORDERS)
def test_candidates_are_ranked_by_limits_then_score_then_cost(candidates, policy, order, tied):
    ranking = rank(candidates, policy)
    assert [candidate.name for candidate in ranking.ranked] == order
    assert len(ranking.tied) == tied


REFUSED = {
    "every limit at once": (
        _candidate("bad", 4, 50),
        _policy(limits={"answer_match": {"min": 0.5}, "bytes": {"max": 20}}),
        ["answer_match 0.1 is below 0.5", "bytes 50 is above 20"],
    ),
    "not a number": (_candidate("bad", size=math.nan), _policy(), ["bytes is nan"]),
    "no value": (_candidate("bad"), _policy(limits={"latency": {"max": 5}}), ["it has no latency"]),
    "a row without a score": (
        _candidate("bad", rows=[math.nan] + [1.0] * 39),
        _policy(),
        ["answer_match is nan", "not every row has a score of answer_match"],
    ),
    "no rows": (
        _candidate("bad", faults=("its scorecard is of other rows",)),
        _policy(),
        ["its scorecard is of other rows"],
    ),
}


@pytest.mark.parametrize(("bad", "policy", "reasons"), REFUSED.values(), ids=REFUSED)
def test_every_fault_is_reported_and_other_candidates_still_rank(bad, policy, reasons):
    good = _candidate("good", **{"speed/latency_p95_ms": 1.0})
    ranking = rank([bad, good], policy)
    assert [candidate.name for candidate in ranking.ranked] == ["good"]
    assert ranking.refused == {"m-bad": reasons}


def test_an_unknown_metric_is_reported_with_its_key_and_the_available_ones():
    faults = policy_faults([_candidate("a")], _policy(metric="answer_mach", prefer=["size/byte"], limits={"x": {}}))
    assert faults == [
        "promotion.metric: Unknown metric 'answer_mach'. Did you mean 'answer_match/mean'? "
        "Available: answer_match/mean, size/bytes.",
        "promotion.prefer: Unknown metric 'size/byte'. Did you mean 'size/bytes'? "
        "Available: answer_match/mean, size/bytes.",
        "promotion.limits: Unknown metric 'x'. Available: answer_match/mean, size/bytes.",
    ]
    assert policy_faults([_candidate("a")], _policy(metric="bytes")) == [
        "promotion.metric must be a metric that scores every row, got 'bytes'. Available: answer_match."
    ]


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("answer_match", "answer_match/mean"),
        ("chrf/ci_low", "chrf/ci_low"),
        ("latency", "speed/latency_p95_ms"),
        ("memory", "memory/peak_mb"),
        ("bytes", "size/bytes"),
        ("contract", "contract/rate"),
    ],
)
def test_a_policy_may_use_short_names_for_metrics(name, key):
    assert metric_key(name) == key


DECISIONS = {
    "no champion": (
        [_candidate("a", 28), _candidate("b", 12)],
        None,
        True,
        "there was no champion; a has the highest score, answer_match 0.7000",
    ),
    "no champion and a tie": (
        [_candidate("a", 28, 5), _candidate("b", 28, 9)],
        None,
        True,
        "there was no champion; a has answer_match 0.7000, tied with 1 for the highest score, and the least cost",
    ),
    "itself": ([], _candidate("a"), False, "the champion a is already the best: answer_match 0.5000"),
    "better": (
        [_candidate("a", 30)],
        _candidate("b", 20),
        True,
        "a is better than the champion b: answer_match +0.2500, interval +0.1250 to +0.4000",
    ),
    "cheaper": (
        [_candidate("a", 20, 5)],
        _candidate("b", 21, 9),
        True,
        "a is better than the champion b: they are tied in answer_match (-0.0250, interval -0.0750 to +0.0000), "
        "bytes 5 against 9",
    ),
    "as good": (
        [_candidate("a", 21)],
        _candidate("b", 20),
        False,
        "a is not better than the champion b: they are tied in answer_match",
    ),
    "worse and cheaper": (
        [_candidate("a", 10, 5)],
        _candidate("b", 20, 9),
        False,
        "the champion b is already the best",
    ),
}


@pytest.mark.parametrize(("candidates", "champion", "promote", "reason"), DECISIONS.values(), ids=DECISIONS)
def test_the_decision_and_its_reason(candidates, champion, promote, reason):
    everyone = [*candidates, *([champion] if champion else [])]
    decision = decide(rank(everyone, _policy()), champion, _policy())
    assert decision.promote is promote
    assert decision.reason.startswith(reason)


def test_a_candidate_with_the_champions_fingerprint_is_not_promoted():
    champion = _candidate("a")
    twin = Candidate("a", "m-other", champion.fingerprint, champion.metrics, champion.rows)
    assert not decide(rank([twin], _policy()), champion, _policy()).promote


def test_a_champion_that_breaks_a_limit_is_replaced():
    policy = _policy(limits={"bytes": {"max": 20}})
    champion = _candidate("big", 36, 50)
    decision = decide(rank([_candidate("a"), champion], policy), champion, policy)
    assert decision.promote
    assert decision.reason == "the champion big no longer meets the policy: bytes 50 is above 20"


def test_a_candidate_significantly_worse_than_the_champion_is_not_promoted_even_if_cheaper():
    """The candidate ties with the highest score, but is worse than the champion: the champion stays."""
    highest = _candidate("highest", size=90, rows=[1.0, 0.0] * 12 + [1.0] * 10 + [0.0] * 6)
    champion = _candidate("champion", size=50, rows=_rows(20))
    cheap = _candidate("cheap", size=5, rows=_rows(15))
    ranking = rank([highest, champion, cheap], _policy(alpha=0.05))
    assert ranking.ranked[0] == cheap
    decision = decide(ranking, champion, _policy(alpha=0.05))
    assert not decision.promote
    assert decision.reason.startswith("cheap is significantly worse than the champion champion: -0.1250, interval -0.2")

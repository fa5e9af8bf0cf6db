"""Which candidate is best, and whether it replaces the champion."""

import json
import math
import random

import pytest

from steps.config.schema import Promotion
from steps.evaluation.prompt_set import PromptSet
from steps.evaluation.prompt_set.row import make_row
from steps.promotion.candidate import Candidate
from steps.promotion.costs import with_measured_costs
from steps.promotion.gate import decide
from steps.promotion.rank import policy_faults, rank
from steps.promotion.reference import NO_REFERENCE, Reference, before_change, choose
from steps.promotion.registry import Version
from steps.promotion.verdicts import against_each_other, against_one
from steps.store.names import REFERENCE, metric_key
from tests.benchmarks.promotion import MARGIN, chain

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


def _large(name, right=200, size=10.0, **metrics):
    """A candidate that answered the first `right` of 400 rows."""
    rows = [1.0] * right + [0.0] * (400 - right)
    metrics = {"answer_match/mean": right / 400, "size/bytes": size} | metrics
    return Candidate(name, f"m-{name}", f"f-{name}", metrics, {"answer_match": rows})


def _contract(passed):
    return {"contract/passed": float(passed), "contract/total": 39.0}


FEW, MANY = ("undecided", "undecided"), ("non-inferior", "non-inferior")
ORDERS = {
    "metric": ([_candidate("low", 10), _candidate("high", 30)], _policy(), ["high", "low"], ("inferior", "superior")),
    "equal scores, so the cheaper": (
        [_candidate("large", size=20), _candidate("small")],
        _policy(),
        ["small", "large"],
        FEW,
    ),
    "equal in all, so the older": ([_candidate("older"), _candidate("newer")], _policy(), ["older", "newer"], FEW),
    "too few rows, so the best score": (
        [_candidate("high", 21, 50), _candidate("low", 20, 5)],
        _policy(),
        ["high", "low"],
        FEW,
    ),
    "non-inferior and cheaper": ([_large("high", 201, 50), _large("low", 200, 5)], _policy(), ["low", "high"], MANY),
    "cheaper within the tolerance": (
        [_large("high", 201, 52), _large("low", 200, 50)],
        _policy(),
        ["high", "low"],
        MANY,
    ),
    "beyond the tolerance of the policy": (
        [_large("high", 201, 52), _large("low", 200, 50)],
        _policy(size_tolerance=0.01),
        ["low", "high"],
        MANY,
    ),
    "without a margin": ([_large("high", 201, 50), _large("low", 200, 5)], _policy(margin=0.0), ["high", "low"], FEW),
    "worse within the margin": (
        [_large("high", 210, 50), _large("low", 200, 5)],
        _policy(margin=0.1),
        ["low", "high"],
        ("superior", "non-inferior"),
    ),
    "worse by the margin": (
        [_large("high", 240, 50), _large("low", 200, 5)],
        _policy(),
        ["high", "low"],
        ("superior", "inferior"),
    ),
    "less is better": (
        [_candidate("high", 30), _candidate("low", 10)],
        _policy(direction="lower"),
        ["low", "high"],
        ("inferior", "superior"),
    ),
    "the first cost does not decide": (
        [_large("slow", **{"speed/latency_p95_ms": 9.0}), _large("fast", size=10.4, **{"speed/latency_p95_ms": 5.0})],
        _policy(prefer=["bytes", "latency"]),
        ["fast", "slow"],
        MANY,
    ),
    "a timed cost within its noise": (
        [_large("small", size=5, **{"speed/latency_p95_ms": 9.0}), _large("fast", **{"speed/latency_p95_ms": 8.0})],
        _policy(prefer=["latency", "bytes"]),
        ["small", "fast"],
        MANY,
    ),
    "more tokens a second": (
        [
            _candidate("slow", **{"speed/tokens_per_second": 5.0}),
            _candidate("fast", **{"speed/tokens_per_second": 9.0}),
        ],
        _policy(prefer=["speed/tokens_per_second"]),
        ["fast", "slow"],
        FEW,
    ),
    "limit": (
        [_candidate("high", 30, 50), _candidate("low", 10, 5)],
        _policy(limits={"bytes": {"max": 20}}),
        ["low"],
        (),
    ),
    "a value equal to its limits": (
        [_candidate("a", 20)],
        _policy(limits={"answer_match": {"min": 0.5, "max": 0.5}}),
        ["a"],
        (),
    ),
    "a broken contract does not win": (
        [_candidate("stock", 40, **_contract(10)), _candidate("ours", 30, **_contract(39))],
        _policy(),
        ["ours"],
        (),
    ),
    "fewer broken checks win": (
        [_candidate("stock", 40, **_contract(10)), _candidate("ours", 30, **_contract(38))],
        _policy(),
        ["ours"],
        (),
    ),
    "the only one may break it": ([_candidate("stock", 40, **_contract(10))], _policy(), ["stock"], ()),
    "a contract that nobody checked": (
        [_candidate("a", 40, **_contract(39)), _candidate("b", 10)],
        _policy(),
        ["a", "b"],
        ("superior", "inferior"),
    ),
    "a policy without the contract": (
        [_candidate("stock", 40, **_contract(10)), _candidate("ours", 30, **_contract(39))],
        _policy(contract_first=False),
        ["stock", "ours"],
        ("superior", "inferior"),
    ),
    "equal scores, so the better made": (
        [_candidate("stock", size=5, **_contract(10)), _candidate("ours", **_contract(39))],
        _policy(contract_first=False),
        ["ours", "stock"],
        FEW,
    ),
}


@pytest.mark.parametrize(("candidates", "policy", "order", "words"), ORDERS.values(), ids=ORDERS)
def test_candidates_are_ranked_by_limits_contract_score_and_cost(candidates, policy, order, words):
    ranking = rank(candidates, policy)
    assert [candidate.name for candidate in ranking.ranked] == order
    by_id = {candidate.model_id: candidate.name for candidate in candidates}
    assert tuple(ranking.verdicts[model_id].word for model_id in by_id if model_id in ranking.verdicts) == words


def test_the_order_of_candidates_does_not_change_the_winner():
    candidates = [_large(str(number), 200 + number % 3, 10 + number) for number in range(6)]
    winners = {rank(candidates[start:] + candidates[:start], _policy()).ranked[0].name for start in range(6)}
    assert winners == {"0"}


def test_noise_of_a_cost_does_not_decide_between_equal_candidates():
    older, newer = (_large(name, **{"speed/latency_p95_ms": value}) for name, value in (("older", 9.0), ("newer", 8.9)))
    assert rank([older, newer], _policy(prefer=["latency"])).ranked[0].name == "older"


def test_one_row_or_equal_rows_show_nothing():
    one = [
        Candidate(str(score), f"m-{score}", "", {"answer_match/mean": score}, {"answer_match": [score]})
        for score in (0.0, 1.0)
    ]
    verdicts = against_each_other(one, _policy())
    assert [verdict.word for verdict in verdicts.values()] == ["undecided", "undecided"]
    equal = against_one([_candidate("a")], _candidate("b"), _policy())["m-a"]
    assert equal.word == "undecided"
    assert equal.difference.low < equal.difference.mean == 0 < equal.difference.high
    assert equal.rows_needed > ROWS


def test_more_candidates_need_more_evidence():
    champion, better = _candidate("champion", 20), _candidate("better", 27)
    assert against_one([better], champion, _policy())["m-better"].word == "superior"
    crowd = [better, *(_candidate(f"other{number}", 20 + number % 2) for number in range(15))]
    assert against_one(crowd, champion, _policy())["m-better"].word == "undecided"


def test_candidates_that_are_shown_to_be_worse_do_not_count():
    champion, better = _candidate("champion", 20), _candidate("better", 27)
    crowd = [better, *(_candidate(f"other{number}", 5) for number in range(15))]
    assert against_one(crowd, champion, _policy())["m-better"].word == "superior"


def test_costs_that_nobody_was_timed_for_do_not_count():
    policy = _policy(prefer=["throughput", "latency", "bytes", "speed/warp"])
    assert with_measured_costs(policy, {"size/bytes"}).prefer == ["bytes", "speed/warp"]
    assert with_measured_costs(_policy(prefer=["latency"]), {"size/bytes"}).prefer == ["latency"]


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
    "no champion and equal scores": (
        [_candidate("a", 28, 5), _candidate("b", 28, 9)],
        None,
        True,
        "there was no champion; a has the highest score, answer_match 0.7000, like 1 more, and is the better made or "
        "the cheaper of them (undecided against b: to show a difference below the margin of 0.05 needs about 154 rows)",
    ),
    "no champion and a cheaper one": (
        [_large("a", 201, 9), _large("b", 200, 5)],
        None,
        True,
        "there was no champion; b has answer_match 0.5000, is non-inferior to a and cheaper: bytes 5 against 9",
    ),
    "itself": ([], _candidate("a"), False, "the champion a is already the best: answer_match 0.5000"),
    "better": (
        [_candidate("a", 30)],
        _candidate("b", 20),
        True,
        "a is superior to the champion b: answer_match +0.2500, interval +0.0804 to +0.3958",
    ),
    "cheaper": (
        [_large("a", 200, 5)],
        _large("b", 201, 9),
        True,
        "a is non-inferior to the champion b: answer_match -0.0025, interval -0.0124 to +0.0075, and cheaper: "
        "bytes 5 against 9",
    ),
    "cheaper and too few rows": (
        [_candidate("a", 20, 5)],
        _candidate("b", 21, 9),
        False,
        "the champion b is already the best",
    ),
    "equal on few rows and cheaper": (
        [_candidate("a", 20, 5)],
        _candidate("b", 20, 9),
        False,
        "a is undecided against the champion b: answer_match +0.0000, interval -0.0806 to +0.0806; "
        "to show a difference below the margin of 0.05 needs about ",
    ),
    "higher, but not shown": (
        [_candidate("a", 21)],
        _candidate("b", 20),
        False,
        "a is undecided against the champion b",
    ),
    "higher, and dearer": (
        [_large("a", 201, 9)],
        _large("b", 200, 9.2),
        False,
        "a is non-inferior to the champion b: answer_match +0.0025, interval -0.0075 to +0.0124, and it is not cheaper",
    ),
    "worse and cheaper": (
        [_candidate("a", 10, 5)],
        _candidate("b", 20, 9),
        False,
        "the champion b is already the best",
    ),
    "as good as the champion, but another may be better": (
        [_large("a", 203, 5), _large("high", 203, 5, **_contract(39))],
        _large("b", 203, 9),
        True,
        "a is non-inferior to the champion b",
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


def test_a_champion_that_breaks_its_contract_is_replaced_by_one_that_keeps_it():
    champion, ours = _candidate("stock", 30, **_contract(10)), _candidate("ours", 30, **_contract(39))
    decision = decide(rank([champion, ours], _policy()), champion, _policy())
    assert decision.promote
    assert "it fails 29 checks of its own contract, and ours fails 0" in decision.reason


def test_a_second_decision_changes_nothing():
    """A superior one and a cheaper one must not replace each other for ever: here every difference is significant."""
    policy = _policy(margin=0.1)
    candidates = [_large("high", 220, 50), _large("middle", 210, 40), _large("low", 200, 5)]
    for champion in candidates:
        ends, current = [], champion
        for _ in range(3):
            ranking = rank(candidates, policy, current.model_id)
            current = ranking.ranked[0] if decide(ranking, current, policy).promote else current
            ends.append(current.name)
        assert ends == ["low", "low", "low"]


def test_a_cheaper_candidate_is_held_against_the_reference():
    champion, new, best = _large("champion", 190, 9), _large("new", 190, 5), _large("best", 210, 9)
    ranking = rank([champion, new], _policy(), champion.model_id)
    assert decide(ranking, champion, _policy()).promote
    decision = decide(ranking, champion, _policy(), reference=Reference(0.525, "best", best))
    assert not decision.promote
    assert decision.reason.endswith("not shown to be non-inferior to the reference, answer_match 0.5250 of best")
    unpaired = decide(ranking, champion, _policy(), reference=Reference(0.525, "best"))
    assert unpaired.reason.endswith("but it is 0.0500 worse than the reference, answer_match 0.5250 of best")
    assert decide(ranking, champion, _policy(), reference=Reference(0.524, "best")).promote
    unscored = decide(ranking, champion, _policy(), reference=Reference(unscored="best has no scorecard"))
    assert not unscored.promote
    assert unscored.reason.endswith(", but best has no scorecard")


def test_the_reference_is_the_best_of_the_champions_and_of_the_tags():
    rows = PromptSet("mine", ())
    gone = _large("gone", 240)
    tag = Reference().tag(gone, rows, _policy())
    assert choose([], (), rows.sha256, _policy()) == NO_REFERENCE
    champions, version = [_large("a", 200), _large("b", 220)], Version("1", "m", tag, "")
    assert choose(champions, (), rows.sha256, _policy()) == Reference(0.55, "b", champions[1])
    assert choose(champions, (version,), rows.sha256, _policy()) == Reference(0.6, "gone", model_id=gone.model_id)
    assert choose(champions, (version,), "other", _policy()).name == "b"
    assert choose(champions, (version,), rows.sha256, _policy(direction="lower")) == Reference(0.5, "a", champions[0])
    assert choose([], (Version("1", "m", {}, ""),), rows.sha256, _policy()) == NO_REFERENCE


def test_the_reference_on_earlier_rows_is_that_of_the_newest_version():
    rows, changed = PromptSet("mine", ()), PromptSet("mine", (make_row({"id": "a", "prompt": "?", "target": "!"}, 1),))
    champions = [_large(name, 240) for name in ("first", "second")]
    versions = tuple(
        Version(str(number), one.model_id, Reference().tag(one, rows, _policy()), "")
        for number, one in enumerate(champions)
    )
    assert before_change(versions, rows, _policy()) is None
    assert before_change(versions, changed, _policy()) == champions[1].model_id
    assert before_change(versions, PromptSet("other", changed.rows), _policy()) is None
    assert before_change(versions, changed, _policy(metric="chrf")) is None
    # Tags from before there were models in them.
    old = {"metric": "answer_match", "prompt_set_sha256": "sha", "score": 0.5, "variant": "first"}
    assert before_change((Version("1", "m", {REFERENCE: json.dumps(old)}, ""),), changed, _policy()) is None


@pytest.mark.parametrize("rows", [118, 400])
def test_ten_promotions_lose_one_margin_at_most(rows):
    """Each candidate is truly worse than the champion by a fifth of the margin, and cheaper."""
    assert max(chain(rows, MARGIN / 5, True, seed) for seed in range(10)) <= MARGIN + 1e-9


@pytest.mark.parametrize(("loss", "winner"), [(0.11, "fp32"), (0.0, "int4")])
def test_int4_wins_if_it_is_as_good_and_loses_if_it_is_worse(loss, winner):
    """20 seeds on scorecards of 1,200 rows that are drawn, not asked."""
    for seed in range(20):
        draw = random.Random(seed)
        hardness = [(draw.random(), draw.random() < 0.9, draw.random()) for _ in range(1200)]
        full = [float(shared < 0.47) for shared, _, _ in hardness]
        int4 = [float((shared if linked else own) < 0.47 - loss) for shared, linked, own in hardness]
        candidates = [
            Candidate(
                name,
                f"m-{name}",
                name,
                {"answer_match/mean": sum(rows) / 1200, "size/bytes": size},
                {"answer_match": rows},
            )
            for name, rows, size in (("fp32", full, 544.0), ("int4", int4, 90.0))
        ]
        assert rank(candidates, _policy()).ranked[0].name == winner, seed

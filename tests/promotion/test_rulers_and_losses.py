"""What must not be promoted or compared: other rulers, no answers, too many errors; and what was deleted."""

from dataclasses import replace

import pytest

from steps.config.schema import Promotion
from steps.errors import StepError
from steps.evaluation import scorecard
from steps.evaluation.context_check import ContextCheck
from steps.promotion import smoke
from tests.promotion.store import card_of, write_card, write_prompt_set
from tests.promotion.test_register import evaluate_overrides, store  # noqa: F401  a fixture
from tests.support import make_prompt_set, make_variant


def remark(store, variant, rows, **parts):  # noqa: F811
    """Let a scorecard be made by another ruler."""
    mark = scorecard.mark_of(variant, rows.sha256)
    text = scorecard.mark(rows, mark["digest"], {}, mark["ruler"] | parts)
    store.client.set_logged_model_tags(variant.model_id, {scorecard.tag(rows.sha256): text})


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [[], ["dry_run=true"]], ids=["promotion", "dry run"])
def test_scores_of_different_rulers_are_never_compared(store, typed, overrides):  # noqa: F811
    rows = store.score(3, 7)
    remark(store, store.variants[1], rows, answer_match="another")
    with pytest.raises(StepError, match=r"made by different rulers \(answer_match\)") as refusal:
        store.register(*overrides)
    assert store.registry.versions == ()
    (sentence,) = refusal.value.faults
    if overrides:
        return
    command = f"Score it: `{sentence.partition('a model: `')[2]}"
    typed("evaluate", *evaluate_overrides(command), "evaluate.speed=false", "evaluate.metrics=[answer_match]")
    assert store.register().decision.promote


def test_another_ruler_of_a_metric_that_the_policy_does_not_name_is_no_obstacle(store):  # noqa: F811
    rows = store.score(3, 7)
    remark(store, store.variants[1], rows, chrf="another")
    assert store.register().decision.promote


def test_a_variant_that_answered_nothing_is_refused_whatever_its_score(store):  # noqa: F811
    rows = store.score(3)
    count = len(rows.rows)
    silent = replace(card_of(rows, [1.0] * count, [""] * count), errors=["ValueError: no such role"] * count)
    write_card(store.variants[1], rows, silent)
    write_card(store.variants[2], rows, card_of(rows, [1.0] * count, [" \u200b"] * count))
    outcome = store.register()
    assert outcome.champion_model_id == store.variants[0].model_id
    assert outcome.ranking.refused == {
        store.variants[1].model_id: ["it answered none of 64 rows (ValueError: no such role)"],
        store.variants[2].model_id: ["it answered none of 64 rows (every answer is empty)"],
    }
    # Both have the same name: neither is lost.
    assert len(store.report()[1]["refused"]) == 2
    assert store.report()[2].count("is refused: it answered none of 64 rows") == 2


def test_a_variant_with_too_many_errors_is_refused(store):  # noqa: F811
    rows = store.score(3)
    count = len(rows.rows)
    card = card_of(rows, [1.0] * count, ["yes"] * (count - 11) + [""] * 11)
    write_card(store.variants[1], rows, replace(card, errors=[None] * (count - 11) + ["out of memory"] * 11))
    assert store.register().champion_model_id == store.variants[0].model_id
    assert "11 rows have an error, more than promotion.max_errors=10: out of memory" in store.report()[2]
    assert store.register("promotion.max_errors=11").champion_model_id == store.variants[1].model_id


def test_a_champion_that_answers_nothing_on_a_new_prompt_set_is_replaced(store):  # noqa: F811
    store.score(3, 7)
    store.register()
    write_prompt_set(store.path, "other")
    rows = store.score(3)
    count = len(rows.rows)
    write_card(store.variants[1], rows, card_of(rows, [1.0] * count, [""] * count))
    assert store.register().champion_model_id == store.variants[0].model_id
    assert "no longer meets the policy: it answered none of 64 rows" in store.report()[1]["decision"]["reason"]


def test_a_champion_whose_run_was_deleted_does_not_stop_a_promotion_on_a_new_prompt_set(store):  # noqa: F811
    store.score(3, 7)
    store.register()
    champion = store.variants[1]
    store.client.delete_run(champion.run_id)
    write_prompt_set(store.path, "other")
    store.score(3)
    assert store.register().champion_model_id == store.variants[0].model_id
    reason = store.report()[1]["decision"]["reason"]
    assert f"its run {champion.run_id} was deleted (`mlflow runs restore --run-id {champion.run_id}`" in reason


def test_evaluating_a_deleted_run_names_the_command_that_restores_it(store, typed):  # noqa: F811
    run_id = store.variants[0].run_id
    store.client.delete_run(run_id)
    done = typed("evaluate", f"run_id={run_id}", *store.overrides[1:])
    assert done.stderr == (
        f"error: The run {run_id} was deleted: `mlflow runs restore --run-id {run_id}` brings it back.\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [[], ["dry_run=true"]], ids=["rollback", "dry run"])
def test_a_rollback_to_a_deleted_model_names_it_and_a_command_that_works(store, typed, overrides):  # noqa: F811
    for scores in ((3,), (3, 5), (3, 5, 7)):
        store.score(*scores)
        store.register()
    previous = store.registry.version("2").model_id
    store.client.delete_logged_model(previous)
    done = typed("register", "action=rollback", *store.overrides, *overrides)
    assert done.returncode == 1
    assert f"version 2 of phi3: its model {previous} was deleted from sqlite:///" in done.stderr
    assert "`python -m steps.register action=rollback registered_model=phi3 version=1`" in done.stderr
    assert typed("register", "action=rollback", "version=1", *store.overrides).returncode == 0
    assert store.registry.aliases["champion"] == "1"


def sample(card, temperature=0.0):
    rows = make_prompt_set(*[str(number) for number in range(len(card.ids))])
    return [(row.id, before) for row, before in smoke._sample(make_variant(temperature=temperature), rows, card, 8)]


def test_the_smoke_test_asks_rows_even_if_no_recorded_answer_can_be_repeated(monkeypatch):
    rows = make_prompt_set("0", "1", "2")
    card = card_of(rows, [1.0] * 3, ["yes", "", " "])
    assert sample(card) == [("row-0", "yes")]
    assert sample(card, temperature=1.0) == [("row-0", None)]
    monkeypatch.setattr(smoke, "context_check", lambda *_: ContextCheck(too_long={0: "too long."}))
    silent = card_of(rows, [1.0] * 3, ["", "", ""])
    assert sample(silent) == [("row-1", None), ("row-2", None)]
    monkeypatch.setattr(smoke, "context_check", lambda *_: ContextCheck(too_long=dict.fromkeys(range(3), "too long.")))
    with pytest.raises(StepError, match=r"none of the 3 rows of set can be asked \(too long\)"):
        sample(silent)


class Silent:
    """Asks a model whose answers are these, in turn."""

    def __init__(self, *texts):
        self._texts = iter(texts)

    def ask(self, questions):
        return [type("Reply", (), {"texts": [next(self._texts)]}) for _ in questions]


def test_an_empty_answer_fails_the_smoke_test():
    rows = [(row, None) for row in make_prompt_set("a", "b").rows]
    greedy, sampled = make_variant(), make_variant(temperature=1.0)
    assert "1 of 2 rows got an empty answer: row-b" in smoke._answer_fault(Silent("x", " "), greedy, rows)
    assert smoke._answer_fault(Silent("x", " "), sampled, rows) is None
    assert "2 of 2 rows got an empty answer" in smoke._answer_fault(Silent("", " "), sampled, rows)
    assert Promotion().max_errors == 10

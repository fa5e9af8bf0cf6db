"""Register as a user sees it: which variants compete, refusals and their reasons, report, history, rollback."""

import math
import os
import shlex
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
from filelock import FileLock
from mlflow.utils.file_utils import local_file_uri_to_path

from steps import command_line, register
from steps.config.schema import EvaluateConfig, Evaluation
from steps.errors import StepError
from steps.evaluate import evaluate
from steps.evaluation import prompt_set, scorecard
from steps.evaluation.report import state
from steps.promotion import lock, registry
from steps.promotion.job import Job
from steps.promotion.missing_scorecard import find_missing
from steps.promotion.promote import assess
from steps.store import integrity, names
from steps.store.names import metric_key
from steps.store.variants import find_variants
from tests.promotion.store import card_of, copied, write_card, write_prompt_set, write_scorecard


class Store:
    """A copy of the store with eight variants, and a prompt set on which none is scored."""

    def __init__(self, built, folder):
        self.address = copied(built, folder)
        # The workers share the variants, and with them the folder of scorecards: each has a prompt set of its own.
        worker = os.environ.get("PYTEST_XDIST_WORKER", "")
        self.path = write_prompt_set(folder / "rows.jsonl", f"register {worker}")
        self.overrides = ["promotion.smoke=false", "prompt_set.name=made", f"prompt_set.path={self.path}"]

    @property
    def client(self):
        return mlflow.MlflowClient()

    @property
    def config(self):
        return command_line.compose("register", self.overrides)

    @property
    def rows(self):
        return prompt_set.load(self.config.prompt_set)

    @property
    def variants(self):
        return find_variants(self.client, "0")

    def score(self, *eighths):
        """Give the first variants scorecards."""
        rows = self.rows
        for variant, right in zip(self.variants, eighths, strict=False):
            write_scorecard(variant, rows, right)
        return rows

    def register(self, *overrides):
        return register.register(command_line.compose("register", [*self.overrides, *overrides]))

    def report(self):
        """Return the last run and its report."""
        run = self.client.search_runs(["0"], order_by=["attributes.start_time DESC"])[0]
        uri = run.info.artifact_uri
        return (
            run,
            mlflow.artifacts.load_dict(f"{uri}/promotion.json"),
            mlflow.artifacts.load_text(f"{uri}/promotion.md"),
        )

    @property
    def registry(self):
        return registry.read(self.client, "phi3")


@pytest.fixture
def store(built, tmp_path, monkeypatch):
    store = Store(built, tmp_path / "copy")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.address)
    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    return store


def test_the_report_and_the_version_record_the_decision_and_its_reason(store):
    rows = store.score(3, 7, 5)
    store.register()
    run, content, text = store.report()
    assert [row["variant"] for row in content["ranking"]] == [f"onnx-int4-chat-max{n}" for n in (13, 14, 12)]
    assert [row["score"] for row in content["ranking"]] == [7 / 8, 5 / 8, 3 / 8]
    assert [row["verdict"] for row in content["ranking"]] == ["superior", "inferior", "inferior"]
    assert content["policy"]["unmeasured"] == ["throughput", "latency", "memory"]
    assert content["decision"]["promoted"]
    assert content["champion_version"] == "1"
    assert content["challenger_version"] == "2"
    assert run.data.tags["phi3.action"] == "promote"
    assert run.data.tags["phi3.champion_version"] == "1"
    assert "| 1 | onnx-int4-chat-max13 | 0.8750 |" in text
    assert "python -m steps.register registered_model=phi3 action=rollback" in text
    version = store.client.get_model_version("phi3", "1")
    tags, best = version.tags, store.variants[1]
    assert tags["phi3.fingerprint"] == best.tags["phi3.fingerprint"]
    assert tags["phi3.scores"].startswith("answer_match/mean=0.875, size/bytes=")
    # What a person searches by is a tag; where it comes from stands in the description.
    (change,) = [tag for tag in tags if tag.startswith("phi3.champion.")]
    described = {"variant", "reason", "scores", "fingerprint", "model_id", "reference"}
    assert set(tags) == {*(f"phi3.{name}" for name in described), change}
    for detail in (rows.sha256, run.info.run_id, "replaced version: none", "policy quality", "git commit `"):
        assert detail in version.description
    assert (
        "there was no champion; onnx-int4-chat-max13 has the highest score, answer_match 0.8750" in version.description
    )


def test_a_better_candidate_replaces_the_champion_and_the_interval_is_reported(store):
    store.score(3, 5)
    store.register()
    store.score(3, 5, 7)
    store.register()
    _, content, text = store.report()
    gap = content["decision"]["difference"]
    assert gap["mean"] == 0.25
    assert 0 < gap["low"] < gap["mean"] < gap["high"]
    assert "Candidate minus champion: +0.2500 (" in text
    assert store.registry.aliases == {"champion": "3", "challenger": "1"}
    assert "replaced version: 1\n" in store.client.get_model_version("phi3", "3").description


def test_a_second_register_changes_nothing(store, capsys):
    store.score(3, 5)
    store.register()
    before = store.registry
    store.register()
    assert store.registry == before
    assert (
        "Nothing changes: the champion onnx-int4-chat-max13 is already the best: answer_match 0.6250."
        in capsys.readouterr().out
    )


def test_a_twin_of_the_champion_is_not_registered_again(store):
    store.score(3, 5)
    store.register()
    fingerprint = store.variants[1].tags["phi3.fingerprint"]
    store.score(3, 5, 7)
    store.client.set_logged_model_tags(store.variants[2].model_id, {"phi3.fingerprint": fingerprint})
    outcome = store.register()
    assert not outcome.decision.promote
    assert len(store.registry.versions) == 2


def test_a_changed_prompt_set_is_refused(store):
    store.score(3, 5)
    write_prompt_set(store.path, "changed")
    with pytest.raises(StepError, match=r"No variant has a scorecard for made .* made has changed since"):
        store.register()
    assert store.registry.versions == ()


def test_nothing_is_promoted_if_all_versions_are_rejected(store):
    store.score(3, 5)
    store.register()
    for version in store.registry.versions:
        store.client.set_model_version_tag("phi3", version.number, names.REJECTED, "for a test")
    store.client.delete_registered_model_alias("phi3", names.CHAMPION)
    with pytest.raises(StepError, match=r"No scored candidate is left .*retry_rejected=true"):
        store.register()
    assert store.register("promotion.retry_rejected=true").version == "1"


def test_an_empty_prompt_set_is_refused(store):
    store.path.write_text("")
    with pytest.raises(StepError, match="it holds no row"):
        store.register()


def test_a_variant_with_an_unusable_scorecard_is_refused_with_the_reason(store):
    rows = store.score(7, 7, 7, 7, 3)
    unlogged, unread, other, left, _ = store.variants[:5]
    write_card(unlogged, rows, replace(scorecard.read(unlogged, rows.sha256), metrics={"answer_match/mean": math.nan}))
    folder = local_file_uri_to_path(store.client.get_run(unread.run_id).info.artifact_uri)
    Path(folder, scorecard.file(rows.sha256)).unlink()
    card = scorecard.read(other, rows.sha256)
    write_card(other, rows, replace(card, ids=card.ids[::-1]))
    store.client.delete_logged_model_tag(left.model_id, scorecard.tag(rows.sha256))
    outcome = store.register()
    assert [candidate.model_id for candidate in outcome.ranking.ranked] == [store.variants[4].model_id]
    refused = outcome.ranking.refused
    assert refused[unlogged.model_id] == ["answer_match is 0, and 0.875 over its rows"]
    assert "cannot be read" in refused[unread.model_id][0]
    assert refused[other.model_id] == ["its scorecard is of other rows"]
    assert left.model_id not in refused
    assert f"{left.name} has no scorecard for these rows" in store.report()[1]["left_out"]


def test_a_skipped_row_counts_as_not_answered(store):
    rows = store.score(3)
    half = len(rows.rows) // 2
    write_card(store.variants[1], rows, card_of(rows, [1.0] * half + [None] * half, ["yes"] * 2 * half))
    outcome = store.register()
    assert store.registry.champion.model_id == store.variants[1].model_id
    assert outcome.ranking.ranked[0].metrics["answer_match/mean"] == 0.5


def test_all_broken_limits_are_reported_together(store):
    store.score(3, 5)
    with pytest.raises(StepError) as refusal:
        store.register("++promotion.limits={answer_match: {min: 0.9}, bytes: {max: 10}}")
    refused = [fault for fault in refusal.value.faults if " is below " in fault and " is above " in fault]
    assert len(refused) == 2
    assert "answer_match 0.375 is below 0.9, bytes " in refusal.value.faults[1]
    assert store.registry.versions == ()


@pytest.fixture
def broken(monkeypatch):
    """Ids of the models whose files count as changed: add to it."""
    ids, verify = set(), integrity.verify
    monkeypatch.setattr(
        integrity,
        "verify",
        lambda client, variant: ["model.onnx was changed"] if variant.model_id in ids else verify(client, variant),
    )
    return ids


def test_a_broken_model_is_replaced_by_the_next_candidate(store, broken):
    store.score(3, 7, 5)
    low, best, middle = (variant.model_id for variant in store.variants[:3])
    broken.add(best)
    store.register()
    assert store.registry.champion.model_id == middle
    assert store.registry.challenger.model_id == low
    (left_out,) = store.report()[1]["left_out"][:1]
    assert "is refused: model.onnx was changed. Build and evaluate it again, or delete it: `python -c" in left_out
    broken |= {low, middle}
    with pytest.raises(StepError, match="No scored candidate is left") as refusal:
        store.register()
    assert len([fault for fault in refusal.value.faults if "is refused: model.onnx was changed" in fault]) == 3


@pytest.mark.parametrize("loss", ["broken", "deleted"])
def test_a_broken_or_deleted_champion_is_replaced_with_the_reason(store, broken, loss):
    store.score(3, 7, 5)
    store.register()
    champion = store.registry.champion
    if loss == "broken":
        broken.add(champion.model_id)
    else:
        store.client.delete_logged_model(champion.model_id)
    store.register()
    assert store.registry.champion.model_id == store.variants[2 if loss == "broken" else 1].model_id
    reason = {
        "broken": "the champion onnx-int4-chat-max13 (version 1) is broken: model.onnx was changed; ",
        "deleted": "the model of the champion (version 1) was deleted; onnx-int4-chat-max14 has the highest score",
    }[loss]
    assert store.report()[1]["decision"]["reason"].startswith(reason)
    assert "replaced version: 1\n" in store.registry.champion.description


def test_a_broken_challenger_does_not_prevent_a_promotion(store, broken):
    store.score(7, 5)
    broken.add(store.variants[1].model_id)
    store.register()
    assert store.registry.aliases == {"champion": "1"}
    assert store.report()[0].info.status == "FINISHED"


def test_a_version_made_from_another_model_is_ignored(store, tmp_path):
    """Anyone can write a tag. Otherwise a tag alone could promote another model."""
    store.score(3, 7)
    best = store.variants[1]
    mlflow.register_model(store.variants[2].uri, "phi3", tags={names.MODEL_ID: best.model_id, names.FINGERPRINT: "f"})
    store.register()
    champion = store.client.get_model_version_by_alias("phi3", "champion")
    assert champion.source == best.uri
    assert champion.version != "1"


def test_a_duplicate_version_that_a_kill_left_is_deleted(store):
    store.score(3, 7)
    best = store.variants[1]
    for _ in range(2):
        mlflow.register_model(best.uri, "phi3", tags={names.MODEL_ID: best.model_id, names.FINGERPRINT: "f"})
    store.register()
    assert [version.model_id for version in store.registry.versions].count(best.model_id) == 1
    assert store.registry.champion.model_id == best.model_id


def test_building_a_rejected_variant_again_does_not_admit_it(store):
    store.score(3, 5)
    store.register()
    fingerprint = store.variants[1].tags["phi3.fingerprint"]
    store.score(3, 5, 4)
    store.client.set_registered_model_alias("phi3", "champion", "2")
    store.client.set_model_version_tag("phi3", "1", names.REJECTED, "for a test")
    store.client.set_logged_model_tags(store.variants[2].model_id, {"phi3.fingerprint": fingerprint})
    assert not store.register().decision.promote
    assert store.registry.champion.number == "2"


def test_a_cost_that_was_not_measured_does_not_win(store):
    """MLflow stores a NaN on a model as 0."""
    rows = store.score(7, 7)
    for variant, latency in zip(store.variants, (5.0, math.nan), strict=False):
        store.client.log_metric(
            variant.run_id,
            "speed/latency_p95_ms",
            latency,
            model_id=variant.model_id,
            dataset_digest=rows.sha256[:16],
            dataset_name="made",
        )
    outcome = store.register("promotion.prefer=[latency]")
    assert outcome.champion_model_id == store.variants[0].model_id
    assert outcome.ranking.refused[store.variants[1].model_id] == ["latency is 0, so it was not measured"]


@pytest.mark.slow
def test_a_rollback_works_after_the_replaced_model_was_deleted(store, typed):
    store.score(3, 5)
    store.register()
    store.score(3, 5, 7)
    store.register()
    store.client.delete_logged_model(store.registry.champion.model_id)
    done = typed("register", "action=rollback", *store.overrides)
    assert done.returncode == 0, done.stderr
    assert store.registry.aliases["champion"] == "1"
    assert store.report()[1]["decision"]["difference"] is None


def evaluate_overrides(sentence):
    """Return the overrides of the evaluate command that a sentence tells the user to run."""
    command = shlex.split(sentence.partition("Score it: `")[2].partition("`")[0])
    assert command[:3] == ["python", "-m", "steps.evaluate"]
    return command[3:]


@pytest.fixture
def unscored(store):
    """The champion has no scorecard on the store's prompt set, and a better variant has one."""
    store.score(3, 5)
    store.register()
    write_prompt_set(store.path, "other")
    store.score(7)
    return store.variants[1]


@pytest.mark.parametrize("overrides", [[], ["dry_run=true"]], ids=["promotion", "dry run"])
def test_register_refuses_an_unscored_champion_and_names_the_command_that_scores_it(store, unscored, overrides):
    runs, before = len(store.client.search_runs(["0"])), store.registry
    with pytest.raises(StepError) as refusal:
        store.register(*overrides)
    assert refusal.value.faults == (
        f"{unscored.name} is the champion (version 1) and has no scorecard on made. Score it: "
        f"`python -m steps.evaluate run_id={unscored.run_id} prompt_set.name=made prompt_set.path={store.path}`",
    )
    assert store.registry == before
    # A failed register leaves its run, a dry run leaves nothing; neither scores anything.
    assert len(store.client.search_runs(["0"])) == runs + (not overrides)
    assert scorecard.metrics_of(store.variants[1], store.rows.sha256) is None


def test_the_named_command_makes_register_succeed(store, unscored, typed):
    with pytest.raises(StepError) as refusal:
        store.register()
    done = typed("evaluate", *evaluate_overrides(str(refusal.value)), "evaluate.speed=false")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Scored ") == 1
    outcome = store.register()
    assert unscored.model_id in [candidate.model_id for candidate in outcome.ranking.ranked]
    assert outcome.decision.promote
    assert register.missing_scorecards(store.client, store.config, store.rows) == []


def test_the_main_jobs_steps_score_the_champion_and_then_promote(store, unscored):
    """What steps/main.py does between its own evaluation and its leaderboard."""
    config, rows = store.config, store.rows
    (missing,) = register.missing_scorecards(store.client, config, rows)
    evaluation = command_line.compose("evaluate", [*store.overrides[1:], "evaluate.speed=false"])
    assert missing.evaluation(evaluation) == replace(evaluation, run_id=unscored.run_id)
    evaluate(missing.evaluation(evaluation), rows)
    assert register.missing_scorecards(store.client, config, rows) == []
    outcome = register.register(config, rows)
    assert outcome.decision.promote
    assert set(outcome.standing.ranked) == {variant.model_id for variant in store.variants[:2]}
    assert outcome.standing.ranked[0] == outcome.standing.champion_model_id == store.variants[0].model_id
    assert outcome.standing.champion_version == store.registry.champion.number


def test_the_reference_is_asked_again_if_the_rows_change(store):
    store.score(3, 5)
    store.register()
    store.score(3, 5, 7)
    store.register()
    store.register("action=rollback")
    write_prompt_set(store.path, "other")
    rows, best = store.score(3, 5), store.variants[2]
    config = store.config
    assessment = assess(Job(store.client, config, rows))
    assert assessment.contest.reference.unscored == (
        f"{best.name} is the best champion on earlier rows of made and has no scorecard on made. Score it: "
        f"`python -m steps.evaluate run_id={best.run_id} prompt_set.name=made prompt_set.path={store.path}`"
    )
    # What the main job does with it: this variant is evaluated, and then it is the reference on the new rows.
    (missing,) = register.missing_scorecards(store.client, config, rows)
    assert missing.variant.model_id == best.model_id
    write_scorecard(best, rows, 4)
    assert register.missing_scorecards(store.client, config, rows) == []
    reference = assess(Job(store.client, config, rows)).contest.reference
    assert (reference.unscored, reference.score) == (None, 5 / 8)


@pytest.mark.parametrize("loss", ["model", "run", "file"])
def test_a_reference_that_is_lost_is_not_asked_again(store, broken, loss):
    store.score(3, 5)
    store.register()
    write_prompt_set(store.path, "other")
    rows, best = store.score(3), store.variants[1]
    if loss == "model":
        store.client.delete_logged_model(best.model_id)
    elif loss == "run":
        store.client.delete_run(best.run_id)
    else:
        broken.add(best.model_id)
    assert register.missing_scorecards(store.client, store.config, rows) == []


@pytest.mark.slow
def test_an_untimed_champion_is_refused_if_the_policy_asks_for_its_speed(store, unscored, typed):
    """Speed that was measured on another prompt set does not count."""
    rows, other = store.rows, store.variants[0]
    for sha256, variant in ((rows.sha256, other), ("0" * 64, unscored)):
        digest = {"dataset_name": "made", "dataset_digest": sha256[:16]}
        store.client.log_metric(variant.run_id, metric_key("latency"), 5.0, model_id=variant.model_id, **digest)
    write_scorecard(unscored, rows, 5)
    with pytest.raises(StepError, match=r"version 1\) and its scorecard on made has no latency\. Score it") as refusal:
        store.register("promotion.prefer=[latency]")
    done = typed("evaluate", *evaluate_overrides(str(refusal.value)), "evaluate.speed_seconds=0")
    assert done.returncode == 0, done.stderr
    outcome = store.register("promotion.prefer=[latency]")
    assert unscored.model_id in [candidate.model_id for candidate in outcome.ranking.ranked]
    assert state.is_timed(store.variants[1], rows)


@pytest.mark.slow
def test_a_lone_untimed_champion_is_refused_and_a_metric_that_nothing_measures_is_unknown(store, typed):
    store.score(3)
    store.register()
    with pytest.raises(StepError, match="and its scorecard on made has no latency") as refusal:
        store.register("promotion.prefer=[latency]")
    done = typed("evaluate", *evaluate_overrides(str(refusal.value)), "evaluate.speed_seconds=0")
    assert done.returncode == 0, done.stderr
    store.register("promotion.prefer=[latency]")
    # To evaluate it once more would not help.
    with pytest.raises(StepError, match=r"^promotion.prefer: Unknown metric 'speed/warp'"):
        store.register("promotion.prefer=[speed/warp]")


def test_a_champion_that_lacks_what_no_evaluation_adds_cannot_be_compared(store):
    rows = store.score(3, 5)
    store.register()
    for variant, name in zip(store.variants, ("memory/gpu_peak_mb", "memory/peak_mb"), strict=False):
        digest = {"dataset_name": "made", "dataset_digest": rows.sha256[:16]}
        store.client.log_metric(variant.run_id, name, 5.0, model_id=variant.model_id, **digest)
    with pytest.raises(StepError) as refusal:
        store.register("promotion.prefer=[memory/gpu_peak_mb]")
    assert refusal.value.faults == (
        "onnx-int4-chat-max13 is the champion (version 1) and cannot be compared: it has no memory/gpu_peak_mb.",
    )


def test_the_command_carries_the_prompt_set_and_the_policys_metrics(store):
    settings = [
        "promotion.metric=bertscore",
        "promotion.limits={chrf: {min: 0}, rouge/rouge1: {min: 0}, contract: {min: 0}, latency: {max: 9}}",
    ]
    overrides = ["prompt_set=dataset", "prompt_set.path=my rows.csv", "prompt_set.columns.target=answer"]
    overrides += ["prompt_set.columns.tags=null", "prompt_set.subset=a", "prompt_set.metrics=[instruction_match]"]
    words = command_line.parse([*overrides, *settings])[1]
    config = command_line.compose("register", words)
    missing = find_missing(store.variants[0], None, "the champion", config.prompt_set, "rows", config.promotion)
    run_id, *carried, metrics = evaluate_overrides(missing.sentence)
    assert run_id == f"run_id={store.variants[0].run_id}"
    assert metrics == "evaluate.metrics=[answer_match,exact_match,token_f1,rouge_l,chrf,bertscore,rouge]"
    assert command_line.compose("evaluate", command_line.parse(carried)[1]).prompt_set == config.prompt_set
    evaluation = missing.evaluation(EvaluateConfig(config.prompt_set, Evaluation(metrics=["chrf"], speed=False)))
    assert evaluation.evaluate.metrics == ["chrf", "bertscore", "rouge"]
    assert evaluation.evaluate.speed


@pytest.mark.slow
def test_a_rollback_refuses_an_unscored_version_and_names_the_command_that_scores_it(store, typed):
    store.score(3, 5)
    store.register()
    store.score(3, 5, 7)
    store.register()
    write_prompt_set(store.path, "other")
    done = typed("register", "action=rollback", *store.overrides)
    assert done.returncode == 1
    assert done.stderr.startswith(
        "error: onnx-int4-chat-max13 is version 1 of phi3 and has no scorecard on made. Score it: `"
    )
    assert store.registry.aliases["champion"] == "3"
    scoring = typed("evaluate", *evaluate_overrides(done.stderr), "evaluate.speed=false")
    assert scoring.returncode == 0, scoring.stderr
    assert typed("register", "action=rollback", *store.overrides).returncode == 0
    assert store.registry.aliases["champion"] == "1"


def test_there_is_no_missing_scorecard_without_an_intact_champion(store, broken):
    store.score(3, 5)
    config, rows = store.config, store.rows
    assert register.missing_scorecards(store.client, config, rows) == []
    store.register()
    write_prompt_set(store.path, "other")
    (missing,) = register.missing_scorecards(store.client, config, store.rows)
    assert missing.variant.model_id == store.variants[1].model_id
    broken.add(store.variants[1].model_id)
    assert register.missing_scorecards(store.client, config, store.rows) == []
    store.client.delete_logged_model(store.variants[1].model_id)
    assert register.missing_scorecards(store.client, config, store.rows) == []


def test_history_and_rollback(store, typed):
    store.score(3, 5)
    store.register()
    store.score(3, 5, 7)
    store.register()
    store.score(3, 5, 7, 8)
    store.register()
    assert store.registry.aliases["champion"] == "4"
    lines = typed("register", "action=history").stdout.splitlines()[-3:]
    assert [line.partition("version ")[2][0] for line in lines] == ["1", "3", "4"]
    assert (
        "instead of version 1: onnx-int4-chat-max14 is superior to the champion onnx-int4-chat-max13: answer"
        in lines[1]
    )

    done = typed("register", "action=rollback", *store.overrides)
    assert done.stdout == "Rolled back to onnx-int4-chat-max14: phi3@champion is version 3, no longer 4.\n"
    run, content, text = store.report()
    assert run.data.tags["phi3.action"] == "rollback"
    assert content["decision"]["difference"]["mean"] == -0.125
    assert "# phi3: rolled back from version 4 on request" in text
    # The version that was replaced is not promoted again by itself.
    assert not store.register().decision.promote
    assert store.registry.version("4").rejected == "rolled back to version 3"

    typed("register", "action=rollback", *store.overrides)
    assert store.registry.aliases["champion"] == "1"
    done = typed("register", "action=rollback", *store.overrides)
    assert done.stderr.startswith("error: No version was champion before version 1. Give one: -P version=")
    done = typed("register", "action=rollback", "version=4", "dry_run=true", *store.overrides)
    assert done.stdout == "Dry run: would roll back to version 4.\n"
    typed("register", "action=rollback", "version=4", *store.overrides)
    assert store.registry.aliases["champion"] == "4"
    assert store.registry.version("4").rejected is None
    assert [line.count("rolled back to") for line in typed("register", "action=history").stdout.splitlines()][-1] == 1


REFUSED = {
    "no champion": (["registered_model=none"], "none has no champion, so there is nothing to roll back."),
    "unknown": (["version=9"], "version must be a version of phi3 (1, 2, 3), got 9."),
    "itself": (["version=3"], "Version 3 is the champion already."),
    "beyond the limits": (
        ["promotion.limits={answer_match: {min: 0.7}}"],
        "Cannot roll back to version 1 (onnx-int4-chat-max13): answer_match 0.625 is below 0.7",
    ),
    "history with a version": (
        ["action=history", "version=1"],
        "version needs action=rollback, got version=1 with action=history.",
    ),
    "action": (["action=promot"], "action must be one of promote, history, rollback, got 'promot'."),
}


@pytest.mark.slow
def test_an_impossible_rollback_is_refused_with_the_reason(store, typed):
    store.score(3, 5)
    store.register()
    store.score(3, 5, 7)
    store.register()
    for words, sentence in REFUSED.values():
        done = typed("register", "action=rollback", *store.overrides, *words)
        assert done.returncode == 1
        assert done.stderr.startswith(f"error: {sentence}"), done.stderr
    assert store.registry.aliases["champion"] == "3"


def test_with_a_sqlite_store_one_register_runs_at_a_time(store):
    store.score(3, 5)
    with (
        FileLock(lock.file("phi3")),
        pytest.raises(StepError, match=r"Another register of phi3 has held .*lock for more"),
    ):
        store.register("promotion.lock_seconds=0")
    assert store.registry.versions == ()
    store.register("promotion.lock_seconds=0")
    assert store.registry.aliases == {"champion": "1", "challenger": "2"}

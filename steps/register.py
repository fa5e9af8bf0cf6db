"""Promote the best variant: register its model and give it the alias `champion`; tell the history; roll back.

    python -m steps.register dry_run=true
    mlflow run . -e register -P promotion.metric=chrf
    mlflow run . -e register -P action=history
    mlflow run . -e register -P action=rollback

Reads conf/register.yaml and the scorecards of the experiment's variants; writes a registered version, its tags and
description, the aliases, and promotion.md and promotion.json on its own run. Whatever it is killed at, the alias
names a version that is whole and was smoked, and the next start goes on from there.
"""

from dataclasses import dataclass
from typing import Any

from steps import command_line
from steps.config.schema import RegisterConfig
from steps.errors import StepError
from steps.evaluation import prompt_set
from steps.output import echo
from steps.promotion import candidates, gate, history, lock, registry, report, rollback
from steps.promotion.admission import Job, Rejected, admit, crown, faults, refusal, registered
from steps.promotion.candidates import Field
from steps.promotion.gate import Decision
from steps.promotion.rank import Candidate, Ranking, rank
from steps.promotion.registry import CHALLENGER, Registry
from steps.store import runs

# Without a lock: how often to look again and repair what others wrote meanwhile.
ROUNDS = 10


@dataclass(frozen=True)
class Outcome:
    """What register found and did: the champion now is `version` of the registered model."""

    ranking: Ranking
    decision: Decision
    version: str | None
    champion_model_id: str | None


@dataclass(frozen=True)
class Survey:
    """Everything that a decision rests on, read at one moment, and the decision."""

    registry: Registry
    field: Field
    ranking: Ranking
    decision: Decision

    @property
    def best(self) -> Candidate:
        return self.ranking.ranked[0]


def register(config: RegisterConfig) -> Outcome | None:
    """Do what `action` says; returns the outcome of a promotion."""
    import mlflow

    client = mlflow.MlflowClient()
    if config.action == "history":
        return tell_history(client, config)
    if config.action == "rollback":
        return rollback.rollback(client, config)
    return promote(client, config)


def promote(client: Any, config: RegisterConfig) -> Outcome:
    """Rank, decide, and unless `dry_run` smoke and promote; one register of a name at a time where there is a lock."""
    rows = prompt_set.load(config.prompt_set)
    if config.dry_run:
        found = survey(client, config, rows, {})
        verdict = f"would promote {found.best.name}" if found.decision.promote else "nothing would change"
        echo(f"Dry run: {verdict}: {found.decision.reason}.")
        return _outcome(found, found.registry)
    with (
        lock.held(config.registered_model, config.promotion.lock_seconds) as alone,
        runs.start(f"register-{config.registered_model}") as active,
    ):
        job = Job(client, config, rows, active.info.run_id)
        found, now = _settle(job, alone)
        _log(job, found, now, found.decision)
    done = f"Promoted {found.best.name} to {config.registered_model}@champion (version {now.champion.number})"
    echo(f"{done if found.decision.promote else 'Nothing changes'}: {found.decision.reason}.")
    for sentence in found.field.left_out:
        echo(f"Left out: {sentence}.")
    return _outcome(found, now)


def survey(client: Any, config: RegisterConfig, rows: prompt_set.PromptSet, checked: dict[str, list[str]]) -> Survey:
    """Read the registry and the candidates, rank them, decide; raises StepError where nobody can be promoted.

    The files of the best are read (`checked` has what was found): one that is broken leaves its place to the next.
    """
    known = registry.read(client, config.registered_model)
    while True:
        field = candidates.gather(client, config, rows, known, checked)
        ranking = rank(field.candidates, config.promotion)
        if not ranking.ranked:
            refused = [f"{field.of(model_id).name}: {', '.join(why)}." for model_id, why in ranking.refused.items()]
            raise StepError("No variant is within the limits of the promotion policy:", *refused)
        if not faults(client, field.variants[ranking.ranked[0].model_id], checked):
            decision = gate.decide(ranking, field.champion, config.promotion, field.vacant)
            return Survey(known, field, ranking, decision)


def tell_history(client: Any, config: RegisterConfig) -> None:
    """Say who was champion when, and why."""
    found = history.lines(registry.read(client, config.registered_model))
    for line in found or [f"{config.registered_model} has had no champion yet."]:
        echo(line)


def _settle(job: Job, alone: bool) -> tuple[Survey, Registry]:
    """Promote, and name the challenger; without a lock look again until nothing is left to write."""
    acted = None
    for _ in range(ROUNDS):
        found = survey(job.client, job.config, job.rows, job.checked)
        now = found.registry
        if found.decision.promote:
            now, acted = _promote(job, found), found
        wrote = _name_challenger(job, found, now) or found.decision.promote
        if alone or not wrote:
            now = registry.read(job.client, now.name) if wrote else now
            return acted if acted and _is_champion(now, acted.best) else found, now
    raise StepError(
        f"Others keep changing {job.config.registered_model} at the same time: nothing was settled in {ROUNDS} rounds. "
        "Run register again when they are done."
    )


def _is_champion(now: Registry, candidate: Candidate) -> bool:
    """Whether it is champion still: without a lock a better one may have come since."""
    return now.champion is not None and now.champion.model_id == candidate.model_id


def _promote(job: Job, found: Survey) -> Registry:
    """Register the best, smoke it, move the alias; returns the registry after that."""
    variant = found.field.variants[found.best.model_id]
    version = registered(job, found.registry, found.best, found.decision.reason)
    try:
        admit(job, found.registry, version, variant)
    except Rejected as rejection:
        _log(job, found, found.registry, Decision(False, str(rejection).rstrip("."), found.decision.difference))
        raise
    crown(job, found.registry, version, found.best, found.decision.reason)
    return registry.read(job.client, found.registry.name)


def _name_challenger(job: Job, found: Survey, now: Registry) -> bool:
    """Have the alias `challenger` name the best that is not champion; returns whether that was news."""
    others = [entry for entry in found.ranking.ranked if now.champion and entry.model_id != now.champion.model_id]
    version = None
    for candidate in others:
        variant = found.field.variants[candidate.model_id]
        if not now.of_model(candidate.model_id) and (wrong := faults(job.client, variant, job.checked)):
            found.field.left_out.append(refusal(variant, wrong).rstrip("."))
            continue
        reason = f"the best beside the champion (version {now.champion.number})"
        version = registered(job, now, candidate, reason)
        break
    return registry.point(job.client, now, CHALLENGER, version)


def _log(job: Job, found: Survey, now: Registry, decision: Decision) -> None:
    """The report on the run, and its essence as tags."""
    names = {candidate.model_id: candidate.name for candidate in found.field.candidates}
    content = report.as_dict(job.config, job.rows, found.ranking, names, found.field.left_out)
    report.log(content | {"decision": report.decision_dict(decision, found.field.champion, found.best)}, now)


def _outcome(found: Survey, now: Registry) -> Outcome:
    champion = now.champion
    if champion is None:  # a dry run of the first promotion
        return Outcome(found.ranking, found.decision, None, found.best.model_id)
    return Outcome(found.ranking, found.decision, champion.number, champion.model_id)


def main() -> None:
    """Run the step from the command line."""
    command_line.run("register", register)


if __name__ == "__main__":
    main()

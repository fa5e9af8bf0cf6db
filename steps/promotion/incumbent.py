"""The champion before a promotion: the variant that the alias names, and whether it can be compared."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from steps.config.schema import Promotion, RegisterConfig
from steps.evaluation import scorecard
from steps.evaluation.prompt_set import PromptSet
from steps.evaluation.ruler import Ruler
from steps.promotion import candidates, reference, registry, rulers
from steps.promotion.candidate import Candidate
from steps.promotion.gate import NO_CHAMPION
from steps.promotion.job import Job
from steps.promotion.missing_scorecard import MissingScorecard, find_missing
from steps.promotion.registry import Registry, Version
from steps.store import runs
from steps.store.variants import Variant, find_variants, lost_run

if TYPE_CHECKING:
    from mlflow import MlflowClient


@dataclass(frozen=True)
class Incumbent:
    """The variant that the alias `champion` names.

    Attributes:
        variant: None if there is no champion or its model was deleted.
        vacancy: Why it does not compete as the champion; "" if it does.
    """

    variant: Variant | None
    vacancy: str = ""

    @property
    def champion(self) -> Variant | None:
        """Return the variant, if it competes as the champion."""
        return None if self.vacancy else self.variant


def read_incumbent(job: Job, current: Registry) -> Incumbent:
    """Return the variant that is champion, with why it cannot compete if its model or its run is lost or broken."""
    version = current.champion
    if version is None:
        return Incumbent(None, NO_CHAMPION)
    variant = candidates.find_variant(job.client, version.model_id)
    if variant is None:
        return Incumbent(None, f"the model of the champion (version {version.number}) was deleted")
    if faults := job.faults(variant):
        return Incumbent(
            variant, f"the champion {variant.name} (version {version.number}) is broken: {', '.join(faults)}"
        )
    if lost := _unscorable(job, variant):
        return Incumbent(
            variant,
            f"the champion {variant.name} (version {version.number}) has no scorecard on {job.rows.name} and cannot "
            f"get one: {lost}",
        )
    return Incumbent(variant)


def _unscorable(job: Job, champion: Variant) -> str | None:
    """Return why the champion lacks a usable scorecard and no evaluation can make one; None if it can compete."""
    candidate = candidates.scored_candidate(job, champion)
    return lost_run(job.client, champion) if candidate is None or candidate.faults else None


def missing_scorecards(
    client: MlflowClient, config: RegisterConfig, rows: PromptSet, ruler: Ruler | None = None
) -> list[MissingScorecard]:
    """Return what to evaluate before candidates can be compared with the champion and the reference.

    Args:
        client: The store.
        config: What to register.
        rows: The prompt set.
        ruler: What the other variants are scored by, if that is known.

    Returns:
        Nothing for one whose scorecard is usable, or whose model or run was deleted or is broken.
    """
    job = Job(client, config, rows)
    current = registry.read(client, config.registered_model)
    version = current.champion
    champion = candidates.find_variant(client, version.model_id) if version else None
    if version is None or champion is None:
        return []
    variants = [*find_variants(client, runs.experiment_id()), champion]
    policy = candidates.measured_policy(job, variants)
    candidate = candidates.scored_candidate(job, champion)
    missing = missing_in(job, version, champion, candidate, policy)
    if missing is None and ruler and candidate and rulers.differs(job, champion, candidate, ruler):
        missing = missing_in(job, version, champion, None, policy)
    sources = scorecard.sources_of(variants, rows.sha256)
    wanted = filter(None, [missing, missing_reference(job, current, policy)])
    # The files last, because reading all of a model takes long.
    return [
        replace(one, sources=sources)
        for one in {one.variant.model_id: one for one in wanted}.values()
        if not _unscorable(job, one.variant) and not job.faults(one.variant)
    ]


def missing_reference(job: Job, current: Registry, policy: Promotion) -> MissingScorecard | None:
    """Return what the reference on earlier rows of the prompt set lacks on those of now; None if nothing."""
    model_id = reference.before_change(current.versions, job.rows, policy)
    variant = candidates.find_variant(job.client, model_id) if model_id else None
    if variant is None or job.integrity.known_faults(variant) or _unscorable(job, variant):
        return None
    candidate = candidates.scored_candidate(job, variant)
    role = f"the best champion on earlier rows of {job.rows.name}"
    return find_missing(variant, candidate, role, job.config.prompt_set, job.rows.name, policy)


def missing_in(
    job: Job, version: Version, champion: Variant, candidate: Candidate | None, policy: Promotion
) -> MissingScorecard | None:
    """Return what the champion lacks to be compared by the policy; None if nothing."""
    role = f"the champion (version {version.number})"
    return find_missing(champion, candidate, role, job.config.prompt_set, job.rows.name, policy)

"""The contest for champion: the READY variants with a scorecard on the prompt set, and the champion."""

from __future__ import annotations

from dataclasses import dataclass, replace

from steps.config.schema import Promotion
from steps.errors import StepError
from steps.evaluation import partial, scorecard
from steps.interfaces import INTERFACES, get_interface
from steps.promotion import history, reference, rulers
from steps.promotion.candidate import Candidate
from steps.promotion.candidates import find_variant, measured_policy, scored_candidate, to_candidate
from steps.promotion.incumbent import missing_in, missing_reference, read_incumbent
from steps.promotion.job import Job, broken_model
from steps.promotion.missing_scorecard import evaluate_command
from steps.promotion.rank import faults_of, lacking_metrics, policy_faults
from steps.promotion.reference import NO_REFERENCE, Reference
from steps.promotion.registry import Registry
from steps.store import runs
from steps.store.commands import step_command
from steps.store.names import FINGERPRINT, SMOKE, is_timed
from steps.store.variants import Variant, elsewhere, find_variants


@dataclass(frozen=True)
class Contest:
    """Everyone who competes, read at one moment.

    Attributes:
        candidates: The variants that compete, oldest first.
        variants: All variants by model id.
        left_out: A sentence, without its full stop, for each variant that does not compete.
        champion: The candidate that is champion now.
        vacancy: Why there is no champion; "" if there is one.
        policy: The policy, without costs that nobody was timed for.
        reference: The best score of a champion on these rows.
    """

    candidates: list[Candidate]
    variants: dict[str, Variant]
    left_out: list[str]
    champion: Candidate | None
    vacancy: str
    policy: Promotion
    reference: Reference = NO_REFERENCE

    def candidate(self, model_id: str) -> Candidate:
        """Return the candidate with this model."""
        return next(candidate for candidate in self.candidates if candidate.model_id == model_id)


def gather(job: Job, registry: Registry) -> Contest:
    """Read every candidate as it is now.

    Raises:
        StepError: No candidate is left, the policy names a metric that none has, or the champion has no scorecard
            that the policy can use.
    """
    logged = filter(job.competes, find_variants(job.client, runs.experiment_id()))
    variants = {variant.model_id: variant for variant in logged}
    incumbent = read_incumbent(job, registry)
    if incumbent.variant:
        variants.setdefault(incumbent.variant.model_id, incumbent.variant)
    champion_id = incumbent.champion.model_id if incumbent.champion else None
    intact, left_out = _without_broken(job, list(variants.values()))
    if not intact:
        hint = elsewhere(job.client, runs.experiment_id())
        build_one = f"Build one: `{step_command('build')}`."
        raise StepError(f"There is no variant to register in this experiment. {build_one}{hint}", *_sentences(left_out))
    allowed, rejected = _without_rejected(job, intact, registry, champion_id)
    allowed, absent = _without_device(job, allowed, registry, champion_id)
    marked = [variant for variant in allowed if scorecard.metrics_of(variant, job.rows.sha256) is not None]
    scored, foreign = _of_one_interface(job, marked, incumbent.variant)
    policy = measured_policy(job, scored)
    read = {variant.model_id: to_candidate(variant, job.rows, policy) for variant in scored}
    unusable = {model_id for model_id, candidate in read.items() if candidate.faults}
    competing = {
        variant.model_id: read[variant.model_id] for variant in _one_of_each(scored, registry, champion_id, unusable)
    }
    sources = scorecard.sources_of(variants.values(), job.rows.sha256)
    _refuse_incomparable(job, policy, registry, incumbent.champion, competing, sources)
    competing, lost = rulers.without_lost(job, competing, variants)
    left_out += [*rejected, *absent, *foreign, *lost]
    if not competing:
        raise StepError(*_no_candidate(job, allowed, left_out))
    left_out += [_unscored(job, variant) for variant in allowed if variant not in marked]
    champion = competing.get(champion_id) if champion_id else None
    best = _reference(job, registry, policy) if champion else NO_REFERENCE
    return Contest(list(competing.values()), variants, left_out, champion, incumbent.vacancy, policy, best)


def _unscored(job: Job, variant: Variant) -> str:
    mark = partial.mark_of(variant, job.rows)
    if not mark:
        return f"{variant.name} has no scorecard for these rows"
    command = evaluate_command(job.config.prompt_set, (), variant.run_id)
    return f"{variant.name} was stopped early: {partial.extent(mark)}, so it is not compared. Ask the rest: `{command}`"


def _reference(job: Job, registry: Registry, policy: Promotion) -> Reference:
    """Return the best score of the champions so far on these rows."""
    numbers = dict.fromkeys(change.version for change in history.changes(registry))
    models = dict.fromkeys(version.model_id for number in numbers if (version := registry.version(number)))
    variants = [variant for model_id in models if (variant := find_variant(job.client, model_id))]
    champions = [one for variant in variants if (one := scored_candidate(job, variant))]
    usable = [one for one in champions if not faults_of(one, replace(policy, limits={}, prefer=[]))]
    best = reference.choose(usable, registry.versions, job.rows.sha256, policy)
    missing = missing_reference(job, registry, policy)
    return replace(best, unscored=missing.sentence if missing else None)


def _refuse_incomparable(
    job: Job,
    promotion: Promotion,
    registry: Registry,
    champion: Variant | None,
    competing: dict[str, Candidate],
    sources: dict[str, str],
) -> None:
    """Raise StepError if the policy names a metric that no candidate has, or that the champion lacks."""
    version, candidate, missing = registry.champion, None, None
    if champion and version:
        candidate = competing.get(champion.model_id)
        missing = missing_in(job, version, champion, candidate, promotion)
    # If nobody has been timed, the sentence about the champion says what to do.
    policy = _without_timed(promotion) if missing else promotion
    if competing and (unknown := policy_faults(list(competing.values()), policy)):
        raise StepError(*unknown)
    if missing:
        raise StepError(replace(missing, sources=sources).sentence)
    if candidate and version and (lacking := lacking_metrics(candidate, promotion)):
        raise StepError(
            f"{candidate.name} is the champion (version {version.number}) and cannot be compared: "
            f"it has no {', '.join(lacking)}."
        )


def _without_broken(job: Job, variants: list[Variant]) -> tuple[list[Variant], list[str]]:
    """Split off the variants that are known to be broken, with a sentence about each."""
    broken = {variant.model_id: faults for variant in variants if (faults := job.integrity.known_faults(variant))}
    intact = [variant for variant in variants if variant.model_id not in broken]
    sentences = [broken_model(variant, broken[variant.model_id]) for variant in variants if variant.model_id in broken]
    return intact, sentences


def _without_rejected(
    job: Job, variants: list[Variant], registry: Registry, champion_id: str | None
) -> tuple[list[Variant], list[str]]:
    """Split off the variants with a rejected version, with a sentence about each; the champion always stays.

    A variant that was built again has the same fingerprint, and is rejected together with the first one.
    """
    rejected = {version.tags.get(FINGERPRINT): version for version in registry.versions if version.rejected}
    allowed, sentences = [], []
    for variant in variants:
        version = rejected.get(variant.fingerprint)
        if variant.fingerprint in job.rejected:
            sentences.append(job.rejected[variant.fingerprint])
        elif version is None or variant.model_id == champion_id or job.policy.retry_rejected:
            allowed.append(variant)
        else:
            sentences.append(f"{variant.name} (version {version.number}) was rejected: {version.rejected}")
    return allowed, sentences


def _without_device(
    job: Job, variants: list[Variant], registry: Registry, champion_id: str | None
) -> tuple[list[Variant], list[str]]:
    """Split off the variants that this machine cannot run, and so cannot smoke-test, with a sentence about each."""
    allowed, sentences = [], []
    for variant in variants:
        tested = any(SMOKE in version.tags for version in registry.of_model(variant.model_id))
        fault = variant.config.mode.device_fault if job.policy.smoke and not tested else None
        if fault is None or variant.model_id == champion_id:
            allowed.append(variant)
        else:
            sentences.append(f"{variant.name} ({variant.uri}) cannot be smoke-tested here: {fault}")
    return allowed, sentences


def _of_one_interface(job: Job, variants: list[Variant], champion: Variant | None) -> tuple[list[Variant], list[str]]:
    """Split off the variants whose clients send another form of request, with a sentence about each.

    The interface is that of the policy, else that of the champion, else the first one that any of them has.
    """
    present = [name for name in INTERFACES if any(variant.config.interface == name for variant in variants)]
    chosen = job.policy.interface or (champion.config.interface if champion else next(iter(present), None))
    if job.policy.interface:
        get_interface(job.policy.interface)
    allowed, sentences = [], []
    for variant in variants:
        if variant.config.interface == chosen or (champion and variant.model_id == champion.model_id):
            allowed.append(variant)
        else:
            other = variant.config.interface
            sentences.append(
                f"{variant.name} has interface={other}, and clients of {job.config.registered_model} send {chosen}: "
                f"promotion.interface={other} promotes it"
            )
    return allowed, sentences


def _one_of_each(
    variants: list[Variant], registry: Registry, champion_id: str | None, unusable: set[str]
) -> list[Variant]:
    """Return one variant of each fingerprint, oldest first: the champion, or a registered one, or the newest.

    One that has lost its scorecard comes after those that have not.
    """

    def preference(variant: Variant) -> tuple[bool, bool, bool]:
        is_registered = bool(registry.of_model(variant.model_id))
        return variant.model_id == champion_id, variant.model_id not in unusable, is_registered

    chosen: dict[str, Variant] = {}
    for variant in variants:
        twin = chosen.get(variant.fingerprint)
        if twin is None or preference(variant) >= preference(twin):
            chosen[variant.fingerprint] = variant
    return [variant for variant in variants if chosen[variant.fingerprint] is variant]


def _without_timed(promotion: Promotion) -> Promotion:
    """Return the policy without the metrics that are timed."""
    limits = {name: limit for name, limit in promotion.limits.items() if not is_timed(name)}
    return replace(promotion, prefer=[name for name in promotion.prefer if not is_timed(name)], limits=limits)


def _no_candidate(job: Job, variants: list[Variant], left_out: list[str]) -> list[str]:
    """Explain why no candidate remains: rejected, damaged, or scored on a different prompt set."""
    if left_out:
        return [
            "No scored candidate is left (promotion.retry_rejected=true gives rejected ones another chance):",
            *_sentences(left_out),
        ]
    scored_before = any(scorecard.is_scored_at_all(variant) for variant in variants)
    changed = f" Older scorecards are of other rows: {job.rows.name} has changed since." if scored_before else ""
    score_them = f"Score them: `{evaluate_command(job.config.prompt_set, ())}`."
    return [f"No variant has a scorecard for {job.rows.name} (sha256 {job.rows.sha256[:16]}…).{changed} {score_them}"]


def _sentences(left_out: list[str]) -> list[str]:
    return [f"{sentence}." for sentence in left_out]

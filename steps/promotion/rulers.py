"""Compare scores by one ruler only.

No ruler counts more than another: the newest may be of one variant that was tried with a changed metric. Making them
equal asks no model, so a promotion with several rulers is refused, with the command that scores the kept answers again.
"""

from __future__ import annotations

from steps.errors import StepError
from steps.evaluation import scorecard
from steps.evaluation.ruler import Ruler
from steps.promotion.candidate import Candidate
from steps.promotion.job import Job, broken_model
from steps.promotion.missing_scorecard import evaluate_command, quality_metrics
from steps.promotion.rank import asked_metrics
from steps.store import integrity, runs
from steps.store.names import metric_key
from steps.store.variants import Variant

UNKNOWN = "unknown"


def parts(job: Job, variant: Variant, candidate: Candidate) -> dict[str, str]:
    """Return the ruler of a candidate's scorecard as far as the policy depends on it."""
    marked = scorecard.mark_of(variant, job.rows.sha256)
    families = {key.rpartition("/")[0] for key in candidate.metrics}
    names = {metric_key(name).rpartition("/")[0] for name in asked_metrics(job.policy)} & families
    asked = {} if variant.config.generation.greedy else {key: str(marked.get(key)) for key in ("seed", "repeats")}
    return {name: marked.get("ruler", {}).get(name, UNKNOWN) for name in sorted(names)} | asked


def differs(job: Job, variant: Variant, candidate: Candidate, ruler: Ruler) -> bool:
    """Return True if a candidate was scored by another ruler than this one, as far as the policy depends on it."""
    theirs = ruler.parts(variant) | {key: str(value) for key, value in ruler.asked(variant).items()}
    ours = parts(job, variant, candidate)
    return any(theirs.get(name, digest) != digest for name, digest in ours.items())


def are_comparable(job: Job, pairs: list[tuple[Variant, Candidate]]) -> bool:
    """Return True if all scorecards were made by the same ruler, as far as the policy depends on it."""
    return not _differing_parts(job, pairs)


def without_lost(
    job: Job, competing: dict[str, Candidate], variants: dict[str, Variant]
) -> tuple[dict[str, Candidate], list[str]]:
    """Return the candidates to compare, and a sentence for each that is left out.

    If their rulers differ, those whose models have lost files are left out: nothing can score them again.

    Raises:
        StepError: The rulers of the others differ.
    """
    pairs = [(variants[key], candidate) for key, candidate in competing.items() if not candidate.faults]
    if not pairs or are_comparable(job, pairs):
        return competing, []
    lost = {variant.model_id: faults for variant, _ in pairs if (faults := integrity.missing(job.client, variant))}
    remaining = [pair for pair in pairs if pair[0].model_id not in lost]
    if remaining and not are_comparable(job, remaining):
        raise StepError(_sentence(job, remaining))
    left_out = [broken_model(variants[model_id], faults) for model_id, faults in lost.items()]
    return {key: candidate for key, candidate in competing.items() if key not in lost}, left_out


def _differing_parts(job: Job, pairs: list[tuple[Variant, Candidate]]) -> list[str]:
    """Return the parts of which two scorecards have different ones. Not every scorecard has every part."""
    values: dict[str, set[str]] = {}
    for variant, candidate in pairs:
        for name, digest in parts(job, variant, candidate).items():
            values.setdefault(name, set()).add(digest)
    return sorted(name for name, digests in values.items() if len(digests) > 1)


def _sentence(job: Job, pairs: list[tuple[Variant, Candidate]]) -> str:
    """Return what differs, and the commands that score all of them by the same ruler."""
    metrics = quality_metrics(job.policy)
    sources = scorecard.sources_of((variant for variant, _ in pairs), job.rows.sha256)
    commands = [f"`{evaluate_command(job.config.prompt_set, metrics, sources=sources)}`"]
    differing, experiment = ", ".join(_differing_parts(job, pairs)), runs.experiment_id()
    for variant, _ in pairs:
        if job.client.get_logged_model(variant.model_id).experiment_id != experiment:
            commands.append(f"`{evaluate_command(job.config.prompt_set, metrics, variant.run_id, sources)}`")
    return (
        f"The scorecards on {job.rows.name} were made by different rulers ({differing}), and scores are only "
        f"compared by one. Score them again from their answers, without asking a model: {' and '.join(commands)}"
    )

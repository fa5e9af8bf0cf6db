"""A registered variant without a scorecard that the policy can use, and the evaluation that makes one.

`register` only reads scores. It reports a missing scorecard with the command to run; the main job runs the evaluation
itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from types import MappingProxyType
from typing import Any

from steps.config.schema import DEFAULT_METRICS, EvaluateConfig, Promotion, PromptSet
from steps.evaluation.metric_loading import FIDELITY, FIDELITY_NAME, JUDGE, metric_name
from steps.promotion.candidate import Candidate
from steps.promotion.rank import asked_metrics, lacking_metrics
from steps.store.commands import step_command
from steps.store.names import COSTS, is_timed, metric_key
from steps.store.variants import Variant

NO_SOURCES: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class MissingScorecard:
    """A registered variant that has to be evaluated before the policy can compare it.

    Attributes:
        variant: What to evaluate.
        role: What the variant is in the registry, such as "the champion (version 2)".
        problem: What is wrong, to follow the role.
        prompt_set: The prompt set, as configured.
        metrics: The quality metrics that the policy names.
        timed: Whether the policy names a metric that is timed.
        sources: What metrics are loaded from that are not shipped.
    """

    variant: Variant
    role: str
    problem: str
    prompt_set: PromptSet
    metrics: tuple[str, ...]
    timed: bool
    sources: Mapping[str, str] = field(default_factory=dict)

    def evaluation(self, config: EvaluateConfig) -> EvaluateConfig:
        """Return a configuration that evaluates the variant with all that the policy needs, otherwise as `config`."""
        # A judge is computed if it is configured, not because it is named.
        computed = [*map(metric_name, [*config.evaluate.metrics, *config.prompt_set.metrics]), JUDGE]
        added = [self.sources.get(name, name) for name in self.metrics if name not in computed]
        metrics = [*config.evaluate.metrics, *added]
        evaluation = replace(config.evaluate, metrics=metrics, speed=config.evaluate.speed or self.timed)
        return replace(config, run_id=self.variant.run_id, evaluate=evaluation)

    @property
    def command(self) -> str:
        """Return the command that makes the scorecard."""
        return evaluate_command(self.prompt_set, self.metrics, self.variant.run_id, self.sources)

    @property
    def sentence(self) -> str:
        """Return the problem and the command, for the user."""
        return f"{self.variant.name} is {self.role} and {self.problem}. Score it: `{self.command}`"


def find_missing(
    variant: Variant, candidate: Candidate | None, role: str, prompt_set: PromptSet, name: str, promotion: Promotion
) -> MissingScorecard | None:
    """Return what an evaluation has to add to a registered variant; None if nothing.

    Args:
        variant: The registered variant.
        candidate: The same with its scores; None if it has no scorecard on the prompt set.
        role: What the variant is in the registry.
        prompt_set: The prompt set, as configured.
        name: The prompt set's name, for the user.
        promotion: The policy.
    """
    if candidate is None:
        problem = f"has no scorecard on {name}"
    elif candidate.faults:
        # Some faults go on with a remedy of their own.
        faults = [fault.partition(". ")[0] for fault in candidate.faults]
        problem = f"its scorecard on {name} cannot be used: {', '.join(faults)}"
    elif lacking := _addable_metrics(candidate, promotion):
        problem = f"its scorecard on {name} has no {', '.join(lacking)}"
    else:
        return None
    timed = any(map(is_timed, asked_metrics(promotion)))
    return MissingScorecard(variant, role, problem, prompt_set, quality_metrics(promotion), timed)


def quality_metrics(promotion: Promotion) -> tuple[str, ...]:
    """Return the metrics that the policy names and `evaluate.metrics` can compute."""
    costs = {_family(cost.key) for cost in COSTS}
    quality = dict.fromkeys(_family(metric_key(name)) for name in asked_metrics(promotion))
    listed = (FIDELITY_NAME if name in FIDELITY else name for name in quality if name not in costs)
    return tuple(dict.fromkeys(listed))


def evaluate_command(
    prompt_set: PromptSet, metrics: Sequence[str], run_id: str | None = None, sources: Mapping[str, str] = NO_SOURCES
) -> str:
    """Return the command that scores variants, or the variant of a run, with these metrics and the usual ones.

    `sources` says what metrics are loaded from that are not shipped.
    """
    overrides = [*([f"run_id={run_id}"] if run_id else []), *_overrides(prompt_set, PromptSet(), "prompt_set.")]
    computed = [*DEFAULT_METRICS, *prompt_set.metrics, JUDGE]
    if added := [sources.get(name, name) for name in metrics if name not in computed]:
        overrides.append(f"evaluate.metrics=[{','.join([*DEFAULT_METRICS, *added])}]")
    if JUDGE in metrics:
        overrides += ["evaluate.judge.model=…", "evaluate.judge.address=…"]
    return step_command("evaluate", *overrides)


def _addable_metrics(candidate: Candidate, promotion: Promotion) -> list[str]:
    """Return the metrics that the policy names, the candidate lacks, and an evaluation would add.

    An evaluation logs all values of a metric: if some are there, another evaluation does not add the rest.
    """
    evaluated = {_family(key) for key in candidate.metrics}
    return [name for name in lacking_metrics(candidate, promotion) if _family(metric_key(name)) not in evaluated]


def _family(key: str) -> str:
    """Return the part that the values of a metric share: `chrf` of `chrf/mean`, `speed` of `speed/latency_p95_ms`."""
    return key.rpartition("/")[0]


def _overrides(config: Any, default: Any, prefix: str) -> Iterator[str]:
    """Yield an override for every key that differs from its default."""
    for entry in fields(config):
        value, default_value, key = getattr(config, entry.name), getattr(default, entry.name), f"{prefix}{entry.name}"
        if is_dataclass(value):
            yield from _overrides(value, default_value, f"{key}.")
        elif isinstance(value, list) and value != default_value:
            yield f"{key}=[{','.join(value)}]"
        elif value != default_value:
            yield f"{key}={'null' if value is None else value}"

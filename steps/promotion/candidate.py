"""A variant that competes for champion, and its score by the policy's metric. Pure functions."""

from dataclasses import dataclass, field

from steps.config.schema import Promotion
from steps.store.names import metric_key


@dataclass(frozen=True)
class Candidate:
    """A variant that competes.

    Attributes:
        metrics: Its metrics on the prompt set, by full key.
        rows: By metric, the score of every row. A row that the variant could not take has the score 0.
        faults: Why its scorecard cannot be used.
        refusals: Why it must not be promoted, although its scorecard can be used.
    """

    name: str
    model_id: str
    fingerprint: str
    metrics: dict[str, float]
    rows: dict[str, list[float]] = field(default_factory=dict)
    faults: tuple[str, ...] = ()
    refusals: tuple[str, ...] = ()


def score(candidate: Candidate, promotion: Promotion) -> float:
    """Return the value of the policy's metric."""
    return candidate.metrics[metric_key(promotion.metric)]


def merit(candidate: Candidate, promotion: Promotion) -> float:
    """Return the value of the policy's metric with its sign set so that more is better."""
    value = score(candidate, promotion)
    return -value if promotion.less_is_better else value

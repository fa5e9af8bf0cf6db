"""What the engines share about batches: which prompts to prefill together, and how to choose the next tokens."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from .prefix_cache import Prefix
from .sequence import FloatArray, Sequence

# The largest share of padding among tokens that are prefilled together: padding costs as much as any other token.
PADDING = 0.1

State = TypeVar("State")


@dataclass(frozen=True)
class Arrival(Generic[State]):
    """A new sequence, and the beginning of its prompt if that is computed already."""

    sequence: Sequence
    prefix: Prefix[State] | None = None

    @property
    def missing(self) -> int:
        """Return how many tokens of the prompt have to be computed."""
        return len(self.sequence.prompt) - (len(self.prefix.tokens) if self.prefix else 0)


def prefill_groups(arrivals: list[Arrival[State]], max_tokens: int) -> list[list[Arrival[State]]]:
    """Group sequences that miss a similar number of tokens.

    No group has more than `max_tokens` tokens, padding included, unless it is one sequence alone.
    """
    groups: list[list[Arrival[State]]] = []
    for arrival in sorted(arrivals, key=lambda arrival: arrival.missing):
        if groups and _fits([*groups[-1], arrival], max_tokens):
            groups[-1].append(arrival)
        else:
            groups.append([arrival])
    return groups


def _fits(group: list[Arrival[State]], max_tokens: int) -> bool:
    """Return True if a group, sorted by the missing tokens, is within `max_tokens` and PADDING."""
    padded = len(group) * group[-1].missing
    return padded <= max_tokens and sum(arrival.missing for arrival in group) >= (1 - PADDING) * padded


def choose_tokens(
    sequences: list[Sequence], best: list[int], logits: Callable[[int], FloatArray]
) -> list[tuple[Sequence, int]]:
    """Return the next token of every sequence: the best one if it is greedy, else one that it samples.

    A sequence that cannot sample fails alone and is left out.

    Args:
        sequences: The sequence of each row.
        best: The token with the highest logit in each row.
        logits: Returns the logits [vocabulary] of a row; called only for rows that sample.
    """
    chosen = []
    for row, sequence in enumerate(sequences):
        try:
            chosen.append((sequence, best[row] if sequence.greedy else sequence.sample(logits(row))))
        except Exception as error:  # no error of one sequence may stop the others
            sequence.fail_internally(error)
    return chosen

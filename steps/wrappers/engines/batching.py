"""What the engines share about batches: which prompts to prefill together, and how to choose the next tokens."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from .admission import Admission, Passes
from .prefix_cache import Extend, Found, Prefix, PrefixCache
from .sampling import FloatArray
from .sequence import Sequence

# The largest share of padding among tokens that are prefilled together: padding costs as much as any other token.
PADDING = 0.1

State = TypeVar("State")


@dataclass(frozen=True)
class Arrival(Generic[State]):
    """A new sequence, and the beginning of its prompt if that is computed already.

    `computed` tokens of the beginning were computed for this sequence.
    """

    sequence: Sequence
    prefix: Prefix[State] | None = None
    computed: int = 0

    @property
    def known(self) -> int:
        """Return how many tokens of the prompt are computed already."""
        return len(self.prefix.tokens) if self.prefix else 0

    @property
    def missing(self) -> int:
        """Return how many tokens of the prompt have to be computed."""
        return len(self.sequence.prompt) - self.known


def look_up(
    sequences: list[Sequence], prefixes: PrefixCache[State], extend: Extend[State]
) -> Passes[list[Arrival[State]]]:
    """Return each new sequence with the longest beginning of its prompt that is computed already, if any.

    A prompt whose tokens get log-probabilities is computed from its first token.
    """
    unscored = [sequence for sequence in sequences if not sequence.settings.scores_prompt]
    found = yield from prefixes.lookup([sequence.prompt for sequence in unscored], extend)
    known = dict(zip(unscored, found, strict=True))
    entries = [(sequence, known.get(sequence, Found())) for sequence in sequences]
    return [Arrival(sequence, entry.prefix, entry.computed) for sequence, entry in entries]


def groups_in_turn(
    arrivals: list[Arrival[State]], admission: Admission, padding: float = PADDING, spare: int = 0
) -> Iterator[list[Arrival[State]]]:
    """Yield groups to prefill, each made when its turn comes, as large as there is room for then."""
    waiting = list(arrivals)
    while waiting:
        group = prefill_groups(waiting, admission.room, padding, spare)[0]
        waiting = [arrival for arrival in waiting if not any(arrival is other for other in group)]
        yield group


def prefill_groups(
    arrivals: list[Arrival[State]], max_tokens: int, padding: float = PADDING, spare: int = 0
) -> list[list[Arrival[State]]]:
    """Group sequences that miss a similar number of tokens, with at most a share of `padding`, or `spare` tokens of it.

    No group has more than `max_tokens` tokens, padding included, unless it is one sequence alone. A sequence whose
    prompt is scored is alone.
    """
    groups: list[list[Arrival[State]]] = []
    for arrival in sorted(arrivals, key=lambda arrival: arrival.missing):
        if groups and _fits([*groups[-1], arrival], max_tokens, padding, spare):
            groups[-1].append(arrival)
        else:
            groups.append([arrival])
    return groups


def _fits(group: list[Arrival[State]], max_tokens: int, padding: float, spare: int) -> bool:
    """Return True if a group, sorted by the missing tokens, is within `max_tokens`, and `padding` or `spare`."""
    if any(arrival.sequence.settings.scores_prompt for arrival in group):
        return False  # its logits take as much memory as a group's
    padded = len(group) * group[-1].missing
    return padded <= max_tokens and padded - sum(arrival.missing for arrival in group) <= max(padding * padded, spare)


def choose_tokens(
    sequences: list[Sequence], best: list[int], logits: Callable[[int], FloatArray]
) -> list[tuple[Sequence, int]]:
    """Return the next token of every sequence: the best one if it takes that, else the one that it chooses.

    A sequence that cannot choose fails alone and is left out.

    Args:
        sequences: The sequence of each row.
        best: The token with the highest logit in each row.
        logits: Returns the logits [vocabulary] of a row; called only for rows that choose.
    """
    chosen = []
    for row, sequence in enumerate(sequences):
        try:
            chosen.append((sequence, best[row] if sequence.settings.takes_best else sequence.choose(logits(row))))
        except Exception as error:  # no error of one sequence may stop the others
            sequence.fail_internally(error)
    return chosen

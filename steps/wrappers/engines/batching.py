"""What the engines share about batches: which prompts to prefill together, and how to choose the next tokens."""

from collections.abc import Callable

from .sequence import FloatArray, Sequence

# The largest share of padding among tokens that are prefilled together: padding costs as much as any other token.
PADDING = 0.1


def prefill_groups(sequences: list[Sequence], max_tokens: int, padding: float = PADDING) -> list[list[Sequence]]:
    """Group sequences with prompts of similar length, with at most a share of `padding`.

    No group has more than `max_tokens` tokens, padding included, unless it is one sequence alone.
    """
    groups: list[list[Sequence]] = []
    for sequence in sorted(sequences, key=lambda sequence: len(sequence.prompt)):
        if groups and _fits([*groups[-1], sequence], max_tokens, padding):
            groups[-1].append(sequence)
        else:
            groups.append([sequence])
    return groups


def _fits(group: list[Sequence], max_tokens: int, padding: float) -> bool:
    """Return True if a group, sorted by length, is within `max_tokens` and `padding`."""
    padded = len(group) * len(group[-1].prompt)
    return padded <= max_tokens and sum(len(sequence.prompt) for sequence in group) >= (1 - padding) * padded


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

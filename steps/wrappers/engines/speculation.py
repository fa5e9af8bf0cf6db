"""Speculate on what comes next: where the last tokens stood before, what followed them may follow again.

Summaries, extractions and corrections repeat their prompt. The engine checks several drafted tokens in one pass, which
takes little longer than the pass for one token, and keeps those that it would have chosen itself (prompt lookup
decoding, https://github.com/apoorvumang/prompt-lookup-decoding). It serves one sequence at a time: in a batch, a pass
has other rows to compute.

Only a sequence that always takes the best token has drafts. For every other one, a choice needs the logits, or changes
what comes after it: a grammar, penalties, a seed.

Passes are timed. A draft is tried only while all drafts together have lost at most `LOSS` of a sequence's time. Whether
one is tried depends on the time, so no batch job has any: it should compute the same each time.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from .sequence import Sequence

# New tokens, each with its sequence.
Chosen = list[tuple[Sequence, int]]

# How many tokens have to stand where they stood before.
GRAM = 3
# The length of the first draft of a sequence, and of the longest.
FIRST_DRAFT, LONGEST_DRAFT = 4, 16
# The share of its time that a sequence may lose by drafts, and how many plain passes in addition.
LOSS, FREE_PASSES = 0.01, 0.5
# The share of the last plain pass in what a plain pass takes.
RECENT = 0.1


@dataclass
class _Course:
    """One sequence: its tokens, where each gram of them was followed by which, and what drafts have saved."""

    sequence: Sequence
    tokens: list[int] = field(default_factory=list)
    followed: dict[tuple[int, ...], int] = field(default_factory=dict)
    length: int = FIRST_DRAFT
    seconds: float = 0.0
    saved: float = 0.0


class Speculation:
    """Draft tokens of the sequence that runs alone."""

    def __init__(self) -> None:
        self._course: _Course | None = None
        # How long a pass for one token takes.
        self._plain: float | None = None

    def advance(
        self, sequence: Sequence, plain: Callable[[], Chosen], check: Callable[[list[int]], list[int]]
    ) -> Chosen:
        """Return the next tokens of a sequence: one of a plain pass, or those of a draft that `check` accepts."""
        if not sequence.settings.takes_best:
            return plain()
        started = time.perf_counter()
        draft = self.draft(sequence)
        chosen = [(sequence, token) for token in check(draft)] if draft else plain()
        self.record(len(draft), len(chosen) - 1, time.perf_counter() - started)
        return chosen

    def draft(self, sequence: Sequence) -> list[int]:
        """Return the tokens that may come next; none if nothing speaks for any, or drafts have not paid so far."""
        if self._course is None or self._course.sequence is not sequence:
            self._course = _Course(sequence)
        course = self._course
        _follow(course)
        # The pass itself adds one more token.
        room = min(course.length, sequence.settings.max_tokens - len(sequence.tokens) - 1)
        start = course.followed.get(tuple(course.tokens[-GRAM:]))
        if self._plain is None or start is None or course.saved < -LOSS * course.seconds - FREE_PASSES * self._plain:
            return []
        draft: list[int] = []
        for index in range(start, start + room):
            # A text that repeats itself goes on with its own draft.
            rest = index - len(course.tokens)
            draft.append(course.tokens[index] if rest < 0 else draft[rest])
        return draft

    def record(self, drafted: int, accepted: int, seconds: float) -> None:
        """Learn from a pass: how many tokens were drafted and accepted, and how long it took."""
        if self._plain is None or not drafted:
            self._plain = seconds if self._plain is None else self._plain + RECENT * (seconds - self._plain)
        if self._course is None:
            return
        self._course.seconds += seconds
        if drafted:
            gain = (accepted + 1) * self._plain - seconds
            # A pass may be slow for another reason.
            self._course.saved += max(gain, -4 * self._plain)
            self._course.length = min(2 * drafted, LONGEST_DRAFT) if accepted == drafted else max(FIRST_DRAFT, accepted)


def may_speculate(rows: list[Sequence], is_busy: bool) -> bool:
    """Return True if one row runs whose tokens a client waits for, and no prompt is being computed."""
    return not is_busy and len(rows) == 1 and rows[0].is_awaited


def accepted_tokens(draft: list[int], best: list[int]) -> list[int]:
    """Return what the engine chooses, given its best token after the last one and after each of the draft."""
    count = 0
    while count < len(draft) and draft[count] == best[count]:
        count += 1
    return best[: count + 1]


def _follow(course: _Course) -> None:
    """Note the new tokens, and what followed each gram last."""
    sequence, tokens = course.sequence, course.tokens
    new = sequence.tokens[len(tokens) - len(sequence.prompt) :] if tokens else [*sequence.prompt, *sequence.tokens]
    for token in new:
        if len(tokens) >= GRAM:
            course.followed[tuple(tokens[-GRAM:])] = len(tokens)
        tokens.append(token)

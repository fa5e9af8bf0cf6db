"""One completion in the making: its settings, its tokens so far, and when it ends."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from threading import Event

import numpy as np

from ..contract.errors import engine_failed
from ..tokenizer import ChatTokenizer

# How much of the tokens that are prefilled together may be padding: it costs as much as any other token.
PADDING = 0.1

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """How to generate one completion; temperature 0 is greedy, top_k 0 is no limit."""

    temperature: float
    top_p: float
    top_k: int
    max_tokens: int
    stop: tuple[str, ...] = ()
    seed: int | None = None

    def for_choice(self, index: int) -> "Settings":
        return self if self.seed is None else replace(self, seed=self.seed + index)


@dataclass(eq=False)
class Sequence:
    """Token ids of a prompt and of its growing completion; `finish_reason` is set when it ends."""

    prompt: list[int]
    settings: Settings
    tokenizer: ChatTokenizer
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: str | None = None
    error: Exception | None = None
    cancelled: bool = False
    done: Event = field(default_factory=Event)
    progress: Event = field(default_factory=Event)

    def __post_init__(self) -> None:
        # What a stream may show: tokens that were looked through for stop strings, and their text where it was made.
        self._published: tuple[int, str | None] = (0, None)
        self._random = np.random.default_rng(self.settings.seed)

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.tokens)

    @property
    def greedy(self) -> bool:
        return self.settings.temperature == 0

    def push(self, token: int) -> None:
        """Take the next token; end at an end token, a stop string or the cap on tokens."""
        self.tokens.append(token)
        text = self.tokenizer.decode(self.tokens) if self.settings.stop else None
        if token in self.tokenizer.end_tokens:
            self._end("stop", text)
        elif text is not None and (cut := self._cut(text)) is not None:
            self._end("stop", cut)
        elif len(self.tokens) >= self.settings.max_tokens:
            self._end("length", text)
        else:
            self._published = len(self.tokens), text
        self.progress.set()

    def settled_text(self) -> str:
        """The text so far that later tokens cannot change: no half character, no beginning of a stop string."""
        if self.finish_reason is not None:
            return self.text
        count, text = self._published
        text = (self.tokenizer.decode(self.tokens[:count]) if text is None else text).rstrip("\ufffd")
        held = max((len(stop) - 1 for stop in self.settings.stop), default=0)
        return text[: max(0, len(text) - held)]

    def sample(self, logits: np.ndarray) -> int:
        """Draw a token from `logits` [vocabulary] by temperature, top_k and top_p (nucleus sampling)."""
        settings = self.settings
        order = np.argsort(-logits, kind="stable") if settings.top_k or settings.top_p < 1 else np.arange(len(logits))
        if settings.top_k:
            order = order[: settings.top_k]
        highest = logits.max()
        if not np.isfinite(highest):
            raise FloatingPointError(f"the highest logit is {highest}")
        below = logits[order].astype(np.float64) - highest
        # The difference first: a temperature next to 0 would make infinities of the logits.
        with np.errstate(over="ignore", divide="ignore"):
            probabilities = np.exp(below / settings.temperature)
        probabilities /= probabilities.sum()
        if settings.top_p < 1:
            keep = np.cumsum(probabilities) - probabilities < settings.top_p
            order, probabilities = order[keep], probabilities[keep] / probabilities[keep].sum()
        drawn = np.searchsorted(np.cumsum(probabilities), self._random.random(), side="right")
        return int(order[min(drawn, len(order) - 1)])

    def fail(self, error: Exception) -> None:
        self.error = error
        self.done.set()
        self.progress.set()

    def break_off(self, fault: Exception) -> None:
        """End by a fault of ours: the log has it, the caller is told that there was one."""
        logger.error("A completion broke off", exc_info=fault)
        self.fail(engine_failed())

    def _cut(self, text: str) -> str | None:
        """The text before the first stop string, if one has appeared."""
        cuts = [position for stop in self.settings.stop if (position := text.find(stop)) >= 0]
        return text[: min(cuts)] if cuts else None

    def _end(self, reason: str, text: str | None) -> None:
        self.text = self.tokenizer.decode(self.tokens) if text is None else text
        # Last, for who reads in another thread takes the text as whole from here on.
        self.finish_reason = reason
        self.done.set()


def groups(sequences: list[Sequence], tokens: int) -> list[list[Sequence]]:
    """Cut sequences into groups of like length to prefill together, none over `tokens` unless one alone is."""
    cut: list[list[Sequence]] = []
    for sequence in sorted(sequences, key=lambda sequence: len(sequence.prompt)):
        if cut and _fit([*cut[-1], sequence], tokens):
            cut[-1].append(sequence)
        else:
            cut.append([sequence])
    return cut


def _fit(group: list[Sequence], tokens: int) -> bool:
    """Whether a group, the longest last, is within `tokens` and PADDING."""
    padded = len(group) * len(group[-1].prompt)
    return padded <= tokens and sum(len(sequence.prompt) for sequence in group) >= (1 - PADDING) * padded


def choose(
    sequences: list[Sequence], best: list[int], logits: Callable[[int], np.ndarray]
) -> list[tuple[Sequence, int]]:
    """The next token of every sequence: its row's best, or drawn from its row's logits [vocabulary] by its settings.

    A sequence that nothing can be drawn for breaks off alone, and is left out.
    """
    chosen = []
    for row, sequence in enumerate(sequences):
        try:
            chosen.append((sequence, best[row] if sequence.greedy else sequence.sample(logits(row))))
        except Exception as fault:  # whatever it is, the others go on
            sequence.break_off(fault)
    return chosen

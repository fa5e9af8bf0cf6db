"""One completion in progress: its settings, its tokens so far, and when it ends."""

import logging
from dataclasses import dataclass, field, replace
from threading import Event
from typing import Any

import numpy as np
import numpy.typing as npt

from ..contract.errors import engine_failed
from ..tokenizer import ChatTokenizer

FloatArray = npt.NDArray[np.floating[Any]]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """How to generate one completion. Temperature 0 is greedy; top_k 0 sets no limit."""

    temperature: float
    top_p: float
    top_k: int
    max_tokens: int
    stop: tuple[str, ...] = ()
    seed: int | None = None

    def for_choice(self, index: int) -> "Settings":
        """Return the settings of one of several choices: each has a seed of its own."""
        return self if self.seed is None else replace(self, seed=self.seed + index)


@dataclass(eq=False)
class Sequence:
    """Token ids of a prompt and of its growing completion; `finish_reason` is set when it ends.

    The engine's thread writes it, and the thread of its caller waits for `done` or `progress` and reads it.
    """

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
        self._detokenizer = self.tokenizer.detokenizer()
        # The text of the tokens that were searched for stop strings.
        self._searched = ""
        self._random = np.random.default_rng(self.settings.seed)

    @property
    def length(self) -> int:
        """Return the number of tokens in prompt and completion."""
        return len(self.prompt) + len(self.tokens)

    @property
    def greedy(self) -> bool:
        """Return True if each token is the one with the highest logit."""
        return self.settings.temperature == 0

    def push(self, token: int) -> None:
        """Append the next token; end at an end token, a stop string or max_tokens."""
        self.tokens.append(token)
        ended = token in self.tokenizer.end_tokens
        is_last = ended or len(self.tokens) >= self.settings.max_tokens
        text = self._searched + ("" if ended else self._detokenizer.push(token))
        if is_last:
            text += self._detokenizer.finish()
        if (stop := self._first_stop_string(text)) is not None:
            self._end("stop", text[:stop])
        elif is_last:
            self._end("stop" if ended else "length", text)
        else:
            self._searched = text
        self.progress.set()

    def settled_text(self) -> str:
        """Return the text that later tokens cannot change: no partial character, no beginning of a stop string."""
        if self.finish_reason is not None:
            return self.text
        text = self._searched
        return text[: max(0, len(text) - self._held_back)]

    def sample(self, logits: FloatArray) -> int:
        """Draw a token from `logits` [vocabulary] by temperature, top_k and top_p (nucleus sampling)."""
        settings = self.settings
        order = np.argsort(-logits, kind="stable") if settings.top_k or settings.top_p < 1 else np.arange(len(logits))
        if settings.top_k:
            order = order[: settings.top_k]
        highest = logits.max()
        if not np.isfinite(highest):
            raise FloatingPointError(f"the highest logit is {highest}")
        below = logits[order].astype(np.float64) - highest
        # Subtract before dividing: a temperature close to 0 would turn the logits themselves into infinities.
        with np.errstate(over="ignore", divide="ignore"):
            probabilities = np.exp(below / settings.temperature)
        probabilities /= probabilities.sum()
        if settings.top_p < 1:
            keep = np.cumsum(probabilities) - probabilities < settings.top_p
            order, probabilities = order[keep], probabilities[keep] / probabilities[keep].sum()
        drawn = int(np.searchsorted(np.cumsum(probabilities), self._random.random(), side="right"))
        return int(order[min(drawn, len(order) - 1)])

    def cancel(self) -> None:
        """Let the scheduler drop this sequence at the next token, because nobody waits for it."""
        self.cancelled = True

    def fail(self, error: Exception) -> None:
        """End with an error that the caller will see."""
        self.error = error
        self.done.set()
        self.progress.set()

    def fail_internally(self, error: Exception) -> None:
        """Log an internal error and end with `engine_failed`, which hides its details from the caller."""
        logger.error("A completion failed", exc_info=error)
        self.fail(engine_failed())

    @property
    def _held_back(self) -> int:
        """Return how many characters at the end of a text may be the beginning of a stop string."""
        return max((len(stop) - 1 for stop in self.settings.stop), default=0)

    def _first_stop_string(self, text: str) -> int | None:
        """Return the position of the first stop string that was not there before, or None."""
        start = max(0, len(self._searched) - self._held_back)
        return min((position for stop in self.settings.stop if (position := text.find(stop, start)) >= 0), default=None)

    def _end(self, reason: str, text: str) -> None:
        self.text = text
        # Set after the text: another thread that sees the reason takes the text as complete.
        self.finish_reason = reason
        self.done.set()

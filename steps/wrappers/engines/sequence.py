"""One completion in progress: its settings, its tokens so far, and when it ends."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from threading import Event

import numpy as np

from ..contract.errors import engine_failed
from ..tokenizer import ChatTokenizer
from ..tool_calls import CallSyntax
from .sampling import FloatArray, Mask, TokenScore, biased, draw, penalized, score

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """How to generate one completion. Temperature 0 is greedy; top_k 0 sets no limit.

    Attributes:
        logit_bias: What is added to the logits of some tokens.
        ignore_eos: Whether the end token ends nothing, unless a grammar does: load tools ask for that.
        logprobs: How many alternatives each token's log-probability comes with; None for no log-probabilities.
        echo: Whether the tokens of the prompt get log-probabilities too.
        scored_from: The first token of the prompt that gets one; it has to follow another token.
        mask: Makes the mask of a sequence whose tokens a grammar limits.
        calls: How the text writes calls of tools; None for a request that calls none.
    """

    temperature: float
    top_p: float
    top_k: int
    max_tokens: int
    stop: tuple[str, ...] = ()
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    echo: bool = False
    scored_from: int = 1
    mask: Callable[[], Mask] | None = None
    calls: CallSyntax | None = None

    @property
    def scores_prompt(self) -> bool:
        """Return True if the engine has to compute the logits of every token of the prompt."""
        return self.echo and self.logprobs is not None

    @property
    def takes_best(self) -> bool:
        """Return True if the next token is the one with the highest logit, and nobody asks for its probability."""
        changes = self.presence_penalty or self.frequency_penalty or self.logit_bias or self.mask
        return self.temperature == 0 and self.logprobs is None and not changes

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
    scores: list[TokenScore] = field(default_factory=list)
    prompt_scores: list[TokenScore] = field(default_factory=list)
    # Whether somebody waits for each token, as opposed to a batch job.
    is_awaited: bool = True
    # How many tokens of the prompt the engine had computed before, for another one.
    reused: int = 0
    # When it was made, and when its first and its last token came.
    times: list[float] = field(default_factory=lambda: [time.monotonic()])
    done: Event = field(default_factory=Event)
    progress: Event = field(default_factory=Event)

    def __post_init__(self) -> None:
        self._detokenizer = self.tokenizer.detokenizer()
        # The text of the tokens that were searched for stop strings.
        self._searched = ""
        self._random = np.random.default_rng(self.settings.seed)
        self._mask = self.settings.mask() if self.settings.mask else None

    @property
    def length(self) -> int:
        """Return the number of tokens in prompt and completion."""
        return len(self.prompt) + len(self.tokens)

    @property
    def longest(self) -> int:
        """Return the number of tokens that prompt and completion can have at most."""
        return len(self.prompt) + self.settings.max_tokens

    @property
    def is_over(self) -> bool:
        """Return True if no token is wanted any more: it is complete, failed or cancelled."""
        return self.cancelled or self.done.is_set()

    @property
    def greedy(self) -> bool:
        """Return True if each token is the one with the highest logit."""
        return self.settings.temperature == 0

    @property
    def is_call(self) -> bool | None:
        """Return whether the completion is calls of tools; None while that is open."""
        return self._mask.has_begun if self._mask and self.settings.calls else False

    def push(self, token: int) -> None:
        """Append the next token; end at an end token, a stop string or max_tokens."""
        self.tokens.append(token)
        self.times[1:] = [self.times[1] if len(self.times) > 1 else time.monotonic(), time.monotonic()]
        ignored = self.settings.ignore_eos and not self._mask
        ended = token in self.tokenizer.end_tokens and not ignored
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

    def choose(self, logits: FloatArray) -> int:
        """Return the next token for `logits` [vocabulary], and keep its log-probability if it was asked for."""
        settings = self.settings
        changed = biased(logits, settings.logit_bias) if settings.logit_bias else logits
        changed = penalized(changed, self.tokens, settings.presence_penalty, settings.frequency_penalty)
        if self._mask:
            changed = self._mask.apply(changed)
        token = int(changed.argmax()) if self.greedy else self._draw(changed)
        if self._mask:
            self._mask.accept(token)
        if settings.logprobs is not None:
            self.scores.append(score(logits, token, settings.logprobs))
        return token

    def score_prompt(self, logits: FloatArray) -> None:
        """Keep the log-probabilities of the prompt from `logits` [tokens, vocabulary], the next ones in its order.

        The first row that comes is that of the token before `scored_from`.
        """
        for row in logits:
            position = self.settings.scored_from + len(self.prompt_scores)
            if position == len(self.prompt):
                return
            self.prompt_scores.append(score(row, self.prompt[position], self.settings.logprobs or 0))

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

    def _draw(self, logits: FloatArray) -> int:
        settings = self.settings
        return draw(logits, settings.temperature, settings.top_p, settings.top_k, self._random.random())

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

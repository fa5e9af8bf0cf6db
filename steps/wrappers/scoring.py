"""Score given texts: the log-probabilities of a continuation after a prompt, computed like any other prompt.

Nothing is generated. Prompt and continuation are token ids, so that every mode scores the very same tokens.
"""

from dataclasses import dataclass, field

import numpy as np

from .engines.sampling import FloatArray, log_softmax
from .engines.scheduler import Scheduler
from .engines.sequence import Sequence, Settings
from .tokenizer import ChatTokenizer

# A prompt, and the tokens after it that are scored.
Pair = tuple[list[int], list[int]]


@dataclass(eq=False)
class WholeScores(Sequence):
    """A sequence that keeps the log-probability of every token of the vocabulary at each scored place."""

    rows: list[FloatArray] = field(default_factory=list)

    def score_prompt(self, logits: FloatArray) -> None:
        """Keep the log-probabilities of `logits` [tokens, vocabulary], up to those of the prompt's last token."""
        missing = len(self.prompt) - self.settings.scored_from - len(self.rows)
        self.rows += [log_softmax(row).astype(np.float32) for row in logits[:missing]]


def score_tokens(
    scheduler: Scheduler, tokenizer: ChatTokenizer, pairs: list[Pair], whole_vocabulary: bool
) -> list[FloatArray]:
    """Return the log-probabilities of each continuation, by token.

    Args:
        scheduler: Runs the engine.
        tokenizer: The checkpoint's.
        pairs: Prompts and their continuations, as token ids. Neither may be empty.
        whole_vocabulary: Return those of all tokens at each place [tokens, vocabulary], instead of [tokens].
    """
    kind = WholeScores if whole_vocabulary else Sequence
    sequences = [kind(prompt + rest, _settings(len(prompt)), tokenizer) for prompt, rest in pairs]
    scheduler.submit(sequences, patient=True)
    scheduler.wait(sequences)
    return [_result(sequence) for sequence in sequences]


def _settings(scored_from: int) -> Settings:
    # An engine always chooses a next token: one is the least.
    return Settings(0.0, 1.0, 0, max_tokens=1, logprobs=0, echo=True, scored_from=scored_from)


def _result(sequence: Sequence) -> FloatArray:
    if isinstance(sequence, WholeScores):
        return np.stack(sequence.rows)
    return np.array([score.logprob for score in sequence.prompt_scores])

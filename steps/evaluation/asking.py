"""The one way to ask a model, whatever its mode and interface, loaded in this process or served.

`Asker.ask` does what the mode can do: batches, seeds, settings. `Asker.send` sends requests as they are, which is how
the contract suite finds out what a model does with them.
"""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from time import perf_counter
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

import psutil

from steps.interfaces.interface import Interface, Question, Reply
from steps.modes.mode import Mode, Pairs
from steps.output import suppress_output

if TYPE_CHECKING:
    from steps.wrappers.engines.sampling import FloatArray


# Below this much memory in use, the last model's garbage can wait.
COLLECT_FROM_BYTES = 2 * 2**30


class Model(Protocol):
    """What is asked: a loaded pyfunc model, or a client of a served one."""

    def predict(self, data: Any, params: dict[str, Any] | None = None) -> Any:
        """Answer one request (an object) or several (a frame)."""


@contextlib.contextmanager
def loaded(uri: str) -> Iterator[Any]:
    """Load a model, and forget it at the end of the block."""
    import mlflow

    # Free the last model's memory before this one is loaded. A collection takes half a second.
    if psutil.Process().memory_info().rss > COLLECT_FROM_BYTES:
        gc.collect()
    try:
        with _importable_code():
            with suppress_output():
                model = mlflow.pyfunc.load_model(uri)
            yield model
    finally:
        # MLflow keeps the model that was loaded last.
        mlflow.models.model.__mlflow_model__ = None


@contextlib.contextmanager
def _importable_code() -> Iterator[None]:
    """Let a model import its own code, if it was built when the code of every model was a package `wrappers`."""
    path, modules = list(sys.path), _wrappers()
    _forget(modules)
    try:
        yield
    finally:
        sys.path[:] = path
        _forget(_wrappers())
        sys.modules.update(modules)


def _wrappers() -> dict[str, ModuleType]:
    return {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "wrappers"}


def _forget(names: Iterable[str]) -> None:
    for name in names:
        del sys.modules[name]


class Asker:
    """Asks one model.

    Args:
        model: A loaded or served model.
        mode: How the model is wrapped.
        interface: What its requests and replies look like.
        count_tokens: Count the tokens of a text, for an interface whose replies do not.
    """

    def __init__(
        self, model: Model, mode: Mode, interface: Interface, count_tokens: Callable[[str], int] | None = None
    ) -> None:
        self._model, self._mode, self._interface = model, mode, interface
        self._count_tokens = count_tokens

    @property
    def takes_settings(self) -> bool:
        """Return whether a request can carry settings such as max_tokens."""
        return self._interface.settings_in_row or self._mode.takes_params

    def ask(self, questions: Sequence[Question]) -> list[Reply]:
        """Return the reply to each question, together in one call if the mode and the settings allow it."""
        shared = self._interface.settings_in_row or all(each.settings == questions[0].settings for each in questions)
        if self._mode.batches and shared:
            return self._timed(list(questions))
        return [reply for question in questions for reply in self._timed([question])]

    def send(self, questions: Sequence[Question]) -> list[Reply]:
        """Send questions in one call, exactly as they are, and return the replies.

        If settings are parameters of the call, those of the first question are sent.
        """
        import pandas as pd

        rows = [self._interface.row(question) for question in questions]
        params = self._interface.params(questions[0])
        data = rows[0] if len(rows) == 1 else pd.DataFrame(rows)
        content = self._model.predict(data, params=params) if params else self._model.predict(data)
        contents = content if len(rows) > 1 and isinstance(content, list) else [content]
        return [self._interface.reply(each) for each in contents]

    def stream(self, question: Question) -> Generator[str, None, None]:
        """Yield the text of the reply in pieces. Closing the iterator cancels the rest of it."""
        row, params = self._interface.row(question), self._interface.params(question)
        model: Any = self._model
        with contextlib.closing(model.predict_stream(row, params=params)) as pieces:
            for piece in pieces:
                yield self._interface.piece(piece)

    def score(self, pairs: Pairs, whole_vocabulary: bool = False) -> list[FloatArray]:
        """Return the log-probabilities of continuations of prompts, both as token ids; nothing is generated.

        Args:
            pairs: Prompts and their continuations.
            whole_vocabulary: Return those of every token at each place [tokens, vocabulary], instead of [tokens].

        Raises:
            ValueError: The mode cannot, or it did not score every token.
        """
        if self._mode.score_tokens is None:
            raise ValueError(f"mode {self._mode.name} cannot score given texts")
        scored = self._mode.score_tokens(self._model, pairs, whole_vocabulary)
        if [len(each) for each in scored] != [len(rest) for _, rest in pairs]:
            raise ValueError(f"the model did not score every token of {len(pairs)} texts")
        return scored

    def _timed(self, questions: list[Question]) -> list[Reply]:
        accepted = [self._accepted(question) for question in questions]
        with suppress_output() if self._mode.seed else contextlib.nullcontext():
            started = perf_counter()
            replies = self.send(accepted)
            seconds = (perf_counter() - started) / len(questions)
        _check_numbers(questions, replies)
        return [
            replace(reply, seconds=seconds, completion_tokens=self._tokens(reply, question))
            for reply, question in zip(replies, questions, strict=True)
        ]

    def _accepted(self, question: Question) -> Question:
        """Return a question with the settings that a request can carry; seed the process if it cannot carry a seed."""
        settings = dict(question.settings)
        if self._mode.seed and (seed := settings.pop("seed", None)) is not None:
            self._mode.seed(seed)
        return replace(question, settings=settings if self.takes_settings else {})

    def _tokens(self, reply: Reply, question: Question) -> int | None:
        """Return how many tokens were generated. A text shorter than its cap ended with an end token."""
        if reply.completion_tokens is not None or self._count_tokens is None:
            return reply.completion_tokens
        cap = question.settings.get("max_tokens")
        counts = [self._count_tokens(text) for text in reply.texts]
        return sum(count + (cap is None or count < cap) for count in counts)


def _check_numbers(questions: list[Question], replies: list[Reply]) -> None:
    """Raise ValueError unless every question has one reply with as many choices as it asks for."""
    if len(replies) != len(questions):
        raise ValueError(f"{len(questions)} rows got {len(replies)} replies")
    for question, reply in zip(questions, replies, strict=True):
        wanted = question.settings.get("n", 1)
        if len(reply.texts) != wanted:
            raise ValueError(f"the reply must have {wanted} choices, got {len(reply.texts)}")

"""Load a model that was just logged as its users will, and ask it one question, before it becomes a variant."""

import contextlib
import logging
from collections.abc import Iterator

from steps.errors import StepError, reason
from steps.evaluation.asking import Asker, loaded
from steps.interfaces.interface import Interface, Question
from steps.modes.mode import Mode
from steps.output import suppress_output
from steps.store import connection

TEXT = "Hello"
# One token shows that a model answers. It is sampled, because a greedy choice hides weights that are not numbers.
QUESTION = Question([{"role": "user", "content": TEXT}], TEXT, {"max_tokens": 1, "temperature": 1.0, "seed": 0})


def ask_first_question(uri: str, mode: Mode, interface: Interface) -> None:
    """Raise StepError with the cause if a logged model cannot be loaded or does not answer."""
    with _logged_errors() as logged:
        try:
            with suppress_output(), loaded(uri) as model:
                replies = Asker(model, mode, interface).ask([QUESTION])
                if not all(isinstance(text, str) for reply in replies for text in reply.texts):
                    raise TypeError(f"the reply is no text: {replies}")
        except Exception as error:  # a model raises every kind of error
            connection.check_server("went away and has not come back")
            # A wrapper hides the cause of a failure from its callers, and logs it.
            why = cause(logged[-1] if logged else error)
            raise StepError(
                f"The model was logged, does not answer and was discarded: {why}. To build it without a question, for "
                "another machine, add check=false."
            ) from error


def cause(error: BaseException) -> str:
    """Return why a model fails, in words that name what has to be corrected."""
    from jinja2 import TemplateError

    chain = [error]
    while following := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(following)
    if template_errors := [link for link in chain if isinstance(link, TemplateError)]:
        return f"its chat template cannot be rendered ({reason(template_errors[-1])})"
    return reason(error)


@contextlib.contextmanager
def _logged_errors() -> Iterator[list[BaseException]]:
    """Collect the errors that are logged with a traceback, instead of printing them."""
    errors: list[BaseException] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.exc_info and record.exc_info[1]:
                errors.append(record.exc_info[1])

    collector = Collector(logging.ERROR)
    logging.root.addHandler(collector)
    try:
        yield errors
    finally:
        logging.root.removeHandler(collector)

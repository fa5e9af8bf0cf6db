"""The health of a served model: it is asked one question when its server starts, so that /ping tells the truth."""

import logging
import sys
from collections.abc import Callable
from dataclasses import replace

from ..contract.requests import Contract
from ..engines.scheduler import Scheduler
from .app import SERVER_MODULE

# A question in the words of each interface, by the field that holds it.
QUESTIONS = {"messages": [{"role": "user", "content": "Hello"}], "prompt": "Hello"}

logger = logging.getLogger(__name__)


def health_check(contract: Contract, scheduler: Scheduler) -> Callable[[], bool]:
    """Return what /ping asks. If a server is starting in this process, the model is asked its question now."""
    answers = SERVER_MODULE not in sys.modules or _answers(contract, scheduler)
    return lambda: answers and scheduler.is_healthy()


def _answers(contract: Contract, scheduler: Scheduler) -> bool:
    """Return True if the model answers, or if only its engine fails, which the scheduler watches from then on."""
    try:
        subject = contract.interface.SUBJECT
        (request,) = contract.requests([{subject: QUESTIONS[subject]}], None)
        request = replace(request, settings=replace(request.settings, max_tokens=1))
        scheduler.run(request.sequences(contract.tokenizer))
    except Exception:  # a template raises every kind of error
        logger.exception("The model does not answer, so /ping reports it as not healthy")
        return not scheduler.is_healthy()
    return True

"""A variant against another engine that takes the same prompts: one stream, a batch, long answers, a long prompt."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from time import perf_counter

from steps.benchmarking.comparison import Comparison, Side
from steps.benchmarking.place import Place, short_name
from steps.benchmarking.sections.engines import BATCH, alone, answer
from steps.wrappers.engines.scheduler import Scheduler
from steps.wrappers.engines.sequence import Sequence, Settings

PROMPT = 1024
# The tokens of a short prompt: reading it takes little of the time of a long answer.
SHORT = 8

# Takes prompts and how many tokens to answer to each of them, and returns these.
Answer = Callable[[list[list[int]], int], list[list[int]]]


def against(place: Place, overrides: tuple[str, ...], name: str, other: Answer) -> Iterator[Comparison]:
    """Yield the comparisons of one variant with an engine of that name."""
    long_answer, ours = 4 * place.size.tokens, short_name(overrides)
    with place.loaded(*overrides) as loaded:
        scheduler = loaded.unwrap_python_model().scheduler
        ask, ask_other = partial(answer, place, scheduler), partial(_answer, place, other)
        yield Comparison(
            # Drawn: for one greedy row the engine speculates, and a random model repeats itself.
            Side(f"{ours}, one stream", partial(ask, 1, long_answer, temperature=1.0)),
            Side(f"{name}, one stream", alone(loaded, partial(ask_other, 1, long_answer))),
        )
        yield Comparison(
            Side(f"{ours}, {BATCH} at once", partial(ask, BATCH)),
            Side(f"{name}, {BATCH} at once", alone(loaded, partial(ask_other, BATCH, place.size.tokens))),
        )
        yield Comparison(
            Side(f"{ours}, {BATCH} long answers", partial(ask, BATCH, long_answer, prompt_tokens=SHORT)),
            Side(f"{name}, {BATCH} long answers", alone(loaded, partial(ask_other, BATCH, long_answer, SHORT))),
        )
        yield Comparison(
            Side(f"{ours}, a prompt of {PROMPT}", partial(_read, place, scheduler)),
            Side(f"{name}, a prompt of {PROMPT}", alone(loaded, partial(_read_by, place, other))),
        )


def _answer(place: Place, other: Answer, count: int, tokens: int, prompt_tokens: int | None = None) -> float:
    """Return the tokens/s of the other engine for new prompts of at most so many tokens."""
    prompts = [prompt[:prompt_tokens] for prompt in place.prompts(count)]
    started = perf_counter()
    answers = other(prompts, tokens)
    return sum(map(len, answers)) / (perf_counter() - started)


def _long_prompt(place: Place) -> list[int]:
    """Return a prompt of PROMPT tokens, less one for the answer, that was never asked before."""
    prompt = place.prompts(1)[0]
    return [*prompt, *itertools.islice(itertools.cycle(prompt), PROMPT - 1 - len(prompt))]


def _read(place: Place, scheduler: Scheduler) -> float:
    """Return the tokens/s at which our engine reads a long prompt, with the first token of the answer."""
    settings = Settings(temperature=0.0, top_p=1.0, top_k=0, max_tokens=1)
    sequence = Sequence(_long_prompt(place), settings, place.tokenizer)
    started = perf_counter()
    scheduler.run([sequence])
    return PROMPT / (perf_counter() - started)


def _read_by(place: Place, other: Answer) -> float:
    prompt = _long_prompt(place)
    started = perf_counter()
    other([prompt], 1)
    return PROMPT / (perf_counter() - started)

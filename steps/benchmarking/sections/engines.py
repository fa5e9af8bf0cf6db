"""Our engines against the shortest loop over the library that each is built on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from steps.benchmarking.comparison import Comparison, Measurement, Side
from steps.benchmarking.place import Place, wait_until_idle
from steps.output import suppress_output
from steps.wrappers.engines.scheduler import Scheduler
from steps.wrappers.engines.sequence import Sequence, Settings

BATCH = 16
# The rows of the torch engine, by default: what `generate` gets too.
ROWS = 32
PADDING = 3


def comparisons(place: Place) -> Iterator[Comparison]:
    """Yield torch against `generate`, ONNX Runtime against GenAI's own engine, and both at once against in turn."""
    yield from _torch(place)
    if place.device == "cpu":
        yield from _onnx(place)
        yield from _both(place)


def answer(
    place: Place,
    scheduler: Scheduler,
    count: int,
    tokens: int = 0,
    temperature: float = 0.0,
    prompt_tokens: int | None = None,
) -> float:
    """Return the tokens/s of our engine for new prompts, handed over together: several are a batch job.

    Args:
        place: What is measured.
        scheduler: That of our engine.
        count: The number of prompts.
        tokens: Those of an answer; 0 is what the size says.
        temperature: Above 0, tokens are drawn.
        prompt_tokens: How many a prompt has at most.
    """
    settings = Settings(temperature=temperature, top_p=1.0, top_k=0, max_tokens=tokens or place.size.tokens)
    prompts = place.prompts(count)
    sequences = [Sequence(prompt[:prompt_tokens], settings, place.tokenizer) for prompt in prompts]
    started = perf_counter()
    scheduler.submit(sequences, patient=count > 1)
    scheduler.wait(sequences)
    return sum(len(sequence.tokens) for sequence in sequences) / (perf_counter() - started)


def alone(loaded: Any, measure: Measurement) -> Measurement:
    """Return a measurement of another engine that starts when the loaded model's engine has no thread any more.

    Two threads that both have helpers of OpenMP slow each other down.
    """

    def measured() -> float:
        wait_until_idle(loaded)
        return measure()

    return measured


def loaded_against(
    place: Place, overrides: tuple[str, ...], ours: Callable[[Any], Side], theirs: Side
) -> Iterator[Comparison]:
    """Yield the side that a variant's loaded model gives against another engine's, which waits for it."""
    with place.loaded(*overrides) as loaded:
        yield Comparison(ours(loaded), Side(theirs.name, alone(loaded, theirs.measure)))


def _torch(place: Place) -> Iterator[Comparison]:
    import torch
    from transformers import AutoModelForCausalLM

    dtypes = (("fp32", torch.float32), ("bf16", torch.bfloat16))
    for precision, dtype in [pair for pair in dtypes if pair[0] in place.size.precisions]:
        with suppress_output():
            model: Any = AutoModelForCausalLM.from_pretrained(place.checkpoint, dtype=dtype)
        model.to(place.device)
        generate = partial(_generate, place, model)
        # The last one is bf16, the fastest that torch has by itself.
        last = precision == place.size.precisions[-1] and place.device == "cpu"
        for ours in (precision, "int8") if last else (precision,):
            engine = partial(_ours, place, f"torch engine, {ours}")
            yield from loaded_against(place, place.pyfunc(ours), engine, Side(f"generate, {precision}", generate))


def _onnx(place: Place) -> Iterator[Comparison]:
    for precision in ("fp32", "int4"):
        if precision == "fp32" and precision not in place.size.precisions:
            continue
        # GenAI's engine needs the logits of all tokens, and our exports compute those of the last one.
        whole = ["precision.prune_lm_head=false"] if precision == "int4" else []
        unpruned = place.model("mode=onnx", f"precision={precision}", *whole)
        genai = _genai(place, unpruned / "artifacts" / "checkpoint")
        overrides = ("mode=onnx", f"precision={precision}")
        engine = partial(_ours, place, f"onnx engine, {precision}")
        yield from loaded_against(place, overrides, engine, Side(f"og.Engine, {precision}", genai))


def _both(place: Place) -> Iterator[Comparison]:
    """Yield two engines in one process, which share the cores: the seconds of both."""
    first, second, *_ = place.variants
    with place.loaded(*first) as one, place.loaded(*second) as other:
        asks = [_ours(place, "", loaded).measure for loaded in (one, other)]

        def at_once() -> float:
            started = perf_counter()
            with ThreadPoolExecutor(len(asks)) as pool:
                for future in [pool.submit(ask) for ask in asks]:
                    future.result()
            return perf_counter() - started

        def in_turn() -> float:
            started = perf_counter()
            for ask in asks:
                ask()
            return perf_counter() - started

        yield Comparison(Side("two engines at once", at_once), Side("one after the other", in_turn), "s")


def _ours(place: Place, name: str, loaded: Any) -> Side:
    scheduler = loaded.unwrap_python_model().scheduler
    return Side(name, partial(answer, place, scheduler, place.size.prompts))


def _generate(place: Place, model: Any) -> float:
    """Return tokens/s of transformers' `generate`, with left-padded batches of prompts sorted by length."""
    import torch

    ordered = sorted(place.prompts(place.size.prompts), key=len)
    started, tokens = perf_counter(), 0
    for start in range(0, len(ordered), ROWS):
        batch = ordered[start : start + ROWS]
        width = max(map(len, batch))
        ids = torch.tensor([[PADDING] * (width - len(row)) + row for row in batch], device=place.device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in batch], device=place.device)
        with torch.inference_mode():
            out = model.generate(ids, attention_mask=mask, max_new_tokens=place.size.tokens, do_sample=False)
        tokens += out[:, width:].numel()
    return tokens / (perf_counter() - started)


def _genai(place: Place, directory: Path) -> Measurement:
    """Return a measurement of the shortest loop over og.Engine, with the same batch size."""
    import numpy as np
    import onnxruntime_genai as og

    config = og.Config(str(directory))
    config.overlay(json.dumps({"engine": {"static_batching": {"max_batch_size": BATCH}}}))
    engine = og.Engine(og.Model(config))
    events = engine.create_event_buffer(64)

    def measure() -> float:
        started, tokens, requests = perf_counter(), 0, []
        for prompt in sorted(place.prompts(place.size.prompts), key=len):
            # Otherwise each row has memory for the whole context.
            session = og.RequestOptions()
            session.set_max_session_tokens(len(prompt) + place.size.tokens)
            request = engine.create_request(options=session)
            options = og.TurnOptions(request)
            options.set_do_sample(False)
            options.set_max_generated_tokens(place.size.tokens)
            request.begin_turn(np.array(prompt, dtype=np.int32), options)
            requests.append(request)
        while engine.has_pending_requests():
            tokens += sum(bool(event.flags & og.EngineEventFlags.TOKEN) for event in engine.run(events))
        seconds = perf_counter() - started
        for request in requests:
            request.close()
        return tokens / seconds

    return measure

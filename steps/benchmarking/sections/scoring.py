"""Answering a prompt set: ours in batches, against the two ways of the upstream sample, one prompt a call.

The sample's first way is MLflow's transformers flavour with `task="llm/v1/chat"`. Its second is a custom wrapper with
ONNX Runtime GenAI's generator, here without the wrapper.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from steps.benchmarking.comparison import Comparison, Measurement, Side
from steps.benchmarking.place import Place
from steps.benchmarking.sections.engines import loaded_against
from steps.evaluation.asking import Asker, loaded
from steps.interfaces import get_interface
from steps.interfaces.interface import Question
from steps.modes import get_mode
from steps.output import suppress_output

# The sample answers one prompt for SHARE of ours: it is slow, and each call takes the same time.
SHARE = 8
DEVICE = "MLFLOW_DEFAULT_PREDICTION_DEVICE"


def comparisons(place: Place) -> Iterator[Comparison]:
    """Yield each of our best variants against each way that its library has in the sample."""
    with suppress_output():
        flavour = _sample_flavour(place)
    with _flavour_on(place.device), loaded(str(flavour)) as stock:
        precisions = ("bf16", "int8") if place.device == "cpu" else ("bf16",)
        ours = [("pyfunc", precision, place.pyfunc(precision)) for precision in precisions]
        if place.device == "cpu":
            ours.append(("openvino", "int8", ("mode=openvino", "precision=int8")))
        one_by_one = Side("the flavour, one prompt a call", partial(_ask_flavour, place, stock))
        for mode, precision, overrides in ours:
            yield from loaded_against(place, overrides, partial(_ours, place, mode, precision), one_by_one)
    if place.device == "cpu":
        exported = place.model("mode=onnx", "precision=int4") / "artifacts" / "checkpoint"
        generator = Side("og.Generator, one prompt a call", _generator(place, exported))
        yield from loaded_against(
            place, ("mode=onnx", "precision=int4"), partial(_ours, place, "onnx", "int4"), generator
        )


def _ours(place: Place, mode: str, precision: str, model: Any) -> Side:
    asker = Asker(model, get_mode(mode), get_interface("chat"))

    def measure() -> float:
        texts = place.texts(place.size.prompts)
        questions = [Question([{"role": "user", "content": text}], text) for text in texts]
        started = perf_counter()
        replies = asker.ask(questions)
        return sum(reply.completion_tokens or 0 for reply in replies) / (perf_counter() - started)

    return Side(f"{mode} {precision}, all in a call", measure)


def _sample_flavour(place: Place) -> Path:
    """Save the checkpoint with MLflow's flavour, as the sample does; return the folder."""
    import mlflow
    import torch
    import transformers

    folder = place.folder / "flavour"
    pipeline = transformers.pipeline(
        "text-generation", str(place.checkpoint), dtype=torch.bfloat16, device=place.device
    )
    mlflow.transformers.save_model(
        pipeline,
        folder,
        task="llm/v1/chat",
        model_config={"max_new_tokens": place.size.tokens, "do_sample": False},
        pip_requirements=[],
    )
    return folder


@contextlib.contextmanager
def _flavour_on(device: str) -> Iterator[None]:
    """Have MLflow load its flavour on a device; by itself it takes a GPU if there is one."""
    before = os.environ.get(DEVICE)
    os.environ[DEVICE] = "-1" if device == "cpu" else "0"
    try:
        yield
    finally:
        os.environ.pop(DEVICE)
        if before is not None:
            os.environ[DEVICE] = before


def _ask_flavour(place: Place, model: Any) -> float:
    started, tokens = perf_counter(), 0
    for text in place.texts(max(2, place.size.prompts // SHARE)):
        with suppress_output():
            (reply,) = model.predict({"messages": [{"role": "user", "content": text}]})
        tokens += reply["usage"]["completion_tokens"]
    return tokens / (perf_counter() - started)


def _generator(place: Place, directory: Path) -> Measurement:
    """Return a measurement of GenAI's generator, one prompt after the other."""
    import numpy as np
    import onnxruntime_genai as og

    model = og.Model(str(directory))

    def measure() -> float:
        prompts = place.prompts(max(2, place.size.prompts // SHARE))
        started = perf_counter()
        for prompt in prompts:
            options = og.GeneratorParams(model)
            options.set_search_options(max_length=len(prompt) + place.size.tokens, do_sample=False)
            generator = og.Generator(model, options)
            generator.append_tokens(np.array(prompt, dtype=np.int32))
            while not generator.is_done():
                generator.generate_next_token()
        return len(prompts) * place.size.tokens / (perf_counter() - started)

    return measure

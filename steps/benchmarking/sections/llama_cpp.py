"""Our variants against a bare loop over llama.cpp with the same weights in four bits (Q4_0)."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from steps.benchmarking.comparison import Comparison
from steps.benchmarking.other_engine import PROMPT, against
from steps.benchmarking.place import Place
from steps.benchmarking.sections.engines import BATCH
from steps.modes.llama_cpp import MODE
from steps.output import suppress_output
from steps.wrappers.engines.threads import thread_limit

# What it needs that this project does not install.
PACKAGES = MODE.optional_packages
OURS = ("mode=llama_cpp", "precision=int4")


def comparisons(place: Place) -> Iterator[Comparison]:
    """Yield each variant against llama.cpp. On a GPU there is nothing to compare yet."""
    if place.device != "cpu":
        return
    file = place.model(*OURS) / "artifacts" / "checkpoint" / "model.gguf"
    others = ("mode=onnx", "precision=int4"), ("mode=openvino", "precision=int4")
    for overrides in (OURS, place.pyfunc("bf16"), place.pyfunc("int8"), *others):
        with Llama.loaded(file, BATCH, PROMPT) as llama:
            yield from against(place, overrides, "llama.cpp Q4_0", llama.answer)


class Llama:
    """A GGUF file in llama.cpp, with the shortest greedy loop over its C interface.

    Args:
        file: The weights.
        rows: How many prompts at once.
        tokens: How many tokens a row has at most, prompt and answer.
    """

    def __init__(self, file: Path, rows: int, tokens: int) -> None:
        import llama_cpp
        import torch

        self._api = llama_cpp
        llama_cpp.llama_backend_init()
        self._model: Any = llama_cpp.llama_model_load_from_file(
            str(file).encode(), llama_cpp.llama_model_default_params()
        )
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = settings.n_batch = rows * tokens
        settings.n_seq_max, settings.kv_unified = rows, True
        settings.n_threads = settings.n_threads_batch = thread_limit() or torch.get_num_threads()
        self._context: Any = llama_cpp.llama_init_from_model(self._model, settings)
        self._batch = llama_cpp.llama_batch_init(rows * tokens, 0, 1)
        self._words = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))

    @staticmethod
    @contextlib.contextmanager
    def loaded(file: Path, rows: int, tokens: int) -> Iterator[Llama]:
        """Load a file for the block."""
        with suppress_output():
            llama = Llama(file, rows, tokens)
        try:
            yield llama
        finally:
            with suppress_output():
                llama._free()

    def answer(self, prompts: list[list[int]], tokens: int) -> list[list[int]]:
        """Return the likeliest tokens for each prompt, as many as are asked for."""
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), False)
        answers: list[list[int]] = [[] for _ in prompts]
        ends = list(itertools.accumulate(map(len, prompts)))
        entries = [
            (token, place, row, place == len(prompt) - 1)
            for row, prompt in enumerate(prompts)
            for place, token in enumerate(prompt)
        ]
        last = [end - 1 for end in ends]
        for step in range(tokens):
            for row, token in enumerate(self._likeliest(entries, last)):
                answers[row].append(token)
            entries = [(answers[row][-1], len(prompt) + step, row, True) for row, prompt in enumerate(prompts)]
            last = list(range(len(prompts)))
        return answers

    def _likeliest(self, entries: list[tuple[int, int, int, bool]], places: list[int]) -> list[int]:
        """Compute tokens, and return the likeliest ones after those at `places`.

        Args:
            entries: For each token its id, its position, its row, and whether its logits are wanted.
            places: Indexes of tokens whose logits are wanted.
        """
        import numpy as np

        batch = self._batch
        batch.n_tokens = len(entries)
        for index, (token, place, row, wanted) in enumerate(entries):
            batch.token[index], batch.pos[index] = token, place
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, row
            batch.logits[index] = wanted
        if code := self._api.llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode returned {code}")
        logits = (self._api.llama_get_logits_ith(self._context, place) for place in places)
        return [int(np.ctypeslib.as_array(row, (self._words,)).argmax()) for row in logits]

    def _free(self) -> None:
        self._api.llama_batch_free(self._batch)
        self._api.llama_free(self._context)
        self._api.llama_model_free(self._model)

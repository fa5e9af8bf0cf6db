"""Batching on ONNX Runtime GenAI's own engine, for providers other than the CPU.

`og.Engine` batches continuously if its provider can; on a CPU it starts a batch when the last one has finished (see
onnx_engine.py). It accepts no seed for a turn and shows no logits, so a sequence that samples with a seed, or that
needs its logits otherwise, gets a generator of its own, with our own sampling.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai as og

from .sampling import FloatArray
from .sequence import Sequence

# The most events that one run of the engine may return.
EVENTS = 64


class GenaiEngine:
    """Advance up to `max_batch_size` sequences by one token a step."""

    def __init__(self, directory: str, max_batch_size: int, execution_provider: str) -> None:
        """Load the model in a folder of ONNX Runtime GenAI's layout."""
        self.max_batch_size = max_batch_size
        # GenAI takes the memory of its cache itself.
        self.cache_tokens: int | None = None
        config = og.Config(directory)
        config.overlay(json.dumps({"engine": {"static_batching": {"max_batch_size": max_batch_size}}}))
        if execution_provider != "cpu":
            config.clear_providers()
            config.append_provider(execution_provider)
        self._model = og.Model(config)
        self._end_tokens = _end_tokens(directory)
        self._vocabulary = _genai_model(directory)["vocab_size"]
        self.reset()

    def reset(self) -> None:
        """Forget everything. GenAI's engine belongs to the thread that creates it, so `step` creates it."""
        self._engine: Any = None
        self._turns: dict[og.Request, tuple[Sequence, int]] = {}
        self._generators: dict[Sequence, og.Generator] = {}

    def step(self, arriving: list[Sequence]) -> list[tuple[Sequence, int]]:
        """Admit the arriving sequences, then advance the engine's batch and the generators with a seed."""
        if self._engine is None:
            self._engine = og.Engine(self._model)
            self._events = self._engine.create_event_buffer(EVENTS)
        for sequence in arriving:
            begin = self._begin_generator if _needs_logits(sequence) else self._begin_turn
            try:
                begin(sequence)
            except Exception as error:  # GenAI may refuse one request: no reason to stop the others
                sequence.fail_internally(error)
        return self._step_turns() + self._step_generators()

    def remove(self, sequences: list[Sequence]) -> None:
        """Cancel the turns of sequences and forget them."""
        for request, (sequence, turn) in list(self._turns.items()):
            if sequence in sequences:
                request.cancel_turn(turn)
                request.close()
                del self._turns[request]
        for sequence in sequences:
            self._generators.pop(sequence, None)

    def _begin_turn(self, sequence: Sequence) -> None:
        settings = sequence.settings
        session = og.RequestOptions()
        session.set_max_session_tokens(len(sequence.prompt) + settings.max_tokens)
        request = self._engine.create_request(options=session)
        options = og.TurnOptions(request)
        options.set_max_generated_tokens(settings.max_tokens)
        options.set_do_sample(not sequence.greedy)
        if not sequence.greedy:
            options.set_temperature(settings.temperature)
            options.set_top_p(settings.top_p)
            options.set_top_k(min(settings.top_k, self._vocabulary))
        turn = request.begin_turn(np.array(sequence.prompt, dtype=np.int32), options)
        self._turns[request] = (sequence, turn)

    def _step_turns(self) -> list[tuple[Sequence, int]]:
        """Run the engine once. It reports the end of a turn without the end token, so that is added here."""
        tokens = []
        for event in self._engine.run(self._events) if self._turns else ():
            sequence, _ = self._turns[event.request]
            if event.flags & og.EngineEventFlags.FAILED:
                sequence.fail_internally(RuntimeError(f"ONNX Runtime GenAI failed: {event.error_code}"))
            elif event.flags & og.EngineEventFlags.TOKEN:
                tokens.append((sequence, event.token))
            elif event.finish_reason == og.FinishReason.EOS:
                tokens.append((sequence, self._end_tokens[0]))
        return tokens

    def _begin_generator(self, sequence: Sequence) -> None:
        generator = self._generator(sequence)
        generator.append_tokens(np.array(sequence.prompt, dtype=np.int32))
        if sequence.settings.scores_prompt:
            logits = _logits(generator)
            if len(logits) == len(sequence.prompt):
                sequence.score_prompt(logits[sequence.settings.scored_from - 1 :])
            else:
                generator = self._scored_one_by_one(sequence)
        self._generators[sequence] = generator

    def _generator(self, sequence: Sequence) -> og.Generator:
        params = og.GeneratorParams(self._model)
        # GenAI counts the prompt in max_length.
        params.set_search_options(max_length=len(sequence.prompt) + sequence.settings.max_tokens)
        return og.Generator(self._model, params)

    def _scored_one_by_one(self, sequence: Sequence) -> og.Generator:
        """Return a generator with the prompt of a graph whose head is pruned: it gives the last token's logits only."""
        generator, start = self._generator(sequence), sequence.settings.scored_from
        for piece in [sequence.prompt[:start], *([token] for token in sequence.prompt[start:])]:
            generator.append_tokens(np.array(piece, dtype=np.int32))
            sequence.score_prompt(_logits(generator)[-1:])
        return generator

    def _step_generators(self) -> list[tuple[Sequence, int]]:
        tokens = []
        for sequence, generator in self._generators.items():
            try:
                tokens.append(self._step_generator(sequence, generator))
            except Exception as error:  # no error of one sequence may stop the others
                sequence.fail_internally(error)
        return tokens

    def _step_generator(self, sequence: Sequence, generator: og.Generator) -> tuple[Sequence, int]:
        token = sequence.choose(np.asarray(generator.get_logits(), dtype=np.float32)[0, -1])
        if token not in self._end_tokens and len(sequence.tokens) + 1 < sequence.settings.max_tokens:
            generator.append_tokens(np.array([token], dtype=np.int32))
        return sequence, token


def _logits(generator: og.Generator) -> FloatArray:
    """Return the logits [tokens, vocabulary] of the tokens that were appended last."""
    logits: FloatArray = np.asarray(generator.get_output("logits"), dtype=np.float32)[0]
    return logits


def _needs_logits(sequence: Sequence) -> bool:
    """Return True unless GenAI's own engine can choose the tokens: greedily, or sampled without a seed."""
    plain = replace(sequence.settings, temperature=0.0)
    return not plain.takes_best or (not sequence.greedy and sequence.settings.seed is not None)


def _end_tokens(directory: str) -> list[int]:
    end = _genai_model(directory)["eos_token_id"]
    return end if isinstance(end, list) else [end]


def _genai_model(directory: str) -> dict[str, Any]:
    config: dict[str, dict[str, Any]] = json.loads((Path(directory) / "genai_config.json").read_text(encoding="utf-8"))
    return config["model"]

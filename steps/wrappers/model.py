"""The PythonModel of both custom modes: requests in, replies out, an engine in between."""

import os
import uuid
from collections.abc import Iterator
from typing import Any

# tokenizers would start threads of its own beside the engine's
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pandas as pd
from mlflow.pyfunc import PythonModel

from .contract.errors import RequestError
from .contract.requests import Contract, Request, chat_chunk, chat_completion
from .engines.scheduler import Engine, Scheduler
from .engines.sequence import Sequence
from .manifest import BrokenCheckpoint, check
from .serving.app import CLIENT, watch_clients
from .tokenizer import ChatTokenizer


class Phi3Model(PythonModel):
    """Answer conversations (interface chat) or prompts (interface prompt) with one engine.

    `model_config` holds `name`, `interface`, `generation` (the defaults) and `engine` (its arguments);
    the artifact `checkpoint` is the folder with the tokenizer and the weights.
    """

    def __init__(self, engine: str):
        self._engine_name = engine

    def load_context(self, context) -> None:
        """Load the tokenizer and start the engine."""
        config, directory = context.model_config, context.artifacts["checkpoint"]
        _check_whole(directory)
        self._name, self._interface = config["name"], config["interface"]
        self._tokenizer = ChatTokenizer(directory)
        self._contract = Contract(
            self._interface, self._tokenizer, self._tokenizer.context_length, config["generation"]
        )
        self._scheduler = Scheduler(_engine(self._engine_name, directory, config["engine"]))
        watch_clients(self._contract.frame_rows, self._scheduler.is_well)

    # MLflow hands on objects and lists of objects as well as frames; of a hint that says so it warns on every load.
    def predict(self, context, model_input: pd.DataFrame, params: dict[str, Any] | None = None):
        """One reply for one row, a list of replies for several; rows as a frame, an object or a list of objects."""
        requests = self._contract.requests(self._rows(model_input), params)
        sequences = [request.sequences(self._tokenizer) for request in requests]
        together = [sequence for choices in sequences for sequence in choices]
        if client := CLIENT.get():
            client.waits_for(together)
        self._scheduler.run(together)
        replies = [self._reply(*answered) for answered in zip(requests, sequences, strict=True)]
        return replies[0] if len(replies) == 1 else replies

    def predict_stream(
        self, context, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> Iterator[dict[str, Any] | str]:
        """Yield the reply to one row in pieces: OpenAI's chunks (chat) or strings (prompt)."""
        rows = [{key: value for key, value in row.items() if key != "stream"} for row in self._rows(model_input)]
        requests = self._contract.requests(rows, params)
        if len(requests) != 1 or requests[0].n != 1:
            got = f"{len(requests)} with n = {requests[0].n}"
            raise RequestError("stream", f"predict_stream answers one conversation with n = 1, got {got}")
        (sequence,) = requests[0].sequences(self._tokenizer)
        pieces = self._scheduler.stream(sequence)
        return self._chunks(sequence, pieces) if self._interface == "chat" else pieces

    def _reply(self, request: Request, choices: list[Sequence]) -> Any:
        if self._interface == "chat":
            return chat_completion(self._name, request, choices)
        texts = [choice.text for choice in choices]
        return texts[0] if request.n == 1 else texts

    def _chunks(self, sequence: Sequence, pieces: Iterator[str]) -> Iterator[dict[str, Any]]:
        identity = f"chatcmpl-{uuid.uuid4().hex}"
        try:
            yield chat_chunk(identity, self._name, 0, {"role": "assistant", "content": ""}, None)
            for piece in pieces:
                yield chat_chunk(identity, self._name, 0, {"content": piece}, None)
            yield chat_chunk(identity, self._name, 0, {}, sequence.finish_reason)
        finally:
            # Also for a reader who leaves after the first chunk, before any piece was asked for.
            self._scheduler.cancel([sequence])

    def _rows(self, model_input: Any) -> list[dict[str, Any]]:
        """Rows of a frame, of one object, of an object of columns of prompts, or of a list of objects."""
        if isinstance(model_input, dict) and isinstance(model_input.get("prompt"), list | tuple):
            model_input = [model_input | {"prompt": prompt} for prompt in model_input["prompt"]]
        if isinstance(model_input, pd.DataFrame):
            return self._contract.frame_rows(model_input.to_dict("records"))
        rows = [model_input] if isinstance(model_input, dict) else model_input
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise RequestError("not_rows", f"expected an object or a list of objects, got {type(model_input).__name__}")
        return rows


def _check_whole(directory: str) -> None:
    """Refuse a damaged checkpoint before anything of it is read."""
    try:
        check(directory)
    except BrokenCheckpoint as fault:
        raise BrokenCheckpoint(
            f"The model in {directory} is not what was logged, so it is not loaded: {fault}. Fetch it again, or take "
            "another version."
        ) from None


def _engine(name: str, directory: str, arguments: dict[str, Any]) -> Engine:
    """Import an engine by name: neither engine's libraries are needed for the other."""
    if name == "torch":
        from .engines.torch_engine import TorchEngine

        return TorchEngine(directory, **arguments)
    if arguments["execution_provider"] == "cpu":
        from .engines.onnx_engine import OnnxEngine

        return OnnxEngine(directory, arguments["max_batch_size"])
    from .engines.genai_engine import GenaiEngine

    return GenaiEngine(directory, **arguments)

"""The PythonModel of both custom modes: requests in, replies out, an engine in between."""

import os
from collections.abc import Iterator
from typing import Any

# tokenizers would start its own threads in addition to the engine's.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pandas as pd
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from .contract.errors import RequestError
from .contract.interfaces import INTERFACES
from .contract.requests import Contract
from .engines import load_engine
from .engines.scheduler import Scheduler
from .manifest import DamagedCheckpoint, check
from .serving.app import extend_server
from .serving.client import CLIENT
from .serving.health import health_check
from .tokenizer import ChatTokenizer


class Phi3Model(PythonModel):
    """Answer conversations (interface chat) or prompts (interface prompt) with one engine.

    `model_config` holds `name`, `interface`, `generation` (the default settings) and `engine` (its arguments). The
    artifact `checkpoint` is the folder with the tokenizer and the weights.
    """

    def __init__(self, engine: str) -> None:
        """Remember the name of the engine, a key of `engines.ENGINES`."""
        self._engine_name = engine

    @property
    def scheduler(self) -> Scheduler:
        """Return the scheduler that runs the requests of this model."""
        return self._scheduler

    def load_context(self, context: PythonModelContext) -> None:
        """Check the checkpoint, load the tokenizer and start the engine."""
        config, directory = context.model_config, context.artifacts["checkpoint"]
        _refuse_damage(directory)
        self._name, self._interface = config["name"], INTERFACES[config["interface"]]
        self._tokenizer = ChatTokenizer(directory)
        self._contract = Contract(
            self._interface, self._tokenizer, self._tokenizer.context_length, config["generation"]
        )
        self._scheduler = Scheduler(load_engine(self._engine_name, directory, config["engine"]))
        extend_server(self._contract.frame_rows, health_check(self._contract, self._scheduler))

    # MLflow passes on objects and lists of objects too, but it warns on every load about a hint that says so.
    def predict(
        self,
        context: PythonModelContext,  # noqa: ARG002
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> Any:
        """Return one reply for one row, or a list of replies for several.

        Args:
            context: MLflow's context; not used.
            model_input: Rows as a frame, an object or a list of objects.
            params: Settings for rows that do not have their own.
        """
        requests = self._contract.requests(self._contract.rows(model_input), params)
        choices = [request.sequences(self._tokenizer) for request in requests]
        sequences = [sequence for row in choices for sequence in row]
        if client := CLIENT.get():
            client.wait_for(sequences)
        self._scheduler.run(sequences)
        replies = [self._interface.reply(self._name, row) for row in choices]
        return replies[0] if len(replies) == 1 else replies

    def predict_stream(
        self,
        context: PythonModelContext,  # noqa: ARG002
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> Iterator[Any]:
        """Return the reply to one row in pieces: OpenAI's chunks (chat) or strings (prompt)."""
        rows = self._contract.rows(model_input)
        rows = [{key: value for key, value in row.items() if key != "stream"} for row in rows]
        requests = self._contract.requests(rows, params)
        if len(requests) != 1 or requests[0].n != 1:
            got = f"{len(requests)} row(s) with n = {requests[0].n}"
            raise RequestError("stream", f"predict_stream answers one row with n = 1, got {got}")
        (sequence,) = requests[0].sequences(self._tokenizer)
        return self._interface.stream(self._name, sequence, self._scheduler.stream(sequence))


def _refuse_damage(directory: str) -> None:
    """Raise DamagedCheckpoint before anything of a damaged checkpoint is read."""
    try:
        check(directory)
    except DamagedCheckpoint as damage:
        raise DamagedCheckpoint(
            f"The model in {directory} is not what was logged, so it is not loaded: {damage}. Fetch it again, or take "
            "another version."
        ) from None

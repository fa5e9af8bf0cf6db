"""The PythonModel of our own modes: requests in, replies out, an engine in between."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# tokenizers would start its own threads in addition to the engine's.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from .answering import Choices, answer
from .configuration import complete_config
from .contract.body import opened
from .contract.errors import RequestError
from .contract.forms import read_form
from .contract.interfaces import INTERFACES
from .contract.requests import Contract
from .contract.size import check_size
from .engines import MissingPackage, UnusableDevice, load_engine
from .engines.sampling import FloatArray
from .engines.scheduler import Scheduler
from .manifest import DamagedCheckpoint
from .scoring import Pair, score_tokens
from .serving.app import extend_server, extended_app
from .serving.client import CLIENT
from .serving.health import health_check
from .serving.identity import read_identity
from .serving.metrics import Metrics
from .serving.prediction import extend_prediction
from .serving.routes import Service
from .shared_weights import whole_checkpoint
from .tokenizer import ChatTokenizer


class Phi3Model(PythonModel):
    """Answer conversations (interface chat) or prompts (interface prompt) with one engine.

    `model_config` holds `name`, `interface`, `generation` (the default settings) and `engine` (its name and its
    arguments). The artifact `checkpoint` is the folder with the tokenizer and the weights.
    """

    @property
    def scheduler(self) -> Scheduler:
        """Return the scheduler that runs the requests of this model."""
        return self._scheduler

    def load_context(self, context: PythonModelContext) -> None:
        """Check the checkpoint, load the tokenizer and start the engine."""
        directory = context.artifacts["checkpoint"]
        config = complete_config(context.model_config, Path(directory).parents[1])
        self._name, self._interface = config["name"], INTERFACES[config["interface"]]
        with _undamaged(directory) as checkpoint:
            # Its files are always the model's own, and some are read later.
            self._tokenizer = ChatTokenizer(directory)
            self._contract = Contract(
                self._interface, self._tokenizer, self._tokenizer.context_length, config["generation"]
            )
            try:
                self._scheduler = Scheduler(load_engine(checkpoint, **config["engine"]))
            except UnusableDevice as error:
                raise MlflowException(f"model_config.engine.{error}", error_code=INVALID_PARAMETER_VALUE) from error
            except MissingPackage as error:
                raise MlflowException(str(error), error_code=INVALID_PARAMETER_VALUE) from error
        self._health = health_check(self._contract, self._scheduler)
        self._service = Service(
            read_identity(Path(directory).parents[1], self._name),
            self._contract,
            self._scheduler,
            Metrics(self._scheduler, self._contract.context_length),
        )
        extend_server(self._contract.frame_rows, self._health, self._service)
        extend_prediction(self._contract.frame_rows)

    def server_class(self, app_class: Any) -> Any:
        """Return the class of an app for MLflow's routes, extended by ours."""
        return extended_app(app_class, self._contract.frame_rows, self._health, self._service)

    # MLflow passes on every type of input, but it warns on every load about a hint that says so.
    def predict(
        self,
        context: PythonModelContext,  # noqa: ARG002
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> Any:
        """Return one reply for a text or an object, and a list of replies for anything that can hold several.

        Args:
            context: MLflow's context; not used.
            model_input: A text or an object, or a frame, Series, array or list of them.
            params: Settings for rows that do not have their own.
        """
        rows, params = opened(model_input, params)
        form = read_form(self._contract, rows)
        if CLIENT.get():
            check_size(form.items)
        replies = [self._reply(choices) for choices in answer(form, params, self._scheduler)]
        return replies[0] if form.is_one else replies

    def score_tokens(self, pairs: list[Pair], whole_vocabulary: bool = False) -> list[FloatArray]:
        """Return the log-probabilities of given continuations of prompts (token ids); see scoring.py.

        It is no part of the requests that a served model takes: `unwrap_python_model` of a loaded one has it.
        """
        return score_tokens(self._scheduler, self._tokenizer, pairs, whole_vocabulary)

    def _reply(self, choices: Choices) -> Any:
        if isinstance(choices, RequestError):
            return self._interface.error_reply(self._name, choices.message)
        return self._interface.reply(self._name, choices)

    def predict_stream(
        self,
        context: PythonModelContext,  # noqa: ARG002
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> Iterator[Any]:
        """Return the reply to one row in pieces: OpenAI's chunks (chat) or strings (prompt)."""
        rows = [row for piece in read_form(self._contract, model_input).pieces() for row in piece]
        rows, params = [_without_stream(row) for row in rows], _without_stream(params or {})
        requests = self._contract.requests(rows, params)
        if len(requests) != 1 or requests[0].n != 1:
            got = f"{len(requests)} row(s) with n = {requests[0].n}" if requests else "no row"
            raise RequestError("stream", f"predict_stream answers one row with n = 1, got {got}")
        (sequence,) = requests[0].sequences(self._tokenizer)
        return self._interface.stream(self._name, sequence, self._scheduler.stream(sequence))


def _without_stream(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name != "stream"}


@contextlib.contextmanager
def _undamaged(directory: str) -> Iterator[str]:
    """Yield a folder with the whole checkpoint; raise DamagedCheckpoint before anything of a damaged one is read."""
    with contextlib.ExitStack() as stack:
        try:
            checkpoint = stack.enter_context(whole_checkpoint(directory))
        except DamagedCheckpoint as damage:
            raise DamagedCheckpoint(
                f"The model in {directory} is not what was logged, so it is not loaded: {damage}. Fetch it again, or "
                "take another version."
            ) from None
        yield checkpoint

"""What a caller is told when a request is not answered."""

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, INVALID_PARAMETER_VALUE

ENGINE_FAILED = "the model failed while it was answering: the server's log says how"


class RequestError(MlflowException):
    """A request that is not answered; `code` is stable, the message is for people."""

    def __init__(self, code: str, message: str, error_code: int = INVALID_PARAMETER_VALUE, status: int | None = None):
        super().__init__(f"[{code}] {message}", error_code=error_code)
        self.code, self._status = code, status

    @property
    def message(self) -> str:
        return self._message

    @message.setter
    def message(self, value: str) -> None:
        # MLflow's scoring server rewrites the message to repeat the whole input: keep the first one.
        self.__dict__.setdefault("_message", value)

    def get_http_status_code(self) -> int:
        return self._status or super().get_http_status_code()


def engine_failed() -> RequestError:
    """The error for a fault of ours, of which only the log tells more."""
    return RequestError("engine_failed", ENGINE_FAILED, INTERNAL_ERROR)

"""Refusals: the errors that a caller sees, each with a stable code."""

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, INVALID_PARAMETER_VALUE


class RequestError(MlflowException):
    """A request that is not answered. `code` is stable; the message is written for people."""

    def __init__(
        self, code: str, message: str, error_code: int = INVALID_PARAMETER_VALUE, status: int | None = None
    ) -> None:
        """Prefix `message` with `[code]`; `status` overrides the HTTP status that follows from `error_code`."""
        super().__init__(f"[{code}] {message}", error_code=error_code)
        self.code, self._status, self._error_code = code, status, error_code

    _message: str

    def in_row(self, index: int) -> "RequestError":
        """Return the same error with the number of the row that it is about."""
        message = self.message.removeprefix(f"[{self.code}] ")
        return RequestError(self.code, f"row {index}: {message}", self._error_code, self._status)

    @property
    def message(self) -> str:
        """Return the message that the error was made with."""
        return self._message

    @message.setter
    def message(self, value: str) -> None:
        # MLflow's scoring server replaces the message by one that repeats the whole input: keep the first.
        self.__dict__.setdefault("_message", value)

    def get_http_status_code(self) -> int:
        """Return the HTTP status of the reply."""
        return self._status or int(super().get_http_status_code())  # type: ignore[no-untyped-call]


def engine_failed() -> RequestError:
    """Return the error for an internal failure. It has no details: they are in the server's log."""
    message = "the model failed while it was answering; the server's log has the details"
    return RequestError("engine_failed", message, INTERNAL_ERROR)

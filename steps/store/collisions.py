"""Write what another process may write at the same moment.

MLflow's store looks for a row and inserts it if there is none: a tag, an alias, a dataset, an experiment, a version. If
another process inserts it in between, the slower of the two fails. When it tries again, it finds the row.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from mlflow.exceptions import MlflowException

# How often to try while other processes write the same row.
ATTEMPTS = 5
# How SQLite, then PostgreSQL and SQL Server, then MySQL report a duplicate row. The last message is MLflow's own, after
# three attempts to give a version its number.
COLLISIONS = ("UNIQUE constraint", "duplicate key", "Duplicate entry", "Model Version creation error")

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def retried(write: Callable[Arguments, Result], *arguments: Arguments.args, **keys: Arguments.kwargs) -> Result:
    """Call a function that writes to MLflow, and call it again if another process writes the same row first.

    For example `retried(client.set_tag, run_id, key, value)`.

    Raises:
        MlflowException: Anything else is wrong, or the write has collided ATTEMPTS times.
    """
    from mlflow.exceptions import MlflowException

    for _ in range(ATTEMPTS - 1):
        try:
            return write(*arguments, **keys)
        except MlflowException as error:
            if not is_collision(error):
                raise
    return write(*arguments, **keys)


def is_collision(error: "MlflowException") -> bool:
    """Return True if another process has written the same row first."""
    return error.error_code == "RESOURCE_ALREADY_EXISTS" or any(words in str(error) for words in COLLISIONS)

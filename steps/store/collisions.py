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
# What SQLite, PostgreSQL and SQL Server, and MySQL say of a row that is there already; and MLflow, when it has tried
# three times to count up the versions of a name.
COLLISIONS = ("UNIQUE constraint", "duplicate key", "Duplicate entry", "Model Version creation error")

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def retried(write: Callable[Arguments, Result], *arguments: Arguments.args, **keys: Arguments.kwargs) -> Result:
    """Call a function of MLflow, again if it collides: `retried(client.set_tag, run_id, key, value)`.

    Raises:
        MlflowException: Whatever else is wrong, or it has collided ATTEMPTS times.
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

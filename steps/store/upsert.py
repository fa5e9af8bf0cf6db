"""Write a tag or an alias that another process may write at the same moment."""

from collections.abc import Callable

# What SQLite, PostgreSQL and SQL Server, and MySQL say of a row that is there already.
DUPLICATE = ("UNIQUE constraint", "duplicate key", "Duplicate entry")


def upsert(write: Callable[..., object], *arguments: object) -> None:
    """Call a method of MLflow's client that sets a tag or an alias: `upsert(client.set_tag, run_id, key, value)`.

    MLflow's store reads the row, and inserts it if there is none. If another process inserts it in between, the slower
    of the two violates the table's key. The second attempt finds the row and updates it.

    Raises:
        MlflowException: Whatever else is wrong.
    """
    from mlflow.exceptions import MlflowException

    try:
        write(*arguments)
    except MlflowException as error:
        if not is_duplicate(error):
            raise
        write(*arguments)


def is_duplicate(error: Exception) -> bool:
    """Return True if a database refused a row because it is there already."""
    return any(words in str(error) for words in DUPLICATE)

"""The rows of a prompt set that is a dataset of the `datasets` library: from a hub, or from a folder or file.

    -P prompt_set=dataset -P prompt_set.path=OWNER/NAME -P prompt_set.split=test -P prompt_set.columns.target=answer

A column inside of another is named with a dot (`answers.text`). A row without an id has its number for one.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from steps.cli import CONF
from steps.errors import StepError, unknown
from steps.quiet import quiet
from steps.schema import Columns, PromptSet

OPTIONAL = ("id", "messages", "prompt", "tags", "rules")


def read(config: PromptSet) -> Iterator[tuple[int, dict[str, Any]]]:
    """The number and the fields of every row; raises StepError where there is no such dataset or column."""
    dataset = _load(config)
    named = _named(config.columns)
    columns = {field: column for field, column in named.items() if column in dataset.column_names}
    if faults := _column_faults(named, dataset.column_names):
        raise StepError(*faults)
    for number, row in enumerate(dataset.select_columns(list(set(columns.values()))), start=1):
        content = {field: row[column] for field, column in columns.items() if row[column] is not None}
        yield number, {"id": str(number)} | content


def _load(config: PromptSet) -> Any:
    import datasets

    try:
        with quiet():
            return datasets.load_dataset(_path(config.path), config.subset, split=config.split).flatten()
    except Exception as error:  # whatever the hub's client or a reader of files raises
        said = str(error).strip().partition("\n")[0]
        raise StepError(
            f"prompt_set.path: the dataset '{config.path}' (subset {config.subset}, split {config.split}) could not "
            f"be loaded: {type(error).__name__}: {said}"
        ) from error


def _path(path: str) -> str:
    """A folder relative to where the user stands, else to the project; any other name is the hub's."""
    for candidate in (Path(path).expanduser(), CONF.parent / path):
        if candidate.exists():
            return str(candidate)
    return path


def _named(columns: Columns) -> dict[str, str]:
    """The column of every field."""
    return {
        "id": columns.id,
        "messages": columns.messages,
        "prompt": columns.prompt,
        "target": columns.target,
        "tags": columns.tags,
        "rules": columns.rules,
    }


def _column_faults(named: dict[str, str], having: list[str]) -> list[str]:
    """What was named and is not there; a field that may be left out may be missing under its own name."""
    faults = [
        f"prompt_set.columns.{field}: {unknown('column', column, having)}"
        for field, column in named.items()
        if column not in having and (column != field or field not in OPTIONAL)
    ]
    if not {named["messages"], named["prompt"]} & set(having):
        faults.append(f"prompt_set.columns.prompt or .messages must name a column of {', '.join(having)}.")
    return faults

"""The rows of a prompt set that is a dataset of the `datasets` library: from a hub, or from a folder or file.

    -P prompt_set=dataset -P prompt_set.path=OWNER/NAME -P prompt_set.split=test -P prompt_set.columns.target=answer

A column inside of another is named with a dot (`answers.text`); `prompt_set.columns.tags=null` leaves a column out
that happens to have a field's name. A row without an id has its number for one, and a single tag may be a text.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from steps.config.paths import CONF
from steps.config.schema import Columns, PromptSet
from steps.errors import StepError, unknown
from steps.output import suppress_output

OPTIONAL = ("id", "messages", "prompt", "tags", "rules")
# Which builder of `datasets` reads a file.
BUILDERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
# A column's name arrives as it was typed.
NO_COLUMN = (None, "null")


def read(config: PromptSet) -> Iterator[tuple[int, dict[str, Any]]]:
    """The number and the fields of every row; raises StepError where there is no such dataset or column."""
    dataset = _load(config)
    having = dataset.column_names
    named = _named(config.columns)
    if faults := _column_faults(named, having):
        raise StepError(*faults)
    columns = _one_question({field: column for field, column in named.items() if column in having})
    for number, row in enumerate(dataset.select_columns(list(set(columns.values()))), start=1):
        content = {field: _field(field, row[column]) for field, column in columns.items() if row[column] is not None}
        yield number, {"id": str(number)} | content


def _one_question(columns: dict[str, str]) -> dict[str, str]:
    """The columns without one of prompt and messages where both are there: the one that was not asked for by name."""
    if not {"prompt", "messages"} <= columns.keys():
        return columns
    asked_for = columns["prompt"] != "prompt" and columns["messages"] == "messages"
    left_out = "messages" if asked_for else "prompt"
    return {field: column for field, column in columns.items() if field != left_out}


def _field(field: str, value: Any) -> Any:
    """A value as a row of a file would have it."""
    if field == "id" and isinstance(value, int):
        return str(value)
    return [value] if field == "tags" and isinstance(value, str) else value


def _load(config: PromptSet) -> Any:
    import datasets

    try:
        with suppress_output():
            return datasets.load_dataset(**_source(config), name=config.subset, split=config.split).flatten()
    except Exception as error:  # whatever the hub's client or a reader of files raises
        said = str(error).strip().partition("\n")[0]
        raise StepError(
            f"prompt_set.path: the dataset '{config.path}' (subset {config.subset}, split {config.split}) could not "
            f"be loaded: {type(error).__name__}: {said}"
        ) from error


def _source(config: PromptSet) -> dict[str, Any]:
    """What `datasets` loads: a file by its builder, as the split that is asked for, else a folder or a repository."""
    path = _path(config.path)
    builder = BUILDERS.get(Path(path).suffix.lower())
    if builder is None or Path(path).is_dir():
        return {"path": path}
    # Of a file alone `datasets` makes a split train; a part of it is asked for as test[:100].
    split = re.match(r"\w*", config.split)[0] or "test"
    return {"path": builder, "data_files": {split: path}}


def _path(path: str) -> str:
    """A file or folder relative to where the user stands, else to the project; any other name is the hub's."""
    for candidate in (Path(path).expanduser(), CONF.parent / path):
        if candidate.exists():
            return str(candidate)
    return path


def _named(columns: Columns) -> dict[str, str]:
    """The column of every field that is to be read."""
    named = {
        "id": columns.id,
        "messages": columns.messages,
        "prompt": columns.prompt,
        "target": columns.target,
        "tags": columns.tags,
        "rules": columns.rules,
    }
    return {field: column for field, column in named.items() if column not in NO_COLUMN}


def _column_faults(named: dict[str, str], having: list[str]) -> list[str]:
    """What was named and is not there; a field that may be left out may be missing under its own name."""
    faults = [
        f"prompt_set.columns.{field}: {unknown('column', column, having)}"
        for field, column in named.items()
        if column not in having and (column != field or field not in OPTIONAL)
    ]
    there = f"must name a column of {', '.join(having)}."
    if not {named.get("messages"), named.get("prompt")} & set(having):
        faults.append(f"prompt_set.columns.prompt or .messages {there}")
    if "target" not in named:
        faults.append(f"prompt_set.columns.target {there}")
    return faults

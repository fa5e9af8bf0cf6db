"""Read the rows of a prompt set from a dataset of the `datasets` library: on a hub, in a folder or in a file.

    -P prompt_set=dataset -P prompt_set.path=OWNER/NAME -P prompt_set.split=test -P prompt_set.columns.target=answer

A dot names a column inside another one (`answers.text`). `prompt_set.columns.tags=null` ignores a column that happens
to have the name of a field. A row without an id gets its number as id. A single tag may be a string.
"""

import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from steps.config.paths import CONF
from steps.config.schema import PromptSet
from steps.errors import StepError, unknown
from steps.output import suppress_output

OPTIONAL = ("id", "messages", "prompt", "tags", "rules")
# Suffix of a file → the builder of `datasets` that reads it.
BUILDERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
# `null` on the command line arrives as text.
NO_COLUMN = (None, "null")


def read(config: PromptSet) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield number and fields of every row; raise StepError if the dataset or a column does not exist."""
    dataset = _load(config)
    named = {field: column for field, column in asdict(config.columns).items() if column not in NO_COLUMN}
    if faults := _column_faults(named, dataset.column_names):
        raise StepError(*faults)
    columns = _one_question({field: column for field, column in named.items() if column in dataset.column_names})
    for number, row in enumerate(dataset.select_columns(list(set(columns.values()))), start=1):
        content = {field: _field(field, row[column]) for field, column in columns.items() if row[column] is not None}
        yield number, {"id": str(number)} | content


def _load(config: PromptSet) -> Any:
    import datasets

    try:
        with suppress_output():
            return datasets.load_dataset(**_source(config), name=config.subset, split=config.split).flatten()
    except Exception as error:  # anything that the hub's client or a file reader raises
        reason = str(error).strip().partition("\n")[0]
        raise StepError(
            f"prompt_set.path: the dataset '{config.path}' (subset {config.subset}, split {config.split}) could not "
            f"be loaded: {type(error).__name__}: {reason}"
        ) from error


def _source(config: PromptSet) -> dict[str, Any]:
    """Return the arguments of `load_dataset`: a builder and its file, or the path of a folder or repository.

    A relative path is searched in the working directory, then in the project. Any other name belongs to the hub.
    """
    path = str(config.path)
    candidates = (Path(path).expanduser(), CONF.parent / path)
    path = next((str(candidate) for candidate in candidates if candidate.exists()), path)
    builder = BUILDERS.get(Path(path).suffix.lower())
    if builder is None or Path(path).is_dir():
        return {"path": path}
    # For a single file `datasets` offers only the split `train`: give it the requested name, without a slice [:100].
    split = re.split(r"\W", config.split, maxsplit=1)[0] or "test"
    return {"path": builder, "data_files": {split: path}}


def _column_faults(named: dict[str, str], available: list[str]) -> list[str]:
    """Return a fault for every missing column, except for an optional field whose column has its own name."""
    faults = [
        f"prompt_set.columns.{field}: {unknown('column', column, available)}"
        for field, column in named.items()
        if column not in available and (column != field or field not in OPTIONAL)
    ]
    choices = f"must name a column of {', '.join(available)}."
    if not {named.get("messages"), named.get("prompt")} & set(available):
        faults.append(f"prompt_set.columns.prompt or .messages {choices}")
    if "target" not in named:
        faults.append(f"prompt_set.columns.target {choices}")
    return faults


def _one_question(columns: dict[str, str]) -> dict[str, str]:
    """Remove `prompt` or `messages` if both exist: keep the one that was renamed explicitly, else `messages`."""
    if not {"prompt", "messages"} <= columns.keys():
        return columns
    prompt_is_chosen = columns["prompt"] != "prompt" and columns["messages"] == "messages"
    left_out = "messages" if prompt_is_chosen else "prompt"
    return {field: column for field, column in columns.items() if field != left_out}


def _field(field: str, value: Any) -> Any:
    """Convert a value to what a row of a JSONL file would hold."""
    if field == "id" and isinstance(value, int):
        return str(value)
    return [value] if field == "tags" and isinstance(value, str) else value

"""Load a prompt set from a file (JSON lines, JSON, CSV, TSV, Parquet) or from a dataset of the `datasets` library.

    {"id": "capital-spain", "messages": [{"role": "user", "content": "…"}], "target": "Madrid", "tags": ["capital"]}

`prompt` is short for `messages` with one user message. `target` is a string or a list of accepted strings. `tags`,
`rules` (steps/evaluation/metrics/rules.py) and `choices` are optional. JSON with rows like that one is read as it is,
and may have no other fields. Of all other rows `columns.py` chooses the columns. The whole set is checked before any
model loads, and all faults are reported at once, by line. 100,000 rows take a few seconds.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from itertools import chain, islice
from pathlib import Path
from typing import Any

from steps.config.paths import CONF
from steps.config.schema import Columns
from steps.config.schema import PromptSet as PromptSetConfig
from steps.errors import StepError
from steps.evaluation.prompt_set import dataset, files, values
from steps.evaluation.prompt_set.row import Row, faults_of, make_row

MAX_FAULTS = 50
OWN = {"id", "target"}
SHOWN = 40  # characters of a target in an error message


@dataclass(frozen=True)
class PromptSet:
    """The checked rows of a prompt set. `unit` is what a row's number counts: a line of a file, a row of a dataset."""

    name: str
    rows: tuple[Row, ...]
    unit: str = "row"

    @cached_property
    def sha256(self) -> str:
        """Return the digest of the rows' content, which does not depend on the layout of the file."""
        content = sha256()
        for row in self.rows:
            fields: list[Any] = [row.id, row.messages, row.targets, row.tags, *([row.rules] if row.rules else [])]
            fields += [{"choices": row.choices}] if row.choices else []
            content.update(json.dumps(fields).encode())
        return content.hexdigest()

    def place(self, index: int) -> str:
        """Return the position of a row for error messages: "line 3 (id 'b')"."""
        row = self.rows[index]
        return f"{self.unit} {row.number or index + 1} (id {row.id!r})"


def load(config: PromptSetConfig) -> PromptSet:
    """Read and check a prompt set; raise StepError with every fault and its position.

    A relative path is searched in the working directory, then in the project.
    """
    pattern = _target_pattern(config)
    source, unit, contents = _contents(config)
    prompt_set = _check(config, source, unit, contents)
    return _by_pattern(prompt_set, source, pattern) if pattern else prompt_set


def _contents(config: PromptSetConfig) -> tuple[str, str, Iterator[tuple[int, Any]]]:
    """Return what the rows come from and are counted by, and number and fields of each."""
    name = str(config.path)
    candidates = (Path(name).expanduser(), CONF.parent / name)
    if path := next((path for path in candidates if path.is_file()), None):
        return path.name, *_file(config, path)
    if config.source == "datasets":
        return name, "row", values.fields_of(config.columns, name, dataset.read(config))
    if any(path.is_dir() for path in candidates):
        raise StepError(f"prompt_set.path must be a file, got the folder '{name}'. A folder needs prompt_set=dataset.")
    raise StepError(f"prompt_set.path must be a file of rows, got '{name}', which does not exist.")


def _file(config: PromptSetConfig, path: Path) -> tuple[str, Iterator[tuple[int, Any]]]:
    """Return what the rows of a file are counted by, and number and fields of each."""
    table = files.read(path, config.encoding)
    head = list(islice(table.rows, values.PEEKED))
    may_be_own = config.source == "jsonl" and config.columns == Columns() and table.has_types
    if may_be_own and any(_is_own(content) for _, content in head):
        return table.unit, files.read(path, config.encoding, numbers_as_text=False).rows
    rows = chain(head, table.rows)
    if "[" in config.split:
        rows = chain(dataset.sliced(config, {config.split.partition("[")[0]: list(rows)}))
    return table.unit, values.fields_of(config.columns, path.name, rows)


def _is_own(content: Any) -> bool:
    """Return True if a row has the fields of a row of ours, so that none of them is looked for elsewhere."""
    return isinstance(content, dict) and content.keys() >= OWN and bool({"messages", "prompt"} & content.keys())


def _check(config: PromptSetConfig, source: str, unit: str, contents: Iterable[tuple[int, Any]]) -> PromptSet:
    """Make the rows; raise StepError with the faults of all of them."""
    rows: list[Row] = []
    faults: list[str] = []
    numbers: dict[str, int] = {}  # where each id was first used
    for number, content in contents:
        if isinstance(content, dict) and None in content.values():
            content = {field: value for field, value in content.items() if value is not None}
        row_faults = [str(content)] if isinstance(content, ValueError) else faults_of(content)
        row_id = content.get("id") if isinstance(content, dict) else None
        row_id = row_id if isinstance(row_id, str) else ""
        if row_id and row_id in numbers:
            row_faults.append(f"id {row_id!r} is already used on {unit} {numbers[row_id]}.")
        numbers.setdefault(row_id, number)
        if row_faults:
            position = f"{unit} {number} (id {row_id!r})" if row_id else f"{unit} {number}"
            faults += [f"{position}: {fault}" for fault in row_faults]
        else:
            rows.append(make_row(content, number))
    if not rows and not faults:
        faults = ["it holds no row."]
    if faults:
        raise StepError(*shortened([f"{source}: {fault}" for fault in faults]))
    return PromptSet(name_of(config), tuple(rows), unit)


def _target_pattern(config: PromptSetConfig) -> re.Pattern[str] | None:
    """Return the rule for accepted answers; raise StepError if it is none."""
    if not config.target_pattern:
        return None
    try:
        pattern = re.compile(config.target_pattern)
    except re.error as error:
        raise StepError(
            f"prompt_set.target_pattern must be a regular expression, got '{config.target_pattern}': {error}."
        ) from error
    if pattern.groups != 1:
        raise StepError(
            f"prompt_set.target_pattern must have one group, which is the accepted answer, such as '#### (.+)'; "
            f"got '{config.target_pattern}', which has {pattern.groups}."
        )
    return pattern


def _by_pattern(prompt_set: PromptSet, source: str, pattern: re.Pattern[str]) -> PromptSet:
    """Return the prompt set with the part of each accepted answer that the pattern's group matches."""
    rows: list[Row] = []
    missed: list[int] = []
    for index, row in enumerate(prompt_set.rows):
        parts = [match[1] for target in row.targets if (match := pattern.search(target)) and (match[1] or "").strip()]
        rows.append(replace(row, targets=tuple(part.strip() for part in parts)))
        if len(parts) < len(row.targets):
            missed.append(index)
    if missed:
        first = prompt_set.rows[missed[0]].targets[-1][-SHOWN:]
        more = f" and {len(missed) - 1} more" if len(missed) > 1 else ""
        raise StepError(
            f"{source}: {prompt_set.place(missed[0])}{more}: prompt_set.target_pattern '{pattern.pattern}' does not "
            f"match the target, which ends with {first!r}."
        )
    return replace(prompt_set, rows=tuple(rows))


def name_of(config: PromptSetConfig) -> str:
    """Return the configured name, or else the name of the file or dataset."""
    path = Path(str(config.path))
    # In the name of a dataset on the hub a dot starts no suffix.
    is_file = config.source == "jsonl" or path.suffix.lower() in files.SUFFIXES
    return config.name or (path.stem if is_file else path.name) or str(config.path)


def shortened(faults: list[str]) -> list[str]:
    """Return the first MAX_FAULTS faults, and the number of the others."""
    more = [f"… and {len(faults) - MAX_FAULTS} more faults."] if len(faults) > MAX_FAULTS else []
    return faults[:MAX_FAULTS] + more

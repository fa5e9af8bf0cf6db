"""Load a prompt set from a JSONL file, one object per line, or from a dataset of the `datasets` library.

    {"id": "capital-spain", "messages": [{"role": "user", "content": "…"}], "target": "Madrid", "tags": ["capital"]}

`prompt` is short for `messages` with one user message. `target` is a string or a list of accepted strings. `tags` and
`rules` (steps/evaluation/metrics/rules.py) are optional. The whole set is checked before any model loads, and all
faults are reported at once, by line. 100,000 rows take a few seconds.
"""

import json
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from steps.config.paths import CONF
from steps.config.schema import PromptSet as PromptSetConfig
from steps.errors import StepError
from steps.evaluation.prompt_set import dataset
from steps.evaluation.prompt_set.row import Row, faults_of, make_row

MAX_FAULTS = 50


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
            fields = [row.id, row.messages, row.targets, row.tags, *([row.rules] if row.rules else [])]
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
    name = str(config.path)
    if config.source == "datasets":
        return _check(config, name, "row", dataset.read(config))
    for path in (Path(name).expanduser(), CONF.parent / name):
        if path.is_file():
            with path.open("rb") as file:
                return _check(config, path.name, "line", _lines(file))
    raise StepError(f"prompt_set.path must be a JSONL file, got '{name}', which does not exist.")


def _lines(file: Iterable[bytes]) -> Iterator[tuple[int, Any]]:
    """Yield number and content of every line that is not blank. The content of a broken line is a ValueError."""
    for number, line in enumerate(file, start=1):
        if line.strip():
            yield number, _parse(line.removeprefix(BOM_UTF8) if number == 1 else line)


def _parse(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        return ValueError("it is not UTF-8 text.")
    except json.JSONDecodeError as error:
        return ValueError(f"broken JSON: {error.msg} at column {error.colno}.")
    except RecursionError:
        return ValueError("broken JSON: it is nested too deeply.")
    except ValueError:
        return ValueError("broken JSON: a number has too many digits.")


def _check(config: PromptSetConfig, source: str, unit: str, contents: Iterable[tuple[int, Any]]) -> PromptSet:
    """Make the rows; raise StepError with the faults of all of them."""
    rows: list[Row] = []
    faults: list[str] = []
    numbers: dict[str, int] = {}  # where each id was first used
    for number, content in contents:
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


def name_of(config: PromptSetConfig) -> str:
    """Return the configured name, or else the name of the file or dataset."""
    path = Path(str(config.path))
    # In the name of a dataset on the hub a dot starts no suffix.
    is_file = config.source == "jsonl" or path.suffix.lower() in dataset.BUILDERS
    return config.name or (path.stem if is_file else path.name) or str(config.path)


def shortened(faults: list[str]) -> list[str]:
    """Return the first MAX_FAULTS faults, and the number of the others."""
    more = [f"… and {len(faults) - MAX_FAULTS} more faults."] if len(faults) > MAX_FAULTS else []
    return faults[:MAX_FAULTS] + more

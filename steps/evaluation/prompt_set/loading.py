"""Prompt sets: questions with accepted answers, one JSON object a line, or the rows of a dataset of `datasets`.

    {"id": "capital-spain", "messages": [{"role": "user", "content": "…"}], "target": "Madrid", "tags": ["capital"]}

`prompt` may stand for `messages` with one user message; `target` is a string or a list of accepted ones; `tags`
and `rules` (steps/evaluation/metrics/rules.py) may be left out. A set is checked whole before any model loads: all
faults at once, by line. A set of 100,000 rows takes seconds.
"""

import json
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
    """The checked rows of a prompt set; each stands on a `unit` of its own, a line of a file or a row of a dataset."""

    name: str
    rows: tuple[Row, ...]
    unit: str = "row"

    @cached_property
    def sha256(self) -> str:
        """Over what the rows say: the same whatever their layout in the file."""
        content = sha256()
        for row in self.rows:
            said = [row.id, row.messages, row.targets, row.tags, *([row.rules] if row.rules else [])]
            content.update(json.dumps(said).encode())
        return content.hexdigest()

    def place(self, index: int) -> str:
        """Where a row stands, for people."""
        row = self.rows[index]
        return f"{self.unit} {row.number or index + 1} (id {row.id!r})"


def load(config: PromptSetConfig) -> PromptSet:
    """Read and check a prompt set; raises StepError with every fault and where it is."""
    if config.source == "datasets":
        return _checked(config, config.path, "row", dataset.read(config))
    path = locate(config.path)
    with path.open("rb") as file:
        return _checked(config, path.name, "line", _lines(file))


def locate(path: str) -> Path:
    """A prompt set's file: relative to where the user stands, else to the project."""
    for candidate in (Path(path).expanduser(), CONF.parent / path):
        if candidate.is_file():
            return candidate
    raise StepError(f"prompt_set.path must be a JSONL file, got '{path}', which does not exist.")


def _lines(file: Iterable[bytes]) -> Iterator[tuple[int, Any]]:
    """The number and content of every line that is not blank; what is wrong with it is a ValueError."""
    for number, line in enumerate(file, start=1):
        if line.strip():
            yield number, _parse(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line)


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


def _checked(config: PromptSetConfig, source: str, unit: str, contents: Iterable[tuple[int, Any]]) -> PromptSet:
    """The rows; raises StepError with the faults of all of them."""
    rows: list[Row] = []
    faults: list[str] = []
    seen: dict[str, int] = {}
    for number, content in contents:
        problems = [str(content)] if isinstance(content, ValueError) else faults_of(content)
        identity = content.get("id") if isinstance(content, dict) else None
        if isinstance(identity, str) and identity:
            if identity in seen:
                problems.append(f"id {identity!r} stands on {unit} {seen[identity]} already.")
            seen.setdefault(identity, number)
        if problems:
            named = f" (id {identity!r})" if isinstance(identity, str) and identity else ""
            faults += [f"{unit} {number}{named}: {problem}" for problem in problems]
        else:
            rows.append(make_row(content, number))
    if not rows and not faults:
        faults = ["it holds no row."]
    if faults:
        raise StepError(*shortened([f"{source}: {fault}" for fault in faults]))
    return PromptSet(name_of(config), tuple(rows), unit)


def name_of(config: PromptSetConfig) -> str:
    """What people call a prompt set."""
    path = Path(config.path)
    # The name of a dataset on the hub may hold a dot that begins no suffix.
    is_file = config.source == "jsonl" or path.suffix.lower() in dataset.BUILDERS
    return config.name or (path.stem if is_file else path.name) or config.path


def shortened(faults: list[str]) -> list[str]:
    """As many faults as people read, and how many more there are."""
    more = [f"… and {len(faults) - MAX_FAULTS} more faults."] if len(faults) > MAX_FAULTS else []
    return faults[:MAX_FAULTS] + more

"""Read the rows of a dataset that the `datasets` library finds: on a hub, in a folder, at an address.

    -P prompt_set=dataset -P prompt_set.path=OWNER/NAME -P prompt_set.split=test -P prompt_set.columns.target=answer

`datasets` finds the files of each split, and `files.py` reads them. The library itself would take 007 for a number and
NA for a missing value, and would not see that a file has changed. It reads only what `files.py` does not know.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from steps.config.paths import CONF
from steps.config.schema import PromptSet
from steps.errors import StepError
from steps.evaluation.prompt_set import files
from steps.output import suppress_output

# Suffix of a file → the builder of `datasets` that finds it.
BUILDERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
COMPRESSED = re.compile(r"\.(gz|bz2|xz|zst|lz4)$")


def read(config: PromptSet) -> Iterator[tuple[int, Any]]:
    """Return number and values of every row; raise StepError if the dataset cannot be loaded."""
    try:
        with suppress_output():
            return enumerate(_rows(config), start=1)
    except StepError:
        raise
    except Exception as error:  # anything that the hub's client or a file reader raises
        raise _not_loaded(config, error) from error


def sliced(config: PromptSet, rows: dict[str, list[Any]]) -> list[Any]:
    """Return what `prompt_set.split` takes of the rows of each split: `test[:100]`, `train+test[10%:20%]`."""
    import datasets

    try:
        parts = datasets.ReadInstruction.from_spec(config.split).to_absolute(
            {split: len(entries) for split, entries in rows.items()}
        )
    except (ValueError, AssertionError) as error:
        raise _not_loaded(config, error) from error
    return [row for part in parts for row in rows[part.splitname][part.from_ : part.to]]


def _not_loaded(config: PromptSet, error: Exception) -> StepError:
    reason = str(error).strip().partition("\n")[0]
    return StepError(
        f"prompt_set.path: the dataset '{config.path}' (subset {config.subset}, split {config.split}) could not "
        f"be loaded: {type(error).__name__}: {reason}"
    )


def _rows(config: PromptSet) -> list[Any]:
    import datasets

    source = _source(config)
    builder = datasets.load_dataset_builder(**source, name=config.subset)
    splits = {str(split): list(map(str, names)) for split, names in (builder.config.data_files or {}).items()}
    if not splits or any(_suffix(name) not in files.SUFFIXES for names in splits.values() for name in names):
        return list(datasets.load_dataset(**source, name=config.subset, split=config.split))
    wanted = {split for split in splits if re.search(rf"\b{re.escape(split)}\b", config.split)}
    return sliced(config, {split: _read(config, names) if split in wanted else [] for split, names in splits.items()})


def _read(config: PromptSet, names: list[str]) -> list[Any]:
    """Return the rows of files, which are downloaded and decompressed as far as that is needed."""
    import datasets

    local = datasets.DownloadManager().download_and_extract(names)
    return [
        row
        for name, path in zip(names, local, strict=True)
        for _, row in files.read(Path(path), config.encoding, suffix=_suffix(name)).rows
    ]


def _suffix(name: str) -> str:
    return Path(COMPRESSED.sub("", name.partition("?")[0])).suffix.lower()


def _source(config: PromptSet) -> dict[str, Any]:
    """Return the arguments of `load_dataset`: a builder and its file, or the path of a folder or repository.

    A relative path is searched in the working directory, then in the project. Any other name belongs to the hub.
    """
    path = str(config.path)
    candidates = (Path(path).expanduser(), CONF.parent / path)
    path = next((str(candidate) for candidate in candidates if candidate.exists()), path)
    builder = BUILDERS.get(_suffix(path))
    if builder is None or Path(path).is_dir():
        return {"path": path}
    split = re.split(r"\W", config.split, maxsplit=1)[0] or "test"
    return {"path": builder, "data_files": {split: path}}

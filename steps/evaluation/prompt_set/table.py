"""Read a table with a character between its cells: CSV, TSV, or with semicolons, as many programs write it."""

import csv
import io
import re
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import islice, zip_longest
from typing import Any, Literal

from steps.errors import StepError

DELIMITERS = ",;\t|"
SAMPLE = 20  # rows by which a delimiter is recognised
# Excel may write the delimiter into the first line: sep=;
DECLARED = re.compile(r"sep=(.)\r?\n", re.IGNORECASE)


def rows_of(name: str, text: str, is_tsv: bool) -> Iterator[tuple[int, Any]]:
    """Yield the line and the cells of every row, by the names in the first line.

    Args:
        name: The name of the file, for errors.
        text: Its content.
        is_tsv: Tabs are more likely than commas, and quotes may be part of the text.

    Raises:
        StepError: Quotes are broken, or two columns have the same name.
    """
    declared = DECLARED.match(text)
    skipped = 1 if declared else 0
    text = text[declared.end() :] if declared else text
    delimiter = declared[1] if declared else _delimiter(text, is_tsv)
    quoting: Literal[0, 3] = csv.QUOTE_NONE if is_tsv and not _is_well_quoted(text, delimiter) else csv.QUOTE_MINIMAL
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the default is 128 KiB
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, quoting=quoting)
    try:
        names = _names(name, next(reader, []))
        line = reader.line_num + 1
        for cells in reader:
            if any(cells):
                yield line + skipped, _row(names, cells, delimiter)
            line = reader.line_num + 1
    except csv.Error as error:
        raise StepError(
            f"{name}: line {reader.line_num + skipped}: its quotes are broken: {error}. "
            'A quote inside a cell is written twice: "".'
        ) from error


def _delimiter(text: str, is_tsv: bool) -> str:
    """Return the character that splits the first line into most cells, and the next ones into as many."""

    def columns(delimiter: str) -> tuple[bool, int]:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        widths = [len(cells) for cells in islice(reader, SAMPLE) if cells]
        return len(set(widths)) == 1, widths[0] if widths else 0

    # A single column is even in any case, so that it says nothing. Of equals, max returns the first.
    scores = {delimiter: columns(delimiter) for delimiter in ("\t" if is_tsv else ",", *DELIMITERS)}
    best: str = max(scores, key=lambda delimiter: (scores[delimiter][1] > 1, *scores[delimiter]))
    return best


def _is_well_quoted(text: str, delimiter: str) -> bool:
    try:
        for _ in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True):
            pass
    except csv.Error:
        return False
    return True


def _names(name: str, header: list[str]) -> list[str]:
    names = [cell.strip() for cell in header]
    if twice := [column for column, times in Counter(names).items() if column and times > 1]:
        raise StepError(f"{name}: its first line has the column '{twice[0]}' twice. Rename one.")
    return names


def _row(names: list[str], cells: list[str], delimiter: str) -> dict[str, str | None] | ValueError:
    """Return the cells that are not empty by the names of their columns; ValueError if there are too many."""
    if any(cells[len(names) :]):
        shown = "tab" if delimiter == "\t" else repr(delimiter)
        return ValueError(
            f"it has {len(cells)} cells, the first line has {len(names)}. Put a cell that contains {shown} in quotes."
        )
    return {column: cell or None for column, cell in zip_longest(names, cells[: len(names)]) if column}

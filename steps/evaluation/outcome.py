"""What an evaluation did, variant by variant: a failure of one never keeps the others from being scored."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from steps.errors import RowErrors, VariantErrors, sentences_of
from steps.evaluation.scorecard import Scorecard
from steps.store import connection
from steps.store.variants import Variant


@dataclass(frozen=True)
class Outcome:
    """What an evaluation did.

    Attributes:
        model_ids: The LoggedModels that were scored.
        row_errors: A sentence for each variant with rows that have an error.
        faults: A sentence for each variant that could not be scored or reported on.
    """

    model_ids: list[str] = field(default_factory=list)
    row_errors: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Raise VariantErrors if there is any fault."""
        if self.faults:
            raise VariantErrors(*self.faults, *self.row_errors)

    def check_rows(self) -> None:
        """Raise RowErrors, for exit code 3, if some rows have an error."""
        if self.row_errors:
            raise RowErrors(*self.row_errors)

    def add_row_errors(self, variant: Variant, card: Scorecard) -> None:
        """Add a sentence about the rows of a variant that have an error, if any."""
        errors = {row_id: error for row_id, error in zip(card.ids, card.errors, strict=True) if error}
        if errors:
            row_id, error = next(iter(errors.items()))
            self.row_errors.append(
                f"{variant.name} is scored, but {len(errors)} rows have an error: row {row_id!r}: {error}"
            )

    @contextlib.contextmanager
    def recorded(self, variant: Variant, what: str) -> Iterator[None]:
        """Record an exception as this variant's failure and carry on with the others."""
        try:
            yield
        except Exception as error:
            connection.check_server("went away and has not come back")
            why = sentences_of(connection.in_plain_words(error))
            self.faults.append(f"{variant.name} ({variant.uri}) {what}: {why}")

"""How far the asking of a variant is: a bar on a terminal, words for the signs of life elsewhere, and a forecast."""

import time

from steps.output import Activity, duration, echo

# A forecast below this, in seconds, is not worth a line.
LONG = 600.0
SHORTER = "fewer variants (variants=quick), fewer rows (prompt_set.path=…) or a lower generation.max_tokens"


class Progress:
    """Counts the rows of one variant that are answered.

    The first row, and the first batch of several, give a forecast of the whole evaluation. It is printed if it is long.
    Rows in batches take less time each than a row alone.
    """

    def __init__(self, name: str, doing: Activity | None = None, later: int = 0) -> None:
        """Remember what to report.

        Args:
            name: The variant's name.
            doing: What the signs of life say; None for nothing.
            later: How many variants are still to be asked after this one.
        """
        self._name, self._doing, self._later = name, doing, later

    def start(self, total: int, done: int) -> None:
        """Begin with `done` of `total` rows answered before."""
        from tqdm import tqdm

        self._total, self._done, self._asked = total, done, 0
        self._started = self._last = time.monotonic()
        self._forecast_for: set[bool] = set()
        # disable=None: no bar if the output is not a terminal
        self._bar = tqdm(initial=done, total=total, desc=self._name, unit="row", disable=None)

    def advance(self, rows: int) -> None:
        """Count a batch of `rows` rows that were answered since the last call."""
        now = time.monotonic()
        seconds_a_row = (now - self._last) / rows
        self._last, self._done, self._asked = now, self._done + rows, self._asked + rows
        self._bar.update(rows)
        rate = self._asked / max(now - self._started, 1e-9)
        left = duration((self._total - self._done) / rate)
        if self._doing:
            progress = f"{self._done} of {self._total} rows, {rate:.3g} rows/s, {left} left"
            self._doing.words = f"asking {self._name}: {progress}"
        if (rows > 1) not in self._forecast_for:
            self._forecast_for.add(rows > 1)
            self._forecast(seconds_a_row, rows)

    def close(self) -> None:
        """Remove the bar."""
        self._bar.close()

    def _forecast(self, seconds_a_row: float, rows: int) -> None:
        own = seconds_a_row * (self._total - self._done)
        others = seconds_a_row * self._total * self._later
        if own + others < LONG:
            return
        after = f", and the {self._later} variants after it {duration(others)} more" if others else ""
        pace = "first row" if rows == 1 else f"first batch of {rows} rows"
        at_most = "at most " if rows == 1 else ""
        echo(
            f"At the pace of its {pace}, {self._name} takes {at_most}{duration(own)} for the rows that are "
            f"left{after}. Shorter: {SHORTER}."
        )

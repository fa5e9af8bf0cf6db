"""Score answers with metrics of the `evaluate` library, and put answers and scores together as a scorecard.

A skipped row has no score of its own and counts as 0 in every mean, because variants are compared on the same rows. An
answer that is empty or an error has the score 0, whatever the metric. The score of a row is its mean over all repeats,
so that rows stay independent of each other.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from steps.errors import StepError
from steps.evaluation.answers import Answer
from steps.evaluation.prompt_set import PromptSet, shortened
from steps.evaluation.scorecard import Scorecard
from steps.evaluation.statistics import interval
from steps.output import suppress_output

# The metric that checks the rules of a row.
RULES_METRIC = "instruction_match"


@dataclass(frozen=True)
class Computed:
    """One metric's values for one repeat: a score for every row that was asked (None if it has none), aggregates."""

    scores: list[float] | None
    aggregates: dict[str, float]


def check_rows(prompt_set: PromptSet, metrics: Iterable[str]) -> None:
    """Raise StepError with every row that lacks what a metric needs, before any model loads."""
    if RULES_METRIC not in metrics:
        return
    lacking = [prompt_set.place(index) for index, row in enumerate(prompt_set.rows) if not row.rules]
    if lacking:
        faults = [f"{prompt_set.name}: {place}: the metric {RULES_METRIC} needs rules." for place in lacking]
        raise StepError(*shortened(faults))


def compute(metrics: dict[str, Any], prompt_set: PromptSet, repeats: list[list[Answer]]) -> dict[str, list[Computed]]:
    """Return each metric's values for each repeat; raises StepError with every metric that fails or returns NaN."""
    if all(answer.skipped for answer in repeats[0]):
        raise StepError(f"every row of {prompt_set.name} was skipped: {repeats[0][0].skipped}")
    faults: list[str] = []
    computed: dict[str, list[Computed]] = {}
    for name, metric in metrics.items():
        try:
            with suppress_output():
                computed[name] = [_compute(name, metric, prompt_set, answers) for answers in repeats]
        except Exception as error:  # whatever a metric of any origin raises
            faults.append(f"metric {name} failed: {type(error).__name__}: {error}")
        else:
            faults += _faults(name, computed[name], prompt_set, repeats[0])
    if faults:
        raise StepError(*faults)
    return computed


def _compute(name: str, metric: Any, prompt_set: PromptSet, answers: list[Answer]) -> Computed:
    """Compute a metric over the rows that were answered. The others count as 0, whatever the metric makes of them."""
    asked = [(row, answer) for row, answer in zip(prompt_set.rows, answers, strict=True) if not answer.skipped]
    answered = [(row, answer) for row, answer in asked if answer.answered]
    if not answered:
        return Computed([0.0] * len(asked), {"mean": 0.0})
    inputs = {
        "predictions": [answer.text for _, answer in answered],
        "references": [list(row.targets) for row, _ in answered],
    }
    if "rules" in metric.features:
        inputs["rules"] = [list(row.rules) for row, _ in answered]
    values = metric.compute(**inputs)
    scores = values.pop("scores", None)
    # A metric that scores no rows counts the others as 0 through its mean.
    share = len(answered) / len(asked)
    numbers = {key: float(value) * share for key, value in values.items() if isinstance(value, int | float)}
    aggregates = {"mean" if key == name else key: value for key, value in numbers.items()}
    if scores is None:
        return Computed(None, aggregates)
    if len(scores) != len(answered):
        raise ValueError(f"it gave {len(scores)} scores for {len(answered)} rows")
    each = (float(score) for score in scores)
    return Computed([next(each) if answer.answered else 0.0 for _, answer in asked], aggregates)


def _faults(name: str, repeats: list[Computed], prompt_set: PromptSet, answers: list[Answer]) -> Iterator[str]:
    """Yield what MLflow would only warn about: a metric without a value, or with one that is not a number."""
    asked = [row.id for row, answer in zip(prompt_set.rows, answers, strict=True) if not answer.skipped]
    for computed in repeats:
        if not computed.aggregates:
            yield f"metric {name} gave no value."
        for key, value in computed.aggregates.items():
            if not math.isfinite(value):
                yield f"metric {name}/{key} is {value}."
        scores = computed.scores or []
        broken = [place for place, score in enumerate(scores) if not math.isfinite(score)]
        if broken:
            yield f"metric {name} gave row {asked[broken[0]]!r} the score {scores[broken[0]]}."


def scorecard(prompt_set: PromptSet, repeats: list[list[Answer]], computed: dict[str, list[Computed]]) -> Scorecard:
    """Put answers and scores together, with intervals over all rows and over the rows of each tag."""
    answers = repeats[0]
    scores = {name: _row_scores(answers, values) for name, values in computed.items() if values[0].scores is not None}
    aggregates = {
        f"{name}/{key}": value for name, values in computed.items() for key, value in _mean_aggregates(values).items()
    }
    return Scorecard(
        prompt_set={"name": prompt_set.name, "sha256": prompt_set.sha256, "rows": len(prompt_set.rows)},
        ids=[row.id for row in prompt_set.rows],
        tags=[list(row.tags) for row in prompt_set.rows],
        answers=_texts(answers),
        repeats=[_texts(repeat) for repeat in repeats[1:]],
        errors=[next((answer.error for answer in row if answer.error), None) for row in zip(*repeats, strict=True)],
        skipped=[answer.skipped for answer in answers],
        scores=scores,
        metrics=aggregates | _summaries(scores, range(len(answers))),
        by_tag=_by_tag(prompt_set, scores),
    )


def carried(card: Scorecard, name: str) -> list[Computed]:
    """Return the values of a metric that a scorecard holds already, as one repeat that has the means of all."""
    rows = card.scores.get(name)
    derived = (f"{name}/ci_low", f"{name}/ci_high") if rows else ()
    own = {key: value for key, value in card.metrics.items() if key.startswith(f"{name}/") and key not in derived}
    aggregates = {key.removeprefix(f"{name}/"): value for key, value in own.items()}
    return [Computed(None if rows is None else [score for score in rows if score is not None], aggregates)]


def _texts(answers: list[Answer]) -> list[str | None]:
    return [None if answer.skipped else answer.text for answer in answers]


def _row_scores(answers: list[Answer], repeats: list[Computed]) -> list[float | None]:
    """Return the mean of every row over the repeats; None for a row that was skipped."""
    by_repeat = [computed.scores or [] for computed in repeats]
    means = (sum(scores) / len(scores) for scores in zip(*by_repeat, strict=True))
    return [None if answer.skipped else next(means) for answer in answers]


def _mean_aggregates(repeats: list[Computed]) -> dict[str, float]:
    return {key: sum(computed.aggregates[key] for computed in repeats) / len(repeats) for key in repeats[0].aggregates}


def _summaries(scores: dict[str, list[float | None]], indices: Iterable[int]) -> dict[str, float]:
    """Return the mean and 95 % interval of every metric over these rows; a skipped row counts as 0."""
    places = list(indices)
    summaries: dict[str, float] = {}
    for name, rows in scores.items():
        if counts := counted([rows[index] for index in places]):
            low, high = interval(counts)
            mean = math.fsum(counts) / len(counts)
            summaries |= {f"{name}/mean": mean, f"{name}/ci_low": low, f"{name}/ci_high": high}
    return summaries


def counted(scores: list[float | None]) -> list[float]:
    """Return the scores of rows as every mean counts them: a skipped row as 0."""
    return [0.0 if score is None else score for score in scores]


def _by_tag(prompt_set: PromptSet, scores: dict[str, list[float | None]]) -> dict[str, dict[str, float]]:
    places: dict[str, list[int]] = {}
    for index, row in enumerate(prompt_set.rows):
        for tag in row.tags:
            places.setdefault(tag, []).append(index)
    return {tag: {"rows": len(indices)} | _summaries(scores, indices) for tag, indices in sorted(places.items())}

"""Score answers with metrics of the `evaluate` library, and put answers and scores together as a scorecard.

A skipped row has no score of its own and counts as 0 in every mean, because variants are compared on the same rows. An
answer that is empty or an error has the score 0, whatever the metric. Where less is better, 0 would be the best score:
such a row counts in no mean. The score of a row is its mean over all repeats, so that rows stay independent of each
other.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from steps.errors import StepError
from steps.evaluation import likelihoods
from steps.evaluation.answers import Answer
from steps.evaluation.metric_loading import LIKELIHOODS
from steps.evaluation.prompt_set import PromptSet, shortened
from steps.evaluation.scorecard import Scorecard
from steps.evaluation.statistics import interval
from steps.output import suppress_output
from steps.store.names import UNBOUNDED, less_is_better

# The field of a row that a metric needs.
FIELDS = {"instruction_match": "rules"} | {name: field for name, field in LIKELIHOODS.items() if field == "choices"}
NO_ENTRIES: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Computed:
    """One metric's values for one repeat: a score for every row that was asked (None if it has none), aggregates."""

    scores: list[float | None] | None
    aggregates: dict[str, float]


def check_rows(prompt_set: PromptSet, metrics: Iterable[str]) -> None:
    """Raise StepError with every row that lacks what a metric needs, before any model loads."""
    needs = {name: FIELDS[name] for name in metrics if name in FIELDS}
    faults = [
        f"{prompt_set.name}: {prompt_set.place(index)}: the metric {name} needs {field}."
        for name, field in needs.items()
        for index, row in enumerate(prompt_set.rows)
        if not getattr(row, field)
    ]
    if faults:
        raise StepError(*shortened(faults))


def compute(
    metrics: dict[str, Any], prompt_set: PromptSet, repeats: list[list[Answer]], entries: Mapping[str, Any] = NO_ENTRIES
) -> dict[str, list[Computed]]:
    """Return each metric's values for each repeat; raises StepError with every metric that fails or returns NaN.

    `entries` hold the likelihoods of given answers, for the metrics that read those.
    """
    if all(answer.skipped for answer in repeats[0]):
        raise StepError(f"every row of {prompt_set.name} was skipped: {repeats[0][0].skipped}")
    faults: list[str] = []
    computed: dict[str, list[Computed]] = {}
    for name, metric in metrics.items():
        try:
            with suppress_output():
                if name in LIKELIHOODS:
                    # They are the same in every repeat.
                    computed[name] = [_compute_likelihoods(name, metric, prompt_set, repeats[0], entries)]
                else:
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
    aggregates = _aggregates(name, values, len(answered) / len(asked))
    if scores is None:
        return Computed(None, aggregates)
    if len(scores) != len(answered):
        raise ValueError(f"it gave {len(scores)} scores for {len(answered)} rows")
    each = (float(score) for score in scores)
    return Computed([next(each) if answer.answered else 0.0 for _, answer in asked], aggregates)


def _aggregates(name: str, values: dict[str, Any], share: float) -> dict[str, float]:
    numbers = {key: float(value) * share for key, value in values.items() if isinstance(value, int | float)}
    return {"mean" if key == name else key: value for key, value in numbers.items()}


def _compute_likelihoods(
    name: str, metric: Any, prompt_set: PromptSet, answers: list[Answer], entries: Mapping[str, Any]
) -> Computed:
    """Compute a metric of the likelihoods of given answers, whatever the model itself answered."""
    kind = LIKELIHOODS[name]
    scored = likelihoods.table(entries, prompt_set, kind)
    asked = [
        (row, each) for row, each, answer in zip(prompt_set.rows, scored, answers, strict=True) if not answer.skipped
    ]
    known = [(row, [one for one in each if one]) for row, each in asked if all(each)]
    unknown = None if less_is_better(name) else 0.0
    if not known:
        return Computed([unknown] * len(asked), {} if unknown is None else {"mean": unknown})
    columns = {
        "choices": [list(row.choices) for row, _ in known],
        "choice_logprobs": [[logprob for logprob, _ in each] for _, each in known],
        "target_logprobs": [[logprob for logprob, _ in each] for _, each in known],
        "target_tokens": [[tokens for _, tokens in each] for _, each in known],
    }
    values = metric.compute(
        predictions=[""] * len(known),
        references=[list(row.targets) for row, _ in known],
        **{column: column_values for column, column_values in columns.items() if column in metric.features},
    )
    scores = iter(values.pop("scores"))
    aggregates = _aggregates(name, values, 1 if unknown is None else len(known) / len(asked))
    return Computed([float(next(scores)) if all(each) else unknown for _, each in asked], aggregates)


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
        broken = [place for place, score in enumerate(scores) if score is not None and not math.isfinite(score)]
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
    asked = None if rows is None else [score for score, skipped in zip(rows, card.skipped, strict=True) if not skipped]
    return [Computed(asked, aggregates)]


def _texts(answers: list[Answer]) -> list[str | None]:
    return [None if answer.skipped else answer.text for answer in answers]


def _row_scores(answers: list[Answer], repeats: list[Computed]) -> list[float | None]:
    """Return the mean of every row over the repeats; None for a row that was skipped."""
    by_repeat = [computed.scores or [] for computed in repeats]
    means = (_mean(scores) for scores in zip(*by_repeat, strict=True))
    return [None if answer.skipped else next(means) for answer in answers]


def _mean(scores: tuple[float | None, ...]) -> float | None:
    known = [score for score in scores if score is not None]
    return sum(known) / len(known) if len(known) == len(scores) else None


def _mean_aggregates(repeats: list[Computed]) -> dict[str, float]:
    return {key: sum(computed.aggregates[key] for computed in repeats) / len(repeats) for key in repeats[0].aggregates}


def _summaries(scores: dict[str, list[float | None]], indices: Iterable[int]) -> dict[str, float]:
    """Return the mean and 95 % interval of every metric over these rows, as `counted` counts them."""
    places = list(indices)
    summaries: dict[str, float] = {}
    for name, rows in scores.items():
        if counts := known(counted([rows[index] for index in places], name)):
            low, high = interval(counts, scale=0.0 if name in UNBOUNDED else 1.0)
            mean = math.fsum(counts) / len(counts)
            summaries |= {f"{name}/mean": mean, f"{name}/ci_low": low, f"{name}/ci_high": high}
    return summaries


def counted(scores: list[float | None], metric: str) -> list[float]:
    """Return the scores of rows as every mean counts them: a row without one as 0, or as NaN if less is better."""
    return [(math.nan if less_is_better(metric) else 0.0) if score is None else score for score in scores]


def known(scores: list[float]) -> list[float]:
    """Return the scores that count in a mean: those that are numbers."""
    return [score for score in scores if not math.isnan(score)]


def _by_tag(prompt_set: PromptSet, scores: dict[str, list[float | None]]) -> dict[str, dict[str, float]]:
    places: dict[str, list[int]] = {}
    for index, row in enumerate(prompt_set.rows):
        for tag in row.tags:
            places.setdefault(tag, []).append(index)
    return {tag: {"rows": len(indices)} | _summaries(scores, indices) for tag, indices in sorted(places.items())}

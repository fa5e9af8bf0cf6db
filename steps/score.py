"""Answer every row of a big table with the champion, on one machine.

    mlflow run . -e score -P input=questions.parquet -P output=answers.parquet
    python -m steps.score input=questions.csv output=answers.jsonl question=text

Reads conf/score.yaml, a CSV, JSON lines or Parquet file, and the champion. Writes the same rows in the same order with
the columns `answer` and `error`. The table is never in memory as a whole. If it is killed, the same command goes on
where it stopped, with the same model. Exit codes: 0 done, 1 failed, 3 done but some rows have an error.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from steps import command_line
from steps.batch import parts, questions, source, target
from steps.batch.parts import Job, Parts
from steps.batch.source import Row, Source
from steps.config.paths import user_directory
from steps.config.schema import ScoreConfig
from steps.errors import RowErrors, StepError
from steps.evaluation.asking import Asker, loaded
from steps.output import duration, echo
from steps.promotion import registry
from steps.store import integrity, runs
from steps.store.commands import step_command
from steps.store.variants import Variant, read_variant

if TYPE_CHECKING:
    from mlflow import MlflowClient

# Seconds between two lines of progress where there is no terminal for a bar.
PROGRESS_SECONDS = 60.0


def score(config: ScoreConfig) -> int:
    """Answer every row of `input` and write `output`; returns how many rows have an error.

    Raises:
        StepError: The table, the output or the champion cannot be used, or more than `max_errors` rows have an error.
    """
    import mlflow

    client = mlflow.MlflowClient()
    table = source.opened(user_directory() / Path(str(config.input)).expanduser())
    output = _output(config, table)
    output_parts = Parts(output)
    with output_parts.held():
        if output_parts.job() is None and output.exists():
            output_parts.remove()
            raise StepError(f"output must be a new file, got '{output}', which exists. Delete it, or give another one.")
        job = _begin(client, config, table, output_parts)
        variant = _runnable(client, job)
        with runs.start(f"score-{table.path.stem}"):
            started, missing = time.perf_counter(), table.rows - _rows_done(output_parts, job, table)
            if missing:
                _answer_all(config, table, output_parts, job, variant)
            errors = output_parts.errors()
            target.write_whole(
                output_parts.folder / f"whole{output.suffix}",
                lambda path: target.join(output_parts.files(), path, table, job.added),
            )
            (output_parts.folder / f"whole{output.suffix}").replace(output)
            seconds = time.perf_counter() - started
            mlflow.log_metrics(
                {"score/rows": table.rows, "score/errors": errors, "score/rows_per_second": missing / seconds}
            )
        output_parts.remove()
    echo(f"Scored {table.rows:,} rows with {variant.name} (version {job.version}), {errors} with an error: {output}")
    return errors


def _output(config: ScoreConfig, table: Source) -> Path:
    """Return where to write; raise StepError if that is not possible."""
    output = user_directory() / Path(str(config.output)).expanduser()
    if output.suffix not in source.FORMATS:
        raise StepError(f"output must have the suffix {', '.join(source.FORMATS)}, got '{output}'.")
    for key, column in (("answer_column", config.answer_column), ("error_column", config.error_column)):
        if column in table.columns:
            raise StepError(f"{table.path.name} has a column '{column}' already: give another name, -P {key}=…")
    if config.answer_column == config.error_column:
        raise StepError(f"answer_column and error_column must differ, got '{config.answer_column}' for both.")
    return output


def _begin(client: MlflowClient, config: ScoreConfig, table: Source, output_parts: Parts) -> Job:
    """Return the job that was begun, or begin it with the champion of now."""
    champion = registry.read(client, config.registered_model).champion
    begun = output_parts.job()
    if begun is None and champion is None:
        output_parts.remove()
        raise StepError(
            f"{config.registered_model} has no champion yet: `{step_command('main')}` makes one. Or name another "
            "registered_model."
        )
    version, model_id = (champion.number, champion.model_id) if champion else ("", "")
    column = questions.question_column(table, config.question)
    added = (config.answer_column, config.error_column)
    job = Job(table.sha256, column, added, config.part_rows, config.registered_model, version, model_id)
    if begun is None:
        output_parts.begin(job)
        echo(f"Reading {table.path.name}: {table.rows:,} rows, questions from {column}.")
        return job
    parts.check_same(begun, job, output_parts)
    echo(
        f"Going on with version {begun.version} of {job.registered_model}: {len(output_parts.files())} parts are done."
    )
    return begun


def _runnable(client: MlflowClient, job: Job) -> Variant:
    """Return the variant that answers; raise StepError if it cannot run here."""
    variant = read_variant(client, job.model_id)
    if lost := integrity.missing(client, variant):
        raise StepError(f"{integrity.broken_model(variant, lost)}.")
    if fault := variant.config.mode.device_fault:
        raise StepError(f"{variant.name} ({variant.uri}) cannot run here: {fault}.")
    return variant


def _rows_done(output_parts: Parts, job: Job, table: Source) -> int:
    return min(len(output_parts.files()) * job.part_rows, table.rows)


def _answer_all(config: ScoreConfig, table: Source, output_parts: Parts, job: Job, variant: Variant) -> None:
    """Answer the rows that no part has, part by part."""
    from tqdm import tqdm

    number = len(output_parts.files())
    done = _rows_done(output_parts, job, table)
    # A bar is for a terminal; elsewhere a line a minute.
    with (
        loaded(variant.uri) as model,
        tqdm(initial=done, total=table.rows, desc=variant.name, unit="row", disable=None) as bar,
    ):
        asker = Asker(model, variant.mode, variant.interface)
        started, printed, first = time.monotonic(), time.monotonic(), done
        for chunk in table.chunks(job.part_rows, skip=number):
            rows = _answered(asker, variant, chunk, job, config.batch_size, bar.update)
            errors = sum(row[job.added[1]] is not None for row in rows)
            _refuse_errors(output_parts.errors() + errors, config.max_errors, rows, job)
            target.write_whole(
                output_parts.file(number, errors),
                lambda path, rows=rows: target.write_part(path, rows, table, job.added),  # type: ignore[misc]
            )
            number, done = number + 1, done + len(rows)
            if not sys.stderr.isatty() and time.monotonic() - printed > PROGRESS_SECONDS:
                printed = time.monotonic()
                rate = (done - first) / (printed - started)
                left = duration((table.rows - done) / rate)
                echo(f"{done:,} of {table.rows:,} rows, {rate:.1f} rows/s, {left} left.")


def _answered(
    asker: Asker, variant: Variant, chunk: list[Row], job: Job, batch_size: int, update: Callable[[int], object]
) -> list[dict[str, object]]:
    """Return the rows of a chunk with their answers and errors."""
    size = batch_size if variant.mode.batches else 1
    rows: list[dict[str, object]] = []
    for start in range(0, len(chunk), size):
        batch = chunk[start : start + size]
        for row, answer in zip(batch, questions.answers(asker, variant.interface, batch, job.question), strict=True):
            rows.append(row.values | {job.added[0]: answer.text, job.added[1]: answer.error})
        update(len(batch))
    return rows


def _refuse_errors(errors: int, allowed: int | None, rows: list[dict[str, object]], job: Job) -> None:
    if allowed is not None and errors > allowed:
        example = next(row[job.added[1]] for row in rows if row[job.added[1]] is not None)
        raise StepError(
            f"{errors} rows have an error, more than max_errors={allowed}: {example}. Correct the cause and run the "
            "same command again: the parts that are done are kept."
        )


def _score(config: ScoreConfig) -> None:
    if errors := score(config):
        raise RowErrors(f"{errors} rows have an error; the column '{config.error_column}' says why.")


def main() -> None:
    """Run the step from the command line."""
    command_line.run("score", _score)


if __name__ == "__main__":
    main()

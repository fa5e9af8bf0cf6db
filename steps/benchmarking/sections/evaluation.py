"""What an evaluation costs: in addition to the engine, and with examples before each question."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from steps.benchmarking.comparison import Comparison, Side
from steps.benchmarking.place import Place
from steps.benchmarking.sections.engines import answer
from steps.config.schema import Evaluation
from steps.config.schema import PromptSet as PromptSetConfig
from steps.errors import StepError
from steps.evaluation import prompt_set
from steps.evaluation.answers import answer_rows
from steps.evaluation.asking import Asker
from steps.evaluation.context_check import ContextCheck
from steps.evaluation.journal import Journal
from steps.store.variants import Variant, read_variant

FEW_SHOT = "prompting=few_shot"
# Rows for each prompt of the other sections.
SHARE = 4


def comparisons(place: Place) -> Iterator[Comparison]:
    """Yield asking against the engine with as many prompts, the whole command likewise, and few_shot against plain."""
    for overrides in place.variants:
        yield from _compare(place, overrides)


def _compare(place: Place, overrides: tuple[str, ...]) -> Iterator[Comparison]:
    """Yield the comparisons of one variant."""
    variant, few_shot = _variant(place, *overrides), _variant(place, *overrides, FEW_SHOT)
    with place.loaded(*overrides) as plain, place.loaded(*overrides, FEW_SHOT) as with_examples:
        scheduler = plain.unwrap_python_model().scheduler
        name = f"{variant.config.mode.name} {variant.config.precision.name}"
        alone = Side("its engine", partial(answer, place, scheduler, SHARE * place.size.prompts))
        asked = partial(_ask, place, variant, plain)
        yield Comparison(Side(f"{name}, rows asked", asked), alone)
        whole = Side(f"{name}, step evaluate", partial(_evaluate, place, variant))
        yield Comparison(whole, alone, warm_up=False, rounds=3)
        examples = Side(f"{name}, {FEW_SHOT}", partial(_ask, place, few_shot, with_examples))
        yield Comparison(examples, Side("prompting=plain", asked))


def _variant(place: Place, *overrides: str) -> Variant:
    import mlflow

    # The build makes the store. A client would make one whose artifacts are in the folder of this process.
    model_id = place.model(*overrides).parent.name
    client = mlflow.MlflowClient(f"sqlite:///{place.folder}/store/mlflow.db")
    return read_variant(client, model_id)


def _ask(place: Place, variant: Variant, model: Any) -> float:
    """Return tokens/s of asking the rows as `evaluate` does: in batches, with a journal."""
    rows, path = prompt_set.load(_written(place)), place.folder / "journal.sqlite"
    path.unlink(missing_ok=True)
    journal = Journal(path, {})
    started = perf_counter()
    asker = Asker(model, variant.mode, variant.interface)
    (answers,) = answer_rows(asker, variant, rows, ContextCheck(), Evaluation(), journal)
    seconds = perf_counter() - started
    journal.close()
    if errors := [each.error for each in answers if each.error]:
        raise StepError(f"{len(errors)} rows have an error: {errors[0]}")
    return len(answers) * place.size.tokens / seconds


def _evaluate(place: Place, variant: Variant) -> float:
    """Return tokens/s of the step `evaluate`: imports, loading, asking, the contract suite, scores and logs."""
    file = _written(place).path
    started = perf_counter()
    words = [f"prompt_set.path={file}", f"run_id={variant.run_id}", "evaluate.speed=false"]
    place.run(place.folder / "store", "steps.evaluate", *words)
    return SHARE * place.size.prompts * place.size.tokens / (perf_counter() - started)


def _written(place: Place) -> PromptSetConfig:
    """Write a new prompt set."""
    file = Path(place.folder / "rows.jsonl")
    rows = [
        {"id": text, "messages": [{"role": "user", "content": text}], "target": "a"}
        for text in place.texts(SHARE * place.size.prompts)
    ]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return PromptSetConfig("benchmark", str(file))

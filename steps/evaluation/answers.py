"""Ask a variant the questions of a prompt set, in batches, through its own pyfunc interface."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from steps.evaluation.prompt_set import PromptSet, Row
from steps.quiet import quiet
from steps.tracking import Variant


def answer(model: Any, variant: Variant, prompt_set: PromptSet, batch_size: int, seed: int) -> list[str]:
    """The loaded variant's answer to every row, in order; a sampled variant gets seed + r for row r."""
    from tqdm import tqdm

    rows, answers = prompt_set.rows, []
    # disable=None: no bar where the output is not a terminal
    with tqdm(total=len(rows), desc=variant.name, unit="row", disable=None) as bar:
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            answers += _ask(model, variant, batch, seed + start)
            bar.update(len(batch))
    return answers


@contextlib.contextmanager
def loaded(uri: str) -> Iterator[Any]:
    """A model with the code that it was logged with; the next model's code starts afresh."""
    import mlflow

    path = list(sys.path)
    _forget_wrappers()
    try:
        with quiet():
            model = mlflow.pyfunc.load_model(uri)
        yield model
    finally:
        sys.path[:] = path
        _forget_wrappers()


def _forget_wrappers() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "wrappers"]:
        del sys.modules[name]


def _ask(model: Any, variant: Variant, rows: tuple[Row, ...], seed: int) -> list[str]:
    sampled = float(variant.params["generation.temperature"]) > 0
    if variant.params["mode"] == "transformers":
        # The stock flavour answers only the first conversation of a frame, and takes no seed.
        return [_ask_stock(model, variant, row, seed + index, sampled) for index, row in enumerate(rows)]
    if variant.params["interface"] == "prompt":
        return _ask_prompts(model, rows, seed, sampled)
    import pandas as pd

    frame = pd.DataFrame({"messages": [row.conversation for row in rows]})
    if sampled:
        frame["custom_inputs"] = [{"seed": seed + index} for index in range(len(rows))]
    replies = model.predict(frame)
    return [_content(reply) for reply in (replies if isinstance(replies, list) else [replies])]


def _ask_stock(model: Any, variant: Variant, row: Row, seed: int, sampled: bool) -> str:
    if sampled:
        import torch

        torch.manual_seed(seed)
    with quiet():
        if variant.params["interface"] == "chat":
            return _content(model.predict({"messages": row.conversation})[0])
        return model.predict({"prompt": as_prompt(row)})[0]


def _ask_prompts(model: Any, rows: tuple[Row, ...], seed: int, sampled: bool) -> list[str]:
    import pandas as pd

    if sampled:  # params are one for a whole call
        return [
            model.predict({"prompt": as_prompt(row)}, params={"seed": seed + index}) for index, row in enumerate(rows)
        ]
    replies = model.predict(pd.DataFrame({"prompt": [as_prompt(row) for row in rows]}))
    return replies if isinstance(replies, list) else [replies]


def as_prompt(row: Row) -> str:
    """A row for the interface prompt: one user message as it is, more in Phi-3's own format."""
    if len(row.messages) == 1:
        return row.question
    turns = "".join(f"<|{role}|>\n{content}<|end|>\n" for role, content in row.messages)
    return f"{turns}<|assistant|>\n"


def _content(reply: dict[str, Any]) -> str:
    return reply["choices"][0]["message"]["content"]

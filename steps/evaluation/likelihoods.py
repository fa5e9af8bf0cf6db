"""The likelihoods of given answers: of a row's choices and of its accepted answers. Nothing is generated.

An answer is what the assistant would write after the conversation. Prompt and answer are encoded together, and the
tokens after those of the prompt are scored. For a choice, the white space that a chat template ends with counts as the
answer's: lm-evaluation-harness moves it there. Each likelihood is an entry of the journal, and then of an artifact next
to the scorecard: another metric of it needs no model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from steps.digests import digest, digest_file
from steps.errors import StepError
from steps.evaluation.answers import Answer
from steps.evaluation.asking import Asker
from steps.evaluation.context_check import tokenizer_of
from steps.evaluation.journal import Journal
from steps.evaluation.metric_loading import LIKELIHOODS
from steps.evaluation.prompt_set import PromptSet
from steps.evaluation.prompt_set.row import Row
from steps.store.variants import Variant, load_artifact
from steps.wrappers.chat_template import TemplateRefusal
from steps.wrappers.tokenizer import ChatTokenizer

# An entry's name begins with this and holds a digest of this file: another way to score makes other entries.
PREFIX = "likelihood "
CODE = digest_file(Path(__file__))
# How many answers are scored before they are written to the journal.
BATCH = 64

# The sum of an answer's log-probabilities in nats, and its tokens; None if it could not be scored.
Likelihood = tuple[float, int] | None


@dataclass(frozen=True)
class Given:
    """An answer that a row gives, and the field that holds it: choices or targets."""

    row: Row
    kind: str
    text: str

    @property
    def name(self) -> str:
        """Return the name of its entry."""
        return f"{PREFIX}{digest([CODE, self.kind, self.row.messages, self.text])[:32]}"


def kinds_of(metrics: Iterable[str]) -> tuple[str, ...]:
    """Return what these metrics need the likelihoods of: the fields of a row that hold the answers."""
    return tuple(dict.fromkeys(LIKELIHOODS[name] for name in metrics if name in LIKELIHOODS))


def missing(
    entries: dict[str, Any], rows: PromptSet, kinds: Sequence[str], answers: Sequence[Answer] | None = None
) -> list[Given]:
    """Return the answers without a likelihood. A row that was skipped is not scored."""
    asked = [row for index, row in enumerate(rows.rows) if answers is None or not answers[index].skipped]
    texts = dict.fromkeys(one for row in asked for kind in kinds for one in _given(row, kind))
    return [one for one in texts if one.name not in entries]


def _given(row: Row, kind: str) -> list[Given]:
    return [Given(row, kind, text) for text in getattr(row, kind)]


def score(asker: Asker, variant: Variant, wanted: list[Given], max_errors: int, journal: Journal) -> None:
    """Score answers to rows and write their likelihoods to the journal.

    Raises:
        StepError: More than `max_errors` of them cannot be scored.
    """
    errors: dict[str, str] = {}
    rest = iter(wanted)
    with tokenizer_of(variant) as tokenizer, tqdm(total=len(wanted), desc=variant.name, disable=None) as bar:
        while batch := list(islice(rest, BATCH)):
            entries = _score_batch(asker, tokenizer, batch)
            errors |= {one.row.id: reason for one in batch if (reason := entries[one.name].get("error"))}
            if len(errors) > max_errors:
                row_id, error = next(iter(errors.items()))
                raise StepError(
                    f"the answers of {len(errors)} rows cannot be scored, more than evaluate.max_errors={max_errors}: "
                    f"row {row_id!r}: {error}"
                )
            journal.add(entries)
            bar.update(len(batch))


def table(entries: Mapping[str, Any], rows: PromptSet, kind: str) -> list[list[Likelihood]]:
    """Return the likelihood of every answer of every row."""
    return [[_likelihood(entries.get(one.name)) for one in _given(row, kind)] for row in rows.rows]


def chosen(entries: dict[str, Any], rows: PromptSet, skipped: dict[int, str]) -> list[Answer]:
    """Return the most likely choice of each row as its answer."""
    answers = []
    for index, (row, scored) in enumerate(zip(rows.rows, table(entries, rows, "choices"), strict=True)):
        known = [one[0] for one in scored if one]
        if index in skipped:
            answers.append(Answer(skipped=skipped[index]))
        elif len(known) == len(row.choices):
            answers.append(Answer(row.choices[known.index(max(known))]))
        else:
            errors = (entries.get(one.name, {}).get("error") for one in _given(row, "choices"))
            answers.append(Answer(error=next(filter(None, errors), "its choices were not scored")))
    return answers


def file(prompt_set_sha256: str) -> str:
    """Return the artifact with the likelihoods of a scorecard."""
    return f"likelihoods/{prompt_set_sha256[:16]}.json"


def kept(entries: dict[str, Any], rows: PromptSet) -> dict[str, Any]:
    """Return the entries of these rows, for the artifact."""
    kinds = dict.fromkeys(LIKELIHOODS.values())
    names = dict.fromkeys(one.name for row in rows.rows for kind in kinds for one in _given(row, kind))
    return {name: entries[name] for name in names if name in entries}


def read(variant: Variant, prompt_set_sha256: str) -> dict[str, Any]:
    """Return the likelihoods that were logged with a scorecard; none if there are none."""
    with contextlib.suppress(Exception):  # a store, a server or a folder may each lose a file in its own way
        entries: dict[str, Any] = load_artifact(variant, file(prompt_set_sha256))
        return entries
    return {}


def _score_batch(asker: Asker, tokenizer: ChatTokenizer, batch: list[Given]) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    pairs: dict[str, tuple[list[int], list[int]]] = {}
    for one in batch:
        try:
            pairs[one.name] = encode(tokenizer, one)
        except (TemplateRefusal, ValueError) as error:
            entries[one.name] = {"error": str(error)}
    for name, logprobs in zip(pairs, asker.score(list(pairs.values())) if pairs else [], strict=True):
        entries[name] = {"logprob": float(logprobs.sum()), "tokens": len(logprobs)}
    return entries


def encode(tokenizer: ChatTokenizer, one: Given) -> tuple[list[int], list[int]]:
    """Return the token ids of a row's prompt and of an answer to it.

    Raises:
        ValueError: The answer has no tokens of its own, or both are beyond the context.
    """
    prompt = tokenizer.render(one.row.conversation)
    before = prompt.rstrip() if one.kind == "choices" else prompt
    length, ids = len(tokenizer.encode(before)), tokenizer.encode(prompt + one.text)
    if len(ids) <= length:
        raise ValueError(f"the answer {one.text[:40]!r} has no tokens of its own")
    # An engine chooses a token more than it is given.
    if (limit := tokenizer.context_length) <= len(ids):
        raise ValueError(f"its prompt and the answer {one.text[:40]!r} have {len(ids)} tokens, the context {limit}")
    return ids[:length], ids[length:]


def _likelihood(entry: dict[str, Any] | None) -> Likelihood:
    return (entry["logprob"], entry["tokens"]) if entry and "logprob" in entry else None

"""Fidelity: how far a variant's next-token distributions are from those of a reference, the least quantised variant.

The reference answers each row greedily. Both then score the tokens of that answer, and the place after its last one, in
one forward pass, and their distributions over the whole vocabulary are compared place by place. So a difference at one
token changes no later one. The reference's are computed once and kept in the cache, one file for each row: 4 bytes for
each token of the vocabulary at each place. A variant that is its own reference has exactly 0.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np

from steps.checkpoints.cache import cache_directory
from steps.digests import digest, digest_file
from steps.errors import StepError
from steps.evaluation.answers import Answer
from steps.evaluation.asking import Asker, loaded
from steps.evaluation.context_check import context_check, tokenizer_of
from steps.evaluation.journal import Journal
from steps.evaluation.metric_loading import FIDELITY
from steps.evaluation.prompt_set import PromptSet
from steps.evaluation.prompt_set.row import Row
from steps.evaluation.scores import Computed
from steps.interfaces.interface import Question
from steps.output import activity
from steps.store import integrity, names
from steps.store.environment import package_versions
from steps.store.variants import Variant, variant_of_run
from steps.wrappers.tokenizer import ChatTokenizer

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from steps.wrappers.engines.sampling import FloatArray

CODE = digest_file(Path(__file__))
# From the least quantised on.
PRECISIONS = ("fp32", "bf16", "int8", "int4_mixed", "int4")
# Rows whose distributions are in memory at the same time.
BATCH = 8
PREFIX = "fidelity "


def references(client: MlflowClient, variants: Iterable[Variant], run_id: str | None) -> dict[str, Variant]:
    """Return the reference of each variant that has one, by model id.

    Args:
        client: The store.
        variants: All that are known.
        run_id: The run of the reference of all of them; None for the least quantised greedy variant of the same
            checkpoint and prompting, the first by name.

    Raises:
        StepError: The named variant cannot be a reference.
    """
    variants = list(variants)
    if run_id:
        named = variant_of_run(client, run_id)
        if not _may_be_reference(named):
            raise StepError(
                "evaluate.reference must be the run of a greedy variant whose mode can score given texts, got "
                f"{named.name}."
            )
        return {variant.model_id: named for variant in variants}
    groups: dict[str, list[Variant]] = {}
    for variant in variants:
        groups.setdefault(_group(variant), []).append(variant)
    best = {group: _best(client, ones) for group, ones in groups.items()}
    return {variant.model_id: one for variant in variants if (one := best[_group(variant)])}


def _best(client: MlflowClient, variants: list[Variant]) -> Variant | None:
    """Return the first variant by rank that can run here."""
    able = (one for one in sorted(variants, key=_rank) if _may_be_reference(one) and not one.config.mode.device_fault)
    return next((one for one in able if not integrity.missing(client, one)), None)


def _may_be_reference(variant: Variant) -> bool:
    return bool(variant.config.generation.greedy and variant.mode.score_tokens)


def _group(variant: Variant) -> str:
    # Of earlier versions a model does not say its checkpoint: it has only itself.
    checkpoint = variant.tags.get(names.CHECKPOINT_SHA256, variant.fingerprint)
    return digest([checkpoint, repr(variant.config.prompting)])


def _rank(variant: Variant) -> tuple[int, str, str]:
    precision = variant.config.precision.name
    place = PRECISIONS.index(precision) if precision in PRECISIONS else len(PRECISIONS)
    return place, variant.name, variant.fingerprint


def prepare(client: MlflowClient, reference: Variant, rows: PromptSet, batch_size: int) -> None:
    """Compute the reference's answers and distributions that the cache does not have.

    Raises:
        StepError: The reference's files are not what `build` logged.
    """
    from filelock import FileLock

    folder = _file(reference, rows.rows[0]).parent
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Another process may need the same.
    with FileLock(f"{folder}.lock"):
        if absent := [index for index, row in enumerate(rows.rows) if not _file(reference, row).is_file()]:
            _ask(client, reference, rows, absent, batch_size)


def _ask(client: MlflowClient, reference: Variant, rows: PromptSet, absent: list[int], batch_size: int) -> None:
    """Ask a reference the rows at these indices, and keep its answers and its distributions."""
    if changed := integrity.verify(client, reference):
        raise StepError(f"its reference {reference.name} is not what build logged: {'; '.join(changed)}.")
    check = context_check(reference, rows)
    unaskable = check.too_long | check.unaskable | check.control_tokens
    askable = [index for index in absent if index not in unaskable]
    words = f"asking {reference.name}, the reference of fidelity"
    with activity(words), integrity.local_copy(client, reference) as folder, loaded(folder) as model:
        asker = Asker(model, reference.mode, reference.interface)
        with tokenizer_of(reference) as tokenizer:
            for start in range(0, len(askable), batch_size):
                indices = askable[start : start + batch_size]
                batch = [rows.rows[index] for index in indices]
                prompts = [check.prompts.get(index, rows.rows[index].question) for index in indices]
                questions = [Question(row.conversation, prompt) for row, prompt in zip(batch, prompts, strict=True)]
                texts = [str(reply.texts[0]) for reply in asker.ask(questions)]
                _keep(asker, tokenizer, reference, batch, texts)


def _keep(asker: Asker, tokenizer: ChatTokenizer, reference: Variant, rows: list[Row], texts: list[str]) -> None:
    """Score a reference's own answers, and write the distributions to the cache."""
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        prompts = [tokenizer.encode_chat(row.conversation) for row in batch]
        answers = [
            _answer(tokenizer, row, text, len(prompt))
            for row, text, prompt in zip(batch, texts[start:], prompts, strict=False)
        ]
        scored = asker.score(list(zip(prompts, answers, strict=True)), whole_vocabulary=True)
        for row, tokens, logprobs in zip(batch, answers, scored, strict=True):
            _write(_file(reference, row), tokens, logprobs)


def _answer(tokenizer: ChatTokenizer, row: Row, text: str, length: int) -> list[int]:
    """Return the tokens of an answer and one more: at its place stands whether the answer ends there."""
    tokens = tokenizer.encode(tokenizer.render(row.conversation) + text)[length:]
    room = max(0, tokenizer.context_length - length - 2)
    return [*tokens[:room], min(tokenizer.end_tokens, default=0)]


def score(asker: Asker, variant: Variant, reference: Variant, wanted: list[Row], journal: Journal) -> None:
    """Compare a variant with its reference on rows, and write what each row gave to the journal."""
    with tokenizer_of(variant) as tokenizer:
        for start in range(0, len(wanted), BATCH):
            batch = wanted[start : start + BATCH]
            kept = [_read(_file(reference, row)) for row in batch]
            prompts = [tokenizer.encode_chat(row.conversation) for row in batch]
            pairs = [(prompt, tokens) for prompt, (tokens, _) in zip(prompts, kept, strict=True)]
            scored = asker.score(pairs, whole_vocabulary=True)
            journal.add(
                {
                    _name(reference, row): compare(theirs, ours)
                    for row, (_, theirs), ours in zip(batch, kept, scored, strict=True)
                }
            )


def missing(entries: Mapping[str, Any], reference: Variant, rows: PromptSet, answers: Sequence[Answer]) -> list[Row]:
    """Return the rows that have to be compared: those that were not skipped, and that the reference could take."""
    return [
        row
        for row, answer in zip(rows.rows, answers, strict=True)
        if not answer.skipped and _name(reference, row) not in entries and _file(reference, row).is_file()
    ]


def compare(theirs: FloatArray, ours: FloatArray) -> dict[str, float]:
    """Return how far log-probabilities are from those of a reference, both [places, vocabulary].

    Returns:
        By metric: the mean Kullback-Leibler divergence in nats, the share of places with another best token, and the
        number of places before the first of them.

    Raises:
        ValueError: The vocabularies differ.
    """
    if theirs.shape != ours.shape:
        raise ValueError(f"the reference has {theirs.shape[1]} tokens, the variant {ours.shape[1]}")
    log_p, log_q = theirs.astype(np.float64), ours.astype(np.float64)
    p = np.exp(log_p)
    # A token that the reference never takes adds nothing.
    terms = np.where(p > 0, p * (log_p - log_q), 0.0)
    flips = theirs.argmax(axis=1) != ours.argmax(axis=1)
    first = int(flips.argmax()) if flips.any() else len(flips)
    values = (float(np.maximum(terms.sum(axis=1), 0).mean()), float(flips.mean()), float(first))
    return dict(zip(FIDELITY, values, strict=True))


def computed(
    entries: Mapping[str, Any], reference: Variant, rows: PromptSet, answers: Sequence[Answer]
) -> dict[str, list[Computed]]:
    """Return the values of each fidelity metric. A row that the reference could not take has none."""
    asked = [row for row, answer in zip(rows.rows, answers, strict=True) if not answer.skipped]
    compared = [entries.get(_name(reference, row), {}) for row in asked]
    return {name: [Computed([entry.get(name) for entry in compared], {})] for name in FIDELITY}


def _name(reference: Variant, row: Row) -> str:
    return f"{PREFIX}{_digest(reference, row)[:32]}"


def _file(reference: Variant, row: Row) -> Path:
    return cache_directory() / "fidelity" / reference.fingerprint[:16] / f"{_digest(reference, row)[:32]}.npz"


def _digest(reference: Variant, row: Row) -> str:
    return digest([CODE, reference.fingerprint, package_versions(), row.messages])


def _write(file: Path, tokens: list[int], logprobs: FloatArray) -> None:
    """Write a row whole or not at all."""
    partial = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as stream:
            np.savez(stream, tokens=np.array(tokens), logprobs=logprobs)
        partial.replace(file)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise StepError(
            f"the reference's distributions cannot be written to {file.parent} ({error.strerror or error}): free some "
            "disk space, or set PHI3_CACHE_DIR to another folder."
        ) from error


def _read(file: Path) -> tuple[list[int], FloatArray]:
    try:
        # numpy leaves a damaged file open that it has opened itself.
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as content:
            return [int(token) for token in content["tokens"]], content["logprobs"]
    except (OSError, EOFError, ValueError, KeyError, BadZipFile) as error:
        file.unlink(missing_ok=True)
        raise StepError(
            f"{file} in the cache was damaged ({type(error).__name__}) and is removed: evaluate again to make it anew."
        ) from error

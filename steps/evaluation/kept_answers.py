"""The answers of a scorecard, kept when its ruler has changed: they are scored again without asking the variant."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from steps.digests import digest
from steps.errors import StepError
from steps.evaluation import contract_suite, likelihoods, scorecard
from steps.evaluation.answers import Answer
from steps.evaluation.journal import Journal
from steps.evaluation.metric_loading import FIDELITY, REFERENCE
from steps.evaluation.prompt_set import PromptSet
from steps.evaluation.ruler import CONTRACT, Ruler
from steps.evaluation.scorecard import Scorecard
from steps.store.names import CONTRACT_TOTAL
from steps.store.variants import Variant

if TYPE_CHECKING:
    from mlflow import MlflowClient


@dataclass(frozen=True)
class Kept:
    """A scorecard whose answers are scored again.

    Attributes:
        parts: The ruler that it was scored by; empty if it does not say.
        latencies: How long each answer took, in milliseconds.
        is_generated: Whether its answers were generated, and not chosen by their likelihood.
    """

    parts: dict[str, str]
    card: Scorecard
    latencies: list[float | None]
    is_generated: bool = True

    @property
    def repeats(self) -> list[list[Answer]]:
        """Return the answers of every repeat."""
        repeats = [self.card.answers, *self.card.repeats]
        rows = list(zip(self.card.errors, self.card.skipped, self.latencies, strict=True))
        return [
            [
                Answer(text or "", None if text else error, skipped, latency)
                for text, (error, skipped, latency) in zip(texts, rows, strict=True)
            ]
            for texts in repeats
        ]


def keep(variant: Variant, rows: PromptSet, ruler: Ruler, entries: Journal) -> Kept | None:
    """Return the scorecard whose answers can be scored again; None if the variant has to be asked.

    It is written to the journal first: the scorecard in the store is replaced, and this process may be killed then.
    """
    name = f"kept {digest([rows.sha256, ruler.asked(variant)])[:32]}"
    if entry := entries.entries.get(name):
        kept = Kept(entry["parts"], Scorecard(**entry["card"]), entry["latencies"], entry.get("is_generated", True))
        if kept.is_generated or not ruler.generates:
            return kept
    if not scorecard.is_asked(variant, rows, ruler):
        return None
    try:
        card = scorecard.read(variant, rows.sha256)
    except StepError:
        return None
    if card.ids != [row.id for row in rows.rows]:
        return None
    latencies = scorecard.read_latencies(variant, rows.sha256, len(card.ids))
    kept = Kept(known_parts(variant, rows, ruler), card, latencies, scorecard.is_generated(variant, rows.sha256))
    entries.add({name: asdict(kept)})
    return kept


def needs_model(client: MlflowClient, variant: Variant, rows: PromptSet, ruler: Ruler) -> bool:
    """Return True if a variant has to be asked something to be scored by a ruler."""
    if not scorecard.is_asked(variant, rows, ruler) or not scorecard.is_stored(client, variant, rows.sha256):
        return True
    stale = scorecard.outdated(known_parts(variant, rows, ruler), ruler.parts(variant))
    if {CONTRACT, REFERENCE, *FIDELITY} & set(stale):
        return True
    kinds = likelihoods.kinds_of(stale)
    return bool(kinds and likelihoods.missing(likelihoods.read(variant, rows.sha256), rows, kinds))


def known_parts(variant: Variant, rows: PromptSet, ruler: Ruler) -> dict[str, str]:
    """Return the ruler that a scorecard was made by, as far as it is known.

    Scorecards of earlier versions do not say. The results of their contract count if they are as many as there are
    checks now.
    """
    parts = scorecard.parts_of(variant, rows.sha256)
    total = (scorecard.metrics_of(variant, rows.sha256) or {}).get(CONTRACT_TOTAL.key)
    if not parts and total == len(contract_suite.checks(variant.interface.name)):
        return {CONTRACT: ruler.parts(variant)[CONTRACT]}
    return parts

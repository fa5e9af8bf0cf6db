"""Find the rows of a prompt set whose answers stand in a prompting: in an example, or in the system prompt.

A passage of the prompting gives a row away if it holds an accepted answer and shares a rare word with the question:
"The capital of Italy? Rome" and "Which city is Italy's capital?". An answer that many rows accept is a label such as
"yes", which every good example holds, so there only the very same question counts. An answer in other words is not
found.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise

from steps.config.schema import Prompting
from steps.evaluation.metrics.normalize import contains
from steps.evaluation.prompt_set import PromptSet
from steps.evaluation.prompt_set.row import Row
from steps.output import echo
from steps.store.variants import Variant

# A word or an answer is rare if at most this share of the rows, or this many rows, have it.
RARE_SHARE, RARE_ROWS = 0.05, 3
SHOWN = 5  # ids in a warning
# Scripts without spaces: their words are found by pairs of characters.
UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff]+")


def warn(variants: Iterable[Variant], prompt_set: PromptSet) -> None:
    """Print a sentence for each prompting of the variants that holds answers of the prompt set."""
    promptings = {str(variant.config.prompting): variant.config.prompting for variant in variants}
    for prompting in promptings.values():
        if leaked := leaked_rows(prompting, prompt_set):
            shown = ", ".join(repr(row.id) for row in leaked[:SHOWN]) + (", …" if len(leaked) > SHOWN else "")
            echo(
                f"Warning: the prompting '{prompting.name}' holds the answers of {len(leaked)} of the "
                f"{len(prompt_set.rows)} rows of {prompt_set.name} ({shown}): its variants score too high on them."
            )


def leaked_rows(prompting: Prompting, prompt_set: PromptSet) -> list[Row]:
    """Return the rows whose answers a prompting holds."""
    passages = [_Passage(example.user, example.assistant) for example in prompting.examples]
    passages += [_Passage("", prompting.system)] if prompting.system else []
    if not passages:
        return []
    rows = prompt_set.rows
    limit = max(RARE_ROWS, int(RARE_SHARE * len(rows)))
    terms = [_terms(row.transcript) for row in rows]
    common = _more_than(limit, (term for row_terms in terms for term in row_terms))
    labels = _more_than(limit, (target for row in rows for target in set(row.targets)))
    return [
        row
        for row, row_terms in zip(rows, terms, strict=True)
        if any(passage.gives_away(row, row_terms - common, labels) for passage in passages)
    ]


class _Passage:
    """An example, or a system prompt without a question."""

    def __init__(self, question: str, answer: str) -> None:
        self._question, self._answer = _words(question), answer
        self._terms = _terms(f"{question} {answer}")

    def gives_away(self, row: Row, rare_terms: set[str], labels: set[str]) -> bool:
        """Return True if the passage holds an answer to the row's question."""
        same_question = bool(self._question) and _words(row.question) == self._question
        if not same_question and not rare_terms & self._terms:
            return False
        targets = [target for target in row.targets if same_question or target not in labels]
        return any(contains(self._answer, target) for target in targets)


def _terms(text: str) -> set[str]:
    """Return the words of a text, and the pairs of characters of scripts without spaces."""
    words = set(_words(text))
    runs = (run for word in words for run in UNSPACED.findall(word))
    return words | {first + second for run in runs for first, second in pairwise(run)}


def _words(text: str) -> list[str]:
    # To tell whether two questions are about the same; the metrics' own words tell more, and take longer.
    return re.findall(r"\w+", unicodedata.normalize("NFC", text).casefold())


def _more_than(limit: int, items: Iterable[str]) -> set[str]:
    return {item for item, count in Counter(items).items() if count > limit}

"""What people see of a promotion outside its own run: a word on each variant's run, and the registered model's page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steps.promotion import report
from steps.promotion.rank import Ranking
from steps.promotion.registry import Registry
from steps.promotion.verdicts import INFERIOR
from steps.store import runs
from steps.store.collisions import retried
from steps.store.names import STANDING, VARIANT, row_metric
from steps.store.variants import find_variants

if TYPE_CHECKING:
    from mlflow import MlflowClient

PAGE = """\
**Champion: version {number}, {variant}**: {reason}.

```python
import mlflow
model = mlflow.pyfunc.load_model("models:/{name}@champion")
```

```sh
{serve}
```

`{history}` prints every champion so far, `{rollback}` goes back to the last.
"""


def words(ranking: Ranking, metric: str) -> dict[str, str]:
    """Return, by model id, how each variant stands in a ranking: in a word of the leaderboard."""
    standing = dict.fromkeys(ranking.refused, "refused")
    for candidate in ranking.ranked:
        verdict = ranking.verdicts.get(candidate.model_id)
        word = verdict.word if verdict else "alone"
        highest = ranking.highest
        if highest and candidate is not highest:
            ours, theirs = (one.rows.get(row_metric(metric)) for one in (candidate, highest))
            word = "tied" if ours == theirs else word
        standing[candidate.model_id] = "worse" if word == INFERIOR else word
    return standing


def mark(
    client: MlflowClient, current: Registry, standing: dict[str, str], others: str | None = "not compared"
) -> None:
    """Tag the run of each variant with what the promotion made of it.

    Args:
        client: The store.
        current: The registry after the promotion.
        standing: A word by model id.
        others: The word for all other variants; None leaves theirs as it is.
    """
    champion = current.champion.model_id if current.champion else None
    for variant in find_variants(client, runs.experiment_id()):
        text = standing.get(variant.model_id, others)
        if variant.model_id == champion:
            text = f"★ champion of {current.name}" + (f", {text}" if text and text != others else "")
        if text:
            retried(client.set_tag, variant.run_id, STANDING, text)


def describe(client: MlflowClient, current: Registry, reason: str) -> None:
    """Write the page of the registered model: the champion, why it is, how to load and serve it."""
    if champion := current.champion:
        variant = champion.tags.get(VARIANT, champion.model_id)
        serve, history, rollback = report.next_commands(current.name)
        text = PAGE.format(
            name=current.name,
            number=champion.number,
            variant=variant,
            reason=reason,
            serve=serve,
            history=history,
            rollback=rollback,
        )
        if client.get_registered_model(current.name).description != text:
            client.update_registered_model(current.name, text)

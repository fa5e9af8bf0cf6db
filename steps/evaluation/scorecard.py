"""What is known of a variant on a prompt set: a mark on the LoggedModel, and its metrics there.

The mark (a tag) tells which prompt set, metrics and seed were used, and MLflow's digest of the dataset;
by the digest the metrics of several prompt sets on one model are told apart. Reading needs no artifact.
"""

import json
from typing import Any

from steps.schema import Evaluation
from steps.tracking import Variant

TAG = "phi3.scorecard"


def mark(prompt_set_sha256: str, digest: str, evaluation: Evaluation) -> str:
    """The value of the tag."""
    return json.dumps(
        {
            "prompt_set_sha256": prompt_set_sha256,
            "digest": digest,
            "metrics": sorted(evaluation.metrics),
            "seed": evaluation.seed,
        }
    )


def tag(prompt_set_sha256: str) -> str:
    """The name of the tag: one for each prompt set, whatever it is called."""
    return f"{TAG}.{prompt_set_sha256[:16]}"


def has_scorecard(variant: Variant, sha256: str, evaluation: Evaluation) -> bool:
    """Whether a variant was scored on these very rows with these metrics."""
    known = _read(variant, sha256)
    return (
        known.get("prompt_set_sha256") == sha256
        and known.get("seed") == evaluation.seed
        and set(evaluation.metrics) <= set(known.get("metrics", []))
    )


def scores(variant: Variant, sha256: str) -> dict[str, float] | None:
    """The variant's metrics on these very rows, with those that belong to no dataset (size); None if not scored."""
    known = _read(variant, sha256)
    if known.get("prompt_set_sha256") != sha256:
        return None
    return {key: value for key, digest, value in variant.metrics if digest in (None, known["digest"])}


def _read(variant: Variant, sha256: str) -> dict[str, Any]:
    return json.loads(variant.tags.get(tag(sha256), "{}"))

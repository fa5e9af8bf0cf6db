"""Who was champion when, and why: read from the tags of the registered versions alone.

The tag of a change is written before the alias moves. A register that was killed in between leaves a change that
never came true: the next change does not say that it replaced it, and the alias does not name it.
"""

import json
from dataclasses import dataclass
from datetime import UTC, datetime

from steps.promotion.registry import VARIANT, Registry

TAG = "phi3.champion."


@dataclass(frozen=True)
class Change:
    """A version that became champion: when (UTC), by which action, instead of which version, why, in which run."""

    since: str
    version: str
    variant: str
    action: str
    replaced: str | None
    reason: str
    run_id: str


def tag(action: str, replaced: str | None, reason: str, run_id: str) -> dict[str, str]:
    """The tag of a change that is about to be made."""
    since = datetime.now(UTC).isoformat(timespec="microseconds")
    content = {"action": action, "replaced": replaced, "reason": reason, "run_id": run_id}
    return {f"{TAG}{since.replace('+00:00', 'Z')}": json.dumps(content)}


def changes(registry: Registry) -> list[Change]:
    """Every change of the champion that came true, oldest first."""
    found = sorted(_all(registry), key=lambda change: change.since)
    champion = registry.aliases.get("champion")
    numbers = {version.number for version in registry.versions}
    kept = []
    for change, following in _with_following(found):
        # What a deleted version replaced is not known any more.
        after = champion if following is None else following.replaced
        if change.version == after or (following is not None and after not in {*numbers, None}):
            kept.append(change)
    return kept


def before(changes: list[Change]) -> str | None:
    """The version to go back to: a rollback takes back what came after the version that it went to."""
    stack: list[str] = []
    for change in changes:
        if change.action == "rollback" and change.version in stack:
            del stack[stack.index(change.version) :]
        stack.append(change.version)
    return stack[-2] if len(stack) > 1 else None


def lines(registry: Registry) -> list[str]:
    """The history as people read it, the newest last."""
    found = changes(registry)
    told = []
    for change, following in _with_following(found):
        until = _moment(following.since) if following else "now"
        how = "rolled back to" if change.action == "rollback" else "promoted"
        instead = f", instead of version {change.replaced}" if change.replaced else ""
        told.append(
            f"{_moment(change.since)} to {until}  version {change.version} ({change.variant}), {how}{instead}: "
            f"{change.reason}. Run {change.run_id}."
        )
    return told


def _with_following(found: list[Change]) -> list[tuple[Change, Change | None]]:
    """Each change with the one after it."""
    return list(zip(found, [*found, None][1:], strict=True))


def _all(registry: Registry) -> list[Change]:
    return [
        Change(key.removeprefix(TAG), version.number, version.tags.get(VARIANT, version.model_id), **json.loads(value))
        for version in registry.versions
        for key, value in version.tags.items()
        if key.startswith(TAG)
    ]


def _moment(since: str) -> str:
    return since.partition(".")[0].replace("T", " ")

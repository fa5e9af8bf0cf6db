"""The history of the champion: which version was champion when, and why, read from the tags of registered versions.

The tag of a change is written before the alias moves. If register is killed in between, the tag describes a change
that never happened: the next change does not name it as the version that it replaced, and the alias does not name it.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from steps.promotion.registry import Registry
from steps.store.names import CHAMPION, CHAMPION_SINCE, VARIANT


@dataclass(frozen=True)
class Change:
    """A version that became champion.

    Attributes:
        since: When, in UTC.
        variant: The variant's name.
        action: promote or rollback.
        replaced: The version that was champion before; None if there was none.
        reason: Why, in one sentence.
        run_id: The register run.
    """

    since: str
    version: str
    variant: str
    action: str
    replaced: str | None
    reason: str
    run_id: str


def change_tag(action: str, replaced: str | None, reason: str, run_id: str) -> dict[str, str]:
    """Return the tag of a change that is about to be made."""
    since = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    content = {"action": action, "replaced": replaced, "reason": reason, "run_id": run_id}
    return {f"{CHAMPION_SINCE}{since}": json.dumps(content)}


def changes(registry: Registry) -> list[Change]:
    """Return every change of the champion that happened, oldest first."""
    champion = registry.aliases.get(CHAMPION)
    numbers = {version.number for version in registry.versions}
    happened = []
    for change, following in _with_following(sorted(_written(registry), key=lambda change: change.since)):
        successor_replaced = champion if following is None else following.replaced
        # A deleted version took its tag along, so what it replaced is no longer known.
        deleted = following is not None and successor_replaced not in {*numbers, None}
        if change.version == successor_replaced or deleted:
            happened.append(change)
    return happened


def previous_champion(changes: list[Change]) -> str | None:
    """Return the version to roll back to. A rollback cancels everything after the version that it went back to."""
    stack: list[str] = []
    for change in changes:
        if change.action == "rollback" and change.version in stack:
            del stack[stack.index(change.version) :]
        stack.append(change.version)
    return stack[-2] if len(stack) > 1 else None


def lines(registry: Registry) -> list[str]:
    """Return the history as people read it, the newest last."""
    shown = []
    for change, following in _with_following(changes(registry)):
        until = _moment(following.since) if following else "now"
        how = "rolled back to" if change.action == "rollback" else "promoted"
        instead = f", instead of version {change.replaced}" if change.replaced else ""
        shown.append(
            f"{_moment(change.since)} to {until}  version {change.version} ({change.variant}), {how}{instead}: "
            f"{change.reason}. Run {change.run_id}."
        )
    return shown


def _with_following(changes: list[Change]) -> list[tuple[Change, Change | None]]:
    """Return each change with the one after it."""
    return list(zip(changes, [*changes, None][1:], strict=True))


def _written(registry: Registry) -> Iterator[Change]:
    """Yield the changes that the tags describe, whether or not they happened."""
    for version in registry.versions:
        variant = version.tags.get(VARIANT, version.model_id)
        for key, value in version.tags.items():
            if key.startswith(CHAMPION_SINCE):
                yield Change(key.removeprefix(CHAMPION_SINCE), version.number, variant, **json.loads(value))


def _moment(since: str) -> str:
    return since.partition(".")[0].replace("T", " ")

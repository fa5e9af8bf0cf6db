"""The history of the champion, read from the tags of versions, with changes that never happened."""

import json

import pytest

from steps.promotion import history
from steps.promotion.registry import Registry, Version
from steps.store.names import CHAMPION_SINCE


def _registry(champion, *changes, missing=()):
    """A registry whose versions have tags of these changes (version, replaced, action), in order of time."""
    tags = {}
    for hour, (version, replaced, action) in enumerate(changes):
        content = {"action": action, "replaced": replaced, "reason": f"reason {hour}", "run_id": f"run{hour}"}
        tags.setdefault(version, {})[f"{CHAMPION_SINCE}2026-01-01T{hour:02}:00:00.000000Z"] = json.dumps(content)
    versions = [Version(number, f"m-{number}", own, "") for number, own in tags.items() if number not in missing]
    return Registry("phi3", tuple(versions), {"champion": champion})


P, R = "promote", "rollback"
HISTORIES = {
    "none": (Registry("phi3"), [], None),
    "one": (_registry("1", ("1", None, P)), ["1"], None),
    "three": (_registry("3", ("1", None, P), ("2", "1", P), ("3", "2", P)), ["1", "2", "3"], "2"),
    "killed before the alias moved": (_registry("1", ("1", None, P), ("2", "1", P)), ["1"], None),
    "killed and repeated": (_registry("2", ("1", None, P), ("2", "1", P), ("2", "1", P)), ["1", "2"], "1"),
    "killed and another": (_registry("3", ("1", None, P), ("2", "1", P), ("3", "1", P)), ["1", "3"], "1"),
    "rolled back": (_registry("1", ("1", None, P), ("2", "1", P), ("1", "2", R)), ["1", "2", "1"], None),
    "rolled back one of two": (
        _registry("2", ("1", None, P), ("2", "1", P), ("3", "2", P), ("2", "3", R)),
        ["1", "2", "3", "2"],
        "1",
    ),
    "a deleted version": (
        _registry("3", ("1", None, P), ("2", "1", P), ("3", "2", P), missing=("2",)),
        ["1", "3"],
        "1",
    ),
}


@pytest.mark.parametrize(("registry", "versions", "before"), HISTORIES.values(), ids=HISTORIES)
def test_only_changes_that_happened_are_in_the_history(registry, versions, before):
    changes = history.changes(registry)
    assert [change.version for change in changes] == versions
    assert history.previous_champion(changes) == before


def test_each_line_has_the_time_the_action_and_the_reason():
    first, second = history.lines(_registry("1", ("1", None, P), ("2", "1", P), ("1", "2", R)))[-2:]
    assert first.startswith(
        "2026-01-01 01:00:00 to 2026-01-01 02:00:00  version 2 (m-2), promoted, instead of version 1: "
    )
    assert second.endswith("to now  version 1 (m-1), rolled back to, instead of version 2: reason 2. Run run2.")

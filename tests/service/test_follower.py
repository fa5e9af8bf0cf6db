"""The follower of an alias: what is begun on a version is finished by it, and a version that fails changes nothing."""

import asyncio

import pytest

from steps.errors import StepError
from steps.service.follower import Follower
from steps.service.loading import Loaded


class _App:
    """An app that sends its version twice, and waits in between if it has to."""

    def __init__(self, version, waits=None):
        self.version, self.waits = version, waits

    async def __call__(self, scope, receive, send):
        await send(self.version)
        if self.waits:
            await self.waits.wait()
        await send(self.version)


class _Registry:
    """An alias that tests move. Versions above 8 cannot be loaded."""

    def __init__(self):
        self.version, self.loads, self.away = "1", [], False

    def find(self):
        if self.away:
            raise ConnectionError("the server\nis away")
        return self.version

    def load(self, version):
        self.loads.append(version)
        if int(version) > 8:
            raise StepError(f"Version {version} of phi3 cannot be served: damaged.")
        return Loaded(version, _App(version))


@pytest.fixture
def registry():
    return _Registry()


@pytest.fixture
def follower(registry):
    return Follower(Loaded("1", _App("1")), registry.find, registry.load)


def _ask(follower):
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(follower({"type": "http"}, None, send))
    return sent


def test_requests_go_to_the_version_that_the_alias_names(follower, registry, capsys):
    assert _ask(follower) == ["1", "1"]
    registry.version = "2"
    follower.follow()
    assert _ask(follower) == ["2", "2"]
    assert "Serving version 2" in capsys.readouterr().out
    follower.follow()
    assert registry.loads == ["2"]


def test_running_request_is_finished_by_its_own_version(registry):
    async def run():
        gate, old, new = asyncio.Event(), [], []
        follower = Follower(Loaded("1", _App("1", gate)), registry.find, registry.load)

        def into(messages):
            async def send(message):
                messages.append(message)

            return send

        running = asyncio.create_task(follower({"type": "http"}, None, into(old)))
        await asyncio.sleep(0)
        registry.version = "2"
        follower.follow()
        await follower({"type": "http"}, None, into(new))
        gate.set()
        await running
        return old, new

    assert asyncio.run(run()) == (["1", "1"], ["2", "2"])


def test_version_that_fails_leaves_the_old_one_and_is_tried_once(follower, registry, capsys):
    registry.version = "9"
    follower.follow()
    follower.follow()
    assert registry.loads == ["9"]
    assert _ask(follower) == ["1", "1"]
    assert capsys.readouterr().out == "Version 9 of phi3 cannot be served: damaged. Version 1 keeps serving.\n"
    registry.version = "3"
    follower.follow()
    assert _ask(follower) == ["3", "3"]


def test_registry_that_is_away_is_reported_once(follower, registry, capsys):
    registry.away = True
    follower.follow()
    follower.follow()
    assert capsys.readouterr().out == "The alias cannot be read: the server. Version 1 keeps serving.\n"
    registry.away, registry.version = False, "2"
    follower.follow()
    assert _ask(follower) == ["2", "2"]


def test_alias_that_is_moved_back_and_forth_is_followed(follower, registry):
    for move in range(50):
        registry.version = str(1 + move % 2)
        follower.follow()
        assert set(_ask(follower)) == {registry.version}

"""A Mac stays awake while requests are answered, and only then."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from autospec.hardware import awake
from autospec.hardware.awake import AwakeForRequests


class Helper:
    """A stand-in for the process of caffeinate."""

    stdin = None

    def __init__(self) -> None:
        self.ended = False

    def terminate(self) -> None:
        """As Popen's."""
        self.ended = True

    def wait(self, _timeout_s: float) -> int:
        """As Popen's."""
        return 0


@pytest.fixture
def helpers(monkeypatch: pytest.MonkeyPatch) -> list[Helper]:
    """Those that were started, on a system that has caffeinate."""
    monkeypatch.setattr(awake, "awake_command", lambda *_: ("caffeinate",))
    return []


def run(helpers: list[Helper], play: Callable[[AwakeForRequests], Awaitable[Any]], platform="darwin") -> None:
    """Play requests in an event loop, whose long ones begin at once."""

    def start(_command):
        helpers.append(Helper())
        return helpers[-1]

    async def main() -> None:
        await play(AwakeForRequests(platform, start, after_s=0.0))
        # The helper is ended in a thread.
        await asyncio.get_running_loop().shutdown_default_executor()

    asyncio.run(main())


def test_a_long_request_keeps_it_awake_until_it_ends(helpers):
    """Requests that overlap need one helper."""

    async def play(awake):
        awake.begin()
        awake.begin()
        await asyncio.sleep(0.01)
        assert [helper.ended for helper in helpers] == [False]
        awake.end()

    run(helpers, play)
    assert [helper.ended for helper in helpers] == [True]


def test_a_short_request_starts_nothing(helpers):
    """It is over before the Mac could go to sleep."""

    async def play(awake):
        awake.begin()
        awake.end()
        await asyncio.sleep(0.01)

    run(helpers, play)
    assert helpers == []


def test_the_next_long_request_gets_a_new_helper(helpers):
    """Between requests the Mac may sleep."""

    async def play(awake):
        for _ in range(2):
            awake.begin()
            await asyncio.sleep(0.01)
            awake.end()

    run(helpers, play)
    assert [helper.ended for helper in helpers] == [True, True]


@pytest.mark.parametrize("platform", ["linux", "freebsd14"])
def test_other_systems_sleep_as_their_users_set_it(helpers, platform):
    """A server's sleep is a matter of its settings there."""

    async def play(awake):
        awake.begin()
        await asyncio.sleep(0.01)
        awake.end()

    run(helpers, play, platform)
    assert helpers == []

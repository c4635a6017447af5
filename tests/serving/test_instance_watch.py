"""A silent server is watched: over hours of a clock that is set by hand, without a process."""

from __future__ import annotations

import asyncio

import pytest

from autospec.serving import instance
from autospec.serving.instance import InstanceState, ServerInstance
from tests.serving.scene import Passing
from tests.serving.test_instance import Watched


@pytest.fixture
def idle(monkeypatch):
    """A server that answers questions and does nothing; work in threads is done at once."""

    def at_once(work, **_options):
        done = asyncio.get_running_loop().create_future()
        done.set_result(work())
        return done

    monkeypatch.setattr(instance, "in_thread", at_once)
    monkeypatch.setattr(instance, "_ask", lambda *_question: (200, b"the same"))
    monkeypatch.setattr(instance, "_processor_s", lambda _pids: {1: 0.0})


async def pass_time(watched: Watched, seconds: int) -> None:
    """Look every ten seconds, as long as the server is not ended."""
    for _ in range(seconds // 10):
        watched.clock.now_s += 10.0
        watched.launch.look()
        for _ in range(5):  # the watch takes its turns
            await asyncio.sleep(0)


def lend_passing(launch: ServerInstance) -> Passing:
    """A request whose answer has begun."""
    answer = Passing(1)
    launch.lend()
    launch.follow(answer)
    return answer


def give_back(launch: ServerInstance, answer: Passing) -> None:
    """Its end."""
    launch.unfollow(answer)
    launch.give_back()


@pytest.mark.usefixtures("idle")
def test_clients_that_leave_early_find_a_hang():
    """Each waits a minute, leaves, and comes back minutes later: every look forgot the one before, for ever."""

    async def scenario():
        watched = Watched()
        launch = await watched.ready()
        minutes = 0
        while launch.state is InstanceState.READY and minutes < 120:
            launch.lend()
            await pass_time(watched, 60)
            launch.give_back()
            await pass_time(watched, 240)
            minutes += 5
        assert launch.crashed
        assert 40 <= minutes <= 60

    asyncio.run(scenario())


@pytest.mark.usefixtures("idle")
def test_a_server_that_nobody_wants_is_not_ended():
    """One client has left; the next one comes hours later."""

    async def scenario():
        watched = Watched()
        launch = await watched.ready()
        for _ in range(4):
            launch.lend()
            await pass_time(watched, 60)
            launch.give_back()
            await pass_time(watched, 7200)
        assert launch.state is InstanceState.READY
        assert launch._watching is None

    asyncio.run(scenario())

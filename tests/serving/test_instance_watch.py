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


@pytest.mark.usefixtures("idle")
def test_a_client_that_does_not_read_is_given_up_before_its_server():
    """llama-cpp-python holds its model's lock for it; the server was ended, and the answer of who waits behind it lost."""

    async def scenario():
        watched = Watched()
        launch = await watched.ready()
        paused = lend_passing(launch)
        paused.unread_bytes = 70_000
        launch.lend()
        await pass_time(watched, 700)
        assert paused.given_up == 1
        give_back(launch, paused)
        await pass_time(watched, 700)
        assert launch.state is InstanceState.READY
        await pass_time(watched, 300)  # it was not for that client
        assert launch.crashed

    asyncio.run(scenario())


@pytest.mark.usefixtures("idle")
def test_a_client_that_cannot_be_given_up_does_not_keep_a_hung_server():
    """Whatever holds its answer, it is asked once."""

    async def scenario():
        watched = Watched()
        launch = await watched.ready()
        paused = lend_passing(launch)
        paused.unread_bytes = 70_000
        launch.lend()
        await pass_time(watched, 1600)
        assert paused.given_up == 1
        assert launch.crashed

    asyncio.run(scenario())


@pytest.mark.usefixtures("idle")
def test_a_server_that_drains_does_not_wait_for_ever_for_a_probe():
    """A probe is no request that would have started the clock, and its own client may wait without a limit."""

    async def scenario():
        watched = Watched()
        launch = await watched.ready()
        launch.lend(is_probe=True)
        await pass_time(watched, 3600)
        assert launch._watching is None
        launch.drain()
        await pass_time(watched, 1300)
        assert launch.crashed

    asyncio.run(scenario())


@pytest.mark.usefixtures("idle")
def test_a_hang_after_a_pause_of_the_client_is_found():
    """While nobody waited for it, the server counted as heard; then its client read on, and no request came."""

    async def scenario():
        watched = Watched()
        launch = await watched.ready()
        answer = lend_passing(launch)
        answer.unread_bytes = 70_000
        await pass_time(watched, 600)
        assert launch._silent_since_s is None
        answer.unread_bytes = 0
        await pass_time(watched, 1300)
        assert launch.crashed

    asyncio.run(scenario())

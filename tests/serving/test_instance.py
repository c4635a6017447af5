"""The life of one launch, and requests to it that come at the wrong time."""

from __future__ import annotations

import asyncio
import itertools
import threading

import pytest

from autospec.drafting import OFF
from autospec.errors import LaunchError, UnsupportedError
from autospec.serving import instance
from autospec.serving.instance import InstanceState, ServerInstance
from autospec.serving.plan_inputs import MemoryEstimate
from tests.serving.scene import Clock, FakeServer, Passing, until


class Watched:
    """A launch with everything that it told."""

    def __init__(self, start=None, first=None) -> None:
        self.server = FakeServer("/models/a.gguf", OFF)
        self.clock = Clock()
        self.states: list[InstanceState] = []
        self.launch = ServerInstance(
            "a",
            OFF,
            MemoryEstimate(0),
            start or (lambda _started: self.server),
            changed=self._changed,
            clock=self.clock,
            first=first,
        )

    def _changed(self) -> None:
        self.states.append(self.launch.state)

    async def ready(self) -> ServerInstance:
        """Start it and wait until it is ready, or failed."""
        self.launch.start()
        await until(lambda: self.launch.state is not InstanceState.STARTING)
        return self.launch


def run(scenario) -> None:
    """Play a scenario to its end."""
    asyncio.run(scenario)


def test_a_whole_life():
    """Starting, ready, draining until the last lease is back, stopping, stopped."""

    async def scenario():
        watched = Watched()
        launch = await watched.ready()
        launch.lend()
        launch.lend()
        launch.drain()
        assert not launch.lendable
        launch.give_back()
        assert launch.state is InstanceState.DRAINING
        assert not watched.server.stopped
        launch.give_back()
        await launch.wait_over()
        assert watched.server.stopped
        assert watched.states == [
            InstanceState.READY,
            InstanceState.DRAINING,
            InstanceState.STOPPING,
            InstanceState.STOPPED,
        ]
        assert (launch.served, launch.leases) == (2, 0)

    run(scenario())


def test_what_must_come_first_comes_first():
    """A daemon that measures gives the machine back before anything is started; that it cannot holds nothing up."""

    async def scenario():
        free = asyncio.Event()
        started = []
        server = FakeServer("/models/a.gguf", OFF)

        async def first() -> None:
            await free.wait()
            raise OSError("the daemon is gone")

        watched = Watched(lambda _loads: started.append(1) or server, first)
        watched.launch.start()
        watched.launch.start()
        await asyncio.sleep(0)
        assert not started
        free.set()
        await until(lambda: watched.launch.state is InstanceState.READY)
        assert started == [1]

    run(scenario())


def test_let_go_while_the_machine_is_not_free():
    """Nothing is started at all."""

    async def scenario():
        free = asyncio.Event()
        started = []
        watched = Watched(lambda _loads: started.append(1), free.wait)
        watched.launch.start()
        watched.launch.stop()
        free.set()
        await watched.launch.wait_over()
        assert not started
        assert watched.states == [InstanceState.STOPPING, InstanceState.STOPPED]

    run(scenario())


@pytest.mark.parametrize("request_", [ServerInstance.drain, ServerInstance.stop])
def test_let_go_before_it_was_ready(request_):
    """It is stopped as soon as there is something to stop, and was never lent."""

    async def scenario():
        watched = Watched()
        watched.launch.start()
        request_(watched.launch)
        await watched.launch.wait_over()
        assert watched.server.stopped
        assert watched.states == [InstanceState.STOPPING, InstanceState.STOPPED]

    run(scenario())


@pytest.mark.parametrize("process_first", [True, False])
def test_let_go_while_the_model_loads(process_first):
    """Its process is ended at once, also one that is there a moment later; that is no failure of its drafting."""

    async def scenario():
        loading, ended = threading.Event(), threading.Event()

        def start(loads):
            if not process_first:
                assert loading.wait(5.0)
            loads(ended.set)
            loading.set()
            ended.wait(5.0)
            raise LaunchError("The server was ended by SIGTERM.")

        watched = Watched(start)
        watched.launch.start()
        if process_first:
            await until(loading.is_set)
        watched.launch.drain()
        loading.set()
        await watched.launch.wait_over()
        assert ended.is_set()
        assert watched.states == [InstanceState.STOPPING, InstanceState.STOPPED]

    run(scenario())


def test_drained_and_lent_again():
    """The answer in progress goes on, and its end does not stop the server."""

    async def scenario():
        watched = Watched()
        launch = await watched.ready()
        launch.lend()
        launch.drain()
        watched.clock.now_s += 60.0
        launch.lend_again()
        assert launch.lendable
        assert launch.busy_since_s == watched.clock.now_s
        launch.give_back()
        launch.drain()
        launch.lend_again()  # too late: it stops
        await launch.wait_over()
        assert launch.state is InstanceState.STOPPED

    run(scenario())


def test_how_long_a_server_has_been_busy():
    """Requests that follow each other within a second are one piece of use: nobody would see the moment between them."""

    async def scenario():
        watched = Watched()
        launch = await watched.ready()
        watched.clock.now_s += 100.0
        launch.lend()
        begun_s = watched.clock.now_s
        for gap_s in (0.9, 0.0, 0.5):
            watched.clock.now_s += 30.0
            launch.give_back()
            watched.clock.now_s += gap_s
            launch.lend()
            assert launch.busy_since_s == begun_s
        launch.lend()
        watched.clock.now_s += 5.0
        launch.lend()
        assert launch.busy_since_s == begun_s
        for _ in range(3):
            launch.give_back()
        watched.clock.now_s += 1.0
        launch.lend()
        assert launch.busy_since_s == watched.clock.now_s

    run(scenario())


def test_stopped_with_somebody_on_it():
    """The end of the proxy does not wait for ever."""

    async def scenario():
        watched = Watched()
        launch = await watched.ready()
        launch.lend()
        launch.stop()
        await launch.wait_over()
        launch.give_back()
        assert watched.states == [InstanceState.READY, InstanceState.STOPPING, InstanceState.STOPPED]

    run(scenario())


@pytest.mark.parametrize(
    ("raised", "permanent"),
    [
        (LaunchError("No memory."), False),
        (UnsupportedError("No such mode."), True),
        (OSError("Too many open files."), False),
    ],
)
def test_it_does_not_start(raised, permanent):
    """Whatever was raised becomes one kind of error."""

    async def scenario():
        def start(_loads):
            raise raised

        launch = await Watched(start).ready()
        assert launch.state is InstanceState.FAILED
        assert isinstance(launch.error, LaunchError)
        assert (launch.error.permanent, launch.crashed) == (permanent, False)
        assert str(raised) in str(launch.error)

    run(scenario())


def test_it_dies():
    """Found when somebody looks, with what ended it."""

    async def scenario():
        watched = Watched()
        launch = await watched.ready()
        launch.check()
        assert launch.lendable
        watched.server.kill()
        launch.check()
        assert (launch.state, launch.crashed) == (InstanceState.FAILED, True)
        assert "was ended by SIGKILL" in str(launch.error)
        await until(lambda: watched.server.stopped)

    run(scenario())


def test_a_suspicion():
    """It is not lent while it may be dead, is dead as soon as that can be seen, and lives again if it cannot."""

    async def scenario():
        watched = Watched()
        launch = await watched.ready()
        for _ in range(64):
            launch.check(suspected=True)
        assert not launch.lendable
        watched.clock.now_s += 5.0
        await until(lambda: launch.lendable)
        launch.check(suspected=True)
        watched.server.kill()
        await until(lambda: launch.state is InstanceState.FAILED)

    run(scenario())


def test_requests_at_the_wrong_time_change_nothing():
    """In every state that is over, and twice in a row."""

    async def scenario():
        watched = Watched()
        launch = await watched.ready()
        launch.start()
        for first, second in itertools.product(
            (launch.drain, launch.stop, launch.check, launch.start), repeat=2
        ):
            first()
            second()
        await launch.wait_over()
        launch.drain()
        launch.check(suspected=True)
        assert launch.state is InstanceState.STOPPED

    run(scenario())


def no_threads(monkeypatch) -> None:
    """The system has no more threads until `monkeypatch` is undone."""

    def refuse(_thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)


def test_without_a_thread_it_does_not_start(monkeypatch):
    """A failed launch like any other; it was left starting for ever."""

    async def scenario():
        no_threads(monkeypatch)
        launch = await Watched().ready()
        assert launch.state is InstanceState.FAILED
        assert "can't start new thread" in str(launch.error)

    run(scenario())


def test_without_a_thread_a_death_is_found(monkeypatch):
    """The error ended the control loop."""

    async def scenario():
        watched = Watched()
        launch = await watched.ready()
        watched.server.kill("signal 35")
        no_threads(monkeypatch)
        launch.look()
        assert launch.state is InstanceState.FAILED
        assert "was ended by signal 35" in str(launch.error)

    run(scenario())


def test_without_a_thread_it_is_stopped_later(monkeypatch):
    """It holds its memory until then, so it must not count as stopped."""
    monkeypatch.setattr(instance, "_STOP_AGAIN_S", 0.001)

    async def scenario():
        watched = Watched()
        launch = await watched.ready()
        with monkeypatch.context() as patched:
            no_threads(patched)
            launch.drain()
            await asyncio.sleep(0.01)
            assert launch.state is InstanceState.STOPPING
            assert not watched.server.stopped
        await launch.wait_over()
        assert (launch.state, watched.server.stopped) == (InstanceState.STOPPED, True)

    run(scenario())


@pytest.mark.parametrize(("drains", "bound_s"), [(True, 60), (False, 3600)])
def test_a_client_that_takes_nothing_of_its_answer(drains, bound_s):
    """Its lease kept a server that drains, and all requests behind it; a paused terminal may keep one that does not."""

    async def scenario():
        watched = Watched()
        launch = await watched.ready()
        answers = paused, slow, gone_on = [Passing(), Passing(), Passing()]
        for answer in answers:
            launch.lend()
            launch.follow(answer)
        if drains:
            launch.drain()
        paused.unread_bytes, slow.unread_bytes = 70_000, 70_000
        launch.look()
        for _ in range(3):
            watched.clock.now_s += bound_s / 4
            slow.unread_bytes -= 1
            gone_on.unread_bytes = 70_000 - gone_on.unread_bytes
            launch.look()
        watched.clock.now_s += bound_s / 4 - 1.0
        launch.look()
        assert not paused.given_up
        watched.clock.now_s += 1.0
        slow.unread_bytes -= 1
        gone_on.unread_bytes = 0
        launch.look()
        assert [answer.given_up for answer in answers] == [1, 0, 0]
        for answer in answers:
            launch.unfollow(answer)
            launch.give_back()
        launch.stop()
        await launch.wait_over()

    run(scenario())

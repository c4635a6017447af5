"""A server instance and its life cycle: starting, ready, draining, stopping, then stopped or failed.

A `ServerInstance` alone starts and stops its process (as in llama-swap's ``internal/process``); other code calls `start`,
`drain`, `stop` and `check`, which have no effect in the wrong state. It lives on the event loop and blocks in threads only.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from enum import StrEnum
from functools import partial
from http.client import HTTPConnection, HTTPException
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from autospec.backends.protocol import Server, Watched, WithEveryRequest
from autospec.catalog.model import loads_projector
from autospec.drafting import Drafting
from autospec.errors import AutospecError, LaunchError, ServerDiedError
from autospec.serving.dispatch import FollowedAnswer
from autospec.serving.model_registry import Engine
from autospec.serving.plan_inputs import MemoryEstimate

__all__ = ["InstanceState", "ServerInstance", "in_thread"]

# A connection breaks before the end of the process is visible: its guard reports it within 0.1 s, under full load within 1 s.
_SETTLE_S: Final = 1.0
_SETTLE_POLL_S: Final = 0.05
# An answer of which its client takes no byte is ended after this time if its server drains, because the model's next server may
# wait for that memory, and all requests behind it; they give up after five minutes (`queue_deadline`). Nobody else waits for it:
# the hour is for a paused terminal or pager, and bounds how long it keeps a model from being unloaded.
_UNREAD_DRAINING_S: Final = 60.0
_UNREAD_S: Final = 3600.0
# No thread could be started to stop a server. Others end meanwhile.
_STOP_AGAIN_S: Final = 1.0
# Without a byte for this long a server is asked for its health. A slow machine may read a long prompt for many minutes, and
# llama-server answers /health from a thread of its own meanwhile.
_SILENCE_S: Final = 300.0
# Two answers that do not come within this time, one after the other, mean that it hangs.
_HEALTH_WAIT_S: Final = 10.0
_HEALTH_TRIES: Final = 2


class InstanceState(StrEnum):
    """State of an instance."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"

    @property
    def live(self) -> bool:
        """True if it serves requests now or soon."""
        return self in (InstanceState.STARTING, InstanceState.READY)

    @property
    def over(self) -> bool:
        """True if its process has ended."""
        return self in (InstanceState.STOPPED, InstanceState.FAILED)


_NEXT: Final[dict[InstanceState, frozenset[InstanceState]]] = {
    InstanceState.STARTING: frozenset({InstanceState.READY, InstanceState.STOPPING, InstanceState.FAILED}),
    InstanceState.READY: frozenset({InstanceState.DRAINING, InstanceState.STOPPING, InstanceState.FAILED}),
    InstanceState.DRAINING: frozenset({InstanceState.STOPPING, InstanceState.FAILED}),
    InstanceState.STOPPING: frozenset({InstanceState.STOPPED, InstanceState.FAILED}),
    InstanceState.STOPPED: frozenset(),
    InstanceState.FAILED: frozenset(),
}


class ServerInstance:
    """One server; `start` blocks until it is ready, `first` is awaited before and must end within a bounded time.

    The context `around` is held from before `first` until the server is ready or has ended. `engine` is what it is
    started by, and `identity` from what: the build, and the files of its models.
    """

    _numbers = itertools.count(1)

    def __init__(
        self,
        model: str,
        drafting: Drafting,
        footprint: MemoryEstimate,
        start: Callable[[], Server],
        *,
        changed: Callable[[], None],
        clock: Callable[[], float],
        first: Callable[[], Awaitable[object]] | None = None,
        around: Callable[[], AbstractContextManager[object]] = nullcontext,
        engine: Engine | None = None,
        identity: tuple[object, ...] = (),
    ) -> None:
        self._around = around
        self._starting = ExitStack()
        self.engine = engine
        self.identity = identity
        self.outdated = False  # its build or a file was replaced since its start
        self._first = first
        self._preparing: asyncio.Task[None] | None = None
        self.number = next(self._numbers)
        self.model = model
        self.drafting = drafting
        self.footprint = footprint
        self.state = InstanceState.STARTING
        self.server: Server | None = None
        self._watched: Watched | None = None  # the server, if its process can be watched
        self.request_fields: Mapping[str, Any] = {}  # with every request to it
        self.request_headers: Mapping[str, str] = {}
        self.error: LaunchError | ServerDiedError | None = None
        self.crashed = False  # failed after it had been ready
        self.killed = False  # by SIGKILL
        # Removes the record of a server that ended by itself.
        self.clearing: asyncio.Future[None] | None = None
        self.requests: set[int] = set()  # numbers of those on it, and of those whose connection broke
        self.leases = 0  # requests that hold it now
        self.served = 0  # requests that have held it in total
        self.made_at_s = self.used_at_s = clock()
        self.ready_at_s: float | None = None
        self._start = start
        self._changed = changed
        self._clock = clock
        self._over = asyncio.Event()
        self._suspected_until: float | None = None
        self._next_look: asyncio.TimerHandle | None = None
        # With what its client has not taken, and since when it is that much.
        self._followed: dict[FollowedAnswer, tuple[int, float]] = {}
        self._earlier_bytes = 0  # of the answers that are not followed any more
        self._received_bytes = 0  # of all answers, when it was looked at last
        self._silent_since_s: float | None = None  # no byte since then, although a request came
        self._asking: asyncio.Task[None] | None = None

    @property
    def lendable(self) -> bool:
        """True if it can take a request."""
        return self.state is InstanceState.READY and self._suspected_until is None

    @property
    def takes_images(self) -> bool:
        """True if its server has loaded a projector."""
        return self.server is not None and loads_projector(self.server.command)

    def start(self) -> None:
        """Start the server; called once, after construction."""
        if self.state is not InstanceState.STARTING:
            return
        self._starting.enter_context(self._around())
        if self._first is None:
            self._begin()
        elif self._preparing is None:
            self._preparing = asyncio.get_running_loop().create_task(self._prepare(self._first))

    def drain(self) -> None:
        """Take no more requests; stop after the last one."""
        if self.state is InstanceState.STARTING:
            self._enter(InstanceState.STOPPING)  # it is stopped as soon as it has started
        elif self.state is InstanceState.READY:
            self._enter(InstanceState.DRAINING)
            self._stop_unused()

    def stop(self) -> None:
        """Stop now, even if it is in use."""
        if self.state is InstanceState.STARTING:
            self._enter(InstanceState.STOPPING)
        elif self.state in (InstanceState.READY, InstanceState.DRAINING):
            self._end()

    def check(self, *, suspected: bool = False) -> None:
        """Check the process; if a connection broke (`suspected`), take no requests until the result is certain."""
        if self.state not in (InstanceState.READY, InstanceState.DRAINING):
            return
        now = self._clock()
        if suspected and self._suspected_until is None:
            self._suspected_until = now + _SETTLE_S
        how = None if self._watched is None else self._watched.ended()
        if how is not None:
            self.error = ServerDiedError(f"The server {how} while it was in use.", "The proxy restarts it.")
            self.crashed = True
            self.killed = "SIGKILL" in how
            self._enter(InstanceState.FAILED)
            assert self.server is not None
            self.clearing = in_thread(self.server.stop)
            self.clearing.add_done_callback(_ignore)
        elif self._suspected_until is not None:
            if now < self._suspected_until:
                loop = asyncio.get_running_loop()
                if self._next_look is None or self._next_look.when() <= loop.time():
                    self._next_look = loop.call_later(_SETTLE_POLL_S, self.check)
            else:
                self._suspected_until = None  # it is alive: the connection broke for another reason
                self._changed()

    def look(self) -> None:
        """Check the process, whether it still answers, and whether clients take the answers."""
        self.check()
        if self.state in (InstanceState.READY, InstanceState.DRAINING):
            self._look_for_silence()
            self._look_for_readers()

    def follow(self, answer: FollowedAnswer) -> None:
        """Watch an answer of this server."""
        self._followed[answer] = (0, self._clock())

    def unfollow(self, answer: FollowedAnswer) -> None:
        """Stop to watch an answer."""
        del self._followed[answer]
        self._earlier_bytes += answer.received_bytes

    async def wait_over(self) -> None:
        """Wait until its process has ended."""
        await self._over.wait()

    def lend(self) -> None:
        """Count one more request; only if it is `lendable`."""
        assert self.lendable
        self.leases += 1
        self.served += 1
        self.used_at_s = self._clock()
        if self._silent_since_s is None:
            self._silent_since_s = self.used_at_s

    def give_back(self) -> None:
        """Count one request less."""
        self.leases -= 1
        self.used_at_s = self._clock()
        self._stop_unused()

    def _look_for_readers(self) -> None:
        """End answers that their clients do not take."""
        now_s = self._clock()
        bound_s = _UNREAD_DRAINING_S if self.state is InstanceState.DRAINING else _UNREAD_S
        for answer, (before_bytes, since_s) in list(self._followed.items()):
            left_bytes = answer.unread_bytes
            if not left_bytes or left_bytes != before_bytes:
                self._followed[answer] = (left_bytes, now_s)
            elif now_s - since_s >= bound_s:
                answer.give_up()

    def _look_for_silence(self) -> None:
        """Ask a server for its health if it is silent; the server of `attached` is not ours to replace."""
        if self._asking is None and isinstance(self.server, Watched) and self._is_silent():
            self._asking = asyncio.get_running_loop().create_task(self._ask_health(self.server))

    def _is_silent(self) -> bool:
        """True if no byte has come for long although a request has, whether its client still waits or has gone."""
        received = self._earlier_bytes + sum(answer.received_bytes for answer in self._followed)
        if received != self._received_bytes:
            self._received_bytes = received
            self._heard()
        return self._silent_since_s is not None and self._clock() - self._silent_since_s >= _SILENCE_S

    def _heard(self) -> None:
        self._silent_since_s = self._clock() if self.leases else None

    async def _ask_health(self, server: Server) -> None:
        try:
            for _ in range(_HEALTH_TRIES):
                if await in_thread(partial(_answers_health, server.base_url)):
                    self._heard()
                    return
            if self.state in (InstanceState.READY, InstanceState.DRAINING) and self._is_silent():
                self.error = ServerDiedError(
                    f"The server sent nothing for {_SILENCE_S / 60:g} minutes and does not answer /health.",
                    "The proxy restarts it.",
                )
                self.crashed = True
                self._end()  # it holds its memory until it has ended
        finally:
            self._asking = None

    async def _prepare(self, first: Callable[[], Awaitable[object]]) -> None:
        with suppress(Exception):  # must not keep a server from starting
            await first()
        if self.state is InstanceState.STOPPING:
            self._enter(InstanceState.STOPPED)
        else:
            self._begin()

    def _begin(self) -> None:
        in_thread(self._start, orphaned=lambda server: server.stop()).add_done_callback(self._started)

    def _started(self, start: asyncio.Future[Server]) -> None:
        error = start.exception()
        if error is not None:
            self.error = _as_launch_error(error)
            if self.state is InstanceState.STOPPING:
                self._enter(InstanceState.STOPPED)
            else:
                self._enter(InstanceState.FAILED)
            return
        self.server = start.result()
        # Once: on Python 3.11 the isinstance costs 25 µs, and every request checks its server.
        self._watched = self.server if isinstance(self.server, Watched) else None
        if isinstance(self.server, WithEveryRequest):
            self.request_fields = self.server.request_fields
            self.request_headers = self.server.request_headers
        if self.state is InstanceState.STOPPING:
            self._stop_server()
            return
        self.used_at_s = self.ready_at_s = self._clock()
        self._enter(InstanceState.READY)

    def _stop_unused(self) -> None:
        if self.state is InstanceState.DRAINING and self.leases == 0:
            self._end()

    def _end(self) -> None:
        self._enter(InstanceState.STOPPING)
        self._stop_server()

    def _stop_server(self) -> None:
        assert self.server is not None
        in_thread(self.server.stop).add_done_callback(self._stopped)

    def _stopped(self, stop: asyncio.Future[None]) -> None:
        if isinstance(stop.exception(), RuntimeError):  # there was no thread, so the server still runs
            asyncio.get_running_loop().call_later(_STOP_AGAIN_S, self._stop_server)
            return
        # Any other failed stop has closed the guard's pipe too, and that ends the server.
        self._enter(InstanceState.FAILED if self.crashed else InstanceState.STOPPED)

    def _enter(self, state: InstanceState) -> None:
        assert state in _NEXT[self.state], f"{self.state} → {state}"
        self.state = state
        if state is InstanceState.READY or state.over:
            self._starting.close()
        if state.over:
            self._over.set()
        self._changed()


def _as_launch_error(error: BaseException) -> LaunchError:
    """Any error of a start as a `LaunchError`; what a backend refuses before it starts a process is permanent."""
    if isinstance(error, LaunchError):
        return error
    if isinstance(error, AutospecError):
        return LaunchError(error.message, error.hint, permanent=True)
    return LaunchError(
        f"The server could not be started: {str(error) or type(error).__name__}.", "Try again."
    )


def _answers_health(base_url: str) -> bool:
    """True if any answer to ``/health`` comes in time; blocks."""
    address = urlsplit(base_url)
    connection = HTTPConnection(address.hostname or "", address.port, timeout=_HEALTH_WAIT_S)
    try:
        connection.request("GET", "/health")
        connection.getresponse()
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()
    return True


def _ignore(done: asyncio.Future[None]) -> None:
    """Retrieve a result that is not needed, so that asyncio does not warn about it."""
    if not done.cancelled():
        done.exception()


T = TypeVar("T")


def in_thread(
    work: Callable[[], T], *, orphaned: Callable[[T], object] = lambda _: None
) -> asyncio.Future[T]:
    """Run a blocking function in a daemon thread of its own.

    `asyncio.to_thread` shares a few threads (six on two cores), which the interpreter joins at exit: servers that hang while they
    start would occupy all of them and keep the proxy from ending. A new thread costs 0.1 ms, a launch seconds.

    Args:
        work: The function.
        orphaned: Called in a thread with the result if the future was cancelled or the event loop has ended.

    Returns:
        A future of the result or the exception; a `RuntimeError` also if no thread could be started.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def run() -> None:
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - the caller gets it, whatever it is
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(fail, error)
            return
        try:
            loop.call_soon_threadsafe(deliver, result)
        except RuntimeError:
            orphaned(result)

    def fail(error: BaseException) -> None:
        if not future.done():
            future.set_exception(error)

    def deliver(result: T) -> None:
        if future.done():
            threading.Thread(target=orphaned, args=(result,), daemon=True).start()
        else:
            future.set_result(result)

    try:
        threading.Thread(target=run, name="autospec-proxy", daemon=True).start()
    except RuntimeError as error:  # the system has no more threads
        future.set_exception(error)
    return future

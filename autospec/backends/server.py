"""Launch a server in a child process, wait until it is ready, and check that it drafts as asked.

llama.cpp starts without speculation when a draft's vocabulary does not fit, when `-md` stands alone (since b9496) and
when a context cannot be rolled back; at most its log says so. So every launch is checked before it is measured: by its
slots, and by a canary request whose answer must, or must not, name drafted tokens.
"""

from __future__ import annotations

import logging
import os
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from autospec.backends.failures import Failure, classify, speculation_refused
from autospec.backends.openai_http import ChatClient, JsonClient
from autospec.backends.placement import Placement, placement_of
from autospec.backends.process import (
    HOST,
    Ended,
    ServerProcess,
    family,
    free_port,
    is_free,
    is_shared,
    listens,
    withheld_words,
)
from autospec.backends.protocol import (
    Capabilities,
    Completion,
    LaunchSettings,
    Request,
    Server,
    Slots,
    Tokens,
)
from autospec.backends.records import prune_logs, sweep_orphans
from autospec.backends.token_http import HttpTokens
from autospec.drafting import Drafting
from autospec.errors import BackendError, LaunchError, RequestError, ServerDiedError, SpeculationInactiveError
from autospec.hardware.identity import text_of

__all__ = [
    "LOG_SEARCHED",
    "ChildServer",
    "LaunchedServer",
    "LlamaHttpServer",
    "canary",
    "start_child",
]

_log = logging.getLogger(__name__)

LOG_SEARCHED = 400
"""Lines of a log that are searched for the cause of a failure; an error shows only the last ones."""

# Half of the start of a small model; a thousand polls of a large one cost nothing.
_POLL_S = 0.1
_HEALTH_TIMEOUT_S = 2.0
# Another program may take a free port before the server does.
_PORT_ATTEMPTS = 2
# State folders that this process has searched for orphans, and warned about variables.
_swept: set[Path] = set()

# Long enough for several cycles; short enough for 2 s on a model of 10 tokens per second.
_CANARY_TOKENS = 20
_CANARY_TIMEOUT_S = 300.0
# The first request also warms up what a server allocates lazily. No prompt of a suite holds this text, so an n-gram pool
# learns nothing useful from it; but some pools count positions from it, and prediction begins with it too.
_CANARY_TEXT = "Continue counting: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20"
# Builds up to early 2026 take these with a request, and then draft for the canary whatever the launch's limits are;
# later builds ignore them. Those of 2025 draft only for a request that may use the prompt cache, which is empty still.
_CANARY_EXTRA = {"speculative.p_min": 0.0, "speculative.n_min": 0, "cache_prompt": True}


class ChildServer:
    """A server in a child process; subclasses set `_client`.

    Attributes:
        launch_id: Unique over all launches ever made.
        base_url: Where it listens.
        launch_ms: From its start until it was ready.
        pids: Its processes and their guard.
    """

    _client: JsonClient

    def __init__(self, process: ServerProcess, port: int) -> None:
        self.launch_id = process.launch_id
        self.base_url = f"http://{HOST}:{port}"
        self.launch_ms = 0.0
        self.pids = process.pids
        self._process = process

    def ready(self) -> str:
        """``ready`` (here: as soon as it listens), ``loading`` while the model is read, or ``absent``."""
        return "ready" if self._client.answers("/health", _HEALTH_TIMEOUT_S) else "absent"

    def stop(self) -> None:
        """End the process and wait until it has ended. Safe to call twice."""
        self._process.stop()
        self._client.close()

    def ended(self) -> str | None:
        """How its process ended, as the end of a sentence; ``None`` while it runs."""
        ended = self._process.poll()
        return None if ended is None else str(ended)

    def wait_ready(self, timeout_s: float, port: int) -> None:
        """Wait until the server answers on its own port.

        Raises:
            LaunchError: It ended, or was not ready in time.
        """
        kills = _out_of_memory_kills()
        begun = time.monotonic()
        while True:
            ended = self._process.poll()
            if ended is not None:
                failure = self._launch_failure(ended, kills)
                if failure.kind == "other" and not is_free(port):
                    failure = _port_taken(port)  # b9093 ends before its log's last lines are written
                raise _error(failure, self._process)
            state = self.ready()
            if state == "ready":
                break
            if time.monotonic() - begun > timeout_s:
                raise _error(_late(state, timeout_s), self._process)
            self._process.wait_ended(_POLL_S)
        self.launch_ms = 1000.0 * (time.monotonic() - begun)
        relatives = family(self.pids)
        if not listens(relatives, port) or is_shared(relatives, port):
            raise _error(_port_taken(port), self._process)
        self.pids = self.pids | {process.pid for process in relatives}

    @contextmanager
    def _first_request(self) -> Iterator[None]:
        """Turn errors of the first request into `LaunchError`: some builds die at their first matrix multiplication."""
        kills = _out_of_memory_kills()
        try:
            yield
        except ServerDiedError as error:
            ended = self._process.wait_ended(0.0)
            if ended is None:
                raise
            raise _error(self._launch_failure(ended, kills), self._process) from error
        except RequestError as error:
            raise LaunchError(
                f"The server started but failed its first request: {error.message}",
                error.hint,
                log_tail=self._process.log_tail(),
            ) from error

    def _launch_failure(self, ended: Ended, kills_before: int) -> Failure:
        log = self._process.log_tail(LOG_SEARCHED)
        return classify(ended, log, out_of_memory_kills=_out_of_memory_kills() - kills_before)


class LaunchedServer(ChildServer, ABC):
    """A launch with one drafting, whatever its API is. See `autospec.backends.protocol.Server`."""

    tokens: Tokens | None = None

    def __init__(self, process: ServerProcess, drafting: Drafting, port: int) -> None:
        super().__init__(process, port)
        self.drafting = drafting
        self.command = process.command

    @abstractmethod
    def complete(self, request: Request) -> Completion:
        """See `Server`."""

    @abstractmethod
    def verify(self, abilities: Capabilities) -> None:
        """Check that the drafting is in force.

        Raises:
            SpeculationInactiveError: It is not.
            LaunchError: The server did not survive its first request.
        """

    def with_drafting(self, drafting: Drafting) -> Server | None:
        """See `Server`: without drafting per request, another drafting takes another launch."""
        return self if drafting == self.drafting else None


class LlamaHttpServer(LaunchedServer):
    """One launch of a server that speaks llama.cpp's HTTP API.

    `name` is the backend's, for error messages; `erases_slot` is True for builds that draft only with the prompt cache (`ChatClient`).

    Attributes:
        placement: Where the main model is, once the server is verified; ``None`` where its log does not say.
    """

    def __init__(
        self,
        process: ServerProcess,
        drafting: Drafting,
        port: int,
        name: str,
        *,
        erases_slot: bool = False,
    ) -> None:
        super().__init__(process, drafting, port)
        self._client: ChatClient = ChatClient(self.base_url, name, process.wait_ended, process.log_tail)
        self._client.erases_slot = erases_slot
        self.tokens = HttpTokens(self._client)
        self.placement: Placement | None = None

    def complete(self, request: Request) -> Completion:
        """See `LaunchedServer`."""
        return self._client.complete(request)

    def slots(self) -> Slots:
        """See `autospec.backends.protocol.Slotted`."""
        return self._client.slots()

    def complete_all(self, requests: Sequence[Request]) -> list[Completion]:
        """See `autospec.backends.protocol.Slotted`."""
        placed = [replace(request, slot=slot) for slot, request in enumerate(requests)]
        with ThreadPoolExecutor(max_workers=len(placed)) as threads:
            answers = [threads.submit(self._client.complete, request) for request in placed]
        return [answer.result() for answer in answers]

    def ready(self) -> str:
        """See `LaunchedServer`."""
        return self._client.ready()

    def verify(self, abilities: Capabilities) -> None:
        """See `LaunchedServer`."""
        self._client.tells_drafts = abilities.tells_drafts
        self.placement = placement_of(self._process.log_lines())
        with self._first_request():
            self._check_speculation(f"{abilities.build.backend} {abilities.build.version}")

    def _check_speculation(self, build: str) -> None:
        drafting = self.drafting
        log = self._process.log_tail(LOG_SEARCHED)  # before the canary adds to it
        slots = self._client.speculative()
        told = [tells for tells in slots.values() if tells is not None]
        # In a launch with several modes the others hide that the draft model was refused.
        refused = drafting.beside and speculation_refused(log)
        # A build may draft in slot 0 and not in others: that is a limit of what it serves (`autospec.tuning.limits`).
        silent = slots.get(0) is False or bool(told and not any(told))
        if (silent or refused) and not drafting.is_off:
            raise self._inactive(build, log)
        drafted = self._client.complete(canary(drafting), _CANARY_EXTRA).drafted
        if drafting.is_off:
            if any(told) or drafted:
                raise SpeculationInactiveError(
                    f"{build} drafts although drafting is off.",
                    "Remove the drafting flags from the server arguments.",
                )
            return
        # An n-gram mode proposes only where text repeats, so a canary without drafts says nothing: the slots did.
        if drafting.mode.draft_free or drafted:
            return
        if not told or (drafted == 0 and not drafting.p_min):
            raise self._inactive(build, log)

    def _inactive(self, build: str, log: tuple[str, ...]) -> SpeculationInactiveError:
        reason = speculation_refused(log)
        return SpeculationInactiveError(
            f"{build} does not draft although {self.drafting.label} was asked for"
            + (f" ({reason})." if reason else "."),
            "`autospec drafts --model NAME` lists the drafts that fit."
            if self.drafting.draft
            else "Choose another mode.",
        )


C = TypeVar("C", bound=ChildServer)


def start_child(
    make: Callable[[ServerProcess, int], C],
    command: Callable[[int], tuple[str, ...]],
    verify: Callable[[C], None],
    *,
    settings: LaunchSettings,
    state_dir: Path,
) -> C:
    """Start a server, wait until it is ready, and verify it. The server is stopped if one of these fails.

    Args:
        make: Makes the server from its process and port.
        command: Makes the command line for a port.
        verify: Checks that the server works, by asking it.
        settings: How long loading may take, and who is told of the process.
        state_dir: Where the launch's record and log go.

    Raises:
        LaunchError: It did not get ready, and whatever `verify` raises.
    """
    # Servers of a killed autospec would take memory and processor time from ours.
    if state_dir not in _swept:
        _swept.add(state_dir)
        for sentence in sweep_orphans(state_dir):
            _log.warning(sentence)
        if sentence := withheld_words(os.environ):
            _log.warning(sentence)
    # At every launch: a proxy lives for months, and a model that does not start is tried each minute.
    prune_logs(state_dir)
    for attempt in range(1, _PORT_ATTEMPTS + 1):
        port = free_port()
        process = ServerProcess.start(command(port), state_dir)
        server = make(process, port)
        try:
            if settings.started is not None:
                settings.started(process.stop)
            server.wait_ready(settings.ready_timeout_s, port)
            verify(server)
        except _PortTakenError:
            server.stop()
            if attempt == _PORT_ATTEMPTS:
                raise
        except BaseException:
            server.stop()
            raise
        else:
            return server
    raise BackendError("No free port was found.")  # unreachable: the last attempt returns or raises


def canary(drafting: Drafting) -> Request:
    """A request for whose answer a working draft model must propose something.

    Near its end an answer has no room for `n_min` tokens, so the answer is longer by as many.
    """
    return Request(
        messages=({"role": "user", "content": _CANARY_TEXT},),
        max_tokens=_CANARY_TOKENS + (drafting.n_min or 0),
        timeout_s=_CANARY_TIMEOUT_S,
        ignore_eos=True,
    )


class _PortTakenError(LaunchError):
    """Another program has the port."""


def _error(failure: Failure, process: ServerProcess) -> LaunchError:
    error = failure.error(process.log_tail())
    if failure.kind == "port":
        return _PortTakenError(error.message, error.hint, log_tail=error.log_tail)
    return error


def _port_taken(port: int) -> Failure:
    return Failure("port", f"Port {port} was taken by another program.", "Try again.", permanent=False)


def _late(state: str, timeout_s: float) -> Failure:
    doing = "was still loading the model" if state == "loading" else "did not listen"
    return Failure(
        "timeout",
        f"The server {doing} after {timeout_s:g} s.",
        "Choose a smaller model or context (-c), or try again when the disk is less busy.",
        permanent=False,
    )


def _out_of_memory_kills() -> int:
    """Processes that the kernel has killed for memory since boot; 0 where it does not tell."""
    found = re.search(r"^oom_kill (\d+)", text_of("/proc/vmstat"), re.MULTILINE)
    return int(found[1]) if found else 0

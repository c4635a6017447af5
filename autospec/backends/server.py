"""A server in a child process, from its start to its first answer: whatever it serves, whoever asks it.

From a command line to a server that is ready and verified; shared by every backend that launches one.

Is the drafting in force? Asked of every launch before it is measured: silence looks exactly like success.

llama.cpp starts without speculation when a draft's vocabulary does not fit, when `-md` stands alone (since
b9496) and when a context cannot be rolled back; it says so in its log at most. Two witnesses are heard: the
slots, and a canary request whose answer must, or must not, name drafted tokens.
"""

from __future__ import annotations

import logging
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from autospec.backends.failures import Failure, classify, speculation_refused
from autospec.backends.openai_http import ChatClient
from autospec.backends.placement import Placement, placement_of
from autospec.backends.process import HOST, ServerProcess, family, free_port, is_free, listens
from autospec.backends.protocol import Capabilities, Completion, Request, Server, Tokens
from autospec.backends.records import sweep_orphans
from autospec.backends.token_http import HttpTokens
from autospec.drafting import Drafting
from autospec.errors import BackendError, LaunchError, RequestError, ServerDiedError, SpeculationInactiveError

__all__ = [
    "CANARY_TOKENS",
    "LOG_SEARCHED",
    "ChildServer",
    "HttpServer",
    "LaunchedServer",
    "canary",
    "launch",
    "start_child",
    "verify",
]


_log = logging.getLogger(__name__)

# Half of the start of a small model; a thousand polls of a large one cost nothing.
_POLL_S = 0.1
# Between finding a free port and the server's taking it, another program may come first.
_PORT_ATTEMPTS = 2
# State folders that have been looked through by this process.
_swept: set[Path] = set()
# How much of a log is searched for the cause of a failure; an error shows only its last lines.
LOG_SEARCHED = 400


class ChildServer(ABC):
    """A server in a child process, whatever it is for.

    Attributes:
        launch_id: Unique over all launches ever made.
        base_url: Where it listens.
        launch_ms: From its start until it was ready.
        pids: Its processes and their guard.
    """

    def __init__(self, process: ServerProcess, port: int) -> None:
        self.launch_id = process.launch_id
        self.base_url = f"http://{HOST}:{port}"
        self.launch_ms = 0.0
        self.pids = process.pids
        self._process = process

    @abstractmethod
    def ready(self) -> str:
        """``ready``, ``loading`` while the model is read, or ``absent`` while nobody listens."""

    def stop(self) -> None:
        """End the process and wait until it has ended. Safe to call twice."""
        self._process.stop()

    def ended(self) -> str | None:
        """How its process ended, as the end of a sentence; ``None`` while it runs."""
        ended = self._process.poll()
        return None if ended is None else str(ended)

    def wait_ready(self, timeout_s: float, port: int) -> None:
        """Wait until the server answers /health on its own port.

        Raises:
            LaunchError: It ended, or was not ready in time.
        """
        kills = _out_of_memory_kills()
        begun = time.monotonic()
        while True:
            ended = self._process.poll()
            if ended is not None:
                log = self._process.log_tail(LOG_SEARCHED)
                failure = classify(ended, log, out_of_memory_kills=_out_of_memory_kills() - kills)
                if failure.kind == "other" and not is_free(port):
                    failure = _port_taken(port)  # b9093 ends before its log's last lines are written
                raise _raised(failure, self._process)
            state = self.ready()
            if state == "ready":
                break
            if time.monotonic() - begun > timeout_s:
                raise _raised(_late(state, timeout_s), self._process)
            self._process.wait_ended(_POLL_S)
        self.launch_ms = 1000.0 * (time.monotonic() - begun)
        relatives = family(self.pids)
        if not listens(relatives, port):
            raise _raised(_port_taken(port), self._process)
        self.pids = self.pids | {process.pid for process in relatives}

    @contextmanager
    def _first_request(self) -> Iterator[None]:
        """What the first requests show of a launch, in a launch's errors: many a build dies of its first matrix.

        Raises:
            LaunchError: It did not survive them, or refused.
        """
        kills = _out_of_memory_kills()
        try:
            yield
        except ServerDiedError as error:
            ended = self._process.wait_ended(0.0)
            if ended is None:
                raise
            log = self._process.log_tail(LOG_SEARCHED)
            failure = classify(ended, log, out_of_memory_kills=_out_of_memory_kills() - kills)
            raise _raised(failure, self._process) from error
        except RequestError as error:
            raise LaunchError(
                f"The server started but failed its first request: {error.message}",
                error.hint,
                log_tail=self._process.log_tail(),
            ) from error


C = TypeVar("C", bound=ChildServer)


class _PortTakenError(LaunchError):
    """Somebody else has the port; the next one will do."""


def start_child(
    make: Callable[[ServerProcess, int], C],
    command: Callable[[int], tuple[str, ...]],
    verify: Callable[[C], None],
    *,
    ready_timeout_s: float,
    state_dir: Path,
    choose_port: Callable[[], int] | None = None,
) -> C:
    """Start a server, wait until it is ready, and verify it; nothing runs on where one of these fails.

    Args:
        make: The server for a process and its port.
        command: The command line for a port.
        verify: Asks it what shows that it works.
        ready_timeout_s: How long loading may take.
        state_dir: Where the launch's record and log go.
        choose_port: Finds a port; `free_port` unless a test chooses.

    Raises:
        LaunchError: It did not get ready, and whatever `verify` raises.
    """
    _sweep_once(state_dir)
    choose = choose_port or free_port
    for attempt in range(1, _PORT_ATTEMPTS + 1):
        port = choose()
        server = make(ServerProcess.start(command(port), state_dir), port)
        try:
            server.wait_ready(ready_timeout_s, port)
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
    raise BackendError("No port could be taken.")  # unreachable: the last attempt returns or raises


def _sweep_once(state_dir: Path) -> None:
    """Before the first launch, end what a killed autospec left: it would share memory and processor with ours."""
    if state_dir not in _swept:
        _swept.add(state_dir)
        for sentence in sweep_orphans(state_dir):
            _log.warning(sentence)


def _port_taken(port: int) -> Failure:
    return Failure("port", f"Port {port} was taken by another program.", "Try again.", permanent=False)


def _raised(failure: Failure, process: ServerProcess) -> LaunchError:
    error = failure.error(process.log_tail())
    if failure.kind == "port":
        return _PortTakenError(error.message, error.hint, log_tail=error.log_tail)
    return error


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
    if not sys.platform.startswith("linux"):
        return 0
    with suppress(OSError, ValueError):
        for line in Path("/proc/vmstat").read_text(encoding="ascii").splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
    return 0


class LaunchedServer(ChildServer):
    """A server that answers with a drafting, whatever its API is. See `autospec.backends.protocol.Server`."""

    tokens: Tokens | None = None

    def __init__(self, process: ServerProcess, drafting: Drafting, port: int) -> None:
        super().__init__(process, port)
        self.drafting = drafting
        self.command = process.command

    @abstractmethod
    def complete(self, request: Request) -> Completion:
        """Ask and wait for the whole answer.

        Raises:
            ServerDiedError: The process ended.
            RequestError: Refused, timed out, cut off, or an answer that makes no sense.
        """

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


class HttpServer(LaunchedServer):
    """One launch of a llama.cpp server.

    Args:
        process: The server's process.
        drafting: What it was launched with.
        name: What to call it in sentences.
        port: Where it listens.
        erases_slot: See `ChatClient`.

    Attributes:
        placement: Where the main model is, once the server is verified; ``None`` where its log does not tell.
    """

    def __init__(
        self, process: ServerProcess, drafting: Drafting, name: str, port: int, *, erases_slot: bool = False
    ) -> None:
        super().__init__(process, drafting, port)
        self._client = ChatClient(self.base_url, name, process.wait_ended, process.log_tail)
        self._client.erases_slot = erases_slot
        self.tokens = HttpTokens(self._client)
        self.placement: Placement | None = None

    def complete(self, request: Request) -> Completion:
        """See `LaunchedServer`."""
        return self._client.complete(request)

    def stop(self) -> None:
        """See `LaunchedServer`."""
        super().stop()
        self._client.close()

    def ready(self) -> str:
        """See `LaunchedServer`."""
        return self._client.ready()

    def verify(self, abilities: Capabilities) -> None:
        """See `LaunchedServer`."""
        self._client.tells_drafts = abilities.tells_drafts
        self.placement = placement_of(self._process.log_lines())
        build = f"{abilities.build.backend} {abilities.build.version}"
        with self._first_request():
            verify(self._client, self.drafting, build, self._process.log_tail(LOG_SEARCHED))


def launch(
    command: Callable[[int], tuple[str, ...]],
    drafting: Drafting,
    abilities: Capabilities,
    *,
    ready_timeout_s: float,
    state_dir: Path,
    erases_slot: bool = False,
    choose_port: Callable[[], int] | None = None,
) -> HttpServer:
    """`start_child` for a llama.cpp server.

    Args:
        command: The command line for a port.
        drafting: What the command line asks for.
        abilities: Of the build that is launched.
        ready_timeout_s: How long loading may take.
        state_dir: Where the launch's record and log go.
        erases_slot: True for builds that draft only with the prompt cache, see `ChatClient`.
        choose_port: Finds a port; `free_port` unless a test chooses.

    Raises:
        LaunchError: It did not get ready.
        SpeculationInactiveError: It runs with another drafting than asked for.
    """
    return start_child(
        lambda process, port: HttpServer(
            process, drafting, abilities.build.backend, port, erases_slot=erases_slot
        ),
        command,
        lambda server: server.verify(abilities),
        ready_timeout_s=ready_timeout_s,
        state_dir=state_dir,
        choose_port=choose_port,
    )


# Long enough for several cycles; short enough for 2 s on a model of 10 tokens per second.
CANARY_TOKENS = 20
_CANARY_TIMEOUT_S = 300.0
# A first request warms up what a server allocates lazily. Its text is nobody's prompt, so that an n-gram pool learns
# nothing from it that a suite asks for; but some pools keep places in it, and prediction begins with it too.
_CANARY_TEXT = "Continue counting: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20"
_CANARY_EXTRA = {
    # In the eras that take them per request (to early 2026) these let the canary draft whatever the launch's limits are;
    # later builds ignore them.
    "speculative.p_min": 0.0,
    "speculative.n_min": 0,
}


def canary(drafting: Drafting) -> Request:
    """A request on whose answer a working draft model must have proposed something.

    Near its end an answer has no room for `n_min` tokens, so it is longer by as many.
    """
    return Request(
        messages=({"role": "user", "content": _CANARY_TEXT},),
        max_tokens=CANARY_TOKENS + (drafting.n_min or 0),
        timeout_s=_CANARY_TIMEOUT_S,
        ignore_eos=True,
    )


def verify(client: ChatClient, drafting: Drafting, build: str, log: tuple[str, ...]) -> None:
    """Check a server that is ready.

    Args:
        client: Its API.
        drafting: What it was launched with.
        build: Backend and build, for the sentence.
        log: What it printed while it started.

    Raises:
        SpeculationInactiveError: It speculates though it should not, or the other way round, or nobody can tell.
        RequestError: The canary failed.
    """
    slots = client.speculative()
    if slots is False and not drafting.is_off:
        raise _not_in_force(drafting, build, log)
    drafted = client.complete(canary(drafting), _CANARY_EXTRA).drafted
    if drafting.is_off:
        if slots or drafted:
            raise SpeculationInactiveError(
                f"{build} drafts although drafting is off.",
                "Take the speculation flags out of the server arguments.",
            )
        return
    if drafted or drafting.mode.draft_free:
        # An n-gram mode proposes only where text repeats, so the canary's silence says nothing: the slots have spoken.
        return
    if (slots is None) or (drafted == 0 and not drafting.p_min):
        raise _not_in_force(drafting, build, log)


def _not_in_force(drafting: Drafting, build: str, log: tuple[str, ...]) -> SpeculationInactiveError:
    reason = speculation_refused(log)
    return SpeculationInactiveError(
        f"{build} runs without speculation although {drafting.label} was asked for"
        + (f" ({reason})." if reason else "."),
        "autospec drafts --model … lists the drafts that fit." if drafting.draft else "Choose another mode.",
    )

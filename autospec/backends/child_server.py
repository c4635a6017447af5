"""A server in a child process, from its start to its first answer: whatever it serves, whoever asks it."""

from __future__ import annotations

import logging
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from autospec.backends.failures import Failure, classify
from autospec.backends.launches import sweep_orphans
from autospec.backends.ports import HOST, family, free_port, is_free, listens
from autospec.backends.process import ServerProcess
from autospec.errors import BackendError, LaunchError, RequestError, ServerDiedError

__all__ = ["LOG_SEARCHED", "ChildServer", "start_child"]

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

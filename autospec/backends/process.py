"""Processes: a server under its guard, a child that answers one question, and who listens on a loopback port.

Nothing here knows of HTTP or drafting.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import psutil

from autospec.backends import guard as guard_script
from autospec.backends.records import MARK, LaunchRecord, end_processes, log_path, new_launch_id
from autospec.errors import LaunchError
from autospec.hardware.processes import ProcessRef

__all__ = [
    "HOST",
    "STOP_GRACE_S",
    "Ended",
    "ServerProcess",
    "ask_child",
    "child_environment",
    "family",
    "free_port",
    "is_free",
    "is_shared",
    "listeners",
    "listens",
    "open_private_log",
    "withheld_words",
]

HOST = "127.0.0.1"
# llama-server answers SIGTERM when its current batch is done: after 0.2 s for a small model, 2 s for a large one.
STOP_GRACE_S = 8.0
# A Python without site packages starts in 20 ms; this is for a machine that swaps.
_GUARD_START_S = 30.0
# The guard needs this on top of the grace, to kill, reap and report.
_GUARD_END_S = 4.0
# The server takes its port a moment later than it is chosen, and another launch may start in that moment.
_ports_given: deque[int] = deque(maxlen=64)
_LOG_TAIL_BYTES = 64 * 1024
# With every message shown, a start prints some hundred kilobytes.
_LOG_HEAD_BYTES = 8 * 1024 * 1024

# The environment can hold old settings: an old LLAMA_ARG_DRAFT_MAX is fatal to b11434, another is ignored
# (llama.cpp #26100), an API key would lock autospec out, and Vertex AI's AIP_… moves the port. So a server gets its
# settings from its command line only. LLAMA_SPEC_… are of forks.
_STRIPPED_PREFIXES = ("LLAMA_ARG_", "LLAMA_LOG_", "LLAMA_SERVER_", "LLAMA_SPEC_", "AIP_")
_STRIPPED = frozenset({"LLAMA_API_KEY", "LLAMA_OFFLINE"})


@dataclass(frozen=True, slots=True)
class Ended:
    """How a server ended.

    Attributes:
        code: Its exit status, or ``None`` where a signal ended it.
        signal: The signal, or ``None``.
    """

    code: int | None = None
    signal: int | None = None

    def __str__(self) -> str:
        if self.signal is None:
            return f"ended with status {self.code}"
        try:
            return f"was ended by {signal.Signals(self.signal).name}"
        except ValueError:  # a real-time signal
            return f"was ended by signal {self.signal}"


def child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Our environment without the variables that would change a server's settings."""
    return {
        name: value
        for name, value in environment.items()
        if name not in _STRIPPED and not name.startswith(_STRIPPED_PREFIXES)
    }


def withheld_words(environment: Mapping[str, str]) -> str:
    """One sentence on llama.cpp's variables that `child_environment` leaves out, as their user expects that they count; or empty."""
    passed = child_environment(environment)
    names = sorted(name for name in environment if name.startswith("LLAMA_") and name not in passed)
    if not names:
        return ""
    return (
        f"Not passed on to servers: {', '.join(names)}. autospec alone decides how a server drafts; "
        "put other settings of servers after -- or into server_args."
    )


class ServerProcess:
    """A running server and its guard. Made by `start`.

    Attributes:
        launch_id: Unique over all launches ever made.
        command: The server's command line.
        log: The file that holds what it printed.
        pids: Process numbers of the guard and the server.
    """

    def __init__(
        self, record: LaunchRecord, state_dir: Path, guard: subprocess.Popen[bytes], server: int
    ) -> None:
        self.launch_id = record.launch_id
        self.command = record.command
        self.log = log_path(state_dir, record.launch_id)
        self.pids = frozenset({guard.pid, server})
        self._record = record
        self._state_dir = state_dir
        self._guard = guard
        self._ended: Ended | None = None
        self._lock = threading.RLock()

    @classmethod
    def start(cls, command: Sequence[str], state_dir: Path) -> ServerProcess:
        """Start a server under a guard; the launch's record and log go to `state_dir`.

        Raises:
            LaunchError: The program could not be started at all.
        """
        record = LaunchRecord(
            launch_id=new_launch_id(),
            started_at=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
            command=tuple(command),
            owner=ProcessRef.of(os.getpid()),
        )
        with ExitStack() as undo:
            record.write(state_dir)
            undo.callback(record.remove, state_dir)
            guard = _start_guard(record, state_dir)
            undo.callback(_output(guard).close)
            undo.callback(_end_guard, guard)
            server = _server_pid(guard, command)
            record = replace(record, processes=(ProcessRef.of(guard.pid), ProcessRef.of(server)))
            record.write(state_dir)
            undo.pop_all()
        return cls(record, state_dir, guard, server)

    def poll(self) -> Ended | None:
        """How the server ended, or ``None`` while it runs."""
        with self._lock:
            if self._ended is None and self._guard.poll() is not None:
                self._ended = self._read_report()
            return self._ended

    def wait_ended(self, timeout_s: float) -> Ended | None:
        """Wait until the server has ended; ``None`` if it still runs after the time."""
        try:
            self._guard.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None
        return self.poll()

    def log_tail(self, lines: int = 40) -> tuple[str, ...]:
        """The last lines of what the server printed, oldest first."""
        try:
            with self.log.open("rb") as file:
                file.seek(0, os.SEEK_END)
                file.seek(max(0, file.tell() - _LOG_TAIL_BYTES))
                text = file.read().decode(errors="replace")
        except OSError:
            return ()
        return tuple(line.rstrip() for line in text.splitlines() if line.strip())[-lines:]

    def log_lines(self) -> tuple[str, ...]:
        """What the server printed since its start, oldest first, at most 8 MiB."""
        try:
            with self.log.open("rb") as file:
                text = file.read(_LOG_HEAD_BYTES).decode(errors="replace")
        except OSError:
            return ()
        return tuple(text.splitlines())

    def stop(self) -> None:
        """End the server, wait until it has ended, and remove its record. Safe to call twice."""
        with self._lock:
            _end_guard(self._guard)
            guard_reported = self.poll() is not None and self._guard.returncode == 0
            if not guard_reported:  # the guard was killed; on macOS its server may still run
                end_processes(self.launch_id, self._record.processes)
            _output(self._guard).close()
            self._record.remove(self._state_dir)

    def _read_report(self) -> Ended:
        output = _output(self._guard)
        report = b"" if output.closed else output.read()
        for line in report.decode().splitlines():
            kind, _, value = line.partition(" ")
            if kind == "exit":
                return Ended(code=int(value))
            if kind == "signal":
                return Ended(signal=int(value))
        # The guard was killed before it could report, and on Linux the server with it.
        return Ended(signal=signal.SIGKILL)


def _start_guard(record: LaunchRecord, state_dir: Path) -> subprocess.Popen[bytes]:
    log = log_path(state_dir, record.launch_id)
    guard = [sys.executable, "-I", "-S", str(guard_script.__file__), "--log", str(log)]
    # Without a debugger's backtrace, which takes seconds and buries the assertion that it follows.
    environment = child_environment(os.environ) | {MARK: record.launch_id, "GGML_NO_BACKTRACE": "1"}
    with open_private_log(log) as output:
        return subprocess.Popen(
            [*guard, "--grace", str(STOP_GRACE_S), "--", *record.command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
            env=environment,
            start_new_session=True,  # Ctrl-C in the terminal reaches autospec only, which then stops its servers
        )


def open_private_log(path: Path) -> IO[bytes]:
    """Open a log to append to. Only its owner may read it: what a server prints may hold prompts."""
    log = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab")
    os.fchmod(log.fileno(), 0o600)  # also one that an earlier autospec made
    return log


def _output(guard: subprocess.Popen[bytes]) -> IO[bytes]:
    assert guard.stdout is not None
    return guard.stdout


def _server_pid(guard: subprocess.Popen[bytes], command: Sequence[str]) -> int:
    """The first line of the guard's report."""
    line = b""
    deadline = time.monotonic() + _GUARD_START_S
    with selectors.DefaultSelector() as selector:
        selector.register(_output(guard), selectors.EVENT_READ)
        while not line.endswith(b"\n") and selector.select(max(0.0, deadline - time.monotonic())):
            byte = os.read(_output(guard).fileno(), 1)  # not past this line: the rest is read later
            if not byte:
                break
            line += byte
    kind, _, value = line.decode(errors="replace").strip().partition(" ")
    if kind == "pid":
        return int(value)
    if kind == "failed":
        raise LaunchError(f"{command[0]} could not be started: {value.rpartition(':')[0]}.", permanent=True)
    raise LaunchError(
        f"The guard of {Path(command[0]).name} did not start.",
        "Try again; the machine may be short of memory.",
    )


def _end_guard(guard: subprocess.Popen[bytes]) -> None:
    """Ask the guard to end, and wait until it has ended."""
    assert guard.stdin is not None
    guard.stdin.close()  # closing twice does nothing
    try:
        guard.wait(STOP_GRACE_S + _GUARD_END_S)
    except subprocess.TimeoutExpired:
        guard.kill()
        guard.wait()


def ask_child(*arguments: str, timeout_s: float) -> dict[str, Any]:
    """Run Python with these arguments until it ends, and decode the JSON in its last line of output.

    A child asks what is installed, so that a library that cannot be loaded ends the child and not autospec.

    Raises:
        ValueError: It failed; the message is the last line that it printed on standard error.
    """
    try:
        done = subprocess.run(
            [sys.executable, *arguments],
            check=True,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=timeout_s,
            env=child_environment(os.environ),
        )
        told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        lines = (getattr(error, "stderr", None) or b"").decode(errors="replace").strip().splitlines()
        raise ValueError((lines[-1] if lines else str(error)).rstrip(".")) from error
    return told


def free_port() -> int:
    """A port that is free now, chosen by the kernel, and that this process did not get for one of its last launches."""
    while True:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.bind((HOST, 0))
            port = int(probe.getsockname()[1])
        if port not in _ports_given:
            _ports_given.append(port)
            return port


def is_free(port: int) -> bool:
    """True if no process has the port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As servers do: connections that were just closed do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def family(pids: frozenset[int]) -> list[psutil.Process]:
    """The processes of a launch with their children: `llama-server` may be a wrapper script."""
    found: dict[int, psutil.Process] = {}
    for pid in pids:
        with suppress(psutil.Error):
            process = psutil.Process(pid)
            found |= {p.pid: p for p in (process, *process.children(recursive=True))}
    return list(found.values())


def listens(family: list[psutil.Process], port: int) -> bool:
    """True if one of these processes listens there, or if the system does not tell."""
    return any(_listens(process, port, untold=True) for process in family)


def is_shared(family: list[psutil.Process], port: int) -> bool:
    """True if another process listens there, too: llama-server's sockets allow that on Linux (``SO_REUSEPORT``)."""
    return sys.platform == "linux" and bool(listeners(port) - {process.pid for process in family})


def listeners(port: int) -> frozenset[int]:
    """Processes that listen on a port of this machine, with their children; empty where the system does not tell."""
    try:
        found = {
            c.pid for c in psutil.net_connections(kind="tcp") if c.pid is not None and _listens_on(c, port)
        }
    except psutil.AccessDenied:  # macOS tells root only; our own user's processes can be asked one by one
        found = {p.pid for p in psutil.process_iter() if _listens(p, port, untold=False)}
    return frozenset(process.pid for process in family(frozenset(found)))


def _listens(process: psutil.Process, port: int, *, untold: bool) -> bool:
    """True if a process listens there; `untold` if the system does not tell."""
    try:
        return any(_listens_on(c, port) for c in process.net_connections(kind="tcp"))
    except psutil.AccessDenied:
        return untold
    except psutil.Error:
        return False


def _listens_on(connection: Any, port: int) -> bool:
    return (
        connection.status == psutil.CONN_LISTEN and bool(connection.laddr) and connection.laddr.port == port
    )

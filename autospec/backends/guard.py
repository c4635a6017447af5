"""The guard: a small process between autospec and a server, so that the server cannot outlive autospec.

Run as a script (``python -I -S guard.py --log FILE --grace SECONDS -- COMMAND…``), with the standard library
only, so that it starts in some 20 ms and shares nothing with autospec but three pipes:

- stdin: autospec holds the other end and writes nothing. Its end, however autospec ended, ends the server.
- stdout: the guard's report, one line each: ``pid N`` when the server runs; ``exit N`` or ``signal N`` when it
  has ended; ``failed TEXT`` if it could not be started.
- the log file: what the server prints. A server may run for months, so a long log loses its middle.

The server gets a process group of its own, so that a wrapper script's children end with it. On Linux the
kernel also kills the server when the guard dies (``PR_SET_PDEATHSIG``); macOS has no such call, and there the
next start finds what was left (`autospec.backends.records`).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys
import time

__all__ = ["main"]

# Linux, include/uapi/linux/prctl.h.
_PR_SET_PDEATHSIG = 1
# A parent's death shows at once on stdin. This watch covers the case that another child of autospec
# inherited the pipe's other end and holds it open.
_PARENT_WATCH_S = 1.0
_KILL_WAIT_S = 10.0
# A longer log keeps so much of its beginning, where the server says how it started, and of its end.
_LOG_BYTES = 16 * 1024 * 1024
_LOG_END_BYTES = 4 * 1024 * 1024


def main(argv: list[str]) -> int:
    """Start the command, watch it and the parent, end it when the parent has ended; returns 0.

    `argv` is ``--log FILE --grace SECONDS -- COMMAND…``. How the server ended stands in the report on stdout.
    """
    log_path, grace_s, command = argv[1], float(argv[3]), argv[5:]
    parent = os.getppid()
    log = os.open(log_path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    wake_read = _wake_on_signals()
    failure_read, failure_write = os.pipe()
    prctl = _prctl()
    guard = os.getpid()
    server = os.fork()
    if server == 0:
        _become_server(command, log, guard, prctl, failure_write)
    os.close(failure_write)
    with contextlib.suppress(OSError):  # the child does the same; whoever comes first wins
        os.setpgid(server, server)
    failure = os.read(failure_read, 4096)
    if failure:
        os.waitpid(server, 0)
        _report(f"failed {failure.decode(errors='replace')}")
        return 0
    _report(f"pid {server}")
    status = _watch(server, wake_read, parent, log)
    if status is None:
        status = _end(server, wake_read, grace_s)
    # A wrapper script may have ended and left its children; the group is theirs alone by now.
    _kill_group(server, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(status)
    _report(f"exit {code}" if code >= 0 else f"signal {-code}")
    return 0


def _wake_on_signals() -> int:
    """A pipe that becomes readable when a child ends or somebody asks the guard to end."""
    read, write = os.pipe()
    for end in (read, write):
        os.set_blocking(end, False)
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    # Ctrl-C and a closed terminal are autospec's to answer; the guard follows when autospec ends.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    return read


def _prctl() -> ctypes._NamedFuncPointer | None:
    """`prctl`, looked up before the fork: between fork and exec only plain system calls are safe."""
    if not sys.platform.startswith("linux"):
        return None
    with contextlib.suppress(OSError, AttributeError):
        return ctypes.CDLL(None, use_errno=True).prctl
    return None


def _become_server(
    command: list[str], log: int, guard: int, prctl: ctypes._NamedFuncPointer | None, failure: int
) -> None:
    """In the child: tie this process to the guard, then become the server. Never returns."""
    try:
        os.setpgid(0, 0)
        if prctl is not None:
            prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != guard:  # it died before the call took hold
                os._exit(1)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.execvp(command[0], command)  # noqa: S606 - this is the whole purpose; no shell is involved
    except OSError as error:
        os.write(failure, f"{error.strerror or error}: {command[0]}".encode())
    finally:
        os._exit(127)


def _watch(server: int, wake: int, parent: int, log: int) -> int | None:
    """Wait until the server ends (its wait status) or autospec has ended or asks (``None``); meanwhile bound its log."""
    while True:
        _bound_log(log)
        ready, _, _ = select.select([0, wake], [], [], _PARENT_WATCH_S)
        if wake in ready and signal.SIGTERM in _drain(wake):
            return None
        status = _ended(server)
        if status is not None:
            return status
        if (0 in ready and not os.read(0, 1)) or os.getppid() != parent:
            return None


def _bound_log(log: int) -> None:
    """Cut the middle out of a log that is too long, in place: the server appends, so it goes on at the new end.

    A line that it prints between the reading and the cut, within some milliseconds, is lost.
    """
    with contextlib.suppress(OSError):  # a file system that became read-only; the next look tries again
        size = os.fstat(log).st_size
        if size <= _LOG_BYTES:
            return
        first = os.pread(log, _LOG_END_BYTES, 0)
        first = first[: first.rfind(b"\n") + 1] or first
        last = os.pread(log, 2 * _LOG_END_BYTES, size - _LOG_END_BYTES)  # with what came since `fstat`
        last = last[last.find(b"\n") + 1 :]
        os.ftruncate(log, len(first))
        os.write(log, b"[autospec left out %d bytes here]\n" % (size - len(first) - len(last)) + last)


def _end(server: int, wake: int, grace_s: float) -> int:
    """SIGTERM to the group, SIGKILL after the grace; the wait status."""
    for number, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, _KILL_WAIT_S)):
        _kill_group(server, number)
        deadline = time.monotonic() + wait_s
        while (left := deadline - time.monotonic()) > 0:
            status = _ended(server)
            if status is not None:
                return status
            if select.select([wake], [], [], left)[0]:
                _drain(wake)
    return os.waitpid(server, 0)[1]


def _ended(server: int) -> int | None:
    pid, status = os.waitpid(server, os.WNOHANG)
    return status if pid else None


def _drain(wake: int) -> bytes:
    """The numbers of the signals that came."""
    with contextlib.suppress(BlockingIOError):
        return os.read(wake, 512)
    return b""


def _kill_group(server: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(server, number)


def _report(line: str) -> None:
    with contextlib.suppress(OSError):  # autospec is gone; nobody reads
        os.write(1, f"{line}\n".encode())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

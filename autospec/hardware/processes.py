"""A process that is still the same one later, and the lock of the one that measures: two would disturb each other."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, Self

import psutil

from autospec.errors import BusyError
from autospec.files import user_temp_dir

__all__ = ["ProcessRef", "holder", "lock_path", "machine_lock"]

# Only where the kernel does not count the start from the boot: macOS stores the time of day at which a process started.
_SAME_START_S = 1.0
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_TEST_LOCK_DIR = "AUTOSPEC_TEST_LOCK_DIR"
# Abstract sockets, and who listens at one.
_HAS_NAMES = sys.platform == "linux"
_SO_PEERCRED = getattr(socket, "SO_PEERCRED", 0)
_PEER = struct.Struct("=iII")  # struct ucred: process, user, group
# A daemon asks twice a minute, and each question takes a place until the holder ends. Afterwards its name is not told any more.
_ASKERS = 4096
# It has the lock and no note: it is starting or ending.
_NO_NOTE = "a process that is starting or ending"


@dataclass(frozen=True, slots=True)
class ProcessRef:
    """A process: its number and its start, which together are unique.

    Attributes:
        pid: The process number.
        create_time: Its start in seconds since 1970. On Linux it moves when the clock is set, because it is derived from the
            boot time.
        since_boot: Its start as the kernel counts it, with the id of the boot; empty where the kernel does not tell. No
            change of the clock moves it.
    """

    pid: int
    create_time: float
    since_boot: str = ""

    @classmethod
    def of(cls, pid: int) -> Self:
        """The process with this number now; its start is 0 if it has already ended."""
        try:
            return cls(pid, psutil.Process(pid).create_time(), _since_boot(pid))
        except psutil.Error:
            return cls(pid, 0.0)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Read what `dataclasses.asdict` made; raises KeyError, TypeError or ValueError if it is damaged."""
        return cls(int(data["pid"]), float(data["create_time"]), str(data.get("since_boot", "")))

    def find(self, tolerance_s: float = _SAME_START_S) -> psutil.Process | None:
        """The living process; ``None`` if it ended or another process has its number.

        Args:
            tolerance_s: How far `create_time` may differ where `since_boot` is not known.
        """
        try:
            process = psutil.Process(self.pid)
            alive = process.status() != psutil.STATUS_ZOMBIE
            now = _since_boot(self.pid) if self.since_boot else ""
            if now:
                same = now == self.since_boot
            else:
                same = abs(process.create_time() - self.create_time) <= tolerance_s
        except psutil.Error:
            return None
        return process if alive and same else None


def _since_boot(pid: int) -> str:
    """Boot id and start in clock ticks since the boot; empty where there is no ``/proc``."""
    try:
        # The name of the program, in parentheses, may hold spaces and parentheses itself.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return f"{_boot_id()} {int(fields[19])}"
    except (OSError, IndexError, ValueError):
        return ""


@cache
def _boot_id() -> str:
    return _BOOT_ID.read_text(encoding="ascii").strip()


def lock_path() -> Path:
    """Return the lock file of this user of this machine, independent of AUTOSPEC_HOME; on Linux only the note beside it is written.

    Two installations share the same processor. Tests move it with ``AUTOSPEC_TEST_LOCK_DIR``.
    """
    folder = os.environ.get(_TEST_LOCK_DIR) or user_temp_dir()
    return Path(folder) / f"autospec-{os.getuid()}.lock"


@contextmanager
def machine_lock(what: str) -> Iterator[None]:
    """Hold the machine while measuring; `what` tells other processes what the holder does.

    The operating system frees the lock when the process ends. On Linux it is a name in the kernel (an abstract socket), the same for
    all users and whatever $TMPDIR says: no file that somebody could replace by a link, and the kernel itself knows whose it is.
    Elsewhere it is a file of the user.

    Raises:
        BusyError: Another process holds it; says which, since when and what it does.
    """
    give_back = _take_name() if _HAS_NAMES else _take_file()
    if give_back is None:
        raise BusyError(
            f"Another autospec is measuring on this machine: {holder() or _NO_NOTE}.",
            "Wait until it ends, or stop it. Two at once would disturb each other's measurements.",
        )
    note = _note_path()
    try:
        # `since` is for people. The process is found again by its start, which no change of the clock moves.
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        me = asdict(ProcessRef.of(os.getpid()))
        with suppress(OSError):  # it is there for its words
            _write(note, json.dumps({**me, "what": what, "since": since}))
        yield
    finally:
        with suppress(OSError):
            note.unlink(missing_ok=True)
        give_back()


def holder() -> str:
    """Return who measures on this machine now, in words; empty if nobody does. Does not touch the lock."""
    if _HAS_NAMES:
        return _holder_of_name()
    try:
        alive = ProcessRef.from_json(_read(_note_path())).find() is not None
    except (OSError, ValueError, KeyError, TypeError, psutil.Error):
        return ""
    return _noted() if alive else ""


def _note_path() -> Path:
    return lock_path().with_suffix(".json")


def _noted(pid: int | None = None) -> str:
    """The holder in the words of its note; empty if the note is damaged, or of another process than `pid`."""
    try:
        held = _read(_note_path())
        return (
            f"process {held['pid']} ({held['what']}), since {held['since']}"
            if pid in (None, held["pid"])
            else ""
        )
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _take_file() -> Callable[[], None] | None:
    """Take the lock file; returns what gives it back, ``None`` if another process has it."""
    from filelock import FileLock, Timeout  # noqa: PLC0415 - it loads asyncio, and the daemon at rest only asks `holder`

    lock = FileLock(lock_path())
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    return lock.release


def _lock_name() -> str:
    """The name of the abstract socket."""
    test = os.environ.get(_TEST_LOCK_DIR, "")
    return f"\0autospec-measures{hashlib.sha256(test.encode()).hexdigest()[:16] if test else ''}"


def _take_name() -> Callable[[], None] | None:
    """Take the name; returns what gives it back, ``None`` if another process has it."""
    lock = socket.socket(socket.AF_UNIX)
    try:
        lock.bind(_lock_name())
        # Connections are not answered: the kernel tells the other side who listens.
        lock.listen(_ASKERS)
    except OSError as error:
        lock.close()
        if error.errno == errno.EADDRINUSE:
            return None
        raise
    return lock.close


def _holder_of_name() -> str:
    """Who has the name, by the kernel; the words of the note only where it is this user's and of that process."""
    with socket.socket(socket.AF_UNIX) as asking:
        asking.setblocking(False)
        try:
            asking.connect(_lock_name())
        except ConnectionRefusedError:
            return ""
        except OSError:  # too many have asked
            return _NO_NOTE
        told = asking.getsockopt(socket.SOL_SOCKET, _SO_PEERCRED, _PEER.size)
    pid, uid, _ = _PEER.unpack(told)
    if uid == os.getuid() and (words := _noted(pid)):
        return words
    # A holder in another container has no number here.
    words = (
        f"process {pid} of the user {_user_name(uid)}" if pid else f"a process of the user {_user_name(uid)}"
    )
    with suppress(psutil.Error, ValueError, OverflowError):
        begun = datetime.fromtimestamp(psutil.Process(pid).create_time()).astimezone() if pid else None
        words += f", since {begun.isoformat(timespec='seconds')}" if begun else ""
    return words


def _user_name(uid: int) -> str:
    import pwd  # noqa: PLC0415 - not on every system

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _write(path: Path, text: str) -> None:
    """Write a file in a folder where others may write, too: what another user put there is not followed, and not waited for."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK
    with os.fdopen(os.open(path, flags, 0o644), "w", encoding="utf-8") as file:
        file.write(text)


def _read(path: Path) -> dict[str, Any]:
    """The JSON in a file of this user's; raises OSError if it is another user's or no file, ValueError if it is damaged."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), encoding="utf-8") as file:
        if os.fstat(file.fileno()).st_uid != os.getuid():
            raise PermissionError(errno.EPERM, "It belongs to another user", str(path))
        found: dict[str, Any] = json.load(file)
    return found

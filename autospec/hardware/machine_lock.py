"""One tune at a time: two would measure each other."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import psutil

from autospec.errors import BusyError

__all__ = ["holder", "lock_path", "machine_lock"]


def lock_path() -> Path:
    """The lock file: one per user of this machine, whatever AUTOSPEC_HOME says.

    Two set-ups share the processor all the same. Tests that start tunes beside a real one move it with
    ``AUTOSPEC_TEST_LOCK_DIR``.
    """
    folder = os.environ.get("AUTOSPEC_TEST_LOCK_DIR") or tempfile.gettempdir()
    return Path(folder) / f"autospec-{os.getuid()}.lock"


@contextmanager
def machine_lock(what: str) -> Iterator[None]:
    """Hold the machine while measuring. The operating system frees it however the holder ends.

    Args:
        what: What the holder does, for whoever finds it held: "tune qwen3-coder-30b".

    Raises:
        BusyError: Another process holds it; says which, since when and what it does.
    """
    from filelock import FileLock, Timeout  # noqa: PLC0415 - it loads asyncio, and the daemon at rest only asks `holder`

    path = lock_path()
    note = path.with_suffix(".json")
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise BusyError(
            f"Another autospec is measuring on this machine: {_holder(note)}.",
            "Wait for it or stop it; two at once would measure each other.",
        ) from None
    try:
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        note.write_text(json.dumps({"pid": os.getpid(), "what": what, "since": since}), encoding="utf-8")
        yield
    finally:
        note.unlink(missing_ok=True)
        lock.release()


def holder() -> str:
    """Who measures on this machine now, in words; empty if nobody does. Asks the note and leaves the lock alone."""
    note = lock_path().with_suffix(".json")
    try:
        held = json.loads(note.read_text(encoding="utf-8"))
        since = datetime.fromisoformat(held["since"]).timestamp()
        # A process that began later has only inherited the number.
        alive = psutil.Process(int(held["pid"])).create_time() <= since + 1.0
    except (OSError, ValueError, KeyError, TypeError, psutil.Error):
        return ""
    return _holder(note) if alive else ""


def _holder(note: Path) -> str:
    try:
        held = json.loads(note.read_text(encoding="utf-8"))
        return f"process {held['pid']} ({held['what']}), since {held['since']}"
    except (OSError, ValueError, KeyError):
        # It has the lock and has not written its note yet, or is just letting go.
        return "a process that has just begun or is about to end"

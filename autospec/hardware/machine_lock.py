"""The lock that allows one tune at a time: two would disturb each other's measurements."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from autospec.errors import BusyError
from autospec.files import user_temp_dir
from autospec.hardware.process_ref import ProcessRef

__all__ = ["holder", "lock_path", "machine_lock"]


def lock_path() -> Path:
    """Return the lock file: one per user of this machine, independent of AUTOSPEC_HOME.

    Two installations share the same processor. Tests move the file with ``AUTOSPEC_TEST_LOCK_DIR``.
    """
    folder = os.environ.get("AUTOSPEC_TEST_LOCK_DIR") or user_temp_dir()
    return Path(folder) / f"autospec-{os.getuid()}.lock"


@contextmanager
def machine_lock(what: str) -> Iterator[None]:
    """Hold the machine while measuring; `what` tells other processes what the holder does.

    The operating system frees the lock when the process ends.

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
            "Wait until it ends, or stop it. Two at once would disturb each other's measurements.",
        ) from None
    try:
        # `since` is for people. The process is found again by its start, which no change of the clock moves.
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        me = asdict(ProcessRef.of(os.getpid()))
        note.write_text(json.dumps({**me, "what": what, "since": since}), encoding="utf-8")
        yield
    finally:
        note.unlink(missing_ok=True)
        lock.release()


def holder() -> str:
    """Return who measures on this machine now, in words; empty if nobody does. Does not touch the lock."""
    note = lock_path().with_suffix(".json")
    try:
        alive = _is_alive(json.loads(note.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, psutil.Error):
        return ""
    return _holder(note) if alive else ""


def _is_alive(held: dict[str, Any]) -> bool:
    """True if the process of a note runs still, and no other process has its number."""
    if "create_time" in held:
        return ProcessRef.from_json(held).find() is not None
    # Written by an autospec that noted the time only: a process that started later reuses the number.
    since = datetime.fromisoformat(held["since"]).timestamp()
    return psutil.Process(int(held["pid"])).create_time() <= since + 1.0


def _holder(note: Path) -> str:
    try:
        held = json.loads(note.read_text(encoding="utf-8"))
        return f"process {held['pid']} ({held['what']}), since {held['since']}"
    except (OSError, ValueError, KeyError):
        # It has the lock and no note: it is starting or ending.
        return "a process that is starting or ending"

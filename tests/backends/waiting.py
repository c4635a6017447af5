"""Waiting with a deadline, and looking whether processes are gone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import psutil

DEADLINE_S = 30.0


def wait_until(true: Callable[[], object], deadline_s: float = DEADLINE_S) -> None:
    """Poll until something holds; fail when the deadline has passed."""
    end = time.monotonic() + deadline_s
    while not true():
        assert time.monotonic() < end, f"not within {deadline_s:g} s"
        time.sleep(0.02)


def gone(pids: Iterable[int]) -> bool:
    """True if none of the processes lives; a zombie that nobody has reaped is dead."""
    for pid in pids:
        try:
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                return False
        except psutil.NoSuchProcess:
            continue
    return True

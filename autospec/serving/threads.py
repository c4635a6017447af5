"""Blocking work beside the event loop, each piece in a daemon thread of its own.

`asyncio.to_thread` shares a pool of a few threads, six on two cores, which the interpreter joins when it ends: servers that
hang while they start would fill it, and keep the proxy from ending. A thread takes 0.1 ms to make, a launch seconds.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

__all__ = ["in_thread"]

T = TypeVar("T")


def in_thread(
    work: Callable[[], T], *, orphaned: Callable[[T], object] = lambda _: None
) -> asyncio.Future[T]:
    """Do blocking work in a thread.

    Args:
        work: Called in the thread.
        orphaned: Given the result, in the thread, where nobody is left to take it: the future was cancelled or the event
            loop has ended.

    Returns:
        Its result or its exception.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def run() -> None:
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - whatever it is belongs to the one who waits
            with suppress(RuntimeError):  # the loop has ended: nobody waits
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

    threading.Thread(target=run, name="autospec-proxy", daemon=True).start()
    return future

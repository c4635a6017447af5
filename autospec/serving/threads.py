"""Blocking work in daemon threads, one thread per call.

`asyncio.to_thread` shares a few threads (six on two cores), which the interpreter joins at exit: servers that hang while they
start would occupy all of them and keep the proxy from ending. A new thread costs 0.1 ms, a launch seconds.
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
    """Run a blocking function in a thread of its own.

    Args:
        work: The function.
        orphaned: Called in a thread with the result if the future was cancelled or the event loop has ended.

    Returns:
        A future of the result or the exception.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def run() -> None:
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - the caller gets it, whatever it is
            with suppress(RuntimeError):  # the loop has ended
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

"""Blocking work in threads of its own."""

from __future__ import annotations

import asyncio
import threading

import pytest

from autospec.serving.instance import in_thread


def test_results_and_errors():
    """Both come back to the loop."""

    async def scenario():
        assert await in_thread(lambda: 7) == 7
        with pytest.raises(ZeroDivisionError):
            await in_thread(lambda: 1 // 0)

    asyncio.run(scenario())


def test_work_that_hangs_keeps_nobody_waiting():
    """More of it than a pool has threads, and other work goes on; the process may end meanwhile."""
    hold = threading.Event()

    async def scenario():
        hanging = [in_thread(hold.wait) for _ in range(50)]
        assert await in_thread(lambda: 7) == 7
        assert all(thread.daemon for thread in threading.enumerate() if thread.name == "autospec-proxy")
        hold.set()
        await asyncio.gather(*hanging)

    asyncio.run(scenario())


def test_a_result_that_nobody_takes():
    """The clean-up gets the result: after a cancellation, and after the end of the loop."""
    hold, cleaned = threading.Event(), []
    seen = threading.Semaphore(0)

    def orphaned(result: object) -> None:
        cleaned.append(result)
        seen.release()

    async def scenario():
        work = in_thread(lambda: hold.wait() and "cancelled", orphaned=orphaned)
        work.cancel()
        hold.set()
        assert await in_thread(lambda: seen.acquire(timeout=10.0))
        hold.clear()
        in_thread(lambda: hold.wait() and "ended", orphaned=orphaned)

    asyncio.run(scenario())
    hold.set()
    assert seen.acquire(timeout=10.0)
    assert cleaned == ["cancelled", "ended"]


def test_a_thread_that_cannot_be_started_is_an_error_of_the_work(monkeypatch):
    """Who waits for the result gets it; who only asks for the work goes on."""

    def start(_thread):
        raise RuntimeError("can't start new thread")

    async def scenario():
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", start)
            work = in_thread(lambda: 7)
        with pytest.raises(RuntimeError, match="new thread"):
            await work

    asyncio.run(scenario())

"""The end of the proxy: how long it takes at most, and in which order."""

from __future__ import annotations

import asyncio
import os
import signal
import threading

import httpx
import pytest
from aiohttp import web_protocol

from autospec.proxy import metrics, serve
from autospec.service.definition import STOP_WITHIN_S
from autospec.serving import supervisor
from tests.backends.waiting import wait_until
from tests.proxy.harness import proxy_over


def test_an_endless_answer_is_given_the_grace_once(loop, dispatch, backend, storage, monkeypatch):
    """Proxy review 5: aiohttp waits twice for the time that it is given, so the end took twice as long as was set."""
    waits: list[float | None] = []
    wait = web_protocol.ceil_timeout

    def counted(delay, *args, **kwargs):
        waits.append(delay)
        return wait(delay, *args, **kwargs)

    async def never(_asked):
        await asyncio.sleep(60)

    backend.behaviour = never

    def ask(base_url):
        with pytest.raises(httpx.HTTPError):
            httpx.post(f"{base_url}/v1/completions", json={"model": "main"}, trust_env=False, timeout=30)

    with proxy_over(loop, dispatch, storage) as proxy:  # its grace is one second
        client = threading.Thread(target=ask, args=(proxy.base_url,))
        client.start()
        wait_until(lambda: backend.asked)
        monkeypatch.setattr(web_protocol, "ceil_timeout", counted)
    client.join(30)
    assert sum(waits) == 1.0


def test_the_whole_end_fits_into_the_time_that_the_daemon_gives():
    """Proxy review 5: answers, samples and servers one after the other; after that comes SIGKILL, and records stay behind."""
    steps_s = (serve._GRACE_S, metrics._CLOSE_TIMEOUT_S, supervisor._DRAIN_S, supervisor._STOP_S)
    assert sum(steps_s) < STOP_WITHIN_S


def test_a_closed_terminal_ends_it_in_order():
    """Issue 17: SIGHUP killed it, and its answers. It comes twice, and is no request to hurry; nohup is heeded."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)

    async def close(times):
        task = asyncio.current_task()
        with serve._signals(task) as asked:
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGHUP)
            await asyncio.wait_for(asked.wait(), 5)
            await asyncio.sleep(0.01)
        os.kill(os.getpid(), signal.SIGHUP)  # while servers end
        await asyncio.sleep(0.01)
        assert not task.cancelling()

    try:
        asyncio.run(close(2))
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with pytest.raises(TimeoutError):
            asyncio.run(asyncio.wait_for(close(1), 0.05))
    finally:
        signal.signal(signal.SIGHUP, before)

"""The end of the proxy: how long it takes at most, and in which order."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx
import pytest
from aiohttp import web_protocol

from autospec.cells import Aim
from autospec.measure.measurements import Sample
from autospec.proxy import serve
from autospec.proxy.app import Rules
from autospec.proxy.metrics import SampleWriter
from autospec.service.managers import STOP_WITHIN_S
from autospec.serving import supervisor
from autospec.settings import load_settings
from tests.backends.waiting import wait_until
from tests.proxy.harness import OneModel, proxy_over


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
    steps_s = (serve._GRACE_S, serve._SAMPLES_S, supervisor._DRAIN_S, supervisor._STOP_S)
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


@dataclass
class SlowToEnd(OneModel):
    """Servers that do not end; meanwhile the user presses Ctrl-C again."""

    aim: Aim = Aim.SPEED
    cancelled: bool = False

    async def close(self) -> None:
        """For ever, unless it is cancelled."""
        handled = {signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        assert not handled & {signal.SIG_DFL, signal.default_int_handler}
        signal.raise_signal(signal.SIGTERM)
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.cancelled = True
            raise


def test_another_signal_while_servers_end_is_no_sudden_death(lent, tmp_path, monkeypatch):
    """The first ones ended the answers; the last step, which takes longest, had no handlers any more: SIGTERM killed the proxy."""
    dispatch, ended = SlowToEnd([lent]), []

    async def opened(*_args):
        return dispatch

    async def link_closed(_link):
        ended.append("link")

    monkeypatch.setattr(serve, "open_supervisor", opened)
    monkeypatch.setattr(serve.ProxyLink, "close", link_closed)
    monkeypatch.setattr(serve, "keywords", lambda: None)
    settings = load_settings(environ={"AUTOSPEC_HOME": str(tmp_path)})
    asyncio.run(
        serve.run(
            settings,
            Rules(),
            port=0,
            ready=lambda _: signal.raise_signal(signal.SIGTERM),
            ending=lambda _: None,
        )
    )
    assert dispatch.cancelled
    assert ended == ["link"]


def test_a_database_that_hangs_does_not_keep_the_proxy_from_ending(monkeypatch):
    """Pages that waited for it had filled the pool of threads, behind which the end of the samples stood, without a limit."""
    hung, busy, closed = threading.Event(), threading.Event(), []

    class Store:
        def add_samples(self, _batch):
            hung.wait()

        def prune_samples(self):
            pass

        def close(self):
            closed.append("store")

    monkeypatch.setattr("autospec.proxy.metrics._GATHER_S", 0.0)
    writer = SampleWriter(Store())
    writer.put(Sample(1.0, "main", "attached", "1", None, 5, 7, 10.0, 70.0))
    pool = ThreadPoolExecutor(1)
    pool.submit(busy.wait)

    async def scenario():
        asyncio.get_running_loop().set_default_executor(pool)
        try:
            monkeypatch.setattr(serve, "_SAMPLES_S", 0.05)
            await asyncio.wait_for(serve._end(writer), 10)
            assert closed == []
            hung.set()
            monkeypatch.setattr(serve, "_SAMPLES_S", 5.0)
            await serve._end(writer)
            assert closed
        finally:
            hung.set()
            busy.set()

    asyncio.run(scenario())


def test_a_signal_ends_it_while_its_database_hangs(lent, tmp_path, monkeypatch):
    """The database was opened on the event loop: Ctrl-C did nothing."""
    dispatch, hung, closed, listened = OneModel([lent]), threading.Event(), threading.Event(), []
    dispatch.aim = Aim.SPEED

    class Store:
        def close(self):
            closed.set()

    def opened_late(_url):
        os.kill(os.getpid(), signal.SIGTERM)
        assert hung.wait(20)
        return Store()

    async def opened(*_args):
        return dispatch

    monkeypatch.setattr(serve, "open_supervisor", opened)
    monkeypatch.setattr(serve, "open_store", opened_late)
    monkeypatch.setattr(serve, "keywords", lambda: None)
    settings = load_settings(environ={"AUTOSPEC_HOME": str(tmp_path)})
    asyncio.run(
        asyncio.wait_for(
            serve.run(settings, Rules(), port=0, ready=listened.append, ending=lambda _: None), 10
        )
    )
    assert (dispatch.closed, listened) == (True, [])
    hung.set()
    assert closed.wait(10)

"""Clients that end their own side after a request (`shutdown(SHUT_WR)`) get their answer; clients that are gone are cancelled."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading

import pytest

from tests.backends.waiting import wait_until
from tests.proxy.harness import LoadingModel, on_both_loops, proxy_over
from tests.proxy.raw import connected, everything
from tests.proxy.stand_in import SSE

CHAT = b"/v1/chat/completions"
BODY = b'{"model": "main", "messages": []}'
STREAM = b'{"model": "main", "messages": [], "stream": true}'
EVENTS = [b'data: {"n":%d}\n\n' % n for n in range(3)]
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"
FILLER = b"3\r\n:\n\n\r\n"

pytestmark = on_both_loops


@pytest.fixture(autouse=True)
def _hurried(monkeypatch):
    monkeypatch.setattr("autospec.proxy.http_server._LOOKS_AFTER_S", (0.005, 0.01, 0.02, 0.03))
    monkeypatch.setattr("autospec.proxy.http_server._LOOKS_EVERY_S", 0.05)


def request(body: bytes = BODY, version: bytes = b"1.1", length: int | None = None) -> bytes:
    """A POST that does not ask for the connection to be closed."""
    head = b"POST %s HTTP/%s\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
    return head % (CHAT, version, len(body) if length is None else length) + body


def without_interim(received: bytes) -> bytes:
    """What comes after the ``100 Continue`` lines, of which there is at least one."""
    assert received.startswith(INTERIM)
    while received.startswith(INTERIM):
        received = received.removeprefix(INTERIM)
    return received


def half_closed(base_url: str, sent: bytes) -> bytes:
    """Send, end our own side, and read until the proxy closes."""
    with connected(base_url) as raw:
        raw.sendall(sent)
        raw.shutdown(socket.SHUT_WR)
        return everything(raw)


async def answers_late(asked):
    """Long after the client has ended its side."""
    await asyncio.sleep(0.15)
    await asked.answer(b'{"ok": true}')


def test_a_whole_answer(proxy, backend, lent):
    """As `nc -N` and `socat` ask: it came to nothing, because a FIN closed the connection (Proxy review 26)."""
    backend.behaviour = answers_late
    answer = without_interim(half_closed(proxy.base_url, request()))
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b'\r\n\r\n{"ok": true}')
    assert lent.leases == lent.returned == 1


def test_a_streamed_answer(proxy, backend):
    """Whole events, with comments between them and nothing else."""

    async def behave(asked):
        await asyncio.sleep(0.05)
        await asked.send(SSE)
        for one in EVENTS:
            await asked.chunk(one)
            await asyncio.sleep(0.03)
        await asked.end()

    backend.behaviour = behave
    head, _, body = without_interim(half_closed(proxy.base_url, request(STREAM))).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(one), one) for one in EVENTS)
    assert body.replace(FILLER, b"") == chunks + b"0\r\n\r\n"


def test_an_answer_of_the_proxy_itself(proxy):
    """It is at hand, and the connection ends with it."""
    answer = half_closed(proxy.base_url, b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert b"HTTP/1.1 200 OK\r\n" in answer
    assert answer.rstrip().endswith(b"}")


def test_every_request_of_a_pipeline(proxy, backend):
    """In their order, also those that came before the first was answered."""
    bodies = [b'{"model": "main", "n": %d}' % n for n in range(3)]

    async def behave(asked):
        await asyncio.sleep(0.05)
        await asked.answer(asked.body)

    backend.behaviour = behave
    received = half_closed(proxy.base_url, b"".join(request(body) for body in bodies))
    parts = [part for part in received.replace(INTERIM, b"").split(b"HTTP/1.1 200 OK\r\n") if part]
    assert [part.partition(b"\r\n\r\n")[2] for part in parts] == bodies


@pytest.mark.parametrize("body", [BODY, STREAM])
@pytest.mark.parametrize("reset", [True, False])
def test_a_client_that_is_gone_is_cancelled(proxy, backend, lent, body, reset):
    """Before the first byte, whether its kernel sends a reset or a FIN: the same as what a half-closing client sends."""
    gone = threading.Event()

    async def behave(asked):
        await asked.gone()
        gone.set()

    backend.behaviour = behave
    with connected(proxy.base_url) as raw:
        raw.sendall(request(body))
        wait_until(lambda: backend.asked)
        if reset:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wait_until(gone.is_set)
    wait_until(lambda: lent.returned == 1)


def test_a_client_that_is_gone_later(proxy, backend):
    """It ended its side, waited, and then left: the interim answers show it."""
    gone = threading.Event()

    async def behave(asked):
        await asked.gone()
        gone.set()

    backend.behaviour = behave
    with connected(proxy.base_url) as raw:
        raw.sendall(request())
        raw.shutdown(socket.SHUT_WR)
        received = b""
        while received.count(INTERIM) < 3:
            received += raw.recv(4096)
        assert not gone.is_set()
    wait_until(gone.is_set)


def test_a_half_closed_client_that_leaves_its_stream(proxy, backend):
    """The tokens show it."""
    gone = threading.Event()

    async def behave(asked):
        await asked.send(SSE)
        with contextlib.suppress(ConnectionError):
            while True:
                await asked.chunk(EVENTS[0])
                await asyncio.sleep(0.01)
        gone.set()

    backend.behaviour = behave
    with connected(proxy.base_url) as raw:
        raw.sendall(request(STREAM))
        raw.shutdown(socket.SHUT_WR)
        received = b""
        while EVENTS[0] not in received:
            received += raw.recv(4096)
    wait_until(gone.is_set)


def test_a_request_that_did_not_come_whole(proxy, backend):
    """The rest cannot come any more."""
    assert not half_closed(proxy.base_url, request(BODY, length=1000)).replace(INTERIM, b"")
    assert not half_closed(proxy.base_url, request()[:40])
    assert not half_closed(proxy.base_url, b"")
    assert not backend.asked


def test_after_an_answer_a_fin_closes(proxy):
    """A connection that is kept and not used."""
    with connected(proxy.base_url) as raw:
        raw.sendall(request())
        assert raw.recv(65536).startswith(b"HTTP/1.1 200 OK\r\n")
        raw.shutdown(socket.SHUT_WR)
        assert everything(raw) == b""


def test_http_1_0_has_no_interim_answers(proxy, backend):
    """So a FIN before the first byte means that the client left, as nginx says it; after it the answer goes on."""
    reached, gone = threading.Event(), threading.Event()

    async def behave(asked):
        reached.set()
        await asked.gone()
        gone.set()

    backend.behaviour = behave
    with connected(proxy.base_url) as raw:
        raw.sendall(request(version=b"1.0"))
        # A client that leaves earlier is noticed before the server is asked at all.
        wait_until(reached.is_set)
        raw.shutdown(socket.SHUT_WR)
        assert everything(raw) == b""
    wait_until(gone.is_set)

    async def stream(asked):
        await asked.send(SSE)
        for one in EVENTS:
            await asked.chunk(one)
            await asyncio.sleep(0.03)
        await asked.end()

    backend.behaviour = stream
    with connected(proxy.base_url) as raw:
        raw.sendall(request(STREAM, version=b"1.0"))
        received = raw.recv(65536)
        raw.shutdown(socket.SHUT_WR)
        received += everything(raw)
    assert received.replace(b":\n\n", b"").endswith(b"\r\n\r\n" + b"".join(EVENTS))


@pytest.mark.parametrize("body", [BODY, STREAM])
def test_while_the_request_waits_for_a_server(loop, lent, storage, body):
    """One client stays and is answered; the other leaves, and its place in the queue is given up."""
    dispatch = LoadingModel([lent])
    with proxy_over(loop, dispatch, storage) as proxy:
        with connected(proxy.base_url) as raw:
            raw.sendall(request(body))
        wait_until(lambda: dispatch.given_up == 1)
        with connected(proxy.base_url) as raw:
            raw.sendall(request(body))
            raw.shutdown(socket.SHUT_WR)
            assert raw.recv(len(INTERIM)) == INTERIM
            dispatch.loaded.set()
            assert b'{"ok": true}' in everything(raw)
    assert dispatch.given_up == 1

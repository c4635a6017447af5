"""The connections to backends: which are kept, renewed or closed, and which answers are refused."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Coroutine
from typing import Any, Self, TypeVar

import pytest

import autospec.proxy.upstream as upstream_module
from autospec.proxy.answer import Answer, BrokenError, NotHttpError
from autospec.proxy.upstream import Upstream, has_growing_pool
from tests.proxy.raw import exchange, post
from tests.proxy.stand_in import SSE
from tests.serving.scene import until

T = TypeVar("T")

CHAT = "/v1/chat/completions"
BODY = json.dumps({"model": "main", "messages": []}).encode()
PLAIN = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Server:
    """Answers each request with the next of its replies; an empty one closes the connection, and the last one does."""

    def __init__(self, *replies: bytes, delay_s: float = 0) -> None:
        self.replies = list(replies)
        self.delay_s = delay_s
        self.connections = 0
        self.requests: list[bytes] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.base_url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_error: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                self.requests.append(await reader.readuntil(b"\r\n\r\n"))
                await asyncio.sleep(self.delay_s)
                reply = self.replies.pop(0)
                writer.write(reply)
                await writer.drain()
                if not reply or not self.replies:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


async def whole(answer: Answer) -> bytes:
    """The body, and the connection let go of."""
    try:
        body = b""
        while part := await answer.read():
            body += part
        return body
    finally:
        answer.close()


class Asking:
    """Asks servers for nothing in particular."""

    def __init__(self) -> None:
        self._upstream = Upstream()

    async def __call__(self, server: Server, method: str = "GET", *, growing_pool: bool = False) -> Answer:
        """The answer, once its headers are there."""
        return await self._upstream.ask(server.base_url, method, "/x", [], b"", growing_pool=growing_pool)

    async def aclose(self) -> None:
        """End it."""
        self._upstream.close()


def run(scenario: Coroutine[Any, Any, T]) -> T:
    """Its result, in good time."""
    return asyncio.run(asyncio.wait_for(scenario, 20))


def ask(*replies: bytes, times: int = 1, method: str = "GET") -> tuple[list[bytes], Server]:
    """The bodies of as many requests, one after the other, and the server."""

    async def scenario() -> tuple[list[bytes], Server]:
        async with Server(*replies) as server:
            upstream = Upstream()
            try:
                bodies = [
                    await whole(await upstream.ask(server.base_url, method, "/x", [], b""))
                    for _ in range(times)
                ]
            finally:
                upstream.close()
            return bodies, server

    return run(scenario())


def test_a_connection_is_kept_for_the_next_request():
    """Whole answers, one connection."""
    bodies, server = ask(PLAIN, PLAIN, PLAIN, times=3)
    assert bodies == [b"ok"] * 3
    assert server.connections == 1


def test_what_is_called_after_sending_finds_the_request_with_the_server():
    """It is called before the answer; what it does delays nothing, because the bytes have left this process."""
    got: list[bytes] = []

    async def scenario(listening: socket.socket) -> bytes:
        def sent() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.settimeout(5)
                got.append(connection.recv(4096))
                connection.sendall(PLAIN)

        base_url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        return await whole(await Upstream().ask(base_url, "POST", "/x", [], BODY, sent=sent))

    with socket.create_server(("127.0.0.1", 0)) as listening:
        assert run(scenario(listening)) == b"ok"
    assert got[0].startswith(b"POST /x HTTP/1.1\r\n")
    assert got[0].endswith(BODY)


def test_a_kept_connection_that_the_server_closed_is_renewed():
    """The caller does not notice: the end of an idle connection says nothing about the server."""
    bodies, server = ask(PLAIN, b"", PLAIN, times=2)
    assert bodies == [b"ok"] * 2
    assert server.connections == 2


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        PLAIN + b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbad",  # more than was asked for
    ],
)
def test_a_connection_is_not_kept_where_it_must_not_be(reply):
    """The server says so, or cannot be trusted with the next answer."""

    async def scenario() -> tuple[Answer, Server]:
        async with Server(reply, PLAIN) as server, contextlib.aclosing(Asking()) as asking:
            first = await asking(server)
            assert await whole(first) == b"ok"
            assert await whole(await asking(server)) == b"ok"
            return first, server

    first, server = run(scenario())
    assert (first.status, first.reason) == (200, "OK")
    assert ("Content-Length", "2") in first.headers
    assert ("Content-Length", "3") not in first.headers
    assert server.connections == 2


def test_every_idle_connection_is_closed_in_its_time(monkeypatch: pytest.MonkeyPatch):
    """By one timer for all, which looks again while one is left: they come to rest one after the other."""
    monkeypatch.setattr(upstream_module, "_IDLE_S", 0.2)

    async def scenario() -> int:
        async with Server(*[PLAIN] * 4) as server:
            upstream = Upstream()
            held = [
                await upstream.ask(server.base_url, "GET", "/x", [], b"", growing_pool=True) for _ in range(3)
            ]
            for answer in held:
                assert await whole(answer) == b"ok"
                await asyncio.sleep(0.05)
            await until(lambda: not upstream._open)
            assert upstream._sweep is None
            upstream.close()
            return server.connections

    assert run(scenario()) == 3


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "PROPFIND"])
def test_an_empty_body_is_announced(method):
    """So that no server waits for one."""
    _, server = ask(PLAIN, method=method)
    assert b"\r\nContent-Length: 0\r\n" in server.requests[0]


def test_a_request_is_not_sent_again_after_a_part_of_an_answer():
    """Only a connection that says nothing at all can have been closed before the request came."""

    async def scenario() -> Server:
        async with (
            Server(PLAIN, b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\nX-Part") as server,
            contextlib.aclosing(Asking()) as asking,
        ):
            await whole(await asking(server))
            with pytest.raises(BrokenError):
                await asking(server)
            return server

    server = run(scenario())
    assert (len(server.requests), server.connections) == (2, 1)


def test_a_request_is_not_sent_again_after_it_has_been_at_work(monkeypatch):
    """A server that dies of it after a while would die of it again, unseen."""
    monkeypatch.setattr(upstream_module, "_STALE_S", 0.02)

    async def scenario() -> Server:
        async with Server(PLAIN, b"", delay_s=0.1) as server, contextlib.aclosing(Asking()) as asking:
            await whole(await asking(server))
            with pytest.raises(BrokenError):
                await asking(server)
            return server

    assert len(run(scenario()).requests) == 2


def test_no_connection_is_kept_while_a_request_waits():
    """An older llama-server gives each one a thread: what is idle could keep the waiting request out."""

    async def scenario() -> int:
        async with Server(*[PLAIN] * 5) as server, contextlib.aclosing(Asking()) as asking:
            first = await asking(server)
            server.delay_s = 0.1
            waiting = asyncio.create_task(asking(server))
            await until(lambda: len(server.requests) == 2)
            await whole(first)  # closed
            await whole(await waiting)  # kept
            await asyncio.gather(asking(server), asking(server))
            return server.connections

    assert run(scenario()) == 3


def test_a_few_connections_are_kept():
    """Two of four: clients that bypass the proxy need a thread of the server too."""

    async def scenario() -> int:
        async with Server(*[PLAIN] * 9) as server, contextlib.aclosing(Asking()) as asking:
            for _ in range(2):
                answers = [await asking(server) for _ in range(4)]
                for answer in answers:
                    await whole(answer)
            return server.connections

    assert run(scenario()) == 4 + 2


def test_every_connection_to_a_growing_pool_is_kept():
    """Also while a request waits: the server starts a thread for each one that needs it."""

    async def scenario() -> int:
        async with Server(*[PLAIN] * 16) as server, contextlib.aclosing(Asking()) as asking:
            for _ in range(3):
                tasks = [asyncio.create_task(asking(server, growing_pool=True)) for _ in range(4)]
                first, *later = [await task for task in tasks]
                await whole(first)
                server.delay_s = 0.1
                waiting = asyncio.create_task(asking(server, growing_pool=True))
                for answer in later:
                    await whole(answer)
                await whole(await waiting)
                server.delay_s = 0
            return server.connections

    # The fifth request of each round takes the connection of the first.
    assert run(scenario()) == 4


@pytest.mark.parametrize(
    ("backend", "build", "grows"),
    [
        ("llama-server", "b11434", True),
        ("llama-server", "b9093", True),
        ("llama-server", "b9092", False),
        ("llama-server", "b4372", False),  # ik_llama.cpp
        ("llama-server", "0f3c9a12be77", False),  # built from source without a number
        ("llama-server", "", False),
        ("mlx", "0.32.2", False),
        ("attached", "b11434", False),
    ],
)
def test_which_builds_have_a_growing_pool(backend, build, grows):
    """Only llama-server's, from a number on that is known to have one."""
    assert has_growing_pool(backend, build) is grows


@pytest.mark.parametrize(
    "base_url", ["http://" + "a" * 70 + ".de", "http://..:80", "http://127.0.0.1:99999", "http://127.0.0.1:9"]
)
def test_a_server_that_cannot_be_reached_is_broken(base_url):
    """Whatever Python calls it: no fault of the request's."""

    async def scenario() -> None:
        upstream = Upstream()
        with pytest.raises(BrokenError):
            await upstream.ask(base_url, "GET", "/", [], b"")

    asyncio.run(scenario())


@pytest.mark.parametrize("server_then", ["neither reads nor ends", "sends its end", "reads"])
@pytest.mark.parametrize("kind", ["asyncio", "uvloop"])
def test_an_early_answer_ends_an_upload(kind, server_then):
    """The answer arrives whatever the server does then, the rest of the body is not sent, and nobody waits for ever."""
    body = b"x" * (32 << 20)
    heard_bytes = 0

    async def scenario() -> tuple[int, bytes]:
        over, gone = asyncio.Event(), asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal heard_bytes
            await reader.readuntil(b"\r\n\r\n")
            if server_then != "reads":
                reader._transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
            if server_then == "sends its end":
                writer.write_eof()
            with contextlib.suppress(ConnectionError):
                while server_then == "reads" and (part := await reader.read(65536)):
                    heard_bytes += len(part)
            gone.set()
            await over.wait()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        upstream = Upstream()
        try:
            base_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            answer = await upstream.ask(base_url, "POST", "/", [], body)
            told = answer.status, await whole(answer)
            await gone.wait()  # a server that reads sees the connection end
            return told
        finally:
            over.set()
            upstream.close()
            server.close()

    with asyncio.Runner(
        loop_factory=pytest.importorskip(kind, reason=f"{kind} is not installed").new_event_loop
    ) as runner:
        assert runner.run(asyncio.wait_for(scenario(), 10)) == (413, b"no")
    assert heard_bytes < len(body) // 2


def test_interim_answers_are_not_the_answer():
    """RFC 9110 §15.2: any number of 1xx may come before."""
    bodies, _ = ask(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\nX: y\r\n\r\n" + PLAIN)
    assert bodies == [b"ok"]


def test_an_answer_to_head_ends_with_its_headers():
    """Whatever length it names."""
    bodies, _ = ask(b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n", method="HEAD")
    assert bodies == [b""]


@pytest.mark.parametrize(
    "reply",
    [
        b"\x00\x01 hello\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\nok",
    ],
)
def test_what_is_no_http(reply):
    """Said as what it is: another server would not be asked."""
    with pytest.raises(NotHttpError):
        ask(reply)


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n",
    ],
)
def test_what_breaks_off(reply):
    """Before the headers or in the middle of the body."""
    with pytest.raises(BrokenError):
        ask(reply)


@pytest.mark.parametrize("text", ["a\r\nb: c", "a\nb", "a\rb", "a\0b"])
def test_no_line_is_ever_added(text):
    """Whatever let such a value through: it does not go out."""

    async def scenario() -> None:
        upstream = Upstream()
        with pytest.raises(ValueError, match="line"):
            await upstream.ask("http://127.0.0.1:9", "GET", "/x", [("X", text)], b"")
        with pytest.raises(ValueError, match="line"):
            await upstream.ask("http://127.0.0.1:9", "GET", f"/{text}", [], b"")

    asyncio.run(scenario())


def test_events_that_come_together_leave_together(proxy, backend):
    """What one packet brings is one chunk for the client; nothing is added to it, and the end comes with the last."""

    async def behave(asked):
        await asked.send(SSE)
        for _ in range(3):
            events = [b'data: {"n":%d}\n\n' % n for n in range(3)]
            await asked.send(b"".join(b"%x\r\n%s\r\n" % (len(event), event) for event in events))
            await asyncio.sleep(0.05)
        await asked.send(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")

    backend.behaviour = behave
    answer = exchange(proxy.base_url, post(CHAT, BODY))
    body = answer.partition(b"\r\n\r\n")[2]
    assert body.count(b"data: ") == 10
    assert body.count(b"\r\n") == 2 * 4 + 2
    assert body.endswith(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")

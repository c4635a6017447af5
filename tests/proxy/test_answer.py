"""A backend's answer in every form: bytes after the answer do not change it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref
from collections.abc import Awaitable, Callable

import pytest

from autospec.proxy.answer import Answer, BrokenError, NotHttpError

PLAIN = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n"
EVIL = b"HTTP/1.1 408 Timeout\r\nContent-Length: 3\r\nX-Evil: 1\r\n\r\nbad"


class Connection:
    """Remembers what becomes of it."""

    end = ""

    def pause(self) -> None:
        """Nothing to hold back."""

    def resume(self) -> None:
        """Nothing held back."""

    def give_back(self) -> None:
        """Kept."""
        self.end = "kept"

    def drop(self) -> None:
        """Closed."""
        self.end = "closed"


def with_answer(
    work: Callable[[Answer], Awaitable[None]], *, method: str = "GET", with_body: bool = False
) -> tuple[Answer, str]:
    """An answer after some work on it, and what became of its connection."""
    connection = Connection()

    async def scenario() -> Answer:
        answer = Answer(connection, method, asyncio.get_running_loop(), with_body=with_body)
        await work(answer)
        answer.close()
        return answer

    return asyncio.run(asyncio.wait_for(scenario(), 20)), connection.end


def fed(*parts: bytes, method: str = "GET", with_body: bool = False) -> tuple[Answer, bytes, str]:
    """An answer that got these parts, its body, and what became of its connection."""
    body = b""

    async def work(answer: Answer) -> None:
        nonlocal body
        for part in parts:
            answer.feed(part)
        await answer.begun()
        while piece := await answer.read():
            body += piece

    answer, end = with_answer(work, method=method, with_body=with_body)
    return answer, body, end


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize(
    "extra", [EVIL, b"HTTP/1.1 100 Continue\r\nX-Evil: 1\r\n\r\n", b"HTTP/1.1 50", b"rubbish"]
)
def test_what_comes_after_the_answer_does_not_change_it(extra, together):
    """Neither in the same packet nor later; and the connection is trusted no more."""
    answer, body, end = fed(PLAIN + extra) if together else fed(PLAIN, extra)
    assert (answer.status, answer.reason, body) == (200, "OK", b"ok")
    assert answer.headers == [("Content-Length", "2")]
    assert end == "closed"


@pytest.mark.parametrize(
    ("comment", "counts"),
    [
        (b":\n\n", False),
        (b": ping - 2026-11-30 17:00:00.000001+00:00\r\n\r\n", False),
        (b": keepalive 512/2048\n\n", True),
        (b'data: {"content": ": ping - "}\n\n', True),
    ],
)
def test_what_counts_as_generated(comment, counts):
    """Pings of llama-server and of llama-cpp-python's sse-starlette come while the model hangs; MLX counts its prompt."""
    answer, body, _ = fed(CHUNKED + b"%x\r\n%b\r\n0\r\n\r\n" % (len(comment), comment))
    assert body == b"ok" + comment
    assert answer.told_bytes == len(b"ok") + counts * len(comment)


def test_trailers_are_no_headers():
    """RFC 9110 §6.5.1: they are merged only where a field is known to allow it."""
    answer, body, end = fed(CHUNKED + b"0\r\nSet-Cookie: x=y\r\n\r\n")
    assert (body, answer.headers, end) == (b"ok", [("Transfer-Encoding", "chunked")], "kept")


@pytest.mark.parametrize(
    ("method", "with_body", "status", "end"),
    [
        ("POST", True, b"200 OK", "kept"),
        ("POST", True, b"401 No", "closed"),
        ("POST", True, b"503 Loading", "closed"),
        ("POST", False, b"400 Bad", "kept"),
        ("GET", False, b"404 None", "kept"),
        ("GET", True, b"404 None", "closed"),
        ("DELETE", False, b"200 OK", "closed"),
    ],
)
def test_a_connection_is_kept_only_if_the_request_was_read(method, with_body, status, end):
    """A server that refuses early takes the unread body for the next request: somebody else's answer."""
    reply = b"HTTP/1.1 %s\r\nContent-Length: 2\r\n\r\nok" % status
    assert fed(reply, method=method, with_body=with_body)[2] == end


def test_a_change_of_protocol_is_no_answer():
    """Nobody asked for one (a 101)."""
    with pytest.raises(NotHttpError, match="protocol"):
        fed(b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\nxyz")


def test_headers_without_end_are_refused():
    """Counted as they come, not when they are whole."""
    with pytest.raises(NotHttpError, match="too long"):
        fed(b"HTTP/1.1 200 OK\r\nX: ", *[b"y" * 1000] * 100)


def test_several_transfer_encodings_are_refused():
    """Two readers of them may find two ends of the body."""
    lines = b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n"
    with pytest.raises(NotHttpError, match="Transfer-Encoding"):
        fed(b"HTTP/1.1 200 OK\r\n" + lines + b"\r\n2\r\nok\r\n0\r\n\r\n")


@pytest.mark.parametrize("coding", ["utf-8", "latin-1", "shift-jis"])
def test_header_text_is_read_in_any_coding(coding):
    """And the words behind the code too: what is not UTF-8 is kept byte for byte."""
    word = "名前" if coding == "shift-jis" else "Très"
    answer, _, _ = fed(f"HTTP/1.1 200 {word}\r\nX: {word}\r\nContent-Length: 0\r\n\r\n".encode(coding))
    assert answer.is_utf8 == (coding == "utf-8")
    raw = word.encode(coding)
    assert [text.encode(errors="surrogateescape") for text in (answer.reason, answer.headers[0][1])] == [
        raw,
        raw,
    ]


def test_an_interim_answers_bytes_say_nothing_of_the_answer():
    """The headers of a 103 are dropped."""
    answer, _, _ = fed(b"HTTP/1.1 103 \xe9\r\nX: \xe9\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    assert answer.is_utf8
    assert answer.headers == [("Content-Length", "0")]


def test_a_sink_that_fails_is_no_fault_of_the_server():
    """It ends the pumping of this answer, and nothing escapes to the connection's event."""

    def sink(_part: bytes) -> bool:
        raise RuntimeError("closed")

    async def work(answer: Answer) -> None:
        answer.feed(CHUNKED)
        await answer.read()
        pumping = asyncio.ensure_future(answer.pump(sink))
        await asyncio.sleep(0)
        answer.feed(b"2\r\nok\r\n")
        with pytest.raises(ConnectionResetError):
            await pumping

    assert with_answer(work)[1] == "closed"


class Marker:
    """Stands for the body of a request."""


@pytest.mark.parametrize("begins", [True, False])
def test_an_answer_that_broke_holds_nothing_of_its_request(begins):
    """A raised error holds the frames that it passed, and the answer holds its error: 20 MB stayed until a garbage collection."""
    held: list[weakref.ref[Marker]] = []

    async def ask(answer: Answer) -> None:
        body = Marker()
        held.append(weakref.ref(body))
        await (answer.read() if begins else answer.begun())

    async def work(answer: Answer) -> None:
        if begins:
            answer.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")
        answer.lost(None)
        with contextlib.suppress(BrokenError):
            await ask(answer)
        assert [reference() for reference in held] == [None]

    gc.disable()
    try:
        with_answer(work)
    finally:
        gc.enable()
    assert held

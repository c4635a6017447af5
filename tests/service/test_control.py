"""The control socket: its path, its messages, and the proxy's end against a daemon's."""

from __future__ import annotations

import asyncio
import errno
import selectors
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import ClassVar

import pytest

from autospec.errors import BusyError, NothingKnownError
from autospec.service.control import (
    LINE_LIMIT_BYTES,
    Listening,
    Peer,
    ask_status,
    control_path,
    daemon_listens,
    decode,
    encode,
)
from autospec.service.proxy_link import ProxyLink


class Ear:
    """A daemon that only listens, on a thread, and answers the status question."""

    status: ClassVar[dict[str, object]] = {"schema": 1, "state": "resting"}

    def __init__(self, state_dir: Path) -> None:
        self.heard: list[dict[str, object]] = []
        self._selector = selectors.DefaultSelector()
        self.listening = Listening(state_dir, self._selector, self._hear)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._turn)
        self._thread.start()

    def _hear(self, peer: Peer, message: dict[str, object]) -> None:
        if message.get("event") == "hello":
            peer.role = "proxy"
            peer.tell({"event": "tuning", "what": "big, qa", "why": "it is used"})
        if message.get("ask") == "status":
            peer.tell(self.status)
        self.heard.append(message)
        if message.get("event") == "busy":
            self.listening.tell_proxies({"event": "yielded"})

    def _turn(self) -> None:
        while not self._stop.is_set():
            for key, _ in self._selector.select(0.02):
                key.data()

    def close(self) -> None:
        """End it."""
        self._stop.set()
        self._thread.join()
        self.listening.close()
        self._selector.close()

    def events(self) -> list[object]:
        """What was told, without the questions."""
        return [m["event"] for m in self.heard if "event" in m]


@contextmanager
def ear(state_dir: Path, kind: type[Ear] = Ear) -> Iterator[Ear]:
    """A listening daemon."""
    listens = kind(state_dir)
    try:
        yield listens
    finally:
        listens.close()


def test_a_long_state_folder_gets_a_short_socket(tmp_path: Path):
    """A socket's path may hold 103 bytes; another folder gets another one."""
    long = tmp_path / ("x" * 100)
    assert len(str(control_path(long))) < 104
    assert control_path(long) != control_path(tmp_path / ("y" * 100))
    assert control_path(Path("/s")) == Path("/s/daemon.sock")


@pytest.mark.parametrize("line", [b"", b"{", b"[1]", b"\xff", b'"text"'])
def test_nonsense_is_an_empty_message(line: bytes):
    """And what was encoded comes back."""
    assert decode(line) == {}
    assert decode(encode({"event": "busy"})) == {"event": "busy"}


def test_without_a_daemon_the_question_says_how_to_start_one(tmp_path: Path):
    """Exit code 3, and the command."""
    with pytest.raises(NothingKnownError, match="autospec daemon"):
        ask_status(tmp_path)


def test_only_the_owner_may_speak(tmp_path: Path):
    """Mode 0600, and gone afterwards."""
    with ear(tmp_path):
        assert control_path(tmp_path).stat().st_mode & 0o777 == 0o600
        assert ask_status(tmp_path)["state"] == "resting"
    assert not control_path(tmp_path).exists()


def test_a_dead_daemons_socket_is_taken_over_and_a_living_ones_is_not(tmp_path: Path):
    """A killed daemon leaves its file behind."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        control_path(tmp_path).parent.mkdir(parents=True, exist_ok=True)
        dead.bind(str(control_path(tmp_path)))
    with (
        ear(tmp_path),
        selectors.DefaultSelector() as selector,
        pytest.raises(BusyError, match="already running"),
    ):
        Listening(tmp_path, selector, lambda *_: None)


def test_a_daemon_that_hangs_keeps_its_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It accepts nobody, and its queue is full."""
    monkeypatch.setattr("autospec.service.control._PROBE_TIMEOUT_S", 0.05)
    with ExitStack() as stack:
        hangs, *clients = (stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(3))
        hangs.bind(str(control_path(tmp_path)))
        hangs.listen(0)
        for client in clients:
            client.setblocking(False)
            with suppress(BlockingIOError):
                client.connect(str(control_path(tmp_path)))
        assert daemon_listens(tmp_path)
        selector = stack.enter_context(selectors.DefaultSelector())
        with pytest.raises(BusyError, match="already running"):
            Listening(tmp_path, selector, lambda *_: None)
    assert not daemon_listens(tmp_path)


def test_the_daemon_hears_when_the_first_request_begins_and_the_last_ends(tmp_path: Path):
    """Two at once are busy once and idle once; leaving is heard as well."""

    async def serve(listens: Ear) -> None:
        link = ProxyLink(tmp_path, reconnect_s=0.05)
        await link.start()
        async with asyncio.timeout(10):
            while link.daemon.get("event") != "tuning":  # noqa: ASYNC110 - polls what the daemon said
                await asyncio.sleep(0.01)
        with link.serving():
            with link.serving():
                pass
            assert await link.machine_is_free(10.0)
        await link.close()
        async with asyncio.timeout(10):
            while listens.events()[-1] != "left":  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.01)

    with ear(tmp_path) as listens:
        asyncio.run(serve(listens))
        assert listens.events() == ["hello", "busy", "idle", "left"]


def test_a_proxy_without_a_daemon_is_not_held_up(tmp_path: Path):
    """Nobody listens: requests begin and end, and the machine counts as free."""

    async def serve() -> bool:
        link = ProxyLink(tmp_path)
        await link.start()
        with link.serving():
            free = await link.machine_is_free(5.0)
        await link.close()
        return free

    assert asyncio.run(serve())


def test_a_daemon_that_comes_later_learns_of_a_request_under_way(tmp_path: Path):
    """It was restarted while somebody is being served."""

    async def serve() -> list[object]:
        link = ProxyLink(tmp_path, reconnect_s=0.05)
        await link.start()
        link.begin()
        with ear(tmp_path) as listens:
            async with asyncio.timeout(10):
                while "busy" not in listens.events():  # noqa: ASYNC110 - as above
                    await asyncio.sleep(0.01)
            await link.close()
            return listens.events()[:2]

    assert asyncio.run(serve()) == ["hello", "busy"]


STATUS = {"schema": 1, "state": "resting", "notes": ["a model of a long name"] * 20_000}


class Narrow(Ear):
    """A daemon whose sockets hold little, as on macOS."""

    status = STATUS

    def _hear(self, peer: Peer, message: dict[str, object]) -> None:
        peer.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        super()._hear(peer, message)


@contextmanager
def told(
    state_dir: Path, proxies: int = 1
) -> Iterator[tuple[Listening, list[socket.socket], Callable[[], None]]]:
    """A daemon without a thread, proxies whose sockets hold little, and one turn of the daemon's selector."""
    with selectors.DefaultSelector() as selector, ExitStack() as stack:

        def hear(peer: Peer, message: dict[str, object]) -> None:
            if message["event"] == "hello":
                peer.role = "proxy"
                peer.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)

        def turn() -> None:
            for key, _ in selector.select(0):
                key.data()

        listening = Listening(state_dir, selector, hear)
        stack.callback(listening.close)
        clients = []
        for _ in range(proxies):
            client = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            client.connect(str(control_path(state_dir)))
            client.setblocking(False)
            client.sendall(encode({"event": "hello", "role": "proxy"}))
            clients.append(client)
            turn()
            turn()
        yield listening, clients, turn


def test_a_status_longer_than_the_socket_holds_arrives_whole(tmp_path: Path):
    """Issue 17: 8 KiB on macOS, 208 KiB on Linux; the rest was not sent, and the asker said that no daemon ran."""
    with ear(tmp_path, Narrow):
        assert ask_status(tmp_path) == STATUS


def test_messages_to_a_slow_proxy_arrive_in_their_order(tmp_path: Path):
    """Those that wait for it to read, and those that come meanwhile; then nothing wakes the daemon."""
    with told(tmp_path) as (listening, (client,), turn):
        sent = [{"event": "resting", "why": f"{number}" * 3000} for number in range(10)]
        for message in sent:
            listening.tell_proxies(message)
        got = b""
        while got.count(b"\n") < len(sent):
            got += client.recv(1024)
            turn()
        assert [decode(line) for line in got.splitlines()] == sent
        assert not listening._selector.select(0)


def test_a_proxy_that_never_reads_is_dropped_and_the_others_are_not(tmp_path: Path):
    """What is kept for it has a bound."""
    with told(tmp_path, proxies=2) as (listening, (deaf, reads), turn):
        message = {"event": "resting", "why": "x" * 60_000}
        for _ in range(2 * LINE_LIMIT_BYTES // 60_000):
            listening.tell_proxies(message)
            with suppress(BlockingIOError):
                while reads.recv(65536):
                    turn()
        assert len(listening.proxies) == 1
        deaf.setblocking(True)
        while deaf.recv(65536):
            pass


def test_a_daemon_that_hangs_is_not_said_to_be_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It listens; whoever starts another one is refused."""
    monkeypatch.setattr("autospec.service.control._ANSWER_TIMEOUT_S", 0.05)
    with selectors.DefaultSelector() as selector:
        listening = Listening(tmp_path, selector, lambda *_: None)
        with pytest.raises(NothingKnownError, match="did not answer"):
            ask_status(tmp_path)
        listening.close()


def test_a_socket_that_was_removed_comes_back(tmp_path: Path):
    """By hand, or from a temporary folder by a program that cleans up: a second daemon started, and both measured."""
    path, heard = control_path(tmp_path), []
    with selectors.DefaultSelector() as selector, socket.socket(socket.AF_UNIX) as earlier:
        listening = Listening(tmp_path, selector, lambda *told: heard.append(told[1]))

        def turn() -> None:
            listening.resume()
            for key, _ in selector.select(0):
                key.data()

        earlier.connect(str(path))
        turn()
        for _ in range(2):
            path.unlink()
            turn()
            with pytest.raises(BusyError, match="already running"):
                Listening(tmp_path, selector, lambda *_: None)
        turn()
        with socket.socket(socket.AF_UNIX) as later:
            later.connect(str(path))
            turn()
            for number, client in enumerate((earlier, later)):
                client.sendall(encode({"event": number}))
            turn()
        assert [message["event"] for message in heard] == [0, 1]
        path.unlink()
        tmp_path.rename(tmp_path.with_name("away"))
        tmp_path.write_text("no folder")
        turn()
        tmp_path.unlink()
        tmp_path.with_name("away").rename(tmp_path)
        turn()
        assert path.exists()
        listening.close()
        assert not path.exists()


def test_who_cannot_be_accepted_waits_and_does_not_keep_the_daemon_awake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Issue 17: without a free file descriptor the selector returned at once, again and again, until one was free."""

    def accept(_: socket.socket) -> tuple[socket.socket, str]:
        raise OSError(errno.EMFILE, "Too many open files")

    now_s, heard = 100.0, []
    with selectors.DefaultSelector() as selector, socket.socket(socket.AF_UNIX) as client:
        listening = Listening(tmp_path, selector, lambda *told: heard.append(told[1]), lambda: now_s)
        assert listening.resume() is None
        client.connect(str(control_path(tmp_path)))
        client.sendall(encode({"event": "busy"}))
        with monkeypatch.context() as context:
            context.setattr(socket.socket, "accept", accept)
            ((key, _),) = selector.select(0)
            key.data()
        assert not selector.select(0)
        now_s += 0.75
        assert listening.resume() == 0.25
        now_s += 0.25
        assert listening.resume() is None
        for _ in range(2):
            ((key, _),) = selector.select(0)
            key.data()
        assert heard == [{"event": "busy"}]
        listening.close()

"""The control socket: its path, its messages, and the proxy's end against a daemon's."""

from __future__ import annotations

import asyncio
import selectors
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from autospec.errors import BusyError, NothingKnownError
from autospec.service.control import Listening, Peer, ask_status, control_path, decode, encode
from autospec.service.proxy_link import ProxyLink


class Ear:
    """A daemon that only listens, on a thread, and answers the status question."""

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
            peer.tell({"schema": 1, "state": "resting"})
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
def ear(state_dir: Path) -> Iterator[Ear]:
    """A listening daemon."""
    listens = Ear(state_dir)
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
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        control_path(tmp_path).parent.mkdir(parents=True, exist_ok=True)
        dead.bind(str(control_path(tmp_path)))
    with (
        ear(tmp_path),
        selectors.DefaultSelector() as selector,
        pytest.raises(BusyError, match="already running"),
    ):
        Listening(tmp_path, selector, lambda *_: None)


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

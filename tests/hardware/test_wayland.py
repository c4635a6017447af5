"""`autospec.hardware.wayland` on what KWin 5.27.5 sent, recorded on its virtual screen with a pointer that a program moved."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from autospec.hardware.wayland import IdleNotice

# Some of the interfaces that it offers.
COMPOSITOR = "0200000000002400010000000e000000776c5f636f6d706f7369746f7200000005000000"
SEAT = "0200000000001c000c00000008000000776c5f736561740008000000"
NOTIFIER = "0200000000002c0015000000150000006578745f69646c655f6e6f7469666965725f76310000000001000000"
DONE = "0300000000000c0000000000" + "0100000001000c0003000000"
CAPABILITIES = "0400000000000c0002000000"
IDLED, RESUMED = "0600000000000800", "0600000001000800"
ERROR = "0100000000001c000600000000000000080000006e6f20736561740000"
# What it was asked: for its interfaces, then for the notice.
FIRST = "0100000001000c0002000000" + "0100000000000c0003000000"
SECOND = (
    "020000000000200" + "00c00000008000000776c5f73656174000100000004000000"
    "0200000000003000150000001500000" + "06578745f69646c655f6e6f7469666965725f7631000000000100000005000000"
    "05000000010014000600000088130000" + "04000000"
)


class Compositor:
    """Listens in a folder and sends what a test says."""

    def __init__(self, folder: Path, *offers: str) -> None:
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind("wayland-0")  # the folder is the current one: a socket's path must be short
        self._listening.listen()
        self._offers = "".join((*offers, DONE))
        self.asked: list[str] = []
        self.client: socket.socket | None = None
        self.path = folder / "wayland-0"
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        try:
            self.client, _ = self._listening.accept()
        except OSError:  # closed before a client came
            return
        self.asked.append(self.client.recv(4096).hex())
        # In two parts, as a socket may deliver them.
        told = bytes.fromhex(self._offers)
        self.client.sendall(told[:37])
        self.client.sendall(told[37:])

    def send(self, *events: str) -> None:
        """Send these; the client has them when this returns."""
        self._thread.join(10)
        assert self.client is not None
        self.client.sendall(bytes.fromhex("".join(events)))

    def close(self) -> None:
        """It ends, as at a logout."""
        with contextlib.suppress(OSError):  # nobody connected
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join(10)
        if self.client is not None:
            self.client.close()
        self.path.unlink(missing_ok=True)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder for sockets."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def notice(folder: Path) -> Iterator[IdleNotice]:
    """What is tested."""
    made = IdleNotice(folder)
    yield made
    made.close()


@pytest.fixture
def compositor(folder: Path) -> Iterator[Compositor]:
    """One that offers the notice."""
    made = Compositor(folder, COMPOSITOR, SEAT, NOTIFIER)
    yield made
    made.close()


def test_the_messages_are_those_of_the_protocol(notice: IdleNotice, compositor: Compositor):
    """What libwayland's clients send for the same requests."""
    assert notice.used(0.0) is None
    assert compositor.client is not None
    compositor.client.settimeout(10)
    assert compositor.asked == [FIRST]
    assert compositor.client.recv(4096).hex() == SECOND


def test_who_uses_the_machine_is_noticed(notice: IdleNotice, compositor: Compositor):
    """At each look, also if it is idle again by then."""
    assert notice.used(0.0) is None
    compositor.send(CAPABILITIES)
    assert notice.used(1.0) is None  # it is told after five seconds at the earliest
    assert notice.used(7.0) is True  # nobody has been idle for so long
    compositor.send(IDLED)
    assert notice.used(8.0) is True  # somebody was there since the last look
    assert notice.used(68.0) is False
    compositor.send(RESUMED[:6])
    assert notice.used(69.0) is False
    compositor.send(RESUMED[6:])
    assert notice.used(70.0) is True
    assert notice.used(75.0) is True
    compositor.send(IDLED, RESUMED, IDLED)
    assert notice.used(100.0) is True
    assert notice.used(130.0) is False


@pytest.mark.parametrize("how", ["logout", "error"])
def test_the_end_of_the_desktop_is_a_use_and_the_next_one_is_found(folder, notice, compositor, how):
    """Somebody logged out; the next desktop is another compositor."""
    notice.used(0.0)
    compositor.send(IDLED)
    assert notice.used(10.0) is True
    assert notice.used(70.0) is False
    if how == "error":
        compositor.send(ERROR)
        assert notice.used(71.0) is True
    compositor.close()
    if how == "logout":
        assert notice.used(71.0) is True
    assert notice.used(72.0) is None
    again = Compositor(folder, SEAT, NOTIFIER)
    assert notice.used(100.0) is None  # asked a minute later only
    assert notice.used(132.0) is None
    again.send(IDLED)
    assert notice.used(140.0) is True
    again.close()


@pytest.mark.parametrize("offers", [(COMPOSITOR, SEAT), (COMPOSITOR, NOTIFIER), ()])
def test_a_compositor_without_the_notice_tells_nothing(folder: Path, notice: IdleNotice, offers):
    """GNOME's; nothing is asked of it."""
    compositor = Compositor(folder, *offers)
    assert [notice.used(at_s) for at_s in (0.0, 30.0)] == [None, None]
    compositor.close()


def test_without_a_desktop_nothing_is_told(folder: Path):
    """A server; a lock file and a dead socket are none."""
    (folder / "wayland-0.lock").touch()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind("wayland-1")
    assert IdleNotice(folder).used(0.0) is None
    assert IdleNotice(folder / "missing").used(0.0) is None

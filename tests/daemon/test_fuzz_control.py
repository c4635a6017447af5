"""Whatever comes over the control socket: the daemon goes on, and answers the next one who asks."""

from __future__ import annotations

import json
import selectors
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from autospec.daemon.finder_process import Outlook
from autospec.service.control import Listening, Notifier, control_path, decode, encode
from tests.daemon.test_loop import Watched

plain = st.sampled_from(
    (None, True, -1, 10**400, 1.5, float("nan"), "", "x", "\ud800", "proxy", "busy", "status")
)
value = st.one_of(plain, st.lists(plain, max_size=2), st.dictionaries(st.just("event"), plain))
message = st.one_of(
    st.dictionaries(st.sampled_from(("event", "role", "pid", "ask", "model")), value),
    st.fixed_dictionaries({"event": st.just("hello"), "role": st.just("proxy"), "pid": value}),
    st.fixed_dictionaries({"ask": st.just("tune"), "model": value}),
    st.fixed_dictionaries({"event": st.sampled_from(("busy", "idle", "left"))}),
    st.just({"ask": "status"}),
)
line = st.one_of(
    message.map(lambda told: json.dumps(told).encode()),
    value.map(lambda told: json.dumps(told).encode()),
    st.binary(max_size=20),
)
HELLO = b'{"event":"hello","role":"proxy","pid":%s}'


class Socket:
    """A daemon's control socket without a thread."""

    def __init__(self, home: Path, stack: ExitStack) -> None:
        watched = Watched(home)
        self.daemon = watched.daemon
        self._selector = stack.enter_context(selectors.DefaultSelector())
        # A datagram to a supervisor that is not there: what it would be told must at least be bytes.
        self.daemon.notifier = Notifier(str(home / "supervisor"))
        self.daemon.outlook = Outlook(
            self.daemon.memory, watched.clock, None, self._selector, self.daemon._event
        )
        self._state_dir = self.daemon.settings.state_dir
        self.listening = Listening(self._state_dir, self._selector, self.daemon._hear)
        self.daemon._listening = self.listening
        stack.callback(self.listening.close)

    def say(self, *lines: bytes) -> bytes:
        """Connect, send this, and leave; what came back."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.connect(str(control_path(self._state_dir)))
            with suppress(OSError):
                client.sendall(b"".join(line + b"\n" for line in lines))
            self._turn()
            client.setblocking(False)
            got = b""
            with suppress(OSError):
                while part := client.recv(65536):
                    got += part
                    self._turn()
        self._turn()
        return got

    def _turn(self) -> None:
        while ready := self._selector.select(0):
            for key, _ in ready:
                key.data()


@pytest.fixture
def control(tmp_path: Path) -> Iterator[Socket]:
    """See `Socket`."""
    with ExitStack() as stack:
        yield Socket(tmp_path, stack)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(line, max_size=5))
@example([HELLO % b"null"])
@example([HELLO % b'"x"'])
@example([HELLO % b"[]", b'{"ask":"status"}'])
@example([b"[" * 100_000])
@example([b'{"ask":"tune","model":"\\ud800"}'])
def test_any_message(control: Socket, lines: list[bytes]):
    """No message is an error, the next one gets the status, and who has left counts no more."""
    control.say(*lines)
    status = decode(control.say(encode({"ask": "status"}).rstrip()))
    assert status["state"] == "tuning"
    assert not [event for event in status["events"] if "failed" in event["what"]]
    assert control.daemon.proxies == []


@pytest.mark.parametrize("pid", [b"null", b'"x"', b"[]"])
def test_a_proxy_need_not_tell_who_it_is(control: Socket, pid: bytes):
    """Issue 17: another version's, whose process id is none."""
    assert decode(control.say(HELLO % pid))["event"] == "tuning"


def test_a_message_that_fails_costs_its_own_connection(control: Socket, monkeypatch: pytest.MonkeyPatch):
    """Issue 17: it ended the daemon, and the proxy with it."""

    def fail(_: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(control.daemon.outlook, "ask_for", fail)
    assert control.say(b'{"ask":"tune","model":"m"}', b'{"ask":"status"}') == b""
    status = decode(control.say(b'{"ask":"status"}'))
    assert status["events"][-1]["what"] == "A message on the control socket failed: RuntimeError: a bug."

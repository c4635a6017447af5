"""sd_notify over real datagram sockets."""

from __future__ import annotations

import os
import socket
import sys

import pytest

from autospec.service.control import Notifier, notifier_from


@pytest.fixture(params=["path", "abstract"])
def supervisor(request, tmp_path):
    """A bound socket and what NOTIFY_SOCKET would be."""
    if request.param == "abstract" and sys.platform != "linux":
        pytest.skip("abstract sockets are Linux's")
    name = (
        str(tmp_path / "notify") if request.param == "path" else f"@autospec-test-{os.getpid()}-{id(request)}"
    )
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(name.replace("@", "\0", 1) if name.startswith("@") else name)
        listening.settimeout(5)
        yield listening, name


def test_what_is_said_arrives(supervisor):
    """One datagram each, in sd_notify(3)'s words."""
    listening, name = supervisor
    notifier = notifier_from({"NOTIFY_SOCKET": name})
    for say in (notifier.ready, notifier.alive, lambda: notifier.doing("tuning\nqwen3"), notifier.stopping):
        say()
    said = [listening.recv(1024) for _ in range(4)]
    assert said == [b"READY=1", b"WATCHDOG=1", b"STATUS=tuning qwen3", b"STOPPING=1"]


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1234"}])
def test_without_a_supervisor_nothing_is_said(environ):
    """Under launchd, in a terminal, or in a virtual machine's host protocol that is not ours."""
    assert notifier_from(environ) == Notifier()
    notifier_from(environ).ready()


def test_a_supervisor_that_went_away_does_no_harm(tmp_path):
    """The daemon is not ended by a socket that is gone."""
    notifier_from({"NOTIFY_SOCKET": str(tmp_path / "gone")}).alive()


def test_a_supervisor_that_does_not_read_does_not_hold_the_daemon_up(supervisor):
    """A full queue drops the message; systemd has the next one soon."""
    _, name = supervisor
    notifier = notifier_from({"NOTIFY_SOCKET": name})
    for _ in range(5000):
        notifier.alive()


@pytest.mark.parametrize(
    ("environ", "every"),
    [
        ({"WATCHDOG_USEC": "120000000"}, 60.0),
        ({"WATCHDOG_USEC": "120000000", "WATCHDOG_PID": "7"}, 60.0),
        ({"WATCHDOG_USEC": "120000000", "WATCHDOG_PID": "8"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_is_fed_at_half_its_limit(environ, every):
    """And only where it is meant for this process."""
    assert notifier_from({"NOTIFY_SOCKET": "/x", **environ}, pid=7).alive_every_s == every

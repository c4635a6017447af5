"""Ports of launches: each belongs to one server."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from autospec.backends import process
from autospec.backends.process import HOST, family, free_port, is_shared, listens

SHARES = """
import socket, time
with socket.socket() as server:
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    server.bind(("127.0.0.1", NUMBER))
    server.listen()
    print("ready", flush=True)
    time.sleep(300)
"""


def test_a_port_is_given_out_once(monkeypatch):
    """Proxy review 26: two launches that start together could get the same free port."""

    class Probe(socket.socket):
        ports = iter([5001, 5001, 5002])

        def bind(self, _address):
            pass

        def getsockname(self):
            return HOST, next(self.ports)

    monkeypatch.setattr(process.socket, "socket", Probe)
    assert [free_port(), free_port()] == [5001, 5002]


@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a port has one listener")
def test_a_port_that_another_program_listens_on_too_is_taken():
    """Proxy review 26: both listen, and the kernel gives each some of the connections."""
    with socket.socket() as mine:
        mine.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        mine.bind((HOST, 0))
        port = mine.getsockname()[1]
        code = SHARES.replace("NUMBER", str(port))
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as other:
            try:
                assert other.stdout.readline() == b"ready\n"
                relatives = family(frozenset({other.pid}))
                assert listens(relatives, port)
                assert not is_shared(relatives, port)
                mine.listen()
                assert is_shared(relatives, port)
            finally:
                other.kill()

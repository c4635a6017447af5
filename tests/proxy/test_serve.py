"""The proxy's event loop: uvloop if it is installed, else asyncio's, with the same answers on both."""

from __future__ import annotations

import asyncio
import resource
import socket
import sys

import httpx
import pytest

from autospec.errors import AutospecError
from autospec.proxy import serve
from autospec.proxy.serve import loop_name, run_on_best_loop
from autospec.proxy.upstream import Upstream
from tests.proxy.harness import on_both_loops, proxy_over
from tests.proxy.test_upstream import PLAIN, Server, whole


@pytest.mark.parametrize("installed", [True, False])
def test_answers_on_either_loop(installed, monkeypatch):
    """A kept connection and two answers, whichever loop runs."""
    if installed:
        pytest.importorskip("uvloop", reason="uvloop is not installed")
    else:
        monkeypatch.setitem(sys.modules, "uvloop", None)  # importing it fails
    seen = []

    async def work() -> None:
        seen.append(type(asyncio.get_running_loop()).__module__.partition(".")[0])
        async with Server(PLAIN, PLAIN) as server:
            upstream = Upstream()
            for _ in range(2):
                answer = await upstream.ask(server.base_url, "GET", "/", [], b"")
                seen.append(await whole(answer))
            upstream.close()

    assert loop_name() == ("uvloop" if installed else "asyncio")
    run_on_best_loop(work())
    assert seen == [loop_name(), b"ok", b"ok"]


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ((256, resource.RLIM_INFINITY), (10240, resource.RLIM_INFINITY)),  # launchd, Terminal
        ((256, 1024), (1024, 1024)),
        ((65536, 65536), None),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), None),
    ],
)
def test_the_limit_of_open_files_is_raised(monkeypatch: pytest.MonkeyPatch, limits, expected):
    """A request in flight takes two files; 256 waiting requests would not fit into a Mac's limit."""
    chosen = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda _, wanted: chosen.append(wanted))
    serve._allow_open_files()
    assert chosen == ([] if expected is None else [expected])


@on_both_loops
def test_every_address_of_ipv6_is_ipv4_too(loop, dispatch, storage):
    """`proxy_host = "::"` left IPv4 out, because asyncio sets IPV6_V6ONLY; users know it from other servers as both."""
    if not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 on this machine")
    with proxy_over(loop, dispatch, storage, host="::") as proxy:
        port = httpx.URL(proxy.base_url).port
        assert proxy.base_url == f"http://[::]:{port}"
        for host in ("127.0.0.1", "localhost", "[::1]"):
            answer = httpx.get(f"http://{host}:{port}/v1/models", trust_env=False, timeout=20)
            assert answer.status_code == 200, host
            foreign = {"Host": "evil.example"}
            refused = httpx.get(f"http://{host}:{port}/v1/models", headers=foreign, trust_env=False)
            assert refused.status_code == 403
    with socket.socket() as other:  # the port is free again
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", port))


@pytest.mark.parametrize("host", ["127.0.0.1", "::"])
def test_a_port_in_use_is_told(loop, dispatch, storage, host):
    """The same on every kind of socket."""
    if host == "::" and not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 on this machine")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(AutospecError, match=f"Port {port} is in use"),
            proxy_over(loop, dispatch, storage, host=host, port=port),
        ):
            pass

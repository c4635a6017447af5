"""The proxy's event loop: uvloop if it is installed, else asyncio's, with the same answers on both."""

from __future__ import annotations

import asyncio
import resource
import sys

import pytest

from autospec.proxy import serve
from autospec.proxy.serve import loop_name, run_on_best_loop
from autospec.proxy.upstream import Upstream
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

"""The proxy's event loop: uvloop if it is installed, else asyncio's, with the same answers on both."""

from __future__ import annotations

import asyncio
import sys

import pytest

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

"""Proxies over stand-ins."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("aiohttp")

from tests.proxy.harness import LentServer, Loop, OneModel, proxy_over
from tests.proxy.stand_in import StandIn


@pytest.fixture
def loop(request) -> Iterator[Loop]:
    """An event loop in a thread: asyncio's, or the one that a test names (`harness.on_both_loops`)."""
    kind = getattr(request, "param", "asyncio")
    running = Loop(pytest.importorskip(kind, reason=f"{kind} is not installed").new_event_loop)
    yield running
    running.close()


@pytest.fixture
def backend(loop) -> Iterator[StandIn]:
    """A stand-in backend."""
    server = loop.run(StandIn().start())
    yield server
    loop.run(server.stop())


@pytest.fixture
def lent(backend) -> LentServer:
    """The lease on it."""
    return LentServer(backend.base_url)


@pytest.fixture
def dispatch(lent) -> OneModel:
    """What lends it."""
    return OneModel([lent])


@pytest.fixture
def storage(tmp_path) -> Path:
    """A database that is not there yet."""
    return tmp_path / "autospec.db"


@pytest.fixture
def proxy(loop, dispatch, storage):
    """A proxy over the stand-in."""
    with proxy_over(loop, dispatch, storage) as listening:
        yield listening

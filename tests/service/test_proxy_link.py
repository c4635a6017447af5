"""The proxy's end of the control socket, around launches."""

from __future__ import annotations

import asyncio
from pathlib import Path

from autospec.service.proxy_link import ProxyLink
from tests.service.test_control import Ear, ear


def test_a_launch_without_a_request_makes_the_daemon_yield(tmp_path: Path):
    """Proxy review 8: the machine counted as free at once, and the daemon heard nothing."""

    async def launch(listens: Ear) -> None:
        link = ProxyLink(tmp_path, reconnect_s=0.05)
        await link.start()
        async with asyncio.timeout(10):
            while not link.measuring:  # noqa: ASYNC110 - polls what the daemon said
                await asyncio.sleep(0.01)
        with link.serving():
            assert not link.measuring
            assert await link.machine_is_free(10.0)
            assert link.daemon["event"] == "yielded"
        await link.close()
        assert not link.measuring
        async with asyncio.timeout(10):
            while listens.events()[-1] != "left":  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.01)

    with ear(tmp_path) as listens:
        asyncio.run(launch(listens))
        assert listens.events() == ["hello", "busy", "idle", "left"]


def test_a_daemon_that_rests_does_not_measure(tmp_path: Path):
    """Nor does one that is not there."""
    link = ProxyLink(tmp_path)
    assert not link.measuring
    link.daemon = {"event": "resting", "why": "nothing to do"}
    assert not link.measuring
    link.daemon = {"event": "tuning", "what": "a", "why": "b"}
    assert link.measuring

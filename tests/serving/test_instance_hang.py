"""A real process that hangs: stopped by a signal, as by a GPU that never answers."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from autospec.backends.llama_cpp.server import LlamaServer
from autospec.backends.process import family
from autospec.serving import instance
from autospec.settings import load_settings
from tests.backends.conftest import FAKE
from tests.backends.waiting import gone
from tests.serving.scene import Scene, until, wanted


@pytest.fixture
def backend(tmp_path: Path) -> LlamaServer:
    """llama-server as far as a launch needs it."""
    program = tmp_path / "llama-server"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "{FAKE}" "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    return LlamaServer(program, tmp_path / "state")


@pytest.mark.process
def test_a_process_that_hangs_is_ended_and_replaced(backend, monkeypatch):
    """Proxy review 22: SIGTERM does not end it, and /health connects but says nothing."""
    monkeypatch.setattr(instance, "_SILENCE_S", 0.2)
    monkeypatch.setattr(instance, "_HEALTH_WAIT_S", 0.3)
    monkeypatch.setattr("autospec.backends.process.STOP_GRACE_S", 0.3)
    settings = load_settings(overrides={"memory_limit": 64.0})

    async def scenario() -> None:
        scene = Scene(backend, clock=time.monotonic, settings=settings)  # type: ignore[arg-type]
        async with scene.opened() as supervisor:
            stuck = await supervisor.lease(wanted())
            pids = stuck.launch.server.pids
            hung = [process.pid for process in family(pids) if "--grace" not in process.cmdline()]
            for pid in hung:
                os.kill(pid, signal.SIGSTOP)
            await until(lambda: stuck.launch.state.over)
            assert gone(pids)
            assert "does not answer /health" in str(stuck.launch.error)
            stuck.died()
            stuck.give_back()
            async with await supervisor.lease(wanted()) as again:
                assert again.base_url != stuck.base_url
                since_s = again.launch._silent_since_s
                await until(lambda: again.launch._silent_since_s != since_s)  # it answers its health check
                assert again.launch.state is instance.InstanceState.READY

    asyncio.run(scenario())

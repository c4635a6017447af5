"""Servers that hang: the rule as a table, and real processes."""

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
from autospec.serving.instance import InstanceState, Look, hangs
from autospec.settings import load_settings
from tests.backends.conftest import FAKE
from tests.backends.waiting import gone
from tests.serving.scene import Scene, until, wanted

MINUTE_S = 60.0
IDLE = 0.0001
MLX = instance._IDLE_MLX
BUSY = 0.9


@pytest.mark.parametrize(
    ("silent_min", "looks", "hung"),
    [
        pytest.param(10, [Look(IDLE, False)], True, id="neither computes nor answers"),
        pytest.param(10, [Look(IDLE, False, waiting=0.0)], True, id="also if its clients have left"),
        pytest.param(90, [Look(BUSY, False)] * 17, None, id="computes and answers nothing: a long prompt"),
        pytest.param(120, [Look(BUSY, False)] * 23, True, id="the same for two hours"),
        pytest.param(90, [Look(None, False)] * 17, None, id="unknown whether it computes"),
        pytest.param(15, [Look(BUSY, False)] * 2 + [Look(IDLE, False)], True, id="computed until a moment ago"),
        pytest.param(10, [Look(IDLE, True)], None, id="answers only: another look"),
        pytest.param(20, [Look(IDLE, True)] * 3, True, id="MLX that hangs"),
        pytest.param(20, [Look(IDLE, True, False)] * 3, True, id="llama-server that hangs"),
        pytest.param(20, [Look(BUSY, True)] + [Look(IDLE, True)] * 2, None, id="idle for two windows"),
        pytest.param(20, [Look(0.001, True)] * 3, False, id="a GPU computes"),
        pytest.param(10, [Look(0.001, True, False)], None, id="a GPU computes, and the slots have not moved yet"),
        pytest.param(20, [Look(0.0003, True)] * 3, False, id="a slow GPU computes"),
        pytest.param(20, [Look(0.0004, True, waiting=20.0)] * 3, True, id="twenty requests that wait take a little"),
        pytest.param(20, [Look(0.001, True, waiting=5.0, idle=MLX)] * 3, True, id="MLX takes more for each"),
        pytest.param(600, [Look(BUSY, True, False)], None, id="a machine that was paused: another look"),
        pytest.param(600, [Look(BUSY, False)], None, id="the same, and it does not answer yet"),
        pytest.param(20, [Look(None, True)] * 3, False, id="answers, and nothing else is known"),
        pytest.param(600, [Look(BUSY, True)], False, id="computes and answers: never"),
        pytest.param(600, [Look(IDLE, True, True)] * 3, False, id="its slots move: never"),
        pytest.param(90, [Look(BUSY, True, False)] * 17, None, id="computes, and its slots stand still"),
        pytest.param(120, [Look(BUSY, True, False)] * 23, True, id="the same for two hours: it spins"),
        pytest.param(20, [Look(IDLE, True, waiting=0.0)] * 3, False, id="nobody waits"),
        pytest.param(10, [Look(IDLE, True, waiting=0.0)], None, id="nobody waits: somebody may come back"),
        pytest.param(40, [Look(IDLE, True, False, waiting=0.2)] * 7, None, id="clients leave after a minute"),
        pytest.param(45, [Look(IDLE, True, False, waiting=0.2)] * 8, True, id="and come back until it is certain"),
        pytest.param(30, [Look(IDLE, True, waiting=0.7)] + [Look(IDLE, True, waiting=0.0)] * 3, None, id="one has left"),
        pytest.param(50, [Look(IDLE, True, waiting=20.0)] + [Look(IDLE, True, waiting=0.0)] * 7, None, id="twenty at once"),
        pytest.param(600, [Look(IDLE, True, waiting=0.1)] * 100, None, id="rare short calls do not add up"),
        pytest.param(70, [Look(IDLE, True, waiting=0.7)] + [Look(IDLE, True, waiting=0.0)] * 12, False, id="an hour ago"),
        pytest.param(25, [Look(IDLE, True, False, waiting=0.4)] * 3 + [Look(BUSY, True, True)], False, id="it works again"),
        pytest.param(600, [Look(IDLE, True, waiting=0.1)] * 90 + [Look(BUSY, True, False)], None, id="a long prompt after all"),
        pytest.param(600, [Look(IDLE, True, waiting=0.1)] * 90 + [Look(BUSY, False)], None, id="that answers nothing"),
    ],
)  # fmt: skip
def test_what_a_hang_is(silent_min, looks, hung):
    """A server is ended only if it does nothing for those who wait; or tells nothing, for very long."""
    assert hangs(silent_min * MINUTE_S, looks) is hung


@pytest.fixture
def backend(tmp_path: Path) -> LlamaServer:
    """llama-server as far as a launch needs it."""
    program = tmp_path / "llama-server"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "{FAKE}" "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    return LlamaServer(program, tmp_path / "state")


@pytest.fixture
def hurry(monkeypatch):
    """Minutes are tenths of seconds."""
    monkeypatch.setattr(instance, "_SILENCE_S", 0.2)
    monkeypatch.setattr(instance, "_WINDOW_S", 0.3)
    monkeypatch.setattr("autospec.backends.process.STOP_GRACE_S", 0.3)
    monkeypatch.setattr("autospec.serving.reconciler._TICK_S", 0.05)


def scene_of(backend: LlamaServer) -> Scene:
    """A proxy over real processes, in real time."""
    settings = load_settings(overrides={"memory_limit": 64.0})
    return Scene(backend, clock=time.monotonic, settings=settings)  # type: ignore[arg-type]


@pytest.mark.process
@pytest.mark.usefixtures("hurry")
@pytest.mark.parametrize("answers", [True, False])
def test_a_process_that_hangs_is_ended_and_replaced(backend, answers):
    """It answers /health and /slots and generates nothing; or SIGTERM does not end it, and /health connects but says nothing."""

    async def scenario() -> None:
        async with scene_of(backend).opened() as supervisor:
            stuck = await supervisor.lease(wanted())
            pids = stuck.launch.server.pids
            for process in family(pids) if not answers else ():
                if "--grace" not in process.cmdline():
                    os.kill(process.pid, signal.SIGSTOP)
            await until(lambda: stuck.launch.state.over)
            assert gone(pids)
            assert ("answers /health and /slots" if answers else "does not answer /health or /slots") in str(
                stuck.launch.error
            )
            stuck.died()
            stuck.give_back()
            async with await supervisor.lease(wanted()) as again:
                assert again.base_url != stuck.base_url

    asyncio.run(scenario())


@pytest.mark.process
@pytest.mark.usefixtures("hurry")
def test_a_process_that_computes_is_not_ended(backend, tmp_path, monkeypatch):
    """It answers nothing for long (ik_llama.cpp during a prompt): only after hours that is taken for a hang."""
    burns = f'"{sys.executable}" -I -S -c "import os; os.nice(19)\nwhile True: pass"'
    program = tmp_path / "llama-server"
    lines = program.read_text(encoding="utf-8").splitlines()
    lines.insert(1, f'case "$*" in *--port*) {burns} & ;; esac')
    program.write_text("\n".join(lines), encoding="utf-8")
    silences_s: list[float] = []

    def judge(silent_s, looks):
        silences_s.append(silent_s)
        return hangs(silent_s, looks)

    monkeypatch.setattr(instance, "hangs", judge)

    async def scenario() -> None:
        async with scene_of(backend).opened() as supervisor:
            busy = await supervisor.lease(wanted())
            pids = busy.launch.server.pids
            for process in family(pids):
                if str(FAKE) in process.cmdline() and "--grace" not in process.cmdline():
                    os.kill(process.pid, signal.SIGSTOP)
            await until(lambda: len(silences_s) == 3)
            assert busy.launch.state is InstanceState.READY
            monkeypatch.setattr(instance, "_LONGEST_S", 0.1)
            await until(lambda: busy.launch.state.over)
            assert gone(pids)
            busy.give_back()

    asyncio.run(scenario())

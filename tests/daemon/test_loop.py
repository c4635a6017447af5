"""The daemon's loop while a step runs: when it checks the machine, and when other programs stop the step."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from autospec.cells import PromptType
from autospec.daemon.loop import Daemon
from autospec.daemon.policy import Signals
from autospec.daemon.probes import ClientActivity
from autospec.daemon.work import Clock, Memory, WorkItem
from autospec.hardware.readings import Power
from autospec.settings import load_settings

ITEM = WorkItem("m", "/m.gguf", PromptType.CODING, "llama-server", "b", 1.0, 0.1, 1.0, 600.0, 1, "it is used")


class SetClock(Clock):
    """The time is what a test says."""

    now_s = 1000.0

    def monotonic(self) -> float:
        """As set."""
        return self.now_s


class Looks:
    """Probes that find what a test says, and count."""

    load: float | None = 2.0
    count = 0

    def read(self, traffic: ClientActivity, spent_today_s: float, *, measuring: bool = False) -> Signals:
        """A quiet machine but for the load."""
        assert measuring
        self.count += 1
        return Signals(
            720,
            spent_today_s,
            traffic.in_flight,
            power=Power(on_battery=False),
            other_load=self.load,
            cores=4,
        )

    def forget_load(self) -> None:
        """Nothing is kept."""


class Step:
    """A tune that goes on until it is stopped."""

    item = ITEM
    stopped = False

    def outcome(self) -> None:
        """It runs."""

    def preempt(self) -> None:
        """Stop it."""
        self.stopped = True


class Watched:
    """A daemon whose step has just begun."""

    def __init__(self, home: Path) -> None:
        self.clock, self.looks, self.step = SetClock(), Looks(), Step()
        launch: Any = lambda *_: self.step  # noqa: E731 - a callable of one line
        self.daemon = Daemon(
            load_settings(environ={"AUTOSPEC_HOME": str(home)}),
            clock=self.clock,
            probes=self.looks,  # type: ignore[arg-type]
            launch=launch,
        )
        self.daemon.memory = Memory(home / "daemon.json")
        self.daemon._listening = SimpleNamespace(proxies=[], tell_proxies=lambda _: None)  # type: ignore[assignment]
        self.daemon.outlook = SimpleNamespace(expire=lambda: None, asked={})  # type: ignore[assignment]
        self.daemon._step = self.step  # type: ignore[assignment]
        self.daemon._step_began_s = self.daemon._looked_s = self.clock.now_s

    def wake(self, after_s: float, load: float | None) -> float:
        """Time passes and something wakes the daemon; the seconds that it wants to sleep now."""
        self.clock.now_s += after_s
        self.looks.load = load
        return self.daemon._watch(self.step, 0.0)  # type: ignore[arg-type]


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    """See `Watched`."""
    return Watched(tmp_path)


def test_whoever_stays_for_fifteen_seconds_ends_the_step(watched: Watched):
    """Three looks, five seconds apart."""
    for _ in range(2):
        assert watched.wake(5.0, 2.0) == 5.0
    assert not watched.step.stopped
    watched.wake(5.0, 2.0)
    assert watched.step.stopped


def test_who_wakes_the_daemon_between_two_looks_makes_no_look(watched: Watched):
    """`autospec daemon status` once a second: three seconds of a load are no fifteen."""
    waits = [watched.wake(1.0, 2.0) for _ in range(14)]
    assert waits[:5] == [4.0, 3.0, 2.0, 1.0, 5.0]
    assert watched.looks.count == 2
    assert not watched.step.stopped
    watched.wake(1.0, 2.0)
    assert watched.step.stopped


@pytest.mark.parametrize("between", [0.0, None])
def test_a_look_that_is_calm_or_unknown_begins_the_count_anew(watched: Watched, between: float | None):
    """Ten seconds before it and ten after it are not fifteen in a row."""
    for load in (2.0, 2.0, between, 2.0, 2.0):
        watched.wake(5.0, load)
    assert not watched.step.stopped
    watched.wake(5.0, 2.0)
    assert watched.step.stopped

"""The daemon's loop at rest: which step it takes, and when it reads the machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from autospec.daemon.loop import Daemon
from autospec.daemon.policy import Signals
from autospec.daemon.probes import ClientActivity
from autospec.daemon.work import JumpWatch, Memory, WorkItem
from autospec.hardware.readings import Power
from autospec.settings import load_settings
from tests.daemon.test_loop import ITEM, SetClock

GIB = 1 << 30
LARGE, SMALL = (replace(ITEM, model=m, memory_bytes=b * GIB) for m, b in (("large", 42), ("small", 2)))


class Machine:
    """Probes of a quiet machine with 20 GiB of free memory, which count."""

    count = 0
    user_idle_s: float | None = None

    def read(self, traffic: ClientActivity, spent_today_s: float) -> Signals:
        """One reading."""
        self.count += 1
        return Signals(
            720,
            spent_today_s,
            traffic.in_flight,
            traffic.since_request_s,
            power=Power(on_battery=False),
            user_idle_s=self.user_idle_s,
            other_load=0.0,
            cores=4,
            memory_available_bytes=20 * GIB,
        )


class Resting:
    """A daemon with a proxy and these steps to do."""

    def __init__(self, home: Path) -> None:
        self.clock, self.machine, self.begun = SetClock(), Machine(), list[WorkItem]()
        self.proxy = SimpleNamespace(role="proxy", pid=7, busy=False, lost=False)
        self.looked_at_files: list[bool] = []
        self.said: list[str] = []
        self.daemon = Daemon(
            load_settings(environ={"AUTOSPEC_HOME": str(home)}),
            clock=self.clock,
            probes=self.machine,  # type: ignore[arg-type]
            launch=self._launch,
            tell=self.said.append,
        )
        self.daemon.memory = Memory(home / "daemon.json")
        self.daemon._listening = SimpleNamespace(proxies=[self.proxy], tell_proxies=lambda _: None)  # type: ignore[assignment]
        self.outlook: Any = SimpleNamespace(
            items=[LARGE, SMALL], asked={}, trouble="", waits=False, due=self._due, settle=lambda: None,
            traffic_came=lambda: None, next_in_s=lambda: 1e9,
        )  # fmt: skip
        self.daemon.outlook = self.outlook
        self.is_due = False

    def _launch(self, item: WorkItem, *_: Any) -> Any:
        self.begun.append(item)
        return SimpleNamespace(item=item)

    def _due(self, *, files: bool = True) -> bool:
        self.looked_at_files.append(files)
        return self.is_due

    def hear(self, event: str) -> float:
        """The proxy says this; the seconds that the daemon wants to sleep then."""
        self.daemon._hear(self.proxy, {"event": event})  # type: ignore[arg-type]
        return self.daemon._look_for_work()


@pytest.fixture
def resting(tmp_path: Path) -> Resting:
    """See `Resting`."""
    return Resting(tmp_path)


def test_a_model_that_does_not_fit_now_does_not_hold_up_the_others(resting: Resting):
    """On a new machine the largest may come first; nothing at all was measured then."""
    resting.daemon._look_for_work()
    assert resting.begun == [SMALL]
    assert resting.machine.count == 1


def test_where_none_fits_the_first_says_why(resting: Resting):
    """What would be measured next, and what it needs."""
    resting.outlook.items = [LARGE, replace(LARGE, model="huge", memory_bytes=99 * GIB)]
    assert resting.daemon._look_for_work() == 30.0
    assert not resting.begun
    assert resting.daemon.why == "the next step needs 48.3 GiB of memory and 20.0 GiB are free"


def test_what_was_asked_for_and_does_not_fit_says_so(resting: Resting):
    """And not that the machine is in use, which holds back the others only."""
    resting.outlook.asked = {"large": set()}
    resting.machine.user_idle_s = 5.0
    resting.daemon._look_for_work()
    assert "48.3 GiB" in resting.daemon.why
    resting.machine.user_idle_s = 400.0
    resting.daemon._look_for_work()
    assert resting.begun == [SMALL]


def test_a_request_makes_a_resting_daemon_read_nothing(resting: Resting):
    """Each of its two messages read the whole machine: on a Mac, seven programs, fourteen for each request."""
    for _ in range(3):
        resting.hear("busy")
        assert resting.daemon.why == "a request is being served"
        resting.clock.now_s += 2.0
        assert resting.hear("idle") == 300.0
        assert resting.daemon.why == "the last request ended 0 s ago"
    assert resting.machine.count == 0
    assert resting.looked_at_files == [False, True] * 3
    assert [check.name for check in resting.daemon.decision.checks] == ["traffic"]  # type: ignore[union-attr]
    resting.clock.now_s += 299.0
    assert resting.daemon._look_for_work() == 1.0
    resting.clock.now_s += 1.0
    resting.daemon._look_for_work()
    assert (resting.machine.count, resting.begun) == (1, [SMALL])


def test_what_was_asked_for_does_not_wait_after_a_request(resting: Resting):
    """It waits for its end only."""
    resting.outlook.asked = {"small": set()}
    resting.outlook.items = [SMALL, LARGE]
    resting.hear("busy")
    assert resting.machine.count == 0
    resting.hear("idle")
    assert resting.begun == [SMALL]


def test_where_nothing_is_worth_measuring_a_request_changes_no_reason(resting: Resting):
    """A machine on which everything is proven: proxies and the supervisor are told nothing new twice a request."""
    resting.outlook.items = []
    for event in ("busy", "idle"):
        resting.hear(event)
        assert resting.daemon.why == "nothing is worth measuring now"


def test_a_survey_waits_for_the_end_of_a_request(resting: Resting):
    """It takes a second of the processor."""
    resting.is_due = True
    assert resting.hear("busy") == 60.0
    assert resting.daemon.why == "a request is being served"


def test_one_step_is_not_waited_for_while_a_request_is_served(resting: Resting):
    """`autospec daemon --once` says why it ends."""
    resting.daemon.once = True
    resting.hear("busy")
    assert resting.said == ["A request is being served."]
    assert resting.daemon._ending


class SleepClock(SetClock):
    """A clock whose machine sleeps when a test says so: only the time of day goes on."""

    slept_s = 0.0

    def wall(self) -> float:
        """The time of day."""
        return 1e9 + self.now_s + self.slept_s


@pytest.mark.parametrize("asked", [False, True])
def test_after_a_sleep_the_idle_time_begins_anew(resting: Resting, asked: bool):
    """The lid was opened, and a step began at once. A person who asks for it still gets it."""
    clock = SleepClock()
    daemon, resting.outlook.items = resting.daemon, [SMALL]
    daemon.clock, daemon._jumps = clock, JumpWatch(clock)
    daemon._listening.resume = lambda: None  # type: ignore[method-assign]
    resting.outlook.take, resting.outlook.looking = lambda: None, True
    daemon._turn()  # it looks for work meanwhile
    resting.outlook.looking = False
    resting.outlook.asked = {"small": set()} if asked else {}
    clock.now_s, clock.slept_s = clock.now_s + 60.0, 8 * 3600.0
    assert daemon._turn() == (5.0 if asked else 60.0)
    assert resting.begun == ([SMALL] if asked else [])
    if asked:
        return
    assert daemon.why == "the machine slept until 0 s ago, or its clock was set (daemon_idle is 5 min)"
    clock.now_s += 299.0
    assert daemon._turn() == 1.0
    clock.now_s += 1.0
    daemon._turn()
    assert resting.begun == [SMALL]

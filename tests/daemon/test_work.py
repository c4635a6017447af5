"""What survives a restart, and what a clock that jumps does."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from autospec.cells import PromptType
from autospec.daemon.queue import uses
from autospec.daemon.work import Clock, JumpWatch, Memory, WorkItem
from autospec.measure.measurements import Sample

ITEM = WorkItem("big", "big", PromptType.QA, "llama-server", "basis1", 60.0, 0.1, 1.0, 600.0, 0, "why")
TODAY = date(2026, 11, 24)


class SetClock(Clock):
    """A clock that tests move."""

    def __init__(self) -> None:
        self.now_s, self.epoch_s = 100.0, 1_800_000_000.0

    def monotonic(self) -> float:
        """As set."""
        return self.now_s

    def wall(self) -> float:
        """As set."""
        return self.epoch_s


def test_what_is_saved_is_loaded(tmp_path: Path):
    """Efforts, discoveries and the day's time."""
    memory = Memory(tmp_path / "state" / "daemon.json")
    memory.ended(ITEM, seconds=30.0, at=5.0)
    memory.see(["f1"], 7.0)
    memory.spend(TODAY, 30.0)
    memory.save()
    again = Memory.load(memory.path)
    assert (again.efforts, again.found, again.spent_s) == (memory.efforts, {"f1": 7.0}, {"2026-11-24": 30.0})


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 1}', '{"schema": 99, "efforts": {}}'])
def test_a_damaged_file_counts_as_empty(tmp_path: Path, text: str):
    """Torn or foreign: measurements are elsewhere, nothing is lost."""
    path = tmp_path / "daemon.json"
    path.write_text(text, encoding="utf-8")
    assert Memory.load(path).efforts == {}


def test_a_disk_that_takes_nothing_is_told_and_no_error(tmp_path: Path):
    """A file where the folder should be."""
    (tmp_path / "state").write_text("", encoding="utf-8")
    memory = Memory(tmp_path / "state" / "daemon.json")
    memory.save()
    assert "cannot be written" in memory.trouble


def test_failures_count_in_a_row_and_steps_for_their_basis_only():
    """A step that ran ends the row; another basis begins from nothing."""
    memory = Memory(Path("unused"))
    memory.ended(ITEM, seconds=1.0, at=1.0, failure="it died")
    memory.ended(ITEM, seconds=1.0, at=2.0, failure="it died")
    assert memory.efforts[ITEM.key].failures == 2
    memory.ended(ITEM, seconds=1.0, at=3.0)
    assert (memory.efforts[ITEM.key].failures, memory.efforts[ITEM.key].steps) == (0, 1)
    memory.preempted(WorkItem(**{**_fields(ITEM), "basis": "basis2"}), seconds=1.0)
    assert memory.efforts[ITEM.key].steps == 0


def _fields(item: WorkItem) -> dict[str, object]:
    from dataclasses import fields

    return {f.name: getattr(item, f.name) for f in fields(item)}


def test_a_day_forth_and_back_costs_no_budget_twice():
    """The clock is set to tomorrow and back: today's seconds are still today's."""
    memory = Memory(Path("unused"))
    memory.spend(TODAY, 100.0)
    memory.spend(date(2026, 11, 25), 50.0)
    memory.spend(TODAY, 1.0)
    assert memory.spent_today_s(TODAY) == 101.0


def test_a_model_seen_before_stays_as_old_as_it_is():
    """A clock set back moves it no further into the past than now."""
    memory = Memory(Path("unused"))
    memory.see(["a"], 100.0)
    memory.see(["a", "b"], 50.0)
    assert memory.found == {"a": 50.0, "b": 50.0}


def test_sleep_and_a_set_clock_are_jumps_and_a_long_pause_is_none():
    """The wall clock moves against the other; both moving together is only time."""
    clock = SetClock()
    jumps = JumpWatch(clock)
    assert jumps.jumped_s() == 0.0
    clock.now_s += 3600
    clock.epoch_s += 3600
    assert jumps.jumped_s() == 0.0
    clock.epoch_s -= 86400
    assert jumps.jumped_s() == -86400
    assert jumps.jumped_s() == 0.0


def test_a_steady_use_comes_out_as_it_is():
    """Half an hour a day for two months; the newest weeks count most."""
    now = 1_800_000_000.0
    samples = [
        Sample(now - day * 86400, "big", "b", "1", PromptType.QA, 1, 1, 0.0, 1800e3) for day in range(60)
    ]
    assert uses(samples, now) == {("big", PromptType.QA): pytest.approx(1800, rel=0.06)}

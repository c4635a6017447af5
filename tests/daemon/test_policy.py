"""Whether to measure now: each signal, each unknown value, and the time of the next check."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autospec.daemon.policy import Policy, Signals, decide, minutes_until
from autospec.hardware.readings import Power

MAINS = Power(on_battery=False, low_power=False, thermal="nominal")
BATTERY = replace(MAINS, on_battery=True)
QUIET = Signals(
    minute_of_day=12 * 60, spent_today_s=0.0, in_flight=0, since_request_s=None, power=MAINS, user_idle_s=3600.0,
    other_load=0.1, cores=4, memory_available_bytes=16 << 30,
)  # fmt: skip
POLICY = Policy(idle_s=300.0, hours=(), budget_s=7200.0)


def test_a_quiet_machine_is_measured():
    """Nothing speaks against it."""
    assert decide(QUIET, POLICY, needed_bytes=8 << 30).go


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"in_flight": 1}, "a request is being served"),
        ({"since_request_s": 10.0}, "the last request ended 10 s ago"),
        ({"held_by": "process 7"}, "another autospec is measuring"),
        ({"spent_today_s": 7200.0}, "daemon_budget"),
        ({"power": BATTERY}, "battery"),
        ({"power": replace(MAINS, low_power=True)}, "low power mode"),
        ({"power": replace(MAINS, dark_wake=True)}, "a dark wake"),
        ({"power": replace(MAINS, memory_short=True)}, "memory is short"),
        ({"power": replace(MAINS, thermal="throttled")}, "heat slows"),
        ({"user_idle_s": 5.0}, "the last input was 5 s ago"),
        (
            {"since_wake_s": 20.0},
            "the machine slept until 20 s ago, or its clock was set (daemon_idle is 5 min)",
        ),
        ({"other_load": 1.5}, "other programs use 1.5 of 4 cores"),
        ({"gpu_other_load": 0.29}, "other programs use 0.1 of 4 cores and 29 % of the GPU"),
        ({"other_load": 1.3, "cores": 8, "on_metal": True}, "other programs use 1.3 of 8 cores"),
        ({"memory_available_bytes": 1 << 30}, "the next step needs"),
    ],
)
def test_each_signal_alone_keeps_it_from_measuring(change, words):
    """The reason is the signal's own sentence."""
    decision = decide(replace(QUIET, **change), POLICY, needed_bytes=8 << 30)
    assert not decision.go
    assert words in decision.why


@pytest.mark.parametrize(
    ("change", "name", "allows"),
    [
        ({"in_flight": None}, "traffic", True),
        ({"power": replace(MAINS, on_battery=None)}, "power", True),
        ({"power": replace(MAINS, thermal="unknown")}, "heat", True),
        ({"user_idle_s": None}, "idle", True),
        ({"unseen_input": "MX Keys"}, "idle", True),
        ({"other_load": None}, "load", False),
        ({"memory_available_bytes": None}, "memory", False),
    ],
)
def test_unknown_is_a_value_of_its_own_with_a_stated_effect(change, name, allows):
    """It is told as unknown, in words, and not as the one or the other."""
    decision = decide(replace(QUIET, **change), POLICY)
    (check,) = [c for c in decision.checks if c.name == name]
    assert (check.state, check.allows) == ("unknown", allows)
    assert decision.go is allows


@pytest.mark.parametrize(
    ("minute", "expected"), [(23 * 60, 0), (3 * 60, 0), (7 * 60, 15 * 60), (21 * 60 + 59, 1), (12 * 60, 600)]
)
def test_hours_may_reach_over_midnight(minute, expected):
    """22:00 to 07:00 is one stretch."""
    assert minutes_until([(22 * 60, 7 * 60)], minute) == expected


def test_the_next_look_is_when_the_answer_may_change():
    """Idle in 290 s: no look before; hours in six: one an hour; load: every half minute."""
    assert decide(replace(QUIET, user_idle_s=10.0), POLICY).recheck_s == 290.0
    assert decide(replace(QUIET, since_wake_s=10.0), POLICY).recheck_s == 290.0
    assert decide(replace(QUIET, since_wake_s=300.0), POLICY).go
    night = replace(POLICY, hours=((18 * 60, 19 * 60),))
    assert decide(QUIET, night).recheck_s == 3600.0
    assert decide(replace(QUIET, other_load=2.0), POLICY).recheck_s == 30.0


def test_while_measuring_a_load_that_stays_ends_the_step_and_one_that_passes_does_not():
    """The status says that the step waits; after fifteen seconds the step is stopped."""
    busy = replace(QUIET, other_load=1.5)
    first = decide(busy, POLICY, measuring=True, loaded_s=14.9)
    assert first.go
    assert "other programs use 1.5 of 4 cores: the step waits for them" in [c.words for c in first.checks]
    assert decide(busy, POLICY, measuring=True, loaded_s=15.0).why == "other programs use 1.5 of 4 cores"
    assert decide(QUIET, POLICY, measuring=True, loaded_s=15.0).go
    assert decide(replace(QUIET, other_load=None), POLICY, measuring=True, loaded_s=15.0).go


def test_while_measuring_load_and_memory_are_the_tunes_to_judge():
    """Its own servers take both; it waits for others and repeats what they disturbed."""
    busy = replace(QUIET, other_load=3.0, memory_available_bytes=0)
    assert decide(busy, POLICY, needed_bytes=8 << 30, measuring=True).go
    assert not decide(replace(busy, power=BATTERY), POLICY, measuring=True).go


@pytest.mark.parametrize(
    "change", [{"gpu_other_load": 0.05}, {"other_load": 1.0, "cores": 8, "on_metal": True}]
)
def test_a_desktop_that_draws_does_not_keep_it_from_measuring(change):
    """A few per cent of the GPU; on a Mac, also some of the processor."""
    assert decide(replace(QUIET, **change), POLICY, needed_bytes=8 << 30).go

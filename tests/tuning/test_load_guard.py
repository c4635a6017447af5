"""Waiting for other programs: until they end, and only once if they never do."""

from __future__ import annotations

from dataclasses import replace

from autospec.tuning.load_guard import LoadGuard, patience_s
from tests.tuning.test_paired_runner import CALM, Watch

BUSY = replace(CALM, other_load=2.0)


def calm(*states):
    """A guard whose watch reads these states, with the seconds it slept and the sentences it told."""
    slept: list[float] = []
    told: list[str] = []
    return LoadGuard(Watch(*states), told.append, slept.append), slept, told


def test_a_calm_machine_is_not_waited_for():
    """Nothing to time again."""
    waits, slept, _ = calm()
    assert not waits.after(CALM)
    assert not slept


def test_what_was_timed_beside_others_is_worth_timing_again_when_they_end():
    """Three busy seconds, then calm."""
    waits, slept, told = calm(BUSY, BUSY, CALM)
    assert waits.after(BUSY)
    assert slept == [1.0] * 3
    assert told == ["Waiting for other programs, which use 2.0 of 4 cores."]


def test_a_load_that_outlasts_the_wait_is_waited_for_once():
    """A video that plays all day costs one wait, not one for every answer."""
    waits, slept, told = calm(*[BUSY] * 60)
    assert not waits.after(BUSY)
    assert not waits.after(BUSY)
    assert sum(slept) == 60.0
    assert "measuring continues" in told[-1]


def test_after_a_calm_measurement_the_next_load_is_waited_for_again():
    """A steady load that ended is forgotten."""
    waits, slept, _ = calm(*[BUSY] * 60, CALM)
    waits.after(BUSY)
    waits.after(CALM)
    assert waits.after(BUSY)
    assert len(slept) == 61


def test_a_short_run_waits_for_a_short_time():
    """A tenth of the budget, and never longer than a minute."""
    assert (patience_s(90), patience_s(1200)) == (9, 60)


def test_the_wait_ends_with_its_limit():
    """Nine seconds of a run of ninety."""
    slept: list[float] = []
    waits = LoadGuard(Watch(*[BUSY] * 9), lambda _: None, slept.append, patience_s(90))
    assert not waits.after(BUSY)
    assert sum(slept) == 9.0


def test_a_game_on_the_gpu_is_waited_for():
    """It takes little of the processor."""
    gaming = replace(CALM, gpu_other_load=0.6)
    waits, slept, told = calm(gaming, CALM)
    assert waits.after(gaming)
    assert slept == [1.0, 1.0]
    assert told == ["Waiting for other programs, which use 0.0 of 4 cores and 60 % of the GPU."]


def test_what_was_timed_over_a_sleep_is_worth_timing_again():
    """llama-server's own times hold the sleep of a Mac."""
    slept = replace(CALM, changed="the machine slept, or its clock was set")
    waits, waited, _ = calm()
    assert waits.after(slept)
    assert not waited
    busy_too, _, _ = calm(*[BUSY] * 60)
    assert busy_too.after(replace(slept, other_load=2.0))

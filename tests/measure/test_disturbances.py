"""Which disturbed measurements count, which do not, and what is reported about them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autospec.drafting import OFF
from autospec.hardware.state import COOLED, HEATED, MachineState
from autospec.measure.disturbances import Cause, busy, cause_of, lasting, left_out, left_out_sentence
from autospec.measure.measurements import Measurement, Pair
from tests.store.test_database import MEASUREMENT

CALM = MachineState(
    window_s=5.0, cores=4, other_load=0.02, steal=0.0, on_battery=False, battery_percent=80.0, low_power=False,
    thermal="nominal", memory_available_bytes=1 << 34, swap_in_bytes=0, throttles=0,
)  # fmt: skip
HOT = replace(CALM, thermal="throttled", throttles=40)
COOL_MAC, HOT_MAC = (replace(state, throttles=None) for state in (CALM, HOT))
SWAPPING = replace(CALM, swap_in_bytes=64 << 20)


def rows(
    *states: tuple[MachineState, MachineState], prompt: str = "p", start: float = 0.0
) -> list[Measurement]:
    """The halves of attempts at one prompt: off, then drafted, a second apart."""
    drafting = MEASUREMENT.compared
    made = []
    for number, pair in enumerate(states):
        for position, state in enumerate(pair):
            made.append(
                replace(
                    MEASUREMENT,
                    prompt_id=prompt,
                    drafting=drafting if position else OFF,
                    position=position,
                    started_at=start + 2 * number + position,
                    machine=state.to_json(),
                )
            )
    return made


def pair(off: MachineState, drafted: MachineState) -> Pair:
    """Off first."""
    return Pair(*rows((off, drafted)))


@pytest.mark.parametrize(
    ("off", "drafted", "cause"),
    [
        (CALM, CALM, None),
        (HOT, HOT, None),
        (CALM, replace(CALM, throttles=1), None),
        (CALM, HOT, Cause.HEAT_DRAFTED),
        (HOT, CALM, Cause.HEAT_OFF),
        (CALM, SWAPPING, Cause.SWAP_DRAFTED),
        (SWAPPING, CALM, Cause.SWAP_OFF),
        (SWAPPING, SWAPPING, Cause.SWAP_BOTH),
        (CALM, replace(CALM, other_load=2.0), Cause.LOAD),
        (CALM, replace(CALM, on_battery=True), Cause.CHANGE),
        # macOS tells a level and no count.
        (COOL_MAC, HOT_MAC, Cause.HEAT_DRAFTED),
        (HOT_MAC, COOL_MAC, Cause.HEAT_OFF),
        (HOT_MAC, HOT_MAC, None),
        # The level changes within a half: the level at its end counts, then what it was before.
        (replace(COOL_MAC, changed=COOLED), replace(HOT_MAC, changed=HEATED), Cause.HEAT_DRAFTED),
        (COOL_MAC, replace(COOL_MAC, changed=COOLED), Cause.HEAT_DRAFTED),
        (replace(HOT_MAC, changed=HEATED), HOT_MAC, Cause.HEAT_DRAFTED),
        (HOT_MAC, replace(HOT_MAC, changed=HEATED), Cause.HEAT_OFF),
        (replace(HOT_MAC, changed=HEATED), replace(HOT_MAC, changed=HEATED), Cause.CHANGE),
        (COOL_MAC, replace(HOT_MAC, on_battery=True), Cause.HEAT_DRAFTED),
        (COOL_MAC, replace(COOL_MAC, thermal="unknown"), None),
        # Another program that computes on the GPU all along slows both halves.
        (replace(CALM, gpu_other_load=0.5), replace(CALM, gpu_other_load=0.55), None),
        (replace(CALM, gpu_other_load=0.0), replace(CALM, gpu_other_load=0.5), Cause.GPU_LOAD),
        (CALM, replace(CALM, gpu_other_load=0.5), None),
        (replace(CALM, gpu_heat=True), replace(CALM, gpu_heat=True), None),
        (replace(CALM, gpu_heat=False), replace(CALM, gpu_heat=True), Cause.HEAT_DRAFTED),
        (replace(CALM, gpu_heat=True), replace(CALM, gpu_heat=False), Cause.HEAT_OFF),
        (CALM, replace(CALM, gpu_heat=True), None),
        (replace(CALM, gpu_power_limit_w=450.0), replace(CALM, gpu_power_limit_w=300.0), Cause.CHANGE),
        # A Mac's GPU computes: more of the processor may be taken.
        (replace(CALM, cores=8, on_metal=True), replace(CALM, cores=8, on_metal=True, other_load=1.0), None),
        (replace(CALM, cores=8), replace(CALM, cores=8, other_load=1.0), Cause.LOAD),
    ],
)
def test_the_cause_of_a_disturbed_pair(off, drafted, cause):
    """What is the same in both halves disturbs nothing, but for swapping, which is never quite the same."""
    found = cause_of(pair(off, drafted))
    assert (found.cause if found else None) == cause
    assert found is None or found.sentence.endswith(".")


def test_a_cause_that_comes_back_three_times_lasts():
    """A pair is measured three times at most: what was there each time belongs to the drafting."""
    assert lasting(rows(*[(CALM, SWAPPING)] * 2)) == frozenset()
    lasts = lasting(rows(*[(CALM, SWAPPING)] * 3))
    assert lasts == {Cause.SWAP_DRAFTED}
    assert cause_of(pair(CALM, SWAPPING), lasts) is None
    assert cause_of(pair(SWAPPING, CALM), lasts) is not None
    lasts = lasting(rows(*[(CALM, HOT)] * 3))
    assert lasts == {Cause.HEAT_DRAFTED}
    assert cause_of(pair(CALM, HOT), lasts) is None


def test_repeats_may_be_of_several_prompts():
    """Drafting swaps in every second request: no prompt three times, and the pairs with it still count."""
    stored = [
        half
        for n in range(3)
        for half in rows((CALM, SWAPPING), (CALM, CALM), prompt=f"p{n}", start=100.0 * n)
    ]
    assert lasting(stored) == {Cause.SWAP_DRAFTED}


def test_what_lasts_never_counts_for_the_drafting_alone():
    """Where swapping without drafting counts, swapping with it counts too, however seldom it is."""
    assert lasting(rows(*[(SWAPPING, CALM)] * 3)) == {Cause.SWAP_OFF, Cause.SWAP_DRAFTED}
    assert lasting(rows(*[(HOT, CALM)] * 3)) == {Cause.HEAT_OFF, Cause.HEAT_DRAFTED}
    both = lasting(rows(*[(SWAPPING, SWAPPING)] * 3))
    assert cause_of(pair(SWAPPING, SWAPPING), both) is None


def test_other_causes_never_last():
    """A neighbour's load is not the drafting's, however often it comes back."""
    busy = replace(CALM, other_load=2.0)
    assert lasting(rows(*[(CALM, busy)] * 5)) == frozenset()


def test_what_was_left_out_is_counted_and_said():
    """By cause, the most frequent one first."""
    stored = [
        half
        for n, states in enumerate(
            [(CALM, replace(CALM, other_load=2.0))] * 2 + [(CALM, SWAPPING), (CALM, CALM)]
        )
        for half in rows(states, prompt=f"p{n}", start=10.0 * n)
    ]
    counts = left_out(stored, lasting(stored))
    assert counts == {"load of other processes": 2, "swapping with drafting": 1}
    assert (
        left_out_sentence(counts)
        == "3 pairs do not count: load of other processes (2), swapping with drafting (1)."
    )
    assert left_out_sentence({"swapping": 1}) == "1 pair does not count: swapping (1)."
    assert left_out_sentence({}) == ""


def test_heat_of_a_gpu_that_comes_back_belongs_to_the_drafting():
    """As heat of the processor does; both in one pair are one sign of it. A GPU at its limit of heat goes on and off: both sides count."""
    cool, hot = replace(CALM, gpu_heat=False), replace(HOT, gpu_heat=True)
    assert lasting(rows(*[(cool, hot)] * 2)) == frozenset()
    lasts = lasting(rows(*[(cool, hot)] * 3))
    assert lasts == {Cause.HEAT_DRAFTED}
    assert cause_of(pair(cool, hot), lasts) is None
    warm = replace(CALM, gpu_heat=True)
    both = lasting(rows(*[(cool, warm), (warm, cool)] * 3))
    assert both == {Cause.HEAT_OFF, Cause.HEAT_DRAFTED}
    assert cause_of(pair(warm, cool), both) is None


def test_a_mac_that_drafting_heats_gets_its_verdict():
    """It tells a level of heat and no count: earlier every such pair was left out, for ever."""
    stored = rows(*[(replace(COOL_MAC, changed=COOLED), replace(HOT_MAC, changed=HEATED))] * 3)
    assert left_out(stored, frozenset()) == {"more heat with drafting": 1}
    assert lasting(stored) == {Cause.HEAT_DRAFTED}
    assert left_out(stored, lasting(stored)) == {}
    # Not what passes within a pair besides.
    for change in ({"on_battery": True}, {"changed": "the machine slept, or its clock was set"}):
        assert cause_of(pair(COOL_MAC, replace(HOT_MAC, **change)), lasting(stored)).cause is Cause.CHANGE
    # A level that goes up and down by itself favours neither side.
    both = lasting(rows(*[(COOL_MAC, HOT_MAC), (HOT_MAC, COOL_MAC)] * 3))
    assert both == {Cause.HEAT_OFF, Cause.HEAT_DRAFTED}


def test_a_gpu_that_others_use_is_busy():
    """It takes no processor time."""
    calm = MachineState(window_s=1.0, cores=4)
    assert not busy(calm)
    assert not busy(MachineState(window_s=1.0, cores=4, gpu_other_load=0.05))
    assert busy(MachineState(window_s=1.0, cores=4, gpu_other_load=0.3))

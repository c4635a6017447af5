"""The machine's state over a window of time: from recorded figures, and with real load."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace

import psutil
import pytest

from autospec.hardware.gpu import GpuWatch
from autospec.hardware.nvidia import Nvidia
from autospec.hardware.readings import Power, ProcessTime, Reading
from autospec.hardware.state import (
    Limits,
    MachineState,
    StateWatch,
    between,
    disturbed,
    heat_changed,
    others_words,
)
from tests.hardware.fake_gpus import Card, FakeNvml

# A quiet second on four cores: a server (pid 7) used two of them, this process a little.
FIRST = Reading(
    at_s=100.0, wall_s=5000.0, busy_s=900.0, steal_s=3.0, cores=4, self_s=10.0, reaped_s=40.0,
    processes={7: ProcessTime(4000.0, 100.0)}, memory_available_bytes=8 << 30, swap_in_bytes=4096, throttles=2,
    power=Power(on_battery=False, battery_percent=80.0, low_power=False, thermal="nominal"),
)  # fmt: skip
LAST = replace(
    FIRST, at_s=101.0, wall_s=5001.0, busy_s=902.15, self_s=10.05, processes={7: ProcessTime(4000.0, 102.0)}
)


def test_load_is_the_systems_less_ours():
    """2.15 s of work, 2.05 of them ours: others used a tenth of a core."""
    state = between(FIRST, LAST)
    assert state.window_s == pytest.approx(1.0)
    assert state.other_load == pytest.approx(0.10)
    assert state.steal == 0.0
    assert disturbed(state) == ""


@pytest.mark.parametrize(
    ("wall_s", "slept"), [(5001.0, False), (5002.9, False), (5003.1, True), (4000.0, False)]
)
def test_a_sleep_within_the_window_disturbs_it(wall_s, slept):
    """The monotonic clock says one second; a clock that was set back says nothing."""
    state = between(FIRST, replace(LAST, wall_s=wall_s))
    assert disturbed(state) == (
        "During the measurement the machine slept, or its clock was set." if slept else ""
    )


def test_a_server_that_ended_in_the_window_stays_ours():
    """Its whole time moves to the ended children's, of which only the window's part counts."""
    last = replace(LAST, processes={}, reaped_s=142.0)
    assert between(FIRST, last).other_load == pytest.approx(0.10)


def test_a_server_that_a_child_launched_and_ended_in_the_window_is_ours():
    """No reading ever saw it; its time is among that of the child's ended children."""
    last = replace(LAST, busy_s=903.15, processes={7: ProcessTime(4000.0, 102.0, reaped_s=1.0)})
    assert between(FIRST, last).other_load == pytest.approx(0.10)


def test_a_child_that_ended_takes_its_ended_childrens_past_along():
    """All of it moves to this process's ended children, and only the window's part counts: 2 s of 152."""
    first = replace(FIRST, processes={7: ProcessTime(4000.0, 100.0, reaped_s=50.0)})
    assert between(first, replace(LAST, processes={}, reaped_s=192.0)).other_load == pytest.approx(0.10)


def test_a_server_that_began_in_the_window_is_ours():
    """Its time since its start counts."""
    last = replace(LAST, busy_s=903.15, processes=LAST.processes | {8: ProcessTime(5000.2, 1.0)})
    assert between(FIRST, last).other_load == pytest.approx(0.10)


def test_a_process_that_became_ours_later_brings_no_past():
    """Attaching to a server that ran for hours does not make the window's load negative or hide others'."""
    last = replace(LAST, processes=LAST.processes | {9: ProcessTime(1000.0, 7200.0)})
    assert between(FIRST, last).other_load == pytest.approx(0.10)


def test_a_reused_pid_is_another_process():
    """The start time tells them apart."""
    last = replace(LAST, busy_s=900.65, processes={7: ProcessTime(5000.5, 0.5)})
    assert between(FIRST, last).other_load == pytest.approx(0.10)


def test_load_is_never_negative():
    """The counters tick apart; less than nothing is nothing."""
    assert between(FIRST, replace(LAST, busy_s=901.0)).other_load == 0.0


def test_an_empty_window_divides_nothing():
    """Two readings at one moment."""
    state = between(FIRST, FIRST)
    assert state.other_load == 0.0
    assert disturbed(state) == ""


def test_foreign_load_disturbs():
    """One core of four taken by others is said with its number."""
    state = between(FIRST, replace(LAST, busy_s=903.05))
    assert state.other_load == pytest.approx(1.0)
    assert disturbed(state) == "Other processes used 1.0 of 4 cores."


def test_the_limit_grows_with_the_machine():
    """Half a core in the background is normal on 24 and too much on two."""
    state = replace(between(FIRST, LAST), other_load=0.5)
    assert disturbed(replace(state, cores=24)) == ""
    assert disturbed(replace(state, cores=2)) != ""


def test_ticks_do_not_disturb_a_short_window():
    """In 100 ms a few ticks of 10 ms look like half a core."""
    state = replace(between(FIRST, LAST), window_s=0.1, other_load=0.6)
    assert disturbed(state) == ""
    assert disturbed(state, limits=Limits(slack_core_s=0.0)) != ""


def test_stolen_time_disturbs():
    """A neighbour on the same host is said to be one."""
    state = between(FIRST, replace(LAST, steal_s=3.5))
    assert state.steal == pytest.approx(0.5)
    assert disturbed(state).startswith("The hypervisor withheld 0.5 of 4 cores")


def test_reading_back_from_swap_disturbs():
    """Only from some amount on."""
    assert disturbed(between(FIRST, replace(LAST, swap_in_bytes=4096 + (1 << 20)))) == ""
    assert "64 MiB" in disturbed(between(FIRST, replace(LAST, swap_in_bytes=4096 + (64 << 20))))


def test_swap_of_macos_counts_too():
    """There it comes with the slow readings."""
    last = replace(LAST, power=replace(LAST.power, swap_in_bytes=64 << 20))
    assert between(FIRST, last).swap_in_bytes == 64 << 20


@pytest.mark.parametrize(
    ("after", "sentence"),
    [
        (Power(True, 79.0, False, "nominal"), "the machine went on battery"),
        (Power(False, 80.0, True, "nominal"), "low power mode was switched on"),
        (Power(False, 80.0, False, "throttled"), "heat slowed the processor"),
    ],
)
def test_a_change_of_power_or_heat_disturbs(after: Power, sentence: str):
    """Within the window, and against the measurement that it is compared with."""
    first, last = replace(FIRST, throttles=None), replace(LAST, throttles=None)  # macOS: a level, no count
    state = between(first, replace(last, power=after))
    assert disturbed(state) == f"During the measurement {sentence}."
    before = between(first, last)
    assert disturbed(replace(state, changed=""), before) == f"Since the previous measurement, {sentence}."


def test_a_throttle_counter_that_moved_is_heat_and_no_change():
    """Linux counts the events. Laptops under a full load raise the count all the time: that is their state."""
    state = between(FIRST, replace(LAST, throttles=3))
    assert (state.thermal, state.throttles) == ("throttled", 1)
    assert disturbed(state) == ""
    assert between(FIRST, LAST).throttles == 0
    assert between(replace(FIRST, throttles=None), LAST).throttles is None


@pytest.mark.parametrize(
    ("first", "second", "changed"),
    [
        (0, 0, False),
        (0, 1, False),  # half of the windows have one: by chance, the neighbour has none
        (0, 7, False),  # 1.6 % by chance
        (0, 8, True),  # 0.8 %
        (20, 20, False),
        (30, 59, False),  # events come in bursts: less than twice as many
        (30, 70, True),
        (2000, 2100, False),
        (200, 2000, True),
    ],
)
def test_rates_of_throttling_are_compared(first: int, second: int, changed: bool):
    """In windows of one length; in whichever order."""
    states = [replace(between(FIRST, LAST), throttles=n) for n in (first, second)]
    assert heat_changed(*states) is changed
    assert heat_changed(*reversed(states)) is changed
    word = "Since the previous measurement, heat slowed the processor." if changed else ""
    assert disturbed(states[1], states[0]) == word


def test_a_longer_window_has_more_throttling():
    """Thirty events in three seconds are the rate of ten in one."""
    short = replace(between(FIRST, LAST), throttles=10)
    assert not heat_changed(short, replace(short, window_s=3.0, throttles=30))
    assert heat_changed(short, replace(short, window_s=0.3, throttles=30))
    assert not heat_changed(short, replace(short, window_s=0.0, throttles=30))


def test_a_stored_state_of_another_version_is_read():
    """A field of a later version is ignored; one that is missing is unknown, and disturbs nothing."""
    state = between(FIRST, LAST)
    assert MachineState.from_json(state.to_json()) == replace(
        state, **{k: round(getattr(state, k), 3) for k in ("window_s", "other_load", "steal")}
    )
    assert MachineState.from_json(state.to_json() | {"fan_rpm": 5000}).cores == 4
    old = {k: v for k, v in state.to_json().items() if k not in {"throttles", "gpu_other_load", "changed"}}
    assert MachineState.from_json(old).throttles is None
    assert disturbed(MachineState.from_json({})) == ""


def test_load_of_others_on_the_gpu_disturbs():
    """It takes no processor time, and so is seen by nothing else."""
    state = between(FIRST, LAST)
    assert disturbed(replace(state, gpu_other_load=0.05)) == ""
    assert (
        disturbed(replace(state, gpu_other_load=0.3, gpu_other_memory_bytes=1 << 30))
        == "Other processes used 30 % of the GPU."
    )


def test_the_limit_is_wider_where_models_compute_on_a_macs_gpu():
    """What the desktop does on some cores costs them little; two of eight cores are too much there as well."""
    state = replace(between(FIRST, LAST), cores=8, other_load=1.0)
    assert disturbed(state) == "Other processes used 1.0 of 8 cores."
    assert disturbed(replace(state, on_metal=True)) == ""
    assert disturbed(replace(state, on_metal=True, other_load=2.0)) != ""


def test_a_power_limit_that_was_changed_disturbs():
    """From one half to the other; unknown in one of them is no change."""
    state = replace(between(FIRST, LAST), gpu_power_limit_w=450.0)
    lowered = replace(state, gpu_power_limit_w=250.0)
    assert disturbed(lowered, state) == "Since the previous measurement, the GPU's power limit was changed."
    assert disturbed(state, state) == ""
    assert disturbed(lowered, between(FIRST, LAST)) == ""


def test_the_words_for_what_others_use():
    """The GPU only where it is used."""
    state = replace(between(FIRST, LAST), other_load=1.0, steal=0.5)
    assert others_words(state) == "1.5 of 4 cores"
    assert others_words(replace(state, gpu_other_load=0.31)) == "1.5 of 4 cores and 31 % of the GPU"


def test_a_watch_keeps_what_gpus_and_counters_tell():
    """Heat, limit, use by others and joules, of stand-ins for both."""
    card = Card(compute=[(os.getpid(), 1), (1, 5)], reasons=0x20, energy_mj=1_000)
    watch = StateWatch(gpu=GpuWatch([Nvidia(FakeNvml(card))]))
    watch.start()
    card.energy_mj = 43_000
    state = watch.finish()
    assert (state.gpu_heat, state.gpu_power_limit_w, state.gpu_other_memory_bytes) == (True, 450.0, 5)
    assert state.gpu_energy_j == 42.0
    assert MachineState.from_json(state.to_json()).gpu_energy_j == 42.0


def test_what_is_unknown_does_not_disturb():
    """A machine that tells nothing about power and heat can still be measured."""
    nothing = Power()
    state = between(
        replace(FIRST, power=nothing, throttles=None), replace(LAST, power=nothing, throttles=None)
    )
    assert state.thermal == "unknown"
    assert disturbed(state, between(FIRST, LAST)) == ""


def test_a_steady_battery_does_not_disturb():
    """Only the change does: some machines have nothing else."""
    power = Power(on_battery=True, battery_percent=50.0)
    state = between(replace(FIRST, power=power), replace(LAST, power=power))
    assert disturbed(state, state) == ""


def test_a_state_is_json():
    """It is kept beside the measurement."""
    data = between(FIRST, LAST).to_json()
    assert data["other_load"] == 0.1
    assert data["thermal"] == "nominal"
    assert set(data) == set(MachineState.__dataclass_fields__)


def test_finish_needs_start():
    """A window has two ends."""
    with pytest.raises(RuntimeError):
        StateWatch().finish()


# Whatever becomes of the test, the load ends by itself.
SPIN = "import resource; resource.setrlimit(resource.RLIMIT_CPU, (20, 20))\nwhile True: pass"


@pytest.fixture
def foreign() -> Iterator[psutil.Process]:
    """A busy process that is not a descendant of this one: its parent has ended."""
    start = f"subprocess.Popen([sys.executable, '-c', {SPIN!r}], stdout=subprocess.DEVNULL)"
    parent = f"import subprocess, sys; print({start}.pid)"
    printed = subprocess.run([sys.executable, "-c", parent], stdout=subprocess.PIPE, check=True, text=True)
    process = psutil.Process(int(printed.stdout))
    try:
        yield process
    finally:
        process.send_signal(signal.SIGKILL)


def window(
    watches: list[StateWatch], process: psutil.Process, least_s: float
) -> tuple[list[MachineState], float]:
    """Watch until the process has used so much processor time; its load over the window."""
    began, used = time.monotonic(), sum(process.cpu_times()[:2])
    for watch in watches:
        watch.start()
    while sum(process.cpu_times()[:2]) < used + least_s:
        assert time.monotonic() < began + 30
        time.sleep(0.02)
    load = (sum(process.cpu_times()[:2]) - used) / (time.monotonic() - began)
    return [watch.finish() for watch in watches], load


def test_a_foreign_busy_process_is_other_load(foreign: psutil.Process):
    """At least what that process used is reported, whatever else runs here."""
    (state,), load = window([StateWatch()], foreign, 0.5)
    assert state.other_load > load - 0.15
    if load > 0.5:
        assert disturbed(state).startswith("Other processes used")


def test_a_declared_process_is_not_other_load(foreign: psutil.Process):
    """Told that it is ours, the watch leaves out just that process's load."""
    told = StateWatch(lambda: frozenset({foreign.pid}))
    states, load = window([StateWatch(), told], foreign, 0.5)
    assert states[0].other_load - states[1].other_load == pytest.approx(load, abs=0.2)


def test_our_own_child_is_not_other_load():
    """A descendant is found without being declared; a watch that overlooks it sees its load."""
    with subprocess.Popen([sys.executable, "-c", SPIN]) as child:
        try:
            blind = StateWatch(refresh_s=float("inf"))
            blind._refreshed_s = time.monotonic()
            states, load = window([blind, StateWatch()], psutil.Process(child.pid), 0.5)
        finally:
            os.kill(child.pid, signal.SIGKILL)
    assert states[0].other_load - states[1].other_load == pytest.approx(load, abs=0.2)


def test_this_process_is_not_other_load():
    """What we compute ourselves is no disturbance: a window of pure own work stays near the blind machine's load."""
    watch = StateWatch()
    watch.start()
    first, began = time.process_time(), time.monotonic()
    idle_before = psutil.cpu_times().idle
    while time.process_time() < first + 0.3:
        assert time.monotonic() < began + 30
    state = watch.finish()
    own = (time.process_time() - first) / state.window_s
    idle = (psutil.cpu_times().idle - idle_before) / state.window_s
    assert state.other_load <= state.cores - own - idle + 0.25

"""The machine's state over the window of one measurement, and whether it disturbed the measurement."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

from autospec.hardware.energy import Energy, EnergyMeter
from autospec.hardware.gpu import GpuWatch, on_metal
from autospec.hardware.gpu_reading import GpuUse
from autospec.hardware.readings import Power, Reading, descendants, read, read_power

__all__ = [
    "COOLED",
    "HEATED",
    "Limits",
    "MachineState",
    "StateWatch",
    "between",
    "disturbed",
    "heat_changed",
    "others_words",
    "tolerated_cores",
]


@dataclass(frozen=True, slots=True)
class MachineState:
    """The machine over one window; the defaults mean "unknown" and disturb nothing.

    Attributes:
        window_s: Length of the window.
        cores: Logical cores that we may use.
        other_load: Cores that other processes kept busy, on average.
        steal: Cores that the hypervisor withheld, on average (Linux guests).
        on_battery: At the end of the window; ``None`` if unknown.
        battery_percent: ``None`` without a battery.
        low_power: True if the user chose to save power; ``None`` if unknown.
        thermal: ``nominal``, ``throttled`` or ``unknown``.
        memory_available_bytes: At the end of the window.
        swap_in_bytes: Read back from swap within the window.
        changed: What changed within the window, as a clause; empty if nothing did.
        throttles: How often heat slowed a processor within the window; ``None`` if the system does not count it.
        gpu_other_load: Share of the busiest GPU that other processes used; ``None`` if unknown.
        gpu_other_memory_bytes: GPU memory of other processes; ``None`` if unknown.
        gpu_heat: True if heat slowed a GPU at the end of the window; ``None`` if unknown.
        gpu_power_limit_w: The power limits set, all GPUs together; ``None`` if unknown.
        on_metal: Models compute on a Mac's GPU.
        cpu_energy_j: Energy of all processor packages in the window, and `gpu_energy_j` of the GPUs that computed (of all if that is
            not known): of everything that ran there, idle power included; ``None`` if unknown.
    """

    window_s: float = 0.0
    cores: int = 1
    other_load: float = 0.0
    steal: float = 0.0
    on_battery: bool | None = None
    battery_percent: float | None = None
    low_power: bool | None = None
    thermal: str = "unknown"
    memory_available_bytes: int = 0
    swap_in_bytes: int = 0
    changed: str = ""
    throttles: int | None = None
    gpu_other_load: float | None = None
    gpu_other_memory_bytes: int | None = None
    gpu_heat: bool | None = None
    gpu_power_limit_w: float | None = None
    on_metal: bool = False
    cpu_energy_j: float | None = None
    gpu_energy_j: float | None = None

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote, in this or another version; unknown fields are ignored."""
        return cls(**{f.name: data[f.name] for f in fields(cls) if f.name in data})

    def to_json(self) -> dict[str, Any]:
        """All fields, to store with the measurement; rounded to the precision of the readings."""
        return asdict(self) | {
            "window_s": round(self.window_s, 3),
            "other_load": round(self.other_load, 3),
            "steal": round(self.steal, 3),
            "gpu_other_load": _rounded(self.gpu_other_load),
            "cpu_energy_j": _rounded(self.cpu_energy_j),
            "gpu_energy_j": _rounded(self.gpu_energy_j),
        }


@dataclass(frozen=True, slots=True)
class Limits:
    """How much disturbance a measurement may contain.

    llama.cpp's threads wait for the slowest one at every layer. A foreign process that takes a quarter of one of their cores can
    cost up to a quarter of the speed; pairs cancel only what is steady. Large machines always have some cores' worth of
    desktop in the background, and idle cores to run it: hence the share. On a Mac models compute on the GPU, and what the system and
    open programs do on some cores costs them little; that share is a guess that has not been checked on a Mac.

    Attributes:
        other_load: Cores that others may use on a small machine.
        other_share: Share of all cores that others may use, if that is more; `metal_share` on a Mac's GPU.
        steal_share: Share of all cores that the hypervisor may withhold.
        swap_in_bytes: What may be read back from swap: some 10 ms on an SSD.
        slack_core_s: Processor time within the counters' resolution: ticks of 10 ms on each side of every counter, which
            are 0.25 cores of a window of 100 ms.
        gpu_load: Share of a GPU that others may use: a desktop's compositor takes a few per cent.
    """

    other_load: float = 0.25
    other_share: float = 0.05
    metal_share: float = 0.15
    steal_share: float = 0.05
    swap_in_bytes: int = 32 * 1024**2
    slack_core_s: float = 0.05
    gpu_load: float = 0.10


_DEFAULT_LIMITS = Limits()
# What `MachineState.changed` says of heat.
HEATED, COOLED = "heat slowed the processor", "the processor recovered from heat"
# Significance level for a difference in throttling between two windows.
_HEAT_CHANCE = 0.01
# Clocks are slewed by less than this; a sleep takes longer.
_JUMP_S = 2.0
# Above this number of events the normal approximation suffices.
_EXACT_TRIALS = 500


def tolerated_cores(cores: int, *, on_metal: bool, limits: Limits = _DEFAULT_LIMITS) -> float:
    """Cores that other processes may use during a measurement."""
    return max(limits.other_load, (limits.metal_share if on_metal else limits.other_share) * cores)


def others_words(state: MachineState) -> str:
    """What other programs, and the hypervisor, use: ``1.5 of 4 cores and 30 % of the GPU``."""
    words = f"{state.other_load + state.steal:.1f} of {state.cores} cores"
    return words if not state.gpu_other_load else f"{words} and {100 * state.gpu_other_load:.0f} % of the GPU"


def disturbed(
    state: MachineState, previous: MachineState | None = None, limits: Limits = _DEFAULT_LIMITS
) -> str:
    """Return why the measurement in this window should be repeated: one sentence, or empty.

    `previous` is the window of the measurement to compare with; power and heat must be the same.
    """
    if state.changed:
        return f"During the measurement {state.changed}."
    if previous is not None and (change := _change(previous, state)):
        return f"Since the previous measurement, {change}."
    slack = limits.slack_core_s / state.window_s if state.window_s > 0 else 0.0
    if state.other_load - slack > tolerated_cores(state.cores, on_metal=state.on_metal, limits=limits):
        return f"Other processes used {state.other_load:.1f} of {state.cores} cores."
    if state.steal - slack > limits.steal_share * state.cores:
        return f"The hypervisor withheld {state.steal:.1f} of {state.cores} cores."
    if state.swap_in_bytes > limits.swap_in_bytes:
        return f"{state.swap_in_bytes / 1024**2:.0f} MiB were read back from swap: memory is short."
    if (state.gpu_other_load or 0.0) > limits.gpu_load:
        return f"Other processes used {100 * (state.gpu_other_load or 0.0):.0f} % of the GPU."
    return ""


def heat_changed(first: MachineState, second: MachineState) -> bool:
    """Return whether heat slowed the processor more often in one of two windows than in the other.

    If the system counts throttling, rates are compared. A count that rises steadily is the machine's normal state and slows
    both windows alike. Two counts differ if equal rates would differ this much in less than one of a hundred cases, and one
    rate is more than twice the other, because events come in bursts.
    """
    if first.throttles is None or second.throttles is None:
        return False
    events = first.throttles + second.throttles
    time_s = first.window_s + second.window_s
    if not events or first.window_s <= 0 or second.window_s <= 0:
        return False
    fewer, more = sorted((first, second), key=lambda s: (s.throttles or 0) / s.window_s)
    if (more.throttles or 0) / more.window_s <= 2 * (fewer.throttles or 0) / fewer.window_s:
        return False
    return 2 * _binomial_tail(more.throttles or 0, events, more.window_s / time_s) < _HEAT_CHANCE


def between(first: Reading, last: Reading) -> MachineState:
    """Return the state over the window between two readings."""
    window_s = last.at_s - first.at_s
    per_second = 1.0 / window_s if window_s > 0 else 0.0
    others_s = max(0.0, last.busy_s - first.busy_s - _own_s(first, last))
    power = last.power
    state = MachineState(
        window_s=window_s,
        cores=last.cores,
        other_load=others_s * per_second,
        steal=max(0.0, last.steal_s - first.steal_s) * per_second,
        on_battery=power.on_battery,
        battery_percent=power.battery_percent,
        low_power=power.low_power,
        thermal=power.thermal,
        memory_available_bytes=last.memory_available_bytes,
        swap_in_bytes=max(0, _swap_in_bytes(last) - _swap_in_bytes(first)),
        on_metal=on_metal(),
    )
    state = replace(state, changed=_slept(first, last) or _change(first.power, state))
    if first.throttles is None or last.throttles is None:
        return state
    # A rising count is not a change of state: under full load, laptops raise it all the time.
    throttles = max(0, last.throttles - first.throttles)
    return replace(state, throttles=throttles, thermal="throttled" if throttles else state.thermal)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _binomial_tail(count: int, trials: int, share: float) -> float:
    """The chance of at least `count` of `trials`, each with this share."""
    if trials > _EXACT_TRIALS:
        spread = math.sqrt(trials * share * (1.0 - share))
        return 0.5 * math.erfc((count - 0.5 - trials * share) / (spread * math.sqrt(2.0)))
    return sum(
        math.comb(trials, k) * share**k * (1.0 - share) ** (trials - k) for k in range(count, trials + 1)
    )


def _swap_in_bytes(reading: Reading) -> int:
    return reading.swap_in_bytes + reading.power.swap_in_bytes  # Linux; macOS


def _own_s(first: Reading, last: Reading) -> float:
    """Processor time of this process and its servers in the window; `reaped_s` of a parent gets its ended children's whole time."""
    own = last.self_s - first.self_s
    reaped = last.reaped_s - first.reaped_s
    for pid, now in last.processes.items():
        before = first.processes.get(pid)
        if before is not None and before.created_s == now.created_s:
            own += now.cpu_s - before.cpu_s
            reaped += now.reaped_s - before.reaped_s
        elif now.created_s >= first.wall_s - 0.05:  # start times are in ticks
            own += now.cpu_s
            reaped += now.reaped_s
    ended = sum(
        before.cpu_s + before.reaped_s
        for pid, before in first.processes.items()
        if pid not in last.processes or last.processes[pid].created_s != before.created_s
    )
    return own + max(0.0, reaped - ended)


def _change(before: Power | MachineState, after: MachineState) -> str:
    if None not in (before.on_battery, after.on_battery) and before.on_battery != after.on_battery:
        return "the machine went on battery" if after.on_battery else "the machine went off battery"
    if None not in (before.low_power, after.low_power) and before.low_power != after.low_power:
        return f"low power mode was switched {'on' if after.low_power else 'off'}"
    limits = before.gpu_power_limit_w if isinstance(before, MachineState) else None, after.gpu_power_limit_w
    if None not in limits and limits[0] != limits[1]:
        return "the GPU's power limit was changed"
    if isinstance(before, MachineState) and None not in (before.throttles, after.throttles):
        if not heat_changed(before, after):
            return ""
        rose = after.throttles / after.window_s > before.throttles / before.window_s  # type: ignore[operator]
        return HEATED if rose else COOLED
    if "unknown" not in (before.thermal, after.thermal) and before.thermal != after.thermal:
        return HEATED if after.thermal == "throttled" else COOLED
    return ""


def _slept(first: Reading, last: Reading) -> str:
    """What happened if the time of day advanced further than the monotonic clock, which stands still while the system sleeps."""
    # A server's own times contain the sleep on macOS, and those of Python do not.
    jump_s = (last.wall_s - first.wall_s) - (last.at_s - first.at_s)
    return "the machine slept, or its clock was set" if jump_s > _JUMP_S else ""


class StateWatch:
    """Watches the machine around measurements: `start`, measure, `finish`.

    Args:
        own_pids: Returns processes that are ours, e.g. a server's; descendants of this process are found automatically.
        refresh_s: Least time between two readings of slow values (battery, heat, list of descendants). They are read
            before the window or after it, never within.
        gpu: Reads the GPUs; by default those of this machine.
        energy: Reads the energy counters; by default those of this machine.
    """

    def __init__(
        self,
        own_pids: Callable[[], frozenset[int]] = frozenset,
        *,
        refresh_s: float = 5.0,
        gpu: GpuWatch | None = None,
        energy: EnergyMeter | None = None,
    ) -> None:
        self._own_pids = own_pids
        self._refresh_s = refresh_s
        self._refreshed_s = -float("inf")
        self._power = Power()
        self._descendants: frozenset[int] = frozenset()
        self._first: Reading | None = None
        self._gpu = GpuWatch() if gpu is None else gpu
        self._energy = EnergyMeter(self._gpu.energy_j) if energy is None else energy

    def start(self) -> None:
        """Start a window; an unfinished window is discarded."""
        self._refresh()
        self._gpu.start()
        self._energy.start()
        self._first = self._read()

    def finish(self, *, at_rest: bool = False) -> MachineState:
        """End the window and return its state; `start` must come first. `at_rest` is for a window in which we computed nothing."""
        if self._first is None:
            raise RuntimeError("finish() without start()")
        first, self._first = self._first, None
        last = self._read()
        energy: Energy = self._energy.finish(last.at_s - first.at_s)
        used: GpuUse | None = self._gpu.finish(
            self._own_pids() | self._descendants | {os.getpid()}, at_rest=at_rest
        )
        if self._refresh():
            last = replace(last, power=self._power)
        state = replace(between(first, last), cpu_energy_j=energy.cpu_j, gpu_energy_j=energy.gpu_j)
        if used is None:
            return state
        return replace(
            state,
            # All GPUs together only where it is not known which of them compute.
            gpu_energy_j=state.gpu_energy_j if used.energy_j is None else used.energy_j,
            gpu_other_load=used.other_load,
            gpu_other_memory_bytes=used.other_memory_bytes,
            gpu_heat=used.heat,
            gpu_power_limit_w=used.power_limit_w,
        )

    def _read(self) -> Reading:
        return read((self._own_pids() | self._descendants) - {os.getpid()}, self._power)

    def _refresh(self) -> bool:
        if time.monotonic() - self._refreshed_s < self._refresh_s:
            return False
        self._power = read_power()
        self._descendants = descendants()
        self._refreshed_s = time.monotonic()
        return True

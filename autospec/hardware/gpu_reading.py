"""What drivers and their libraries tell of GPUs, at one moment and over a window. What none of them tells is ``None``."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

__all__ = ["HEAT", "GpuReading", "GpuSource", "GpuUse", "computing_on", "energy_between", "use_of"]

HEAT = "heat"
"""The word in `GpuReading.slowed` for clocks that are low because of the temperature."""
# What a process holds on a GPU where it computes nothing: CUDA's context, 93 to 700 MiB on every GPU that it can see, whatever
# `--device` and `-sm none` say (llama.cpp #8827, #20595, #21692).
_CONTEXT_BYTES = 768 * 1024**2
# The driver's own memory, which no process is listed for: at least this, and this share on large GPUs.
_DRIVERS_BYTES = 1024**3
_DRIVERS_SHARE = 0.02


@dataclass(frozen=True, slots=True)
class GpuReading:
    """One GPU, or one MIG instance of it, at one moment.

    Attributes:
        name: The maker's.
        total_bytes: Its own memory; `free_bytes` is the free part.
        processes: Memory of each process on it by pid; ``None`` for a process whose memory is not told. In a container the numbers
            are often those of the host.
        temperature_c: Degrees Celsius.
        power_w: Power now; `power_limit_w` is the limit that is set, `power_limit_default_w` the maker's.
        clock_mhz: Of the cores now; `clock_max_mhz` is the highest.
        slowed: Why its clocks are lower than they could be: `HEAT`, ``power brake``, ``hardware``. A limit of power, which many GPUs
            reach under every load, is not one of them.
        is_instance: True for a part of a divided GPU (MIG).
    """

    name: str
    total_bytes: int | None = None
    free_bytes: int | None = None
    processes: Mapping[int, int | None] | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    power_limit_default_w: float | None = None
    clock_mhz: float | None = None
    clock_max_mhz: float | None = None
    slowed: tuple[str, ...] | None = None
    is_instance: bool = False

    def held_bytes(self, own_pids: frozenset[int] = frozenset()) -> int | None:
        """Memory that other processes hold.

        If the driver does not tell every process's memory, as to a user without the right to ask: all memory in use. So too if it
        lists fewer processes than hold memory, as in a container, which sees its own, and in WSL, where the list is empty.
        """
        used = self._used_bytes()
        if self.processes is None:
            return used
        ours, others = (
            [held for pid, held in self.processes.items() if (pid in own_pids) is own]
            for own in (True, False)
        )
        told = sum(held for held in others if held is not None)
        if used is None or None in ours:
            return None if used is None and None in others else told
        rest = max(0, used - sum(held for held in ours if held is not None))
        if None in others:
            return rest
        drivers = max(_DRIVERS_BYTES, _DRIVERS_SHARE * (self.total_bytes or 0))
        return rest if rest - told > drivers else told

    def _used_bytes(self) -> int | None:
        if self.total_bytes is None or self.free_bytes is None:
            return None
        return self.total_bytes - self.free_bytes

    def to_json(self) -> dict[str, Any]:
        """All fields but the processes: their number, and the memory that they hold."""
        return {
            "name": self.name,
            "total_bytes": self.total_bytes,
            "free_bytes": self.free_bytes,
            "held_bytes": self.held_bytes(),
            "processes": None if self.processes is None else len(self.processes),
            "temperature_c": self.temperature_c,
            "power_w": self.power_w,
            "power_limit_w": self.power_limit_w,
            "power_limit_default_w": self.power_limit_default_w,
            "clock_mhz": self.clock_mhz,
            "clock_max_mhz": self.clock_max_mhz,
            "slowed": None if self.slowed is None else list(self.slowed),
        }


@dataclass(frozen=True, slots=True)
class GpuUse:
    """The GPUs over one window: those on which ours compute, of all where none of ours computed.

    Attributes:
        other_load: Share of the busiest GPU that other processes used.
        other_memory_bytes: Memory of other processes.
        heat: Whether heat slowed a GPU at the end of the window.
        power_limit_w: The power limits that are set, all GPUs of the maker together: so it stays the same if a draft is on another GPU.
        energy_j: What the GPUs took in the window; ``None`` if one of them does not tell it.
    """

    other_load: float | None = None
    other_memory_bytes: int | None = None
    heat: bool | None = None
    power_limit_w: float | None = None
    energy_j: float | None = None


def computing_on(
    listed: Sequence[Mapping[int, int | None] | None], own_pids: frozenset[int], worked: Collection[int] = ()
) -> list[int]:
    """The numbers of the GPUs on which our processes compute, by each GPU's processes and their memory; empty if unknown.

    A GPU that a process has only opened does not count, unless it is so on all of them: then the model may be as small.
    `worked` are GPUs that the driver saw ours work on.
    """
    ours = {
        number: [held for pid, held in processes.items() if pid in own_pids]
        for number, processes in enumerate(listed)
        if processes is not None and not own_pids.isdisjoint(processes)
    }
    holding = [
        number
        for number, held in ours.items()
        if number in worked or any(size is None or size > _CONTEXT_BYTES for size in held)
    ]
    return holding or list(ours)


def energy_between(before: Sequence[float | None], after: Sequence[float | None]) -> float | None:
    """Joules between two looks at the same counters; ``None`` without one, or if one is unknown or went back (a new driver)."""
    if not after or len(before) != len(after):
        return None
    used = 0.0
    for first, last in zip(before, after, strict=True):
        if first is None or last is None or last < first:
            return None
        used += last - first
    return used


def use_of(
    readings: Sequence[GpuReading],
    loads: Sequence[float | None],
    own_pids: frozenset[int],
    *,
    limits_w: Sequence[float | None],
    energy_j: float | None,
) -> GpuUse:
    """Sum up the GPUs that count; `limits_w` are those of all."""
    slowed = [reading.slowed for reading in readings if reading.slowed is not None]
    held = [size for reading in readings if (size := reading.held_bytes(own_pids)) is not None]
    limits = [limit for limit in limits_w if limit is not None]
    return GpuUse(
        max((load for load in loads if load is not None), default=None),
        sum(held) if held else None,
        heat=any(HEAT in reasons for reasons in slowed) if slowed else None,
        power_limit_w=sum(limits) if limits else None,
        energy_j=energy_j,
    )


class GpuSource(Protocol):
    """One maker's library or system interface."""

    def readings(self) -> tuple[GpuReading, ...]:
        """Every GPU now."""

    def energies_j(self) -> tuple[float | None, ...]:
        """The energy counter of every GPU in joules, from an arbitrary zero; ``None`` for a GPU without one."""

    def start(self) -> None:
        """Start a window."""

    def finish(self, own_pids: frozenset[int], *, at_rest: bool = False) -> GpuUse | None:
        """End the window.

        Args:
            own_pids: Processes that do not count as others.
            at_rest: True if none of our processes computed in the window.

        Returns:
            Of the GPUs on which our processes compute, or of all that they might use if they were at rest. ``None`` if no GPU lists any
            of ours, unless they were at rest: they do not compute there, or this is a container, where the driver reports other
            process numbers.
        """

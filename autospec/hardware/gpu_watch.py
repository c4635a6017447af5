"""The GPUs of this machine, of all makers: a reading of each one, and their use by other processes over a window."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from autospec.hardware import amd, nvidia
from autospec.hardware.gpu_reading import GpuReading, GpuSource, GpuUse
from autospec.hardware.metal import Metal, on_metal

__all__ = ["GpuWatch", "read_gpus"]


def _sources() -> tuple[GpuSource, ...]:
    """What can be asked here; empty without a driver, or without its library."""
    if sys.platform == "darwin":
        return (Metal(),) if on_metal() else ()
    found: list[GpuSource] = []
    if (nvml := nvidia.library()) is not None:
        found.append(nvidia.Nvidia(nvml))
    if (smi := amd.library()) is not None:
        found.append(amd.Amd(smi))
    return tuple(found)


def read_gpus(sources: Sequence[GpuSource] | None = None) -> tuple[GpuReading, ...]:
    """Every GPU now; empty if nothing can be asked."""
    return tuple(
        reading for source in (_sources() if sources is None else sources) for reading in source.readings()
    )


class GpuWatch:
    """Measures the use by other processes over a window, outside the timed part. Args: `sources` are this machine's by default."""

    def __init__(self, sources: Sequence[GpuSource] | None = None) -> None:
        self._sources = _sources() if sources is None else tuple(sources)

    def start(self) -> None:
        """Start a window."""
        for source in self._sources:
            source.start()

    def finish(self, own_pids: frozenset[int], *, at_rest: bool = False) -> GpuUse | None:
        """End the window; see `GpuSource.finish`."""
        found = [
            use for source in self._sources if (use := source.finish(own_pids, at_rest=at_rest)) is not None
        ]
        if len(found) < 2:
            return found[0] if found else None
        memory_bytes = _sum([use.other_memory_bytes for use in found])
        return GpuUse(
            max((use.other_load for use in found if use.other_load is not None), default=None),
            None if memory_bytes is None else int(memory_bytes),
            heat=None if all(use.heat is None for use in found) else any(use.heat for use in found),
            power_limit_w=_sum([use.power_limit_w for use in found]),
            energy_j=None
            if any(use.energy_j is None for use in found)
            else _sum([use.energy_j for use in found]),
        )

    def energy_j(self) -> float | None:
        """The energy counters of all GPUs together, in joules from an arbitrary zero.

        ``None`` without a GPU, or if one of them has no counter: it may be the one that computes. Where it is known which GPUs compute,
        `GpuUse.energy_j` is of those alone.
        """
        counters = [counter for source in self._sources for counter in source.energies_j()]
        known = [counter for counter in counters if counter is not None]
        return sum(known) if counters and len(known) == len(counters) else None


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None

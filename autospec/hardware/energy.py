"""Energy of processors and GPUs over a window, from counters that count since the system started.

Processors: RAPL, through Linux's powercap files; since Linux 5.10 only root may read them, unless the machine's
owner allows it. GPUs: their drivers' counters. macOS tells energy to root only (``powermetrics``). A counter is of a whole package: it contains idle
power, and what other processes use.

Where the counters of what computes cannot be read, the aim ``energy`` cannot be pursued: `energy_refusal` says why.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from autospec.cells import Aim, Hardware
from autospec.hardware.gpu import GpuWatch, in_package
from autospec.hardware.identity import text_of

__all__ = ["Energy", "EnergyMeter", "RaplZone", "aim_in_force", "energy_refusal", "rapl_zones"]

_POWERCAP = Path("/sys/class/powercap")
# More than any package draws. A counter is used over a window only if it cannot pass its end twice at this power.
_MOST_W = 500.0


@dataclass(frozen=True, slots=True)
class Energy:
    """Joules in one window; ``None`` where unknown."""

    cpu_j: float | None = None
    gpu_j: float | None = None


@dataclass(frozen=True, slots=True)
class RaplZone:
    """A counter of Linux's powercap; it begins again at 0 after `range_uj` microjoules."""

    path: Path
    range_uj: int

    def read_uj(self) -> int | None:
        """The counter; ``None`` if this user may not read it."""
        text = text_of(self.path / "energy_uj").strip()
        return int(text) if text.isdigit() else None


def rapl_zones(root: Path = _POWERCAP) -> tuple[RaplZone, ...]:
    """The counters of all processor packages and of their memory.

    AMD's processors have them under the same names. A package's parts (``core``, ``uncore``) are in its counter, ``dram`` is not;
    ``psys`` is the whole platform on some machines and a part of it on others, so it is left out. Empty if one of the counters
    cannot be read: a sum of some packages would say nothing.
    """
    found = []
    for folder in sorted(root.glob("intel-rapl:*")):
        kind = text_of(folder / "name").strip()
        is_package = re.fullmatch(r"intel-rapl:\d+", folder.name) and kind.startswith("package")
        if not is_package and kind != "dram":
            continue
        limit = text_of(folder / "max_energy_range_uj").strip()
        zone = RaplZone(folder, int(limit) if limit.isdigit() else 0)
        if zone.read_uj() is None or not zone.range_uj:
            return ()
        found.append(zone)
    return tuple(found)


class EnergyMeter:
    """Reads the counters around a window. It takes well below a millisecond.

    Args:
        gpu_j: Returns the GPUs' counter in joules, ``None`` if unknown.
        zones: The processor's counters; this machine's by default.
    """

    def __init__(self, gpu_j: Callable[[], float | None], zones: Sequence[RaplZone] | None = None) -> None:
        self._gpu_j = gpu_j
        self._zones = rapl_zones() if zones is None else tuple(zones)
        self._first: tuple[list[int | None], float | None] = [], None

    @property
    def parts(self) -> frozenset[str]:
        """The parts of the machine that report their energy now: ``cpu``, ``gpu``."""
        cpu = bool(self._zones) and all(zone.read_uj() is not None for zone in self._zones)
        gpu = self._gpu_j() is not None
        return frozenset(part for part, told in (("cpu", cpu), ("gpu", gpu)) if told)

    def start(self) -> None:
        """Start a window."""
        self._first = [zone.read_uj() for zone in self._zones], self._gpu_j()

    def finish(self, window_s: float) -> Energy:
        """End the window, which was this long."""
        zones_before, gpu_before = self._first
        self._first = [], None
        used_uj = [
            _used_uj(zone, before, zone.read_uj(), window_s)
            for zone, before in zip(self._zones, zones_before, strict=False)
        ]
        known = [used for used in used_uj if used is not None]
        gpu_after = self._gpu_j()
        # A counter that went back belongs to a driver that was loaded again.
        gpu_known = gpu_before is not None and gpu_after is not None and gpu_after >= gpu_before
        return Energy(
            cpu_j=sum(known) / 1e6 if known and len(known) == len(self._zones) else None,
            gpu_j=gpu_after - gpu_before if gpu_known else None,  # type: ignore[operator]
        )


def _used_uj(zone: RaplZone, before: int | None, after: int | None, window_s: float) -> int | None:
    if before is None or after is None or window_s * _MOST_W * 1e6 >= zone.range_uj:
        return None
    return after - before if after >= before else after + zone.range_uj - before


_SPEED_INSTEAD = "or use the aim speed (`--aim speed`, or `aim` in the config)"


def energy_refusal(needed: Collection[str], meter: EnergyMeter | None = None) -> tuple[str, str] | None:
    """Why the energy of the parts that compute (``cpu``, ``gpu``) cannot be read here, and what to do; ``None`` if it can."""
    told = (EnergyMeter(GpuWatch().energy_j) if meter is None else meter).parts
    if told >= frozenset(needed):
        return None
    if sys.platform == "darwin":
        return (
            "The aim energy needs a reading of energy, which macOS gives to root only.",
            "Use the aim speed (`--aim speed`, or `aim` in the config).",
        )
    if "gpu" in needed and "gpu" not in told:
        return (
            "The aim energy needs the energy of every GPU here, and their driver does not report it.",
            f"NVIDIA reports it since Volta, AMD to members of the groups render and video. Add this user to these groups, {_SPEED_INSTEAD}.",
        )
    return (
        (
            "The aim energy needs the energy of the processor, and this user cannot read it: Linux shows RAPL's counters to root only,"
            " and most containers and virtual machines have none."
        ),
        f"Let this user read /sys/class/powercap/intel-rapl:*/energy_uj, {_SPEED_INSTEAD}.",
    )


def aim_in_force(configured: str, hardware: Hardware, meter: EnergyMeter | None = None) -> tuple[Aim, str]:
    """The aim that this machine can pursue, and a sentence if that is not the configured one.

    The models are taken to run on the GPU if there is one; a tune, which knows where they are, is stricter.
    """
    if Aim(configured) is Aim.SPEED:
        return Aim.SPEED, ""
    # Integrated graphics are a part of the processor's package.
    on_gpu = not all(map(in_package, hardware.gpu.split(", "))) if hardware.gpu else False
    refusal = energy_refusal(("gpu",) if on_gpu else ("cpu",), meter)
    if refusal is None:
        return Aim.ENERGY, ""
    return Aim.SPEED, f"{refusal[0]} The aim is speed instead. {refusal[1]}"

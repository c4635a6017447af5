"""The GPU of a Mac with Apple silicon: which processes used it, and how much.

The driver counts the GPU time of each process; Activity Monitor shows the same figures. Every user may read them. The format is
Apple's own and may change; it has not been tried on a Mac.
"""

from __future__ import annotations

import platform
import re
import sys
import time
from collections.abc import Callable, Mapping

from autospec.hardware.gpu_reading import GpuReading, GpuUse
from autospec.hardware.identity import output_of

__all__ = ["Metal", "on_metal", "parse_gpu_clients"]

_CREATOR = re.compile(r'"IOUserClientCreator"\s*=\s*"pid (\d+)')
_TIME = re.compile(r'"accumulatedGPUTime"\s*=\s*(\d+)')
_CLIENTS = ("ioreg", "-r", "-d", "1", "-w", "0", "-c", "AGXDeviceUserClient")


def on_metal() -> bool:
    """True where models compute on a Mac's GPU: Apple silicon, and a Python for it."""
    return sys.platform == "darwin" and platform.machine() == "arm64"


def parse_gpu_clients(text: str) -> dict[int, int]:
    """Nanoseconds on the GPU by process in the output of ``ioreg -r -d 1 -w 0 -c AGXDeviceUserClient``.

    A process may have several clients, and a client several queues.
    """
    found: dict[int, int] = {}
    # Within a client, the queues come before or after the process.
    for client in text.split("+-o ")[1:]:
        if creator := _CREATOR.search(client):
            pid = int(creator[1])
            found[pid] = found.get(pid, 0) + sum(map(int, _TIME.findall(client)))
    return found


def _read() -> dict[int, int]:
    return parse_gpu_clients(output_of(*_CLIENTS))


class Metal:
    """The GPU of this Mac; see `autospec.hardware.gpu_reading.GpuSource`. A look takes some 20 ms, outside the timed part."""

    def __init__(
        self, read: Callable[[], Mapping[int, int]] = _read, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._read = read
        self._clock = clock
        self._before: Mapping[int, int] = {}
        self._started_s = 0.0

    def readings(self) -> tuple[GpuReading, ...]:
        """See `GpuSource`. Nothing that an ordinary user may read."""
        return ()

    def energies_j(self) -> tuple[float | None, ...]:
        """See `GpuSource`. powermetrics(1) needs root."""
        return ()

    def start(self) -> None:
        """See `GpuSource`."""
        self._before = self._read()
        self._started_s = self._clock()

    def finish(self, own_pids: frozenset[int], *, at_rest: bool = False) -> GpuUse | None:
        """See `GpuSource`."""
        window_s = self._clock() - self._started_s
        after = self._read()
        if not self._before or not after or window_s <= 0.0:
            return None
        if not at_rest and own_pids.isdisjoint(after):
            return None
        # A process without a figure before has opened the GPU since; one that closed a client has a smaller figure.
        used_ns = sum(
            max(0, ns - self._before.get(pid, 0)) for pid, ns in after.items() if pid not in own_pids
        )
        return GpuUse(min(1.0, used_ns / 1e9 / window_s))

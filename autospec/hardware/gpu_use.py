"""What processes that are not ours do with the GPU, as far as NVIDIA's library tells."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from autospec.hardware.nvml import handles, library

__all__ = ["GpuUse", "GpuWatch"]


@dataclass(frozen=True, slots=True)
class GpuUse:
    """Use of the GPUs by others.

    Attributes:
        other_load: Share of the busiest GPU, 0 to 1; ``None`` where the driver does not tell it by process.
        other_memory_bytes: On all GPUs together.
    """

    other_load: float | None
    other_memory_bytes: int


class GpuWatch:
    """Reads the use by others over a window. It takes well below a millisecond, outside of what is timed.

    Args:
        nvml: The module `pynvml`, initialised; ``None`` asks for the installed one.
    """

    def __init__(self, nvml: Any = None) -> None:
        self._nvml = library() if nvml is None else nvml
        self._handles = [] if self._nvml is None else handles(self._nvml)
        self._since: list[int] = []

    def start(self) -> None:
        """Begin a window: the time stamp of every GPU's newest sample."""
        self._since = [self._newest(handle) for handle in self._handles]

    def finish(self, own_pids: frozenset[int]) -> GpuUse | None:
        """End the window.

        Args:
            own_pids: Processes that are ours.

        Returns:
            ``None`` where none of our processes is seen on a GPU. Then ours do not compute there, or this is a
            container, where the driver names processes by numbers that mean nothing here.
        """
        seen = False
        memory = 0
        loads: list[float] = []
        for handle, since in zip(self._handles, self._since or [0] * len(self._handles), strict=True):
            processes = self._processes(handle)
            seen = seen or any(p.pid in own_pids for p in processes)
            memory += sum(p.usedGpuMemory or 0 for p in processes if p.pid not in own_pids)
            load = self._load(handle, since, own_pids)
            if load is not None:
                loads.append(load)
        return GpuUse(max(loads, default=None), memory) if seen else None

    def _processes(self, handle: Any) -> list[Any]:
        found: dict[int, Any] = {}
        for kind in ("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetGraphicsRunningProcesses"):
            with suppress(self._nvml.NVMLError):
                found |= {process.pid: process for process in getattr(self._nvml, kind)(handle)}
        return list(found.values())

    def _samples(self, handle: Any, since: int) -> list[Any] | None:
        try:
            samples: list[Any] = self._nvml.nvmlDeviceGetProcessUtilization(handle, since)
        except self._nvml.NVMLError as error:
            # "Not found" means that no process did anything since then.
            not_found = getattr(self._nvml, "NVML_ERROR_NOT_FOUND", None)
            told = getattr(error, "value", None)
            return [] if told is not None and told == not_found else None
        return samples

    def _newest(self, handle: Any) -> int:
        return max((s.timeStamp for s in self._samples(handle, 0) or ()), default=0)

    def _load(self, handle: Any, since: int, own_pids: frozenset[int]) -> float | None:
        samples = self._samples(handle, since)
        if samples is None:
            return None
        used: dict[int, list[int]] = {}
        for sample in samples:
            if sample.pid not in own_pids and sample.timeStamp > since:
                used.setdefault(sample.pid, []).append(sample.smUtil)
        return min(1.0, sum(sum(v) / len(v) for v in used.values()) / 100.0)

"""How much other programs use the GPU, read through a stand-in for NVIDIA's library."""

from __future__ import annotations

from types import SimpleNamespace

from autospec.hardware.gpu import GpuUse, GpuWatch

OURS = frozenset({10, 11})


class NvmlError(Exception):
    """What the library raises."""

    def __init__(self, value: int) -> None:
        self.value = value


def nvml(memory: dict[int, int | None], samples: list[tuple[int, int, int]]) -> SimpleNamespace:
    """The library with one GPU: memory by process, and samples of (process, time, percent)."""

    def not_supported(_handle):
        raise NvmlError(3)

    def utilization(_handle, since):
        found = [s for s in samples if s[1] > since]
        if not found:
            raise NvmlError(6)
        return [SimpleNamespace(pid=pid, timeStamp=at, smUtil=used) for pid, at, used in found]

    return SimpleNamespace(
        NVMLError=NvmlError,
        NVML_ERROR_NOT_FOUND=6,
        nvmlDeviceGetCount=lambda: 1,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetComputeRunningProcesses=lambda _: [
            SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in memory.items()
        ],
        nvmlDeviceGetGraphicsRunningProcesses=not_supported,
        nvmlDeviceGetProcessUtilization=utilization,
    )


def test_what_others_use_is_told_apart_from_ours():
    """Only samples within the window count; a process is worth the mean of its own."""
    samples = [(77, 100, 90)]
    watch = GpuWatch(nvml({10: 8 << 30, 77: 2 << 30, 78: None}, samples))
    watch.start()
    samples += [(10, 200, 95), (77, 200, 20), (77, 300, 40)]
    assert watch.finish(OURS) == GpuUse(0.3, 2 << 30)


def test_nobody_else_is_nothing_and_not_unknown():
    """No sample since the window began."""
    watch = GpuWatch(nvml({10: 1}, []))
    watch.start()
    assert watch.finish(OURS) == GpuUse(0.0, 0)


def test_a_container_does_not_take_its_own_servers_for_others():
    """There the driver names processes by numbers of the host."""
    watch = GpuWatch(nvml({40321: 8 << 30}, [(40321, 100, 99)]))
    watch.start()
    assert watch.finish(OURS) is None


def test_without_the_library_nothing_is_known():
    """Which is the usual case: it is an extra."""
    watch = GpuWatch(SimpleNamespace(NVMLError=RuntimeError, nvmlDeviceGetCount=lambda: 0))
    watch.start()
    assert watch.finish(OURS) is None

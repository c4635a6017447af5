"""The GPU's use by others, read through a stand-in for NVIDIA's library: this machine has none."""

from __future__ import annotations

from types import SimpleNamespace

from autospec.hardware.gpu_use import GpuUse, GpuWatch

OURS = frozenset({10, 11})


class Nvml:
    """One GPU with these processes and samples."""

    NVML_ERROR_NOT_FOUND = 6

    class NVMLError(Exception):
        """What the library raises."""

        def __init__(self, value: int) -> None:
            self.value = value

    def __init__(self, memory: dict[int, int | None], samples: list[tuple[int, int, int]]) -> None:
        self.memory = memory
        self.samples = samples

    def nvmlDeviceGetCount(self):
        return 1

    def nvmlDeviceGetHandleByIndex(self, index):
        return index

    def nvmlDeviceGetComputeRunningProcesses(self, _handle):
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in self.memory.items()]

    def nvmlDeviceGetGraphicsRunningProcesses(self, _handle):
        raise self.NVMLError(3)

    def nvmlDeviceGetProcessUtilization(self, _handle, since):
        found = [s for s in self.samples if s[1] > since]
        if not found:
            raise self.NVMLError(self.NVML_ERROR_NOT_FOUND)
        return [SimpleNamespace(pid=pid, timeStamp=at, smUtil=used) for pid, at, used in found]


def test_what_others_use_is_told_apart_from_ours():
    """Only samples within the window count; a process is worth the mean of its own."""
    nvml = Nvml({10: 8 << 30, 77: 2 << 30, 78: None}, [(77, 100, 90)])
    watch = GpuWatch(nvml)
    watch.start()
    nvml.samples += [(10, 200, 95), (77, 200, 20), (77, 300, 40)]
    assert watch.finish(OURS) == GpuUse(0.3, 2 << 30)


def test_nobody_else_is_nothing_and_not_unknown():
    """No sample since the window began."""
    watch = GpuWatch(Nvml({10: 1}, []))
    watch.start()
    assert watch.finish(OURS) == GpuUse(0.0, 0)


def test_a_container_does_not_take_its_own_servers_for_others():
    """There the driver names processes by numbers of the host."""
    watch = GpuWatch(Nvml({40321: 8 << 30}, [(40321, 100, 99)]))
    watch.start()
    assert watch.finish(OURS) is None


def test_without_the_library_nothing_is_known():
    """Which is the usual case: it is an extra."""
    watch = GpuWatch(SimpleNamespace(NVMLError=RuntimeError, nvmlDeviceGetCount=lambda: 0))
    watch.start()
    assert watch.finish(OURS) is None

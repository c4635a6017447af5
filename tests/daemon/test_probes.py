"""The load of other programs between two readings, and when it is unknown."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autospec.cells import Hardware
from autospec.daemon import probes as module
from autospec.daemon.probes import ClientActivity, Probes
from autospec.daemon.work import Clock
from autospec.hardware import gpu
from autospec.hardware.gpu import GpuWatch
from autospec.hardware.gpu_reading import GpuUse
from autospec.hardware.readings import Power, ProcessTime, Reading
from autospec.hardware.user_input import LastInput
from tests.hardware.fake_gpus import Card, FakeNvml


def reading(at_s: float, busy_s: float, **processes: float) -> Reading:
    """One reading; processes are `p<pid>=<processor seconds>`."""
    times = {int(name[1:]): ProcessTime(1.0, cpu_s) for name, cpu_s in processes.items()}
    return Reading(at_s, 1000.0 + at_s, busy_s, 0.0, 2, 0.0, 0.0, times)


def test_the_load_is_what_the_steps_own_processes_did_not_take():
    """Five seconds in which two cores worked, one of them for the step."""
    probes = Probes(Clock())
    assert probes._load(reading(0.0, 100.0, p7=10.0)) is None
    assert probes._load(reading(5.0, 110.0, p7=15.0)) == 1.0


def test_who_asks_twice_gets_the_same_answer(monkeypatch: pytest.MonkeyPatch):
    """Half a second later no new load can be told; the last one still holds, unless it is for a step under way."""
    readings = iter([reading(0.0, 100.0), reading(5.0, 105.0), reading(5.5, 105.5), reading(5.6, 105.6)])
    monkeypatch.setattr(module, "read", lambda *_: next(readings))
    probes = Probes(Clock(), last_input=LastInput)
    assert probes.read(ClientActivity(), 0.0).other_load is None
    assert probes.read(ClientActivity(), 0.0).other_load == 1.0
    assert probes.read(ClientActivity(), 0.0).other_load == 1.0
    assert probes.read(ClientActivity(), 0.0, measuring=True).other_load is None


def test_a_load_of_an_hour_ago_is_not_told_as_the_load_now(monkeypatch: pytest.MonkeyPatch):
    """After a long rest the load is unknown, also to who asks again at once, until a second reading."""
    readings = iter(
        [
            reading(0.0, 100.0),
            reading(5.0, 105.0),
            reading(3605.0, 200.0),
            reading(3605.5, 200.0),
            reading(3607.0, 204.0),
        ]
    )
    monkeypatch.setattr(module, "read", lambda *_: next(readings))
    probes = Probes(Clock(), last_input=LastInput)
    assert [probes.read(ClientActivity(), 0.0).other_load for _ in range(5)] == [None, 1.0, None, None, 2.0]


def test_while_a_server_of_the_step_ends_the_load_is_unknown():
    """What it took last is in no process any more, and would look like somebody else's."""
    probes = Probes(Clock())
    probes._load(reading(0.0, 100.0, p7=10.0, p8=3.0))
    assert probes._load(reading(5.0, 110.0, p7=15.0)) is None
    assert probes._load(reading(10.0, 112.0, p7=17.0)) == 0.0


def test_free_memory_counts_up_to_the_limit_of_a_macs_gpu(monkeypatch: pytest.MonkeyPatch):
    """20 GiB are free, and Metal gives 10 of them."""
    free = replace(reading(0.0, 100.0), memory_available_bytes=20 << 30)
    monkeypatch.setattr(module, "read", lambda *_: free)
    monkeypatch.setattr(module, "shared_limit_bytes", lambda _: 10 << 30)
    assert (
        Probes(Clock(), last_input=LastInput).read(ClientActivity(), 0.0).memory_available_bytes == 10 << 30
    )


@pytest.mark.parametrize(("on_battery", "gib"), [(False, 20 + 23), (None, 20 + 23), (True, 20)])
def test_free_memory_of_cards_counts(on_battery, gib, monkeypatch: pytest.MonkeyPatch):
    """A model that fills the card waited for free memory of the system's. On battery a look would keep the card awake."""
    free = replace(reading(0.0, 100.0), memory_available_bytes=20 << 30)
    monkeypatch.setattr(module, "read", lambda *_: free)
    monkeypatch.setattr(module, "read_power", lambda: Power(on_battery=on_battery))
    monkeypatch.setattr(
        module, "identify", lambda: Hardware("id", "chip", 32 << 30, gpu="NVIDIA GeForce RTX 4090")
    )
    monkeypatch.setattr(gpu.nvidia, "library", lambda: FakeNvml(Card()))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if on_battery:
        monkeypatch.setattr(module, "cards", lambda _: pytest.fail("the GPU was looked at"))
    signals = Probes(Clock(), last_input=LastInput, gpu=lambda: GpuWatch([])).read(ClientActivity(), 0.0)
    assert signals.memory_available_bytes == gib << 30


def test_a_control_group_without_memory_left_is_not_an_unknown_amount(monkeypatch: pytest.MonkeyPatch):
    """A limit that was lowered leaves 0 bytes: the daemon said that the free memory is unknown."""
    full = replace(reading(0.0, 100.0), memory_available_bytes=0)
    monkeypatch.setattr(module, "read", lambda *_: full)
    assert Probes(Clock(), last_input=LastInput).read(ClientActivity(), 0.0).memory_available_bytes == 0


class Gpu:
    """A GPU of which others use half; notes whether ours were at rest."""

    looks: list[bool]

    def __init__(self) -> None:
        self.looks = []

    def start(self) -> None:
        """A window begins."""

    def finish(self, _own_pids, *, at_rest: bool) -> GpuUse:
        """It ends."""
        self.looks.append(at_rest)
        return GpuUse(0.5)


def test_the_use_of_the_gpu_is_that_between_two_looks(monkeypatch: pytest.MonkeyPatch):
    """At rest every process counts, beside a step only those that are not ours. The end of a step begins a new window."""
    gpu = Gpu()
    times = iter(range(0, 100, 5))
    monkeypatch.setattr(module, "read", lambda *_: reading(float(next(times)), 100.0))
    monkeypatch.setattr(module, "read_power", lambda: Power(on_battery=False))
    probes = Probes(Clock(), last_input=LastInput, gpu=lambda: gpu)
    loads = [probes.read(ClientActivity(), 0.0, measuring=m).gpu_other_load for m in (False, False, True)]
    probes.forget_load()
    loads.append(probes.read(ClientActivity(), 0.0).gpu_other_load)
    assert loads == [None, 0.5, 0.5, None]
    assert gpu.looks == [True, False]


def test_on_battery_the_gpu_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    """Each look would keep a laptop's second GPU awake, and nothing is measured then."""
    monkeypatch.setattr(module, "read", lambda *_: reading(0.0, 100.0))
    monkeypatch.setattr(module, "read_power", lambda: Power(on_battery=True))
    probes = Probes(Clock(), last_input=LastInput, gpu=lambda: pytest.fail("the GPU was looked at"))
    assert probes.read(ClientActivity(), 0.0).gpu_other_load is None

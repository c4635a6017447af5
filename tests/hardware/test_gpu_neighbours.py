"""A neighbour on a GPU that the server does not use, and machines whose driver tells less than others."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autospec.cells import Aim, Hardware
from autospec.hardware import amd, gpu, nvidia
from autospec.hardware.amd import Amd
from autospec.hardware.energy import EnergyMeter, aim_in_force
from autospec.hardware.gpu import Device, GpuWatch, devices_here, driver_devices, is_integrated, read_gpus
from autospec.hardware.gpu_reading import GpuUse
from autospec.hardware.nvidia import Nvidia
from autospec.hardware.state import StateWatch
from tests.hardware.fake_gpus import (
    GIB,
    GPU_IS_LOST,
    NO_PERMISSION,
    NOT_SUPPORTED,
    Card,
    FakeAmdSmi,
    FakeNvml,
)

OURS = frozenset({10, 11})
MIB = 1024**2
ALONE = {
    "nvmlDeviceGetCurrentClocksEventReasons": NOT_SUPPORTED,
    "nvmlDeviceGetCurrentClocksThrottleReasons": NOT_SUPPORTED,
    "nvmlDeviceGetPowerManagementLimit": NOT_SUPPORTED,
}


def two(ours_on_second: list[tuple[int, int | None]], **second) -> tuple[GpuWatch, Card, Card]:
    """Our server of 8 GiB on the first GPU, a neighbour's training on the second one."""
    one = Card(compute=[(10, 8 * GIB)], free=15 * GIB, errors=ALONE)
    other = Card(compute=[(77, 20 * GIB), *ours_on_second], free=3 * GIB, errors=ALONE, **second)
    watch = GpuWatch([Nvidia(FakeNvml(one, other))])
    watch.start()
    one.samples += [(10, 200, 95)]
    other.samples += [(77, 200, 99)]
    one.energy_mj += 300_000
    other.energy_mj += 450_000
    return watch, one, other


@pytest.mark.parametrize("ours_on_second", [[], [(10, 310 * MIB)], [(10, 550 * MIB), (11, 700 * MIB)]])
def test_a_neighbour_on_the_gpu_that_we_leave_alone_is_none(ours_on_second):
    """Its load disturbed every pair before, and its joules were ours. CUDA opens all GPUs, whatever `-sm none -mg 0` says."""
    watch, _, _ = two(ours_on_second)
    assert watch.finish(OURS) == GpuUse(0.0, 0, energy_j=300.0)


@pytest.mark.parametrize("ours_on_second", [[(10, 2 * GIB)], [(10, None)]])
def test_a_model_over_two_gpus_has_the_neighbour_of_both(ours_on_second):
    """Where the driver does not tell how much ours holds, it counts."""
    watch, _, _ = two(ours_on_second)
    use = watch.finish(OURS)
    assert use is not None
    assert (use.other_load, use.energy_j) == (0.99, 750.0)


def test_a_small_part_of_a_model_counts_where_it_was_seen_to_compute():
    """As much memory as an idle context, but the driver's samples have our process on it."""
    watch, _, other = two([(10, 400 * MIB)])
    other.samples.append((10, 210, 7))
    use = watch.finish(OURS)
    assert use is not None
    assert use.other_load == 0.99


def test_a_small_model_on_all_gpus_counts_on_all():
    """None of them has more than a context: which one computes is unknown, so each may."""
    cards = [Card(compute=[(10, 400 * MIB)], samples=[]) for _ in range(2)]
    watch = GpuWatch([Nvidia(FakeNvml(*cards))])
    watch.start()
    cards[1].samples.append((77, 200, 50))
    use = watch.finish(OURS)
    assert use is not None
    assert use.other_load == 0.5


def test_the_limit_of_power_is_that_of_all_gpus_in_both_halves():
    """A draft on the second GPU must not look like a changed limit when the servers run by turns."""
    watch, one, other = two([])
    one.errors = other.errors = {}
    off = watch.finish(OURS)
    other.compute.append((11, 4 * GIB))
    drafted = watch.finish(OURS)
    assert off is not None
    assert drafted is not None
    assert off.power_limit_w == drafted.power_limit_w == 900.0


def test_two_cards_of_amd_are_told_apart_too():
    """Their load is unknown; memory and joules of the neighbour's card do not count."""

    class Two(FakeAmdSmi):
        def __getattr__(self, name):
            if name == "amdsmi_get_processor_handles":
                return lambda: [0, 1]
            if name == "amdsmi_get_gpu_process_list":
                return lambda card: [{"pid": (10, 77)[card], "memory_usage": {"vram_mem": 6 * GIB}}]
            if name == "amdsmi_get_energy_count":
                return lambda card: {
                    "energy_accumulator": self.count * (1, 9)[card],
                    "counter_resolution": 1e6,
                }
            return super().__getattr__(name)

        count = 100

    smi = Two()
    watch = GpuWatch([Amd(smi)])
    watch.start()
    smi.count = 150
    assert watch.finish(OURS) == GpuUse(None, 0, heat=False, power_limit_w=654.0, energy_j=50.0)
    assert watch.energy_j() == 150.0 * 10


def test_the_watch_takes_the_joules_of_the_gpus_that_compute():
    """And those of all GPUs where the driver names none of ours, as in a container."""
    for pid, joules in ((10, 300.0), (40321, 750.0)):
        one, other = Card(compute=[(pid, 8 * GIB)], free=15 * GIB), Card(compute=[(77, GIB)])
        watch = StateWatch(lambda: OURS, gpu=GpuWatch([Nvidia(FakeNvml(one, other))]))
        watch.start()
        one.energy_mj += 300_000
        other.energy_mj += 450_000
        assert watch.finish().gpu_energy_j == joules


def test_a_neighbour_on_another_instance_is_none():
    """MIG: processes are told for each instance; the card's own list and its load are not told to users."""
    small = Card(name="NVIDIA A100 MIG 1g.5gb", total=5 * GIB, free=4 * GIB, compute=[(10, GIB)])
    large = Card(name="NVIDIA A100 MIG 3g.20gb", total=20 * GIB, free=2 * GIB, compute=[(77, 18 * GIB)])
    card = Card(
        instances=[small, large],
        errors=ALONE
        | {
            "nvmlDeviceGetComputeRunningProcesses": NO_PERMISSION,
            "nvmlDeviceGetGraphicsRunningProcesses": NO_PERMISSION,
            "nvmlDeviceGetProcessUtilization": NOT_SUPPORTED,
        },
    )
    watch = GpuWatch([Nvidia(FakeNvml(card))])
    watch.start()
    assert watch.finish(OURS) == GpuUse(None, 0)


def test_a_gpu_that_falls_off_the_bus_while_we_measure_tells_nothing():
    """Every call fails from then on; the other GPU still answers, and the joules of both together are unknown."""
    watch, _, other = two([])
    for name in [name for name in vars(FakeNvml) if name.startswith("nvmlDevice")]:
        other.errors = other.errors | {name: GPU_IS_LOST}
    assert watch.energy_j() is None
    assert watch.finish(OURS) == GpuUse(0.0, 0, energy_j=300.0)


def test_a_desktop_is_no_neighbour():
    """Xorg and a compositor: a few per cent, some hundred MiB."""
    card = Card(compute=[(10, 8 * GIB)], graphics=[(900, 180 * MIB), (901, 90 * MIB)], free=15 * GIB)
    state = StateWatch(lambda: OURS, gpu=GpuWatch([Nvidia(FakeNvml(card))]))
    state.start()
    card.samples += [(10, 200, 90), (900, 200, 3), (901, 200, 2)]
    seen = state.finish()
    assert seen.gpu_other_load == pytest.approx(0.05)
    assert seen.gpu_other_memory_bytes == 270 * MIB


@pytest.mark.parametrize("listed", [[], [(10, 8 * GIB)]])
def test_memory_of_processes_that_are_not_listed_is_that_of_others(listed):
    """WSL lists nothing, some containers their own processes only: a neighbour's 12 GiB were nobody's before."""
    held = sum(size or 0 for _, size in listed)
    card = Card(compute=listed, free=24 * GIB - held - 12 * GIB)
    (reading,) = read_gpus([Nvidia(FakeNvml(card))])
    assert reading.held_bytes(OURS) == 12 * GIB


def test_without_a_list_of_processes_a_measurement_knows_nothing():
    """WSL: neither processes nor their load. At rest, the memory in use is still told."""
    card = Card(free=12 * GIB, errors=ALONE | {"nvmlDeviceGetProcessUtilization": NOT_SUPPORTED})
    watch = GpuWatch([Nvidia(FakeNvml(card))])
    watch.start()
    assert watch.finish(OURS) is None
    assert watch.finish(OURS, at_rest=True) == GpuUse(None, 12 * GIB, energy_j=0.0)


def here(system: str) -> Hardware:
    """A machine with this GPU."""
    return Hardware("id", "chip", 128 * GIB, 20, "linux 6.17", system)


@pytest.mark.parametrize(
    ("name", "card"),
    [
        ("NVIDIA GB10", Card(name="NVIDIA GB10", errors={"nvmlDeviceGetMemoryInfo": NOT_SUPPORTED})),
        ("Orin (nvgpu)", None),  # Jetson: without NVML
        ("NVIDIA Thor", Card(name="NVIDIA Thor")),  # the driver tells the system's memory
    ],
)
def test_nvidias_systems_on_a_chip_have_the_processors_memory(name, card, monkeypatch):
    """DGX Spark and Jetson: their memory was that of a card, or unknown, so that two servers ran by turns."""
    monkeypatch.setattr(gpu.nvidia, "library", lambda: None if card is None else FakeNvml(card))
    monkeypatch.setattr(gpu.amd, "library", lambda: None)
    assert is_integrated(name)
    assert devices_here(here(name)) == ()
    # Their joules are in no counter of the processor.
    assert aim_in_force("energy", here(name), EnergyMeter(lambda: None, []))[0] is Aim.SPEED
    assert aim_in_force("energy", here(name), EnergyMeter(lambda: 1.0, [])) == (Aim.ENERGY, "")


def test_an_apu_is_not_as_small_as_the_memory_that_is_kept_for_it(monkeypatch):
    """Strix Halo with 512 MiB of VRAM computes in the system's memory (GTT); a card beside it still counts."""
    apu = FakeAmdSmi(
        amdsmi_get_gpu_asic_info={"market_name": "AMD Radeon Graphics"},
        amdsmi_get_gpu_vram_usage={"vram_total": 512, "vram_used": 160},
    )
    monkeypatch.setattr(gpu.nvidia, "library", lambda: None)
    monkeypatch.setattr(gpu.amd, "library", lambda: apu)
    assert devices_here(here("AMD GPU 0x1586")) is None  # by its number alone nobody knows what it is
    assert devices_here(here("AMD Radeon Graphics")) == ()


@pytest.mark.parametrize(
    ("named", "order", "expected"),
    [
        (None, "", (0, 1)),
        ("1", "", (1,)),
        ("1,0", "", (1, 0)),
        ("GPU-bb", "", (1,)),
        ("0,7,1", "", (0,)),  # CUDA reads no further than to a number that it does not know
        ("", "", ()),
        ("-1", "", ()),
        ("1", "unequal", None),
        ("GPU-bb", "unequal", (1,)),
        ("1", "PCI_BUS_ID", (1,)),
    ],
)
def test_the_gpus_that_cuda_is_shown(named, order, expected):
    """CUDA begins with the fastest card, the driver goes by the bus: a number is certain among equal cards only."""
    unequal = "NVIDIA GeForce RTX 3060" if order in ("unequal", "PCI_BUS_ID") else Card().name
    nvml = FakeNvml(Card(uuid="GPU-aaaa"), Card(uuid="GPU-bbbb", name=unequal))
    environ = {"CUDA_DEVICE_ORDER": order} | ({} if named is None else {"CUDA_VISIBLE_DEVICES": named})
    assert Nvidia(nvml).visible(environ) == expected


def test_a_gpu_that_cuda_is_not_shown_has_no_room_and_no_neighbour(monkeypatch):
    """Memory of a hidden card counted before, and before a tune so did the work of others on it."""
    cards = Card(uuid="GPU-aaaa", free=20 * GIB), Card(uuid="GPU-bbbb", free=2 * GIB)
    monkeypatch.setattr(gpu.nvidia, "library", lambda: FakeNvml(*cards))
    monkeypatch.setattr(gpu.amd, "library", lambda: None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-aaaa")
    assert driver_devices() == (Device("CUDA0", "NVIDIA GeForce RTX 4090", 24 * GIB, 20 * GIB),)
    watch = GpuWatch([Nvidia(FakeNvml(*cards))])
    watch.start()
    cards[1].samples.append((77, 200, 99))
    use = watch.finish(OURS, at_rest=True)
    assert use is not None
    assert use.other_load == 0.0


def test_an_instance_that_is_named_counts(monkeypatch):
    """CUDA_VISIBLE_DEVICES names the second instance."""
    first = Card(name="NVIDIA A100 MIG 1g.5gb", total=5 * GIB, free=5 * GIB, uuid="MIG-1111")
    second = Card(name="NVIDIA A100 MIG 3g.20gb", total=20 * GIB, free=19 * GIB, uuid="MIG-2222")
    monkeypatch.setattr(gpu.nvidia, "library", lambda: FakeNvml(Card(instances=[first, second])))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-2222")
    assert driver_devices() == (Device("CUDA0", "NVIDIA A100 MIG 3g.20gb", 20 * GIB, 19 * GIB),)


def test_an_intel_card_without_a_library_is_unknown(monkeypatch):
    """No library tells an Arc card's memory, processes or joules."""
    monkeypatch.setattr(gpu.nvidia, "library", lambda: None)
    monkeypatch.setattr(gpu.amd, "library", lambda: None)
    assert devices_here(here("Intel GPU 0xe20b")) is None
    assert GpuWatch([]).finish(OURS) is None
    assert aim_in_force("energy", here("Intel GPU 0xe20b"), EnergyMeter(lambda: None, []))[0] is Aim.SPEED


@pytest.mark.parametrize(
    ("environ", "seen"),
    [
        ({}, (0, 1, 2)),
        ({"HIP_VISIBLE_DEVICES": "2,0"}, (2, 0)),
        ({"CUDA_VISIBLE_DEVICES": "1"}, (1,)),  # HIP reads it too
        ({"HIP_VISIBLE_DEVICES": "0", "CUDA_VISIBLE_DEVICES": "1"}, (0,)),
        ({"ROCR_VISIBLE_DEVICES": "1,2", "HIP_VISIBLE_DEVICES": "1"}, (2,)),  # of what ROCr leaves
        ({"HIP_VISIBLE_DEVICES": "0,7,1"}, (0,)),  # what follows a wrong number does not count
        ({"ROCR_VISIBLE_DEVICES": ""}, ()),
        ({"HIP_VISIBLE_DEVICES": "", "CUDA_VISIBLE_DEVICES": "1"}, (1,)),  # an empty one does nothing
        ({"ROCR_VISIBLE_DEVICES": "GPU-4b2c1a9f8d3e6f7a"}, None),
        ({"HIP_VISIBLE_DEVICES": "-1"}, ()),
    ],
)
def test_which_of_three_equal_gpus_hip_sees(environ, seen):
    """Three variables choose, one after the other; a UUID cannot be compared."""
    cards = Amd(FakeAmdSmi(amdsmi_get_processor_handles=[object()] * 3))
    assert cards.visible(environ) == seen


def test_numbers_of_different_gpus_are_not_believed(monkeypatch):
    """HIP and the library may order them otherwise; then no device is told, and servers run by turns."""
    both = tuple(replace(r, name=n) for r, n in zip(Amd(FakeAmdSmi()).readings() * 2, "ab", strict=True))
    monkeypatch.setattr(Amd, "readings", lambda _: both)
    monkeypatch.setattr(nvidia, "library", lambda: None)
    monkeypatch.setattr(amd, "library", lambda: FakeAmdSmi(amdsmi_get_processor_handles=[object(), object()]))
    for name in ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    assert [d.name for d in driver_devices()] == ["ROCm0", "ROCm1"]
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "0")
    assert driver_devices() == ()

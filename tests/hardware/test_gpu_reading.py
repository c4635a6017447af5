"""What the makers' libraries tell of GPUs, read through stand-ins with their documented return types."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from autospec.hardware import amd, gpu, nvidia
from autospec.hardware.amd import Amd
from autospec.hardware.gpu import GpuWatch, read_gpus
from autospec.hardware.gpu_reading import GpuReading, GpuUse
from autospec.hardware.nvidia import Nvidia
from tests.hardware.fake_gpus import (
    GIB,
    GPU_IS_LOST,
    NO_PERMISSION,
    NOT_SUPPORTED,
    UNAVAILABLE,
    AmdSmiException,
    Card,
    FakeAmdSmi,
    FakeNvml,
    NVMLError,
)

FUNCTIONS = [name for name in vars(FakeNvml) if name.startswith("nvmlDevice")]
# Without these two there is no GPU at all.
FOUND_BY = {"nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex"}


def test_everything_that_a_card_tells():
    """Watts and joules come in thousandths; a desktop draws and does not compute."""
    card = Card(free=17 * GIB, compute=[(77, 6 * GIB)], graphics=[(9, 512 << 20)], reasons=0x4)
    (reading,) = Nvidia(FakeNvml(card)).readings()
    assert reading == GpuReading(
        "NVIDIA GeForce RTX 4090", 24 * GIB, 17 * GIB, {77: 6 * GIB, 9: 512 << 20},
        61, 120.5, 450.0, 450.0, 1980, 2520, (),
    )  # fmt: skip
    assert reading.held_bytes() == 6 * GIB + (512 << 20)
    assert reading.held_bytes(frozenset({77})) == 512 << 20
    assert Nvidia(FakeNvml(card)).energies_j() == (1000.0,)


@pytest.mark.parametrize(
    ("bits", "slowed"),
    [
        (0x0, ()),
        (0x1, ()),  # idle
        (0x4, ()),  # the power limit, which is reached under every load
        (0x20, ("heat",)),
        (0x40 | 0x8, ("heat",)),
        (0x80 | 0x8, ("power brake",)),
        (0x8, ("hardware",)),
        (0x20 | 0x80, ("heat", "power brake")),
    ],
)
@pytest.mark.parametrize("missing", [(), ("nvmlDeviceGetCurrentClocksEventReasons",)])
def test_why_a_gpu_is_slow(bits, slowed, missing):
    """Under the function's present name and under the one until driver 535."""
    (reading,) = Nvidia(FakeNvml(Card(reasons=bits), missing=missing)).readings()
    assert reading.slowed == slowed


@pytest.mark.parametrize("name", sorted(set(FUNCTIONS) - FOUND_BY))
@pytest.mark.parametrize("how", [NOT_SUPPORTED, NO_PERMISSION, "missing"])
def test_what_cannot_be_read_is_unknown(name, how):
    """On an old binding, for this GPU, for this user: the rest is told as before."""
    card = Card(compute=[(10, GIB), (77, GIB)], samples=[(77, 5, 50)])
    if how == "missing":
        nvml = FakeNvml(card, missing=[name])
    else:
        card.errors[name] = how
        nvml = FakeNvml(card)
    (reading,) = Nvidia(nvml).readings()
    (whole,) = Nvidia(FakeNvml(Card(compute=card.compute))).readings()
    different = [f for f in GpuReading.__dataclass_fields__ if getattr(reading, f) != getattr(whole, f)]
    assert all(getattr(reading, f) is None or f in ("name", "processes") for f in different)
    watch = GpuWatch([Nvidia(nvml)])
    watch.start()
    use = watch.finish(frozenset({10}))
    assert use is None or use.other_load in (0.0, None)
    assert watch.energy_j() == (None if name == "nvmlDeviceGetTotalEnergyConsumption" else 1000.0)


def test_a_driver_that_tells_this_user_nothing():
    """The GPU is there, and that is all."""
    denied = dict.fromkeys(set(FUNCTIONS) - FOUND_BY, NO_PERMISSION)
    source = Nvidia(FakeNvml(Card(errors=denied)))
    assert source.readings() == (GpuReading("NVIDIA GPU"),)
    assert source.energies_j() == (None,)
    source.start()
    assert source.finish(frozenset({10})) is None


def test_the_second_of_two_cards_is_lost():
    """The first one still counts, but their energy together is unknown only where a counter is missing."""
    lost = Card(errors={"nvmlDeviceGetHandleByIndex": GPU_IS_LOST})
    assert len(Nvidia(FakeNvml(Card(), lost)).readings()) == 1
    without = Card(errors={"nvmlDeviceGetTotalEnergyConsumption": NOT_SUPPORTED})
    assert GpuWatch([Nvidia(FakeNvml(Card(), without))]).energy_j() is None
    assert GpuWatch([Nvidia(FakeNvml(Card(), Card(energy_mj=500)))]).energy_j() == 1000.5
    assert GpuWatch([]).energy_j() is None


def test_names_of_old_bindings_are_bytes():
    """Until nvidia-ml-py 11.5."""
    (reading,) = Nvidia(FakeNvml(Card(name=b"Tesla K80"))).readings()
    assert reading.name == "Tesla K80"


@pytest.mark.parametrize("untold", [None, UNAVAILABLE])
def test_memory_that_is_not_told_counts_as_all_memory_in_use(untold):
    """To a user who may not see other users' processes."""
    card = Card(free=17 * GIB, compute=[(77, untold), (78, GIB)])
    (reading,) = Nvidia(FakeNvml(card)).readings()
    assert reading.processes == {77: None, 78: GIB}
    assert reading.held_bytes() == 7 * GIB
    assert GpuReading("?").held_bytes() is None


@pytest.mark.parametrize(("computing", "drawing"), [(3 * GIB, None), (None, 3 * GIB), (3 * GIB, 3 * GIB)])
def test_a_process_that_computes_and_draws_counts_once(computing, drawing):
    """It is in both lists, and may be told with its memory in one of them."""
    card = Card(compute=[(77, computing)], graphics=[(77, drawing)])
    [reading] = Nvidia(FakeNvml(card)).readings()
    assert reading.processes == {77: 3 * GIB}


def test_a_divided_gpu_has_a_reading_for_each_instance():
    """MIG: memory and processes are the instance's, heat and power the card's; the numbers have gaps."""
    small = Card(name="NVIDIA A100-SXM4-40GB MIG 1g.5gb", total=5 * GIB, free=4 * GIB, compute=[(5, GIB)])
    large = Card(name="NVIDIA A100-SXM4-40GB MIG 3g.20gb", total=20 * GIB, free=20 * GIB)
    card = Card(
        name="NVIDIA A100-SXM4-40GB",
        reasons=0x20,
        instances=[small, None, large],
        errors={"nvmlDeviceGetMemoryInfo": NO_PERMISSION, "nvmlDeviceGetProcessUtilization": NOT_SUPPORTED},
    )
    first, second = Nvidia(FakeNvml(card)).readings()
    assert Nvidia(FakeNvml(card)).energies_j() == (None,)
    assert (first.name, first.total_bytes, first.processes) == (small.name, 5 * GIB, {5: GIB})
    assert (second.name, second.free_bytes, second.slowed) == (large.name, 20 * GIB, ("heat",))
    assert first.is_instance
    assert second.is_instance


def test_use_over_a_window_tells_heat_and_the_limit_that_is_set():
    """Of the cards where ours compute; in a container, none of them is known to be."""
    hot, cool = Card(compute=[(10, GIB)], reasons=0x40, limit_mw=250_000), Card()
    watch = GpuWatch([Nvidia(FakeNvml(hot, cool))])
    watch.start()
    hot.energy_mj, cool.energy_mj = 1_040_000, 1_002_000
    assert watch.finish(frozenset({10})) == GpuUse(0.0, 0, heat=True, power_limit_w=700.0, energy_j=40.0)
    assert watch.finish(frozenset({4711})) is None
    at_rest = watch.finish(frozenset({4711}), at_rest=True)
    assert at_rest == GpuUse(0.0, GIB, heat=True, power_limit_w=700.0, energy_j=42.0)


def test_amds_card():
    """Mebibytes, microwatts, and text for what is not there."""
    (reading,) = Amd(FakeAmdSmi()).readings()
    assert reading == GpuReading(
        "AMD Radeon RX 7900 XTX", 24560 << 20, 18416 << 20, {77: 6 * GIB}, 54.0, 98.0, 327.0, 339.0, 2304.0, 2526.0, (),
    )  # fmt: skip
    assert Amd(FakeAmdSmi()).energies_j() == (pytest.approx(15.3),)
    watch = GpuWatch([Amd(FakeAmdSmi())])
    watch.start()
    ours = watch.finish(frozenset({77}))
    assert ours == GpuUse(None, 0, heat=False, power_limit_w=327.0, energy_j=0.0)
    at_rest = watch.finish(frozenset({10}), at_rest=True)
    assert at_rest == GpuUse(None, 6 * GIB, heat=False, power_limit_w=327.0, energy_j=0.0)


@pytest.mark.parametrize(
    ("answers", "field", "value"),
    [
        ({"amdsmi_get_gpu_metrics_info": {"indep_throttle_status": 1 << 36}}, "slowed", ("heat",)),
        ({"amdsmi_get_gpu_metrics_info": {"indep_throttle_status": 1 << 5}}, "slowed", ()),  # power
        ({"amdsmi_get_gpu_metrics_info": {"indep_throttle_status": "N/A"}}, "slowed", None),
        ({"amdsmi_get_gpu_metrics_info": {"indep_throttle_status": (1 << 64) - 1}}, "slowed", None),
        ({"amdsmi_get_power_cap_info": {"power_cap": 300}}, "power_limit_w", 300.0),  # watts until ROCm 6.0
        ({"amdsmi_get_power_info": {"socket_power": 550}}, "power_w", 550.0),
        ({"amdsmi_get_gpu_vram_usage": AmdSmiException()}, "total_bytes", None),
        ({"amdsmi_get_gpu_process_list": [object()]}, "processes", None),  # handles, before ROCm 6
        ({"amdsmi_get_gpu_process_list": None}, "processes", None),
        ({"amdsmi_get_temp_metric": "N/A"}, "temperature_c", None),
        ({"amdsmi_get_gpu_asic_info": {"market_name": "N/A"}}, "name", "AMD GPU"),
        ({"amdsmi_get_gpu_process_list": [{"pid": 77, "memory_usage": "N/A"}]}, "processes", {77: None}),
        ({"amdsmi_get_clock_info": {"cur_clk": 900}}, "clock_mhz", 900.0),
    ],
)
def test_other_builds_of_amdsmi(answers, field, value):
    """A missing function, an error, another unit."""
    (reading,) = Amd(FakeAmdSmi(**answers)).readings()
    assert getattr(reading, field) == value


def test_amds_energy_had_another_name():
    """Until ROCm 6 the counter was called power."""
    old = {"amdsmi_get_energy_count": {"power": 2_000_000, "counter_resolution": 15.259, "timestamp": 1}}
    assert Amd(FakeAmdSmi(**old)).energies_j() == (pytest.approx(30.518),)
    assert Amd(FakeAmdSmi(amdsmi_get_energy_count=None)).energies_j() == (None,)


def test_two_makers_in_one_machine_are_told_together():
    """The busiest GPU, and all memory."""
    card = Card(compute=[(10, GIB), (5, 2 * GIB)], samples=[(5, 100, 40)])
    watch = GpuWatch([Nvidia(FakeNvml(card)), Amd(FakeAmdSmi())])
    watch.start()
    card.samples.append((5, 200, 40))
    both = watch.finish(frozenset({10, 77}))
    assert both == GpuUse(0.4, 2 * GIB, heat=False, power_limit_w=777.0, energy_j=0.0)
    assert len(read_gpus([Nvidia(FakeNvml(card)), Amd(FakeAmdSmi())])) == 2


@pytest.fixture
def importing(monkeypatch):
    """Set what importing a library does; libraries are looked for once in a process otherwise."""
    monkeypatch.setattr(gpu.sys, "platform", "linux")

    def forget():
        for module in (nvidia, amd):
            module.library.cache_clear()

    def put(import_module):
        forget()
        for module in (nvidia, amd):
            monkeypatch.setattr(module, "importlib", SimpleNamespace(import_module=import_module))

    yield put
    forget()


def test_without_a_library_nothing_is_known(importing):
    """Neither is installed."""

    def missing(name):
        raise ImportError(name)

    importing(missing)
    assert read_gpus() == ()
    assert GpuWatch().energy_j() is None


def test_without_a_driver_nothing_is_known(importing):
    """NVIDIA's library is there and no driver; ROCm's cannot even be imported then."""

    def no_driver():
        raise NVMLError(9)

    def broken(name):
        if name == "amdsmi":
            raise OSError("libamd_smi.so: cannot open shared object file")
        return SimpleNamespace(NVMLError=NVMLError, nvmlInit=no_driver)

    importing(broken)
    assert read_gpus() == ()


def test_a_library_with_a_driver_is_used(importing):
    """By default, without being told."""
    found = {"pynvml": FakeNvml(Card())}
    importing(lambda name: found[name])
    assert [reading.name for reading in read_gpus()] == ["NVIDIA GeForce RTX 4090"]


def test_a_reading_as_json():
    """The keys of `gpus` in `autospec doctor --json`."""
    (reading,) = Nvidia(FakeNvml(Card(free=17 * GIB, compute=[(77, 6 * GIB)], reasons=0x20))).readings()
    assert reading.to_json() == {
        "name": "NVIDIA GeForce RTX 4090", "total_bytes": 24 * GIB, "free_bytes": 17 * GIB, "held_bytes": 6 * GIB,
        "processes": 1, "temperature_c": 61, "power_w": 120.5, "power_limit_w": 450.0, "power_limit_default_w": 450.0,
        "clock_mhz": 1980, "clock_max_mhz": 2520, "slowed": ["heat"],
    }  # fmt: skip
    assert GpuReading("?").to_json()["processes"] is None

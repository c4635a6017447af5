"""GPU memory without a backend that reports it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autospec.cells import Hardware
from autospec.hardware import gpu as device_memory
from autospec.hardware.gpu import (
    Device,
    devices_here,
    driver_devices,
    is_integrated,
    metal_limit_bytes,
    model_memory_bytes,
    shared_limit_bytes,
    shares_memory,
    usable,
)
from tests.hardware.fake_gpus import GIB, GPU_IS_LOST, Card, FakeAmdSmi, FakeNvml


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put stand-ins in the place of the makers' libraries; without arguments none is there."""

    def put(nvml: Any = None, smi: Any = None) -> None:
        monkeypatch.setattr(device_memory.nvidia, "library", lambda: nvml)
        monkeypatch.setattr(device_memory.amd, "library", lambda: smi)

    return put


@pytest.mark.parametrize(
    ("printed", "installed_gib", "expected_gib"),
    [
        # Two thirds and three quarters: figures of llama.cpp #2011 and ollama #8331.
        ("0\n", 16, 10.67),
        ("0\n", 32, 21.33),
        ("0\n", 64, 48.0),
        ("", 64, 48.0),
        ("sysctl: unknown oid", 64, 48.0),
        ("28672\n", 32, 28.0),  # the user raised it
    ],
)
def test_metals_limit(printed, installed_gib, expected_gib):
    """All models together may have no more, however much memory is free."""
    assert metal_limit_bytes(printed, installed_gib * GIB) / GIB == pytest.approx(expected_gib, abs=0.01)


@pytest.mark.parametrize(
    ("name", "integrated"),
    [
        ("NVIDIA GeForce RTX 4090", False),
        ("AMD Radeon RX 7900 XTX", False),
        ("AMD Radeon Graphics (RADV RAPHAEL_MENDOCINO)", True),
        ("AMD Radeon 780M Graphics (RADV PHOENIX)", True),
        # The name that drivers give where they know none; the chip tells a card.
        ("AMD Radeon Graphics (RADV VEGA20)", False),
        ("AMD Radeon Graphics (RADV VEGA10)", False),
        ("AMD Radeon Graphics (RADV NAVI14)", False),
        ("AMD Radeon Graphics (RADV NAVI48)", False),
        ("AMD Radeon Graphics (RADV GFX1201)", False),
        ("AMD Radeon Graphics (RADV GFX1250)", True),  # nobody has seen one; LLVM calls it an APU
        ("AMD Radeon Graphics (RADV GFX1151)", True),
        ("AMD Radeon Graphics (RADV RENOIR)", True),
        ("AMD Radeon Vega 10 Graphics (RADV RAVEN)", True),
        ("AMD Radeon Graphics", True),
        ("Radeon 8060S Graphics", True),
        ("Intel(R) UHD Graphics 770 (ADL-S GT1)", True),
        ("Intel(R) Arc(tm) A770 Graphics (DG2)", False),
        ("Intel(R) Arc(tm) Pro B60 Graphics (BMG G21)", False),
        ("Intel(R) Arc(tm) Graphics (MTL)", True),
        ("Intel GPU 0x46a6", True),
        ("Intel GPU 0x7d55", True),
        ("Intel GPU 0x56a0", False),  # A770
        ("Intel GPU 0xe20b", False),  # B580
        ("Apple M2 Pro", True),
        # Names that users' lists of devices have (2025, 2026); the marks in brackets depend on driver and library.
        ("AMD Radeon(TM) 8060S Graphics", True),
        ("AMD Radeon 8060S (gfx1151)", True),
        ("AMD Radeon(TM) RX Vega 11 Graphics", True),
        ("AMD Radeon Vega 8 Graphics", True),
        ("AMD Custom GPU 0405 (RADV VANGOGH)", True),
        ("Radeon 780M", True),
        ("Radeon RX Vega 64", False),
        ("AMD Radeon RX 6600M", False),
        ("AMD Radeon AI PRO R9700", False),
        ("AMD Instinct MI300X", False),
        ("Intel(R) Arc(TM) 140V GPU (16GB)", True),
        ("Intel(R) Data Center GPU Max 1100", False),
        ("Intel(R) Iris(R) Xe MAX Graphics (DG1)", False),
        ("NVIDIA GH200 480GB", False),
        ("Qualcomm(R) Adreno(TM) X1-85 GPU", True),
        ("Mali-G610", True),
        ("V3D 7.1.7", True),
    ],
)
def test_integrated_graphics_are_known_by_name(name, integrated):
    """They share the memory that the processor has."""
    assert is_integrated(name) is integrated


# The node of a Ryzen, and those of an MI50 and of the Ryzen's graphics, as users print them: only the target differs.
CORES = "cpu_cores_count 12\nsimd_count 0\ngfx_target_version 0\n"
MI50 = "cpu_cores_count 0\nsimd_count 240\ngfx_target_version 90006\n"
RENOIR = "cpu_cores_count 0\nsimd_count 28\ngfx_target_version 90012\n"
RAVEN = "cpu_cores_count 8\nsimd_count 44\n"  # a kernel before the target was told


@pytest.mark.parametrize(
    ("nodes", "shared"),
    [
        ([CORES, MI50], False),
        ([CORES, MI50, MI50], False),
        ([CORES, RENOIR], True),
        ([CORES, MI50, RENOIR], True),  # which of the two has the name is not told
        ([CORES], True),
        ([RAVEN], True),
        ([], True),
    ],
)
def test_the_kernel_tells_a_card_from_graphics_of_the_same_name(nodes, shared, tmp_path: Path):
    """ROCm calls an MI50 "AMD Radeon Graphics": its memory counted as the system's."""
    for number, properties in enumerate(nodes):
        file = tmp_path / f"sys/class/kfd/kfd/topology/nodes/{number}/properties"
        file.parent.mkdir(parents=True)
        file.write_text(properties, "ascii")
    assert shares_memory("AMD Radeon Graphics", tmp_path) is shared
    assert shares_memory("AMD Radeon(TM) Graphics", tmp_path) is shared
    # A name that says what it is needs no kernel.
    assert shares_memory("AMD Radeon 780M Graphics", tmp_path)
    assert not shares_memory("AMD Instinct MI300X", tmp_path)


def hardware(os: str, gpu: str) -> Hardware:
    """A machine of 64 GiB."""
    return Hardware("id", "chip", 64 * GIB, 8, os, gpu)


def test_a_gpu_whose_memory_nobody_tells_is_unknown(libraries):
    """So that two servers are not put on it. A machine without one, or with Intel's only, computes in its own memory."""
    libraries()
    assert devices_here(hardware("linux 6.8", "")) == ()
    assert devices_here(hardware("linux 6.8", "Intel GPU 0x46a6")) == ()
    assert devices_here(hardware("linux 6.8", "NVIDIA GeForce RTX 3090")) is None
    assert devices_here(hardware("linux 6.8", "AMD GPU 0x744c")) is None


@pytest.mark.parametrize(
    "gpus",
    [
        "AMD GPU 0x744c, Intel GPU 0x4680",
        "Intel GPU 0x4680, NVIDIA GeForce RTX 4090",
        "2 x NVIDIA GeForce RTX 3090, Intel GPU 0x4680",
        "Intel GPU 0x56a0",
    ],
)
def test_a_card_beside_integrated_graphics_is_unknown_too(gpus, libraries):
    """A desktop's processor has graphics of its own; that says nothing about the card's memory."""
    libraries()
    assert devices_here(hardware("linux 6.8", gpus)) is None


def test_a_mac_has_its_working_set(monkeypatch):
    """Apple silicon; a Mac with an Intel processor has no GPU here."""
    monkeypatch.setattr(device_memory, "output_of", lambda *_: "0\n")
    assert devices_here(hardware("macos 26.1", "Apple M4 GPU")) == (
        Device("MTL0", "Apple M4 GPU", 48 * GIB, 48 * GIB, unified=True),
    )
    assert devices_here(hardware("macos 15.1", "")) == ()


def test_only_a_macs_gpu_limits_the_machines_memory(monkeypatch):
    """Other GPUs have memory of their own, or take what the system gives."""
    monkeypatch.setattr(device_memory, "output_of", lambda *_: "28672\n")
    assert shared_limit_bytes(hardware("macos 26.1", "Apple M4 GPU")) == 28 * GIB
    assert shared_limit_bytes(hardware("macos 15.1", "")) == 0
    assert shared_limit_bytes(hardware("linux 6.8", "NVIDIA GeForce RTX 3090")) == 0


def test_a_drivers_library_tells_free_memory(libraries):
    """One card answers, the other one fell off the bus."""
    lost = Card(errors={"nvmlDeviceGetMemoryInfo": GPU_IS_LOST})
    libraries(nvml=FakeNvml(Card(name=b"NVIDIA GeForce RTX 3090", free=20 * GIB), lost))
    card = Device("CUDA0", "NVIDIA GeForce RTX 3090", 24 * GIB, 20 * GIB)
    assert driver_devices() == (card,)
    assert devices_here(hardware("linux 6.8", "2 x NVIDIA GeForce RTX 3090")) == (card,)


def test_of_a_divided_gpu_one_instance_counts(libraries):
    """CUDA uses one MIG instance, and no GPU beside it."""
    instance = Card(name="NVIDIA A100 MIG 1g.5gb", total=5 * GIB, free=4 * GIB)
    libraries(nvml=FakeNvml(Card(instances=[None, instance, Card()]), Card()))
    assert driver_devices() == (Device("CUDA0", "NVIDIA A100 MIG 1g.5gb", 5 * GIB, 4 * GIB),)


def test_amds_library_tells_free_memory_too(libraries):
    """Where no GPU of NVIDIA's answers."""
    libraries(nvml=FakeNvml(), smi=FakeAmdSmi())
    assert driver_devices() == (Device("ROCm0", "AMD Radeon RX 7900 XTX", 24560 << 20, 18416 << 20),)


def test_models_have_the_cards_memory_besides_the_systems(libraries, monkeypatch):
    """On a card that is larger than the system's memory, no draft fitted."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    libraries(nvml=FakeNvml(Card(), Card()))
    card = hardware("linux 6.8", "2 x NVIDIA GeForce RTX 4090")
    assert model_memory_bytes(card) == (64 + 48) * GIB
    assert model_memory_bytes(hardware("linux 6.8", "")) == 64 * GIB
    assert model_memory_bytes(hardware("macos 26.1", "Apple M4 GPU")) == 64 * GIB
    # 0 stands for "unknown", and everything fits then.
    assert model_memory_bytes(replace(card, memory_bytes=0)) == 0


def test_memory_that_a_driver_tells_of_graphics_in_the_processor_is_the_systems(libraries):
    """It counts once."""
    libraries(smi=FakeAmdSmi(amdsmi_get_gpu_asic_info={"market_name": "AMD Radeon 780M Graphics"}))
    assert model_memory_bytes(hardware("linux 6.8", "AMD GPU 0x15bf")) == 64 * GIB
    libraries(nvml=FakeNvml(Card(name="NVIDIA GB10")))
    assert model_memory_bytes(hardware("linux 6.8", "NVIDIA GB10")) == 64 * GIB


def test_a_card_without_a_name_of_its_own_has_memory(libraries, monkeypatch):
    """An MI50, where the kernel has no graphics of the processor's."""
    libraries(smi=FakeAmdSmi(amdsmi_get_gpu_asic_info={"market_name": "AMD Radeon Graphics"}))
    monkeypatch.setattr(device_memory, "_has_only_cards", lambda _root: True)
    assert driver_devices() == (Device("ROCm0", "AMD Radeon Graphics", 24560 << 20, 18416 << 20),)
    monkeypatch.setattr(device_memory, "_has_only_cards", lambda _root: False)
    assert driver_devices() == ()


def test_a_model_is_spread_over_cards_of_one_library():
    """Not over what draws on the processor, nor over integrated graphics beside a card."""
    card = Device("Vulkan0", "AMD Radeon RX 6800", 16 * GIB, 16 * GIB)
    small = Device("Vulkan1", "Intel(R) UHD Graphics 770", 40 * GIB, 40 * GIB, unified=True)
    software = Device("Vulkan2", "llvmpipe (LLVM 20.1.2, 256 bits)", 60 * GIB, 60 * GIB)
    assert usable([small, card, software]) == (card,)
    assert usable([small, software]) == (small,)
    assert usable([]) == ()

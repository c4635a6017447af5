"""llama.cpp's list of devices in every known form, and how much memory two servers may take."""

from __future__ import annotations

from pathlib import Path

import pytest

from autospec.backends import binaries
from autospec.backends.placement import Weights, Where, parse_device_list, room_bytes, weights_of
from autospec.hardware import gpu

MIB = 1024**2


# b11434, built for the processor (captured).
CPU = "Available devices:\n  (none)\n"
# Builds before that line printed nothing more.
CPU_OLD = "Available devices:\n"
# The form of ggml-org/llama.cpp #11424, with what the driver prints before it.
CUDA_ONE = """\
ggml_cuda_init: GGML_CUDA_FORCE_MMQ:    no
ggml_cuda_init: found 1 CUDA devices:
  Device 0: NVIDIA GeForce RTX 3090, compute capability 8.6, VMM: yes
Available devices:
  CUDA0: NVIDIA GeForce RTX 3090 (24124 MiB, 23862 MiB free)
"""
CUDA_TWO = """\
Available devices:
  CUDA0: NVIDIA GeForce RTX 4090 (24564 MiB, 24112 MiB free)
  CUDA1: NVIDIA GeForce RTX 3060 (12036 MiB, 11906 MiB free)
"""
METAL = """\
ggml_metal_device_init: recommendedMaxWorkingSetSize  = 22906.50 MB
Available devices:
  MTL0: Apple M2 Pro (21845 MiB, 21845 MiB free)
  BLAS: Accelerate (0 MiB, 0 MiB free)
"""
METAL_2025 = "Available devices:\n  Metal: Apple M2 Pro (21845 MiB, 21838 MiB free)\n"
VULKAN = """\
ggml_vulkan: Found 2 Vulkan devices:
ggml_vulkan: 0 = AMD Radeon RX 7900 XTX (RADV NAVI31) (radv) | uma: 0 | fp16: 1 | bf16: 0 | warp size: 64
Available devices:
  Vulkan0: AMD Radeon RX 7900 XTX (RADV NAVI31) (24560 MiB, 24012 MiB free)
  Vulkan1: Intel(R) UHD Graphics 770 (ADL-S GT1) (47860 MiB, 43074 MiB free)
"""
ROCM = """\
ggml_cuda_init: found 1 ROCm devices:
  Device 0: AMD Radeon RX 6800, gfx1030 (0x1030), VMM: no, Wave Size: 32
Available devices:
  ROCm0: AMD Radeon RX 6800 (16368 MiB, 16342 MiB free)
"""
CUDA_AND_VULKAN = """\
Available devices:
  CUDA0: NVIDIA GeForce RTX 3090 (24124 MiB, 23862 MiB free)
  Vulkan0: NVIDIA GeForce RTX 3090 (24576 MiB, 24322 MiB free)
"""
RPC = "Available devices:\n  RPC[10.0.0.2:50052]: RPC[10.0.0.2:50052] (24124 MiB, 23862 MiB free)\n"
# In the form of lists that users and projects published in 2025 and 2026, each of another kind of machine. The first five had a
# GPU in the processor that was taken for a card, or the reverse.
STRIX_HALO = """\
ggml_cuda_init: found 1 ROCm devices:
  Device 0: AMD Radeon(TM) Graphics, gfx1151 (0x1151), VMM: no, Wave Size: 32
Available devices:
  ROCm0: AMD Radeon(TM) Graphics (110511 MiB, 110357 MiB free)
"""
CARD_AND_RYZEN = """\
Available devices:
  Vulkan0: AMD Radeon RX 7900 XTX (24560 MiB, 22532 MiB free)
  Vulkan1: AMD Radeon(TM) Graphics (48532 MiB, 46105 MiB free)
"""
ARC_LAPTOP = "Available devices:\n  SYCL0: Intel(R) Arc(TM) A770M Graphics (15473 MiB, 15473 MiB free)\n"
ARC_UNNAMED = "Available devices:\n  SYCL0: Intel(R) Graphics [0xe223] (32657 MiB, 32145 MiB free)\n"
ORIN = "Available devices:\n  CUDA0: Orin (15655 MiB, 12229 MiB free)\n"
SPARK = "Available devices:\n  CUDA0: NVIDIA GB10 (124610 MiB, 106520 MiB free)\n"
LUNAR_LAKE = "Available devices:\n  SYCL0: Intel(R) Graphics [0x64a0] (16823 MiB, 16823 MiB free)\n"
ARC_AND_PROCESSOR = """\
Available devices:
  SYCL0: Intel(R) Arc(TM) Pro B70 Graphics (32656 MiB, 31665 MiB free)
  SYCL1: Intel(R) Graphics (29115 MiB, 11642 MiB free)
"""
M5_PRO = "Available devices:\n  MTL0: Apple M5 Pro (18186 MiB, 18185 MiB free)\n  BLAS: Accelerate (0 MiB, 0 MiB free)\n"
# Forks: ik_llama.cpp's and others' lists have the processor, a Mac's the Neural Engine.
WITH_PROCESSOR = """\
Available devices:
  Vulkan0: AMD Radeon RX 9070 XT (16304 MiB, 13737 MiB free)
  CPU: AMD Ryzen 7 7800X3D 8-Core Processor (192857 MiB, 192857 MiB free)
"""
ONLY_PROCESSOR = "Available devices:\n  CPU: AMD Ryzen 7 7800X3D (192857 MiB, 192857 MiB free)\n"
NEURAL_ENGINE = """\
Available devices:
  MTL0: Apple M3 Max (110100 MiB, 110100 MiB free)
  COREML0: Apple Silicon NPU (CoreML backend) (110100 MiB, 110100 MiB free)
  BLAS: Accelerate (0 MiB, 0 MiB free)
"""
OPENVINO = """\
Available devices:
  OPENVINO0: GGML_OPENVINO_DEVICE=CPU (selected) - 12th Gen Intel(R) Core(TM) i5-12500H (16076 MiB, 7834 MiB free)
  OPENVINO1: GGML_OPENVINO_DEVICE=GPU - Intel(R) Iris(R) Xe Graphics (iGPU) (7105 MiB, 7105 MiB free)
"""
# GGML_CUDA_DEVICES=2 (llama.cpp #25228).
VIRTUAL = """\
Available devices:
  CUDA0: RTX 5090 (physical device 0, virtual device 0) (16054 MiB, 10763 MiB free)
  CUDA1: RTX 5090 (physical device 0, virtual device 1) (16054 MiB, 10763 MiB free)
"""
SILENT_GPU = "Available devices:\n  Vulkan0: Some GPU (0 MiB, 0 MiB free)\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (CPU, []),
        (CPU_OLD, []),
        (CUDA_ONE, [("CUDA0", "NVIDIA GeForce RTX 3090", 24124, 23862, False)]),
        (
            CUDA_TWO,
            [
                ("CUDA0", "NVIDIA GeForce RTX 4090", 24564, 24112, False),
                ("CUDA1", "NVIDIA GeForce RTX 3060", 12036, 11906, False),
            ],
        ),
        (METAL, [("MTL0", "Apple M2 Pro", 21845, 21845, True)]),
        (METAL_2025, [("Metal", "Apple M2 Pro", 21845, 21838, True)]),
        (
            VULKAN,
            [
                ("Vulkan0", "AMD Radeon RX 7900 XTX (RADV NAVI31)", 24560, 24012, False),
                ("Vulkan1", "Intel(R) UHD Graphics 770 (ADL-S GT1)", 47860, 43074, True),
            ],
        ),
        (ROCM, [("ROCm0", "AMD Radeon RX 6800", 16368, 16342, False)]),
        (RPC, [("RPC[10.0.0.2:50052]", "RPC[10.0.0.2:50052]", 24124, 23862, False)]),
    ],
)
def test_every_known_form_is_read(text, expected):
    """Name, maker's name, MiB in all and free, and whether it shares the processor's memory."""
    found = parse_device_list(text)
    assert [
        (d.name, d.description, d.total_bytes // MIB, d.free_bytes // MIB, d.unified) for d in found
    ] == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (STRIX_HALO, [("ROCm0", 110511, True)]),
        (CARD_AND_RYZEN, [("Vulkan0", 24560, False), ("Vulkan1", 48532, True)]),
        (ARC_LAPTOP, [("SYCL0", 15473, False)]),
        (ARC_UNNAMED, [("SYCL0", 32657, False)]),
        (ORIN, [("CUDA0", 15655, True)]),
        (SPARK, [("CUDA0", 124610, True)]),
        (LUNAR_LAKE, [("SYCL0", 16823, True)]),
        (ARC_AND_PROCESSOR, [("SYCL0", 32656, False), ("SYCL1", 29115, True)]),
        (M5_PRO, [("MTL0", 18186, True)]),
        (WITH_PROCESSOR, [("Vulkan0", 16304, False)]),
        (ONLY_PROCESSOR, []),
        (OPENVINO, [("OPENVINO0", 16076, True), ("OPENVINO1", 7105, True)]),
        (VIRTUAL, [("CUDA0", 16054, False), ("CUDA1", 16054, False)]),
    ],
)
def test_whose_memory_a_device_has(text, expected):
    """Its own, or the processor's: a model is spread over a card and not over the graphics beside it."""
    found = parse_device_list(text)
    assert found is not None
    assert [(d.name, d.total_bytes // MIB, d.unified) for d in found] == expected


def test_a_card_with_the_name_of_graphics_in_the_processor(monkeypatch):
    """ROCm names an MI50 like this. Where a server of this machine lists it, the kernel knows better."""
    text = "Available devices:\n  ROCm0: AMD Radeon Graphics (32752 MiB, 32732 MiB free)\n"
    monkeypatch.setattr(binaries, "_output", lambda *_: text)
    for only_cards in (True, False):
        monkeypatch.setattr(gpu, "_has_only_cards", lambda _root, only_cards=only_cards: only_cards)
        found = binaries.list_devices(Path("llama-server"))
        assert found is not None
        assert [d.unified for d in found] == [not only_cards]


def test_of_two_views_of_one_chip_the_first_counts():
    """A Mac's GPU, and its Neural Engine with the same memory."""
    devices = parse_device_list(NEURAL_ENGINE)
    assert devices is not None
    assert room_bytes(devices, weights_of([], 32)) == (110100 - 1024) * MIB


@pytest.mark.parametrize(
    "text", ["", "error: invalid argument: --list-devices\n", "devices\n\x00\xff", SILENT_GPU]
)
def test_what_is_no_list_is_unknown(text):
    """A build without the flag, garbage, and a GPU that does not tell its memory."""
    assert parse_device_list(text) is None


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ("", Weights()),
        ("-c 4096 -fa on", Weights()),
        ("-ngl 99", Weights()),
        ("--gpu-layers auto", Weights()),
        ("-ngl -1", Weights()),
        ("-ngl 33", Weights()),
        ("-ngl 32", Weights(Where.BOTH)),  # the output layer stays with the processor
        ("--n-gpu-layers 10", Weights(Where.BOTH)),
        ("-ngl 10 -ngl 0", Weights(Where.MEMORY)),
        ("--device none -ngl 99", Weights(Where.MEMORY)),
        ("-dev CUDA1", Weights(only=("CUDA1",))),
        ("-sm none -mg 1", Weights(one=1)),
        ("-mg 1", Weights()),
        ("-ts 3,1", Weights(shares=True)),
        ("-ngl 99 --n-cpu-moe 20", Weights(Where.BOTH)),
        ("-ot exps=CPU", Weights(Where.BOTH)),
        ("--rpc 10.0.0.2:50052", Weights(remote=True)),
    ],
)
def test_the_users_arguments_say_where_the_weights_go(args, expected):
    """For a model of 32 layers."""
    assert weights_of(args.split(), 32) == expected


@pytest.mark.parametrize(
    ("text", "args", "mib"),
    [
        # 1024 MiB stay free on each device, or --fit would move layers.
        (CUDA_ONE, "", 22838),
        (CUDA_TWO, "", 23088 + 10882),
        (CUDA_TWO, "-dev CUDA1", 10882),
        (CUDA_TWO, "-sm none", 23088),
        (CUDA_TWO, "-sm none -mg 1", 10882),
        (CUDA_TWO, "-ts 1,1", 2 * 10882),
        (METAL, "", 20821),
        (VULKAN, "", 22988),  # integrated graphics are left alone where there is a card
        (VULKAN, "-dev Vulkan1", 42050),
        (CARD_AND_RYZEN, "", 21508),  # before, the model would have been spread over both
        (CUDA_AND_VULKAN, "", 22838),  # one card, shown twice
        (CUDA_ONE, "-dev CUDA7", None),
        (CUDA_ONE, "--rpc 10.0.0.2:50052", None),
    ],
)
def test_the_room_of_two_servers(text, args, mib):
    """Free memory of the devices that a model is spread over."""
    room = room_bytes(parse_device_list(text), weights_of(args.split(), 32))
    assert room == (None if mib is None else mib * MIB)

"""The machine's identity, from texts in the form that the systems print."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from autospec.hardware import identify, identity
from autospec.hardware.identity import output_of

GIB = 1024**3

CPUINFO_X86 = """\
processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model name\t: Intel(R) Core(TM) i7-8650U CPU @ 1.90GHz
cpu MHz\t\t: 2100.000
"""
CPUINFO_ARM = """\
processor\t: 0
BogoMIPS\t: 108.00
CPU implementer\t: 0x41
CPU part\t: 0xd0b
"""
NVIDIA_SMI = """\
GPU 0: NVIDIA GeForce RTX 4090 (UUID: GPU-3f1bafe5-0000-1111-2222-333344445555)
GPU 1: NVIDIA GeForce RTX 4090 (UUID: GPU-81b2ac8d-0000-1111-2222-333344445555)
"""
IOREG = """\
+-o AGXAcceleratorG14X  <class AGXAcceleratorG14X, id 0x1000004e2, registered, matched, active>
    {
      "model" = "Apple M2 Ultra"
      "gpu-core-count" = 76
    }
"""


def describe(**changes: object):
    """A Mac Studio, but for the changes."""
    facts = {
        "chip": "Apple M2 Ultra",
        "memory_bytes": 64 * GIB,
        "cores": 24,
        "os_name": "macos 15.1",
        "gpu": "",
    }
    return identity.describe(**(facts | changes))  # type: ignore[arg-type]


def test_the_id_is_readable_and_stable():
    """Chip and memory stand in the id; the same facts give the same id."""
    assert describe().id.startswith("apple-m2-ultra-64g-")
    assert describe() == describe()
    assert len(describe().id.rsplit("-", 1)[1]) == 6


@pytest.mark.parametrize(
    "changes", [{"chip": "Apple M2 Max"}, {"memory_bytes": 128 * GIB}, {"cores": 20}, {"gpu": "60-core"}]
)
def test_another_machine_has_another_id(changes: dict[str, object]):
    """Every fact that changes speed changes the id."""
    assert describe(**changes).id != describe().id


def test_an_update_of_the_system_keeps_the_id():
    """The operating system is told but is no part of the identity."""
    assert describe(os_name="macos 26.0").id == describe().id


def test_reserved_memory_keeps_the_id():
    """Two kernels of one machine reserve different amounts."""
    assert describe(memory_bytes=63 * GIB + 123456).id == describe(memory_bytes=int(62.2 * GIB)).id


@pytest.mark.parametrize(
    ("reported_gib", "installed"),
    [
        (7.6, 8),
        (15.5, 16),
        (23.54, 24),
        (31.2, 32),
        (46.9, 48),
        (62.6, 64),
        (125.7, 128),
        (251.5, 256),
        (64, 64),
        (0.4, 1),
    ],
)
def test_installed_memory_is_found_behind_the_reported(reported_gib: float, installed: int):
    """Rounded up to the sizes that memory is sold in."""
    assert identity.installed_gib(int(reported_gib * GIB)) == installed


def test_trademarks_and_clock_leave_the_slug():
    """The slug is what people call the chip."""
    assert describe(chip="Intel(R) Core(TM) i7-8650U CPU @ 1.90GHz").id.startswith("intel-core-i7-8650u-64g-")
    assert describe(chip="AMD Ryzen 9 7950X 16-Core Processor").id.startswith("amd-ryzen-9-7950x-64g-")


def test_cpuinfo_gives_the_model_name():
    """x86 kernels print it."""
    assert identity.parse_cpuinfo(CPUINFO_X86) == "Intel(R) Core(TM) i7-8650U CPU @ 1.90GHz"


def test_cpuinfo_of_arm_has_no_name():
    """ARM kernels print numbers only, so the caller looks elsewhere."""
    assert identity.parse_cpuinfo(CPUINFO_ARM) == ""


def test_jetsons_kernel_names_an_architecture_and_no_processor(tmp_path: Path):
    """Every Jetson was one machine with any ARMv8 board before (arm-socs-table #63); the device tree tells them apart."""
    cpuinfo = "processor\t: 0\nmodel name\t: ARMv8 Processor rev 0 (v8l)\nBogoMIPS\t: 62.50\n"
    assert identity.parse_cpuinfo(cpuinfo) == ""
    for name, text in {
        "proc/cpuinfo": cpuinfo,
        "proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, "utf-8")
    assert identity._linux(tmp_path).chip == "NVIDIA Jetson AGX Orin Developer Kit"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        # datadog-agent #33120: the instances are no GPUs of their own.
        (
            """GPU 0: NVIDIA A100-SXM4-80GB (UUID: GPU-00000000-1111-2222-3333-444444444444)
  MIG 1g.10gb     Device  0: (UUID: MIG-00000000-1111-2222-3333-444444444444)
  MIG 1g.10gb     Device  1: (UUID: MIG-00000000-1111-2222-3333-555555555555)
""",
            ("NVIDIA A100-SXM4-80GB",),
        ),
        ("GPU 0: Orin (nvgpu) (UUID: 00000000-1111-2222-3333-444444444444)\n", ("Orin (nvgpu)",)),
        ("No devices found.\n", ()),
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n", ()),
    ],
)
def test_other_lists_of_nvidia_smi(text, names):
    """Divided GPUs, Jetson, and a driver that does not answer."""
    assert identity.parse_nvidia_smi(text) == names


# Trimmed listings of ``ioreg -rc AGXAccelerator -d 1`` of M1, M3 and M5: the order differs, and some have the tree's bars.
@pytest.mark.parametrize(
    ("text", "cores"),
    [
        (
            '+-o AGXAcceleratorG13X <class AGXAcceleratorG13X>\n    "model" = "Apple M2 Pro"\n    "gpu-core-count" = 19\n',
            19,
        ),
        (
            '+-o AGXAcceleratorG15X  <class AGXAcceleratorG15X>\n  | {\n  |   "gpu-core-count" = 60\n  | }\n',
            60,
        ),
        (
            '+-o AGXAcceleratorG17X  <class AGXAcceleratorG17X>\n  {\n    "gpu-core-count" = 40\n    "model" = "Apple M5 Max"\n  }\n',
            40,
        ),
        ("+-o AppleParavirtGPU  <class AppleParavirtGPU>\n  {\n  }\n", 0),  # a Mac in a virtual machine
    ],
)
def test_ioreg_of_other_macs(text, cores):
    """A virtual machine has no such count."""
    assert identity.parse_ioreg(text) == cores


def test_nvidia_smi_lists_names():
    """UUIDs are left out, so that equal machines stay equal."""
    assert identity.parse_nvidia_smi(NVIDIA_SMI) == ("NVIDIA GeForce RTX 4090",) * 2


def test_ioreg_gives_the_gpu_cores():
    """The same Apple chip is sold with 60 and 76 GPU cores."""
    assert identity.parse_ioreg(IOREG) == 76
    assert identity.parse_ioreg("") == 0


def test_linux_reads_proc_and_sys(tmp_path: Path):
    """A recorded tree of an ARM board with limits and an AMD card gives its identity."""
    tree = {
        "proc/cpuinfo": CPUINFO_ARM,
        "proc/meminfo": "MemTotal:        8052424 kB\nMemFree: 1 kB\n",
        "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
        "sys/fs/cgroup/cpu.max": "100000 100000\n",
        "sys/fs/cgroup/memory.max": "4294967296\n",
        "sys/class/drm/card0/device/vendor": "0x1002\n",
        "sys/class/drm/card0/device/device": "0x744c\n",
        "sys/class/drm/card0-DP-1/device/vendor": "0x1002\n",
        "sys/class/drm/card1/device/vendor": "0x1a03\n",
    }
    for name, text in tree.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, "utf-8")
    hardware = identity._linux(tmp_path)
    assert hardware.chip == "Raspberry Pi 5 Model B Rev 1.0"
    assert hardware.memory_bytes == 4 * GIB
    assert hardware.cores == 1
    assert hardware.gpu == "AMD GPU 0x744c"


def test_nvidia_cards_are_read_without_a_program(tmp_path: Path):
    """The driver's own folder names them at once."""
    for card in ("0000:01:00.0", "0000:02:00.0"):
        folder = tmp_path / "proc/driver/nvidia/gpus" / card
        folder.mkdir(parents=True)
        (folder / "information").write_text("Model: \t\t NVIDIA H100\nIRQ:   \t\t 1\n", "utf-8")
    assert identity._linux(tmp_path).gpu == "2 x NVIDIA H100"


def test_in_wsl_a_service_finds_the_cards_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Only a shell's PATH leads to WSL's programs: in the service the machine had another id, and nothing was known of it."""
    program = tmp_path / "usr/lib/wsl/lib/nvidia-smi"
    program.parent.mkdir(parents=True)
    program.touch(mode=0o755)
    asked: list[tuple[str, ...]] = []

    def slow(*command: str, timeout_s: float = 5.0) -> str:
        asked.append(command)
        return NVIDIA_SMI if timeout_s > 12 else ""

    monkeypatch.setattr(identity, "output_of", slow)
    monkeypatch.setenv("PATH", "/nowhere")
    assert identity._linux(tmp_path).gpu == "2 x NVIDIA GeForce RTX 4090"
    monkeypatch.setenv("PATH", str(program.parent))
    assert identity._linux(tmp_path).gpu == "2 x NVIDIA GeForce RTX 4090"
    assert asked == [(str(program), "-L")] * 2


def test_an_empty_tree_is_no_crash(tmp_path: Path):
    """Where /proc tells nothing, the machine is still called something."""
    hardware = identity._linux(tmp_path)
    assert hardware.chip
    assert hardware.memory_bytes == 0


def test_macos_asks_sysctl_and_ioreg(monkeypatch: pytest.MonkeyPatch):
    """Answers in the form of an M2 Ultra give chip, memory and GPU."""
    answers = {"sysctl": "Apple M2 Ultra\n68719476736\n", "ioreg": IOREG}
    monkeypatch.setattr(identity, "output_of", lambda *command, **_: answers[command[0]])
    monkeypatch.setattr(identity.platform, "machine", lambda: "arm64")
    hardware = identity._macos()
    assert hardware.id.startswith("apple-m2-ultra-64g-")
    assert hardware.memory_bytes == 64 * GIB
    assert hardware.gpu == "Apple M2 Ultra 76-core GPU"


def test_a_mac_that_swaps_keeps_its_id(monkeypatch: pytest.MonkeyPatch):
    """Without the answer of ioreg, which takes long then, it would be another machine, of which nothing is known."""

    def slow(*command: str, timeout_s: float = 5.0) -> str:
        return (
            {"sysctl": "Apple M2 Ultra\n68719476736\n", "ioreg": IOREG}[command[0]] if timeout_s > 12 else ""
        )

    monkeypatch.setattr(identity, "output_of", slow)
    monkeypatch.setattr(identity.platform, "machine", lambda: "arm64")
    assert identity._macos().gpu == "Apple M2 Ultra 76-core GPU"


def test_macos_without_answers_is_no_crash(monkeypatch: pytest.MonkeyPatch):
    """In a sandbox sysctl may be forbidden."""
    monkeypatch.setattr(identity, "output_of", lambda *command, **_: "")
    assert identity._macos().memory_bytes == 0


def test_this_machine_is_identified_quickly():
    """The real thing: some chip, some memory, and an answer before anybody notices."""
    identify.cache_clear()
    began = time.process_time()
    hardware = identify()
    assert time.process_time() - began < 0.05
    assert hardware.memory_bytes > 256 * 1024**2
    assert hardware.cores >= 1
    assert hardware.chip
    assert replace(hardware) == identify()


def test_a_program_that_is_missing_fails_or_hangs_says_nothing():
    """Nothing about the machine is worth a crash or a wait."""
    assert output_of("autospec-no-such-program") == ""
    assert output_of(sys.executable, "-c", "print('half'); raise SystemExit(1)") == ""
    assert output_of(sys.executable, "-c", "import signal; signal.pause()", timeout_s=0.2) == ""
    assert output_of(sys.executable, "-c", "print('yes')") == "yes\n"


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ("cffaedfe 0c000001 00000000 02000000", {"arm64"}),
        ("cffaedfe 07000001 03000000 02000000", {"x86_64"}),
        # A universal program: two entries of 20 bytes.
        (f"cafebabe 00000002 01000007 {'00' * 16} 0100000c {'00' * 16}", {"x86_64", "arm64"}),
        # Cut off in the first entry; a class of Java 8; a program of Linux; a script; nothing.
        ("cafebabe 00000002 0100", set()),
        ("cafebabe 00000034 01000007", set()),
        ("7f454c46 02010100", set()),
        ("23212f62 696e2f73 680a", set()),
        ("", set()),
    ],
)
def test_the_processor_of_a_macos_program_is_read_from_its_first_bytes(head, expected):
    """The layout of mach-o/loader.h and mach-o/fat.h."""
    assert identity.parse_mach_o(bytes.fromhex(head)) == expected


@pytest.mark.parametrize(
    ("system", "machine", "printed", "expected"),
    [
        ("darwin", "x86_64", "1\n", True),
        ("darwin", "x86_64", "0\n", False),  # a Mac with an Intel processor, macOS 11 and later
        ("darwin", "x86_64", "", False),  # before
        ("darwin", "arm64", "0\n", False),
        ("linux", "x86_64", "1\n", False),
    ],
)
def test_rosetta_is_noticed(monkeypatch, system, machine, printed, expected):
    """`sysctl.proc_translated` is of the process that asks, and its children's are the same."""
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(identity.platform, "machine", lambda: machine)
    monkeypatch.setattr(identity, "output_of", lambda *_: printed)
    assert identity.is_translated() is expected

"""Parsing what macOS prints about power, heat and swap, and reading this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from autospec.hardware import readings
from autospec.hardware.readings import available_memory_bytes

PMSET = """\
System-wide power settings:
Currently in use:
 standby              1
 powernap             1
 sleep                1 (sleep prevented by powerd)
 lowpowermode         {mode}
 womp                 0
"""
PMSET_THERM_SILENT = """\
Note: No thermal warning level has been recorded
Note: No performance warning level has been recorded
Note: No CPU power status has been recorded
"""
PMSET_THERM_INTEL = """\
Note: No thermal warning level has been recorded
2020-01-09 16:14:34 -0800 CPU Power notify
\tCPU_Scheduler_Limit \t= 100
\tCPU_Available_CPUs \t= 8
\tCPU_Speed_Limit \t= {limit}
"""
VM_STAT = """\
Mach Virtual Memory Statistics: (page size of 16384 bytes)
Pages free:                               12345.
Pageins:                                 999999.
Swapins:                                    640.
Swapouts:                                  1280.
"""


@pytest.mark.parametrize(("mode", "expected"), [(0, False), (1, True)])
def test_low_power_mode_is_read(mode: int, expected: bool):
    """The line of laptops and newer desktops."""
    assert readings.parse_low_power(PMSET.format(mode=mode)) is expected


def test_the_newer_power_mode_counts_only_low():
    """2 is high power, which is not low."""
    assert readings.parse_low_power(" powermode            2\n") is False
    assert readings.parse_low_power(" powermode            1\n") is True


def test_no_line_is_not_known():
    """A Mac without the setting tells nothing."""
    assert readings.parse_low_power(" sleep 1\n") is None


@pytest.mark.parametrize(
    ("level", "expected"),
    [(0, "nominal"), (1, "nominal"), (2, "throttled"), (3, "throttled"), (4, "throttled")],
)
def test_thermal_pressure_is_read(level: int, expected: str):
    """Clocks fall from heavy (2) on, whatever pmset says."""
    text = f"com.apple.system.thermalpressurelevel {level}\n"
    assert readings.parse_thermal(text, PMSET_THERM_SILENT) == expected


@pytest.mark.parametrize(("limit", "expected"), [(100, "nominal"), (46, "throttled")])
def test_intel_macs_tell_a_speed_limit(limit: int, expected: str):
    """Where notifyutil knows nothing, pmset's number counts."""
    assert readings.parse_thermal("", PMSET_THERM_INTEL.format(limit=limit)) == expected


def test_the_worse_of_two_sources_counts():
    """On an Intel Mac, notifyutil may answer 0 while pmset limits the speed."""
    nominal = "com.apple.system.thermalpressurelevel 0\n"
    assert readings.parse_thermal(nominal, PMSET_THERM_INTEL.format(limit=46)) == "throttled"
    assert readings.parse_thermal(nominal, PMSET_THERM_INTEL.format(limit=100)) == "nominal"


def test_a_silent_pmset_means_nothing():
    """On Apple silicon it is silent while the machine throttles, so silence is not `nominal`."""
    assert readings.parse_thermal("", PMSET_THERM_SILENT) == "unknown"
    assert readings.parse_thermal("com.apple.system.thermalpressurelevel Failed with code 4", "") == "unknown"


def test_swap_ins_are_not_page_ins():
    """Pageins count files mapped into memory, models among them; Swapins do not."""
    assert readings.parse_swap_ins(VM_STAT) == 640 * 16384
    assert readings.parse_swap_ins("") == 0


# M5 with macOS 26: memory tagging has added lines. In the form of a report that such a Mac's user published; an Intel Mac's pages
# have 4 KiB.
VM_STAT_M5 = """\
Mach Virtual Memory Statistics: (page size of 16384 bytes)
Pages free:                                4518.
"Translation faults":               13732694832.
Pageins:                             5704911813.
Pageouts:                              10616553.
Swapins:                               41697979.
Swapouts:                              69922789.
Pages tagged:                            176314.
Pages tag-storage:                        98304.
Bytes of compressed tags:               6616064.
"""


@pytest.mark.parametrize(
    ("text", "swapped"),
    [
        (VM_STAT_M5, 41697979 * 16384),
        (VM_STAT_M5.replace("16384 bytes", "4096 bytes"), 41697979 * 4096),
        (VM_STAT_M5.replace("41697979", "0"), 0),
    ],
)
def test_swap_ins_of_other_macs(text, swapped):
    """Lines are added; the page's size is the system's."""
    assert readings.parse_swap_ins(text) == swapped


# Of `pmset -g`: a MacBook Pro, a Mac Studio with macOS 26, an Intel Mac whose sleep is off. The notes in brackets and tabs are theirs.
@pytest.mark.parametrize(
    ("text", "low"),
    [
        (
            "System-wide power settings:\nCurrently in use:\n standby              1\n powermode            2\n sleep 1\n",
            False,
        ),
        (
            "Currently in use:\n powermode            1\n sleep                1 (sleep prevented by powerd, caffeinate)\n",
            True,
        ),
        (
            "Currently in use:\n standby              0\n tcpkeepalive         1\n lowpowermode         0\n womp                 1\n",
            False,
        ),
        (
            "System-wide power settings:\n SleepDisabled\t\t1\nCurrently in use:\n Sleep On Power Button 1\n hibernatemode\t\t3\n",
            None,
        ),
    ],
)
def test_low_power_mode_of_other_macs(text, low):
    """Another name with a high power mode; none on old Macs."""
    assert readings.parse_low_power(text) is low


def test_a_reading_is_cheap():
    """It brackets every measurement: below 3 ms of processor time, own processes included."""
    own = frozenset({os.getppid(), os.getpid()})
    readings.read(own, readings.Power())
    began = time.process_time()
    for _ in range(20):
        readings.read(own, readings.Power())
    assert (time.process_time() - began) / 20 < 0.003


def test_the_clock_of_the_system_goes_on():
    """Busy time and monotonic time grow between two readings with work in between."""
    first = readings.read((), readings.Power())
    deadline = time.monotonic() + 10
    last = first
    while last.busy_s <= first.busy_s:
        assert time.monotonic() < deadline
        last = readings.read((), readings.Power())
    assert last.at_s > first.at_s
    assert last.self_s >= first.self_s
    assert last.memory_available_bytes > 0


STAT = """\
cpu  400 40 80 9000 10 4 8 12 0 0
cpu0 100 10 20 2000 5 1 2 3 0 0
cpu1 100 10 20 2000 5 1 2 3 0 0
cpu10 200 20 40 5000 0 2 4 6 0 0
intr 12345 0 9
ctxt 678
"""


def test_only_the_processors_that_we_may_use_count():
    """A container or a batch job with a part of a busy machine was disturbed for ever by those on the rest of it."""
    own = readings.own_processors([1, 10], STAT)
    assert own == {1, 10}
    assert readings.parse_stat(STAT, own, 100) == (pytest.approx(3.99), pytest.approx(0.09))
    assert readings.own_processors([0, 1, 10], STAT) is None
    assert readings.own_processors([40, 41], STAT) is None  # lxcfs numbers its own from 0
    assert readings.own_processors([0], "") is None


@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the time of each processor")
def test_a_reading_of_a_part_of_the_machine():
    """On the real files, in a process that may use one processor only."""
    program = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
        " from autospec.hardware import readings; r = readings.read((), readings.Power()); print(r.cores, r.busy_s > 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "1 True\n"


def test_a_process_that_ended_is_left_out():
    """A server may die at any moment."""
    with subprocess.Popen([sys.executable, "-c", "pass"]) as gone:
        pass
    assert readings.read({gone.pid}, readings.Power()).processes == {}


def test_descendants_are_found():
    """A child started here is among them, this process is not."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        found = readings.descendants()
        child.communicate(b"\n")
    assert child.pid in found
    assert os.getpid() not in found


def supply(kind: str, **files: str) -> dict[str, str]:
    """The files of one supply."""
    return {"type": kind, **files}


BATTERY = supply("Battery", present="1", capacity="63", scope="System")
DISCHARGING, CHARGING, KEPT = (BATTERY | {"status": s} for s in ("Discharging", "Charging", "Not charging"))
MOUSE = supply("Battery", present="1", capacity="80", scope="Device", status="Discharging")
IN, OUT = {"online": "1"}, {"online": "0"}


# In the forms that owners of such machines publish.
@pytest.mark.parametrize(
    ("supplies", "on_battery"),
    [
        ({}, False),
        ({"AC": supply("Mains", **IN)}, False),
        ({"hidpp_battery_0": MOUSE}, False),  # a desktop with a wireless mouse
        ({"ucsi-source-psy-USBC000:001": supply("USB", **OUT)}, False),  # a desktop with USB-C
        ({"AC": supply("Mains", **OUT), "BAT0": DISCHARGING, "hidpp_battery_0": MOUSE}, True),
        ({"AC": supply("Mains", **IN), "BAT0": KEPT}, False),  # a limit of charge, as of ThinkPads
        ({"ADP1": supply("Mains", **IN), "BAT1": DISCHARGING}, False),  # a charger that is too weak
        (
            {"ADP1": supply("Mains", **OUT), "BAT0": KEPT, "BAT1": DISCHARGING},
            True,
        ),  # two batteries, one after the other
        (
            {"ADP1": supply("Mains", **OUT), "BAT0": BATTERY | {"present": "0"}},
            False,
        ),  # the battery is taken out
        ({"hidpp_battery_0": MOUSE, "macsmc-ac": supply("Mains", **IN), "macsmc-battery": KEPT}, False),
        (
            {
                "qcom-battmgr-ac": supply("Mains", **OUT),
                "qcom-battmgr-bat": DISCHARGING,
                "qcom-battmgr-usb": supply("USB", **OUT),
                "qcom-battmgr-wls": supply("Wireless", **OUT),
            },
            True,
        ),
        (
            {
                "qcom-battmgr-ac": supply("Mains", **OUT),
                "qcom-battmgr-bat": CHARGING,
                "qcom-battmgr-usb": supply("USB", **IN),
            },
            False,
        ),
        ({"BAT0": DISCHARGING, "ucsi-source-psy-USBC000:001": supply("USB", **IN)}, True),
        ({"CMB0": CHARGING}, False),
        ({"CMB0": DISCHARGING}, True),
        ({"CMB0": KEPT}, None),
    ],
)
def test_what_the_machine_runs_on(tmp_path, supplies, on_battery):
    """By types, not by names: a Snapdragon laptop was on mains for ever, a desktop with a wireless mouse on battery."""
    for name, files in supplies.items():
        (tmp_path / name).mkdir()
        for file, text in files.items():
            (tmp_path / name / file).write_text(f"{text}\n")
    own = any(f["type"] == "Battery" and f != MOUSE and f["present"] == "1" for f in supplies.values())
    assert readings.linux_battery(tmp_path) == (on_battery, 63.0 if own else None)


def test_power_is_read_without_a_crash():
    """The real thing, whatever this machine has."""
    power = readings.read_power()
    assert power.thermal in {"nominal", "throttled", "unknown"}
    assert power.on_battery in {True, False, None}


@pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux tells the time of another process's ended children"
)
def test_the_time_of_a_childs_ended_children_is_told():
    """A child launches a program that works, and waits for its end: no reading sees that program."""
    work = "import time\nwhile time.process_time() < 0.2: pass"
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {work!r}]); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        found = readings.read({child.pid}, readings.Power()).processes[child.pid]
        child.communicate(b"\n")
    assert found.reaped_s >= 0.19


@pytest.mark.parametrize(("text", "short"), [("1\n", False), ("2\n", True), ("4\n", True), ("", None)])
def test_memory_pressure_is_the_systems_own_word(text, short):
    """1 normal, 2 warning, 4 critical: free and inactive pages say nothing, for inactive ones belong to other programs."""
    assert readings.parse_memory_pressure(text) is short


V2 = "sys/fs/cgroup/"
V1 = "sys/fs/cgroup/memory/"


@pytest.mark.parametrize(
    ("files", "left_gib"),
    [
        ({}, 16),  # no control groups
        ({"proc/self/cgroup": "0::/\n", f"{V2}memory.max": "max\n", f"{V2}memory.current": "1\n"}, 16),
        (  # docker run --memory 8g
            {
                "proc/self/cgroup": "0::/\n",
                f"{V2}memory.max": f"{8 << 30}\n",
                f"{V2}memory.current": f"{5 << 30}\n",
                f"{V2}memory.stat": f"anon 7\ninactive_file {1 << 30}\nactive_file {1 << 30}\nworkingset_x 9\n",
            },
            5,
        ),
        (  # MemoryMax= of a slice above the service
            {
                "proc/self/cgroup": "0::/user.slice/app.slice/autospec.service\n",
                f"{V2}user.slice/memory.max": f"{6 << 30}\n",
                f"{V2}user.slice/memory.current": f"{2 << 30}\n",
                f"{V2}user.slice/app.slice/autospec.service/memory.max": "max\n",
                f"{V2}user.slice/app.slice/autospec.service/memory.current": f"{1 << 30}\n",
            },
            4,
        ),
        (  # version 1 in a container, with the host's path
            {
                "proc/self/cgroup": "4:memory:/docker/0123abcd\n1:cpu:/docker/0123abcd\n0::/\n",
                f"{V1}memory.limit_in_bytes": f"{4 << 30}\n",
                f"{V1}memory.usage_in_bytes": f"{3 << 30}\n",
                f"{V1}memory.stat": f"inactive_file 5\ntotal_inactive_file {1 << 30}\ntotal_active_file {1 << 30}\n",
            },
            3,
        ),
        (  # version 1 writes "none" as a number; the use may be above a limit that was lowered
            {
                "proc/self/cgroup": "4:memory:/\n",
                f"{V1}memory.limit_in_bytes": "9223372036854771712\n",
                f"{V1}memory.usage_in_bytes": f"{3 << 30}\n",
            },
            16,
        ),
        (
            {
                "proc/self/cgroup": "0::/\n",
                f"{V2}memory.max": f"{1 << 30}\n",
                f"{V2}memory.current": f"{2 << 30}\n",
            },
            0,
        ),
    ],
)
def test_a_limit_of_a_container_or_service_bounds_the_available_memory(
    monkeypatch, tmp_path, files, left_gib
):
    """A tune in a container planned with the host's free memory. Mapped weights, which are active files, took none of it there."""
    memory = SimpleNamespace(total=64 << 30, available=16 << 30)
    monkeypatch.setattr(readings.psutil, "virtual_memory", lambda: memory)
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    assert available_memory_bytes(tmp_path) == left_gib << 30

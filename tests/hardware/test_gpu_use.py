"""How much other programs use the GPU over a window, on NVIDIA's cards and on Macs."""

from __future__ import annotations

import pytest

from autospec.hardware.gpu import GpuWatch, Metal, parse_gpu_clients
from autospec.hardware.gpu_reading import GpuUse
from autospec.hardware.nvidia import Nvidia
from tests.hardware.fake_gpus import GIB, NOT_SUPPORTED, Card, FakeNvml

OURS = frozenset({10, 11})
BARE = {
    "nvmlDeviceGetGraphicsRunningProcesses": NOT_SUPPORTED,
    "nvmlDeviceGetCurrentClocksEventReasons": NOT_SUPPORTED,
    "nvmlDeviceGetCurrentClocksThrottleReasons": NOT_SUPPORTED,
    "nvmlDeviceGetPowerManagementLimit": NOT_SUPPORTED,
    "nvmlDeviceGetTotalEnergyConsumption": NOT_SUPPORTED,
}


def watched(**card) -> tuple[GpuWatch, Card]:
    """A watch over one card that tells no more than processes, and the card."""
    one = Card(**card, errors=BARE)
    return GpuWatch([Nvidia(FakeNvml(one))]), one


def test_what_others_use_is_told_apart_from_ours():
    """Only samples within the window count; a process is worth the mean of its own."""
    processes = [(10, 8 * GIB), (77, 2 * GIB), (78, None)]
    watch, card = watched(compute=processes, samples=[(77, 100, 90)], free=13 * GIB)
    watch.start()
    card.samples += [(10, 200, 95), (77, 200, 20), (77, 300, 40)]
    assert watch.finish(OURS) == GpuUse(0.3, 3 * GIB)


@pytest.mark.parametrize("value", [6, 0])
def test_nobody_else_is_nothing_and_not_unknown(value):
    """No sample since the window began: the binding raises "not found", or an error with the value of success."""
    watch, _ = watched(compute=[(10, 1)], no_samples=value)
    watch.start()
    assert watch.finish(OURS) == GpuUse(0.0, 0)


def test_a_container_does_not_take_its_own_servers_for_others():
    """There the driver names processes by numbers of the host."""
    watch, _ = watched(compute=[(40321, 8 * GIB)], samples=[(40321, 100, 99)])
    watch.start()
    assert watch.finish(OURS) is None


def test_without_a_gpu_nothing_is_known():
    """A driver without cards, and no driver."""
    for watch in (GpuWatch([Nvidia(FakeNvml())]), GpuWatch([])):
        watch.start()
        assert watch.finish(OURS) is None
        assert watch.finish(OURS, at_rest=True) is None


# `ioreg -r -d 1 -w 0 -c AGXDeviceUserClient`, in the form that tests of public projects hold: Apple M4 Pro, AGXAcceleratorG16X. A process
# has several clients, a client several queues; the order within a client differs between captures.
CLIENTS = """\
+-o AGXDeviceUserClient  <class AGXDeviceUserClient, id 0x100000a01, !registered, !matched, active, busy 0, retain 8>
    {
      "AppUsage" = ({"API"="Metal","lastSubmittedTime"=1000,"accumulatedGPUTime"=250000000},{"API"="Metal","accumulatedGPUTime"=50000000})
      "CommandQueueCount" = 2
      "IOUserClientCreator" = "pid 412, WindowServer"
    }

+-o AGXDeviceUserClient  <class AGXDeviceUserClient, id 0x100000a02, !registered, !matched, active, busy 0, retain 8>
    {
      "AppUsage" = ()
      "IOUserClientCreator" = "pid 415, runningboardd"
    }

+-o AGXDeviceUserClient  <class AGXDeviceUserClient, id 0x100000a03, !registered, !matched, active, busy 0, retain 8>
    {
      "IOUserClientCreator" = "pid 10, llama-server"
      "AppUsage" = ({"accumulatedGPUTime"=7000000000,"API"="Metal"})
    }

+-o AGXDeviceUserClient  <class AGXDeviceUserClient, id 0x100000a04, !registered, !matched, active, busy 0, retain 8>
    {
      "AppUsage" = ({"API"="Metal","accumulatedGPUTime"=125000000})
      "IOUserClientCreator" = "pid 412, WindowServer"
    }
"""


def test_gpu_time_of_each_process_on_a_mac():
    """In nanoseconds."""
    assert parse_gpu_clients(CLIENTS) == {412: 425_000_000, 415: 0, 10: 7_000_000_000}
    assert parse_gpu_clients("") == {}
    assert parse_gpu_clients("+-o AGXDeviceUserClient\n  {\n  }\n") == {}


# The accelerator's own entry before its clients, as `-d 2` and M5s (AGXAcceleratorG17X) have it; wine, a name with a space.
UNDER_THE_ACCELERATOR = """\
+-o AGXAcceleratorG17X  <class AGXAcceleratorG17X, id 0x100000485, registered, matched, active, busy 0, retain 99>
  | {
  |   "AGCInfo" = {"fLastSubmissionPID"=4242,"fSubmissionsSinceLastCheck"=3}
  |   "PerformanceStatistics" = {"Device Utilization %"=12,"Renderer Utilization %"=9}
  | }
  |
  +-o AGXDeviceUserClient  <class AGXDeviceUserClient, id 0x100000a01, !registered, !matched, active, busy 0, retain 5>
  |   {
  |     "AppUsage" = ({"API"="Metal","lastSubmittedTime"=1000,"accumulatedGPUTime"=250000000},{"API"="Metal","accumulatedGPUTime"=5})
  |     "IOUserClientCreator" = "pid 4242, wine64-preloader"
  |   }
  |
  +-o AGXDeviceUserClient  <class AGXDeviceUserClient, id 0x100000a02, !registered, !matched, active, busy 0, retain 5>
      {
        "AppUsage" = ({"API"="Metal","lastSubmittedTime"=800,"accumulatedGPUTime"=125000000})
        "IOUserClientCreator" = "pid 808, Brave Browser"
      }
"""


def test_gpu_time_below_the_accelerator():
    """The process that it names as the last one has used nothing by that."""
    assert parse_gpu_clients(UNDER_THE_ACCELERATOR) == {4242: 250_000_005, 808: 125_000_000}


def mac(*looks: dict[int, int], times: tuple[float, ...] = (0.0, 2.0)) -> GpuWatch:
    """A watch over a Mac whose driver answers these, two seconds apart."""
    answers, clock = iter(looks), iter(times)
    watch = GpuWatch([Metal(lambda: next(answers), lambda: next(clock))])
    watch.start()
    return watch


def test_a_video_call_beside_a_measurement_is_seen_on_a_mac():
    """0.6 s of two on the GPU; what ours did does not count, nor what was before."""
    before = {10: 5_000_000_000, 412: 100_000_000, 9: 10**12}
    after = {10: 6_900_000_000, 412: 300_000_000, 9: 10**12, 500: 400_000_000}
    assert mac(before, after).finish(OURS) == GpuUse(0.3)


def test_a_mac_whose_gpu_we_do_not_use_tells_nothing_of_a_measurement():
    """Its models run on the processor. At rest, as before the daemon begins, everybody else counts."""
    looks = {412: 0}, {412: 1_000_000_000}
    assert mac(*looks).finish(OURS) is None
    assert mac(*looks).finish(OURS, at_rest=True) == GpuUse(0.5)


def test_a_mac_that_does_not_answer_is_unknown():
    """The program ioreg takes too long, prints another format, or a client was closed in the window."""
    assert mac({}, {10: 5, 412: 7}).finish(OURS) is None
    assert mac({10: 5}, {}).finish(OURS) is None
    assert mac({10: 5}, {10: 6}, times=(1.0, 1.0)).finish(OURS) is None
    assert mac({10: 5, 412: 10**9}, {10: 6, 412: 10**8}).finish(OURS) == GpuUse(0.0)

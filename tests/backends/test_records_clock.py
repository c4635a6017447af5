"""A clock that is set while servers run: processes are still recognised."""

from __future__ import annotations

import os
import subprocess
import sys

import psutil
import pytest

from autospec.backends.process import ServerProcess
from autospec.backends.records import LaunchRecord, sweep_orphans
from autospec.hardware.processes import ProcessRef
from tests.backends.waiting import gone

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the clock does not move a start")


@pytest.mark.parametrize("step_s", [-86400.0, -5.0, 5.0, 120.0])
def test_a_process_is_found_after_a_step_of_the_clock(set_clock, step_s):
    """Proxy review 10: a restarted daemon did not see its proxy after a step of more than a second."""
    me = ProcessRef.of(os.getpid())
    set_clock(step_s)
    found = me.find()
    assert found is not None
    assert found.pid == os.getpid()


@pytest.mark.process
def test_a_step_of_the_clock_ends_no_server_of_a_living_autospec(state_dir, set_clock):
    """Proxy review 10: after a step of two minutes the next autospec ended the servers of a proxy that was serving."""
    process = ServerProcess.start(("sleep", "300"), state_dir)
    try:
        set_clock(120.0)
        assert sweep_orphans(state_dir) == []
        assert not gone(process.pids)
    finally:
        process.stop()


@pytest.mark.process
def test_what_a_killed_autospec_left_is_ended_after_a_step_of_the_clock(state_dir, set_clock):
    """The other direction: a server that is not found would keep its memory."""
    left = subprocess.Popen(["sleep", "300"])
    dead = ProcessRef(pid=2**22 + 1, create_time=1.0)
    LaunchRecord(
        "20261123T000000Z-0", "2026-11-23T00:00:00Z", ("x",), dead, (ProcessRef.of(left.pid),)
    ).write(state_dir)
    set_clock(3600.0)
    assert len(sweep_orphans(state_dir)) == 1
    left.wait(20)


def test_another_process_with_the_number_is_not_taken_for_it():
    """The same number and the same time of day, but another start or another boot."""
    me = ProcessRef.of(os.getpid())
    boot, ticks = me.since_boot.split()
    assert ProcessRef(me.pid, me.create_time, f"{boot} {int(ticks) + 1}").find() is None
    assert ProcessRef(me.pid, me.create_time, f"other {ticks}").find() is None


def test_a_record_of_an_earlier_autospec_is_read():
    """It has the time of day only."""
    me = psutil.Process()
    ref = ProcessRef.from_json({"pid": me.pid, "create_time": me.create_time()})
    assert ref.find() == me
    later = {"pid": me.pid, "create_time": me.create_time(), "of a later version": 1}
    assert ProcessRef.from_json(later).find() == me

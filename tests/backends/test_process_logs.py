"""Logs and records of launches are for their owner: they may hold prompts and keys."""

from __future__ import annotations

import os
import sys

import pytest

from autospec.backends import guard
from autospec.backends.process import ServerProcess, open_private_log
from autospec.backends.records import LaunchRecord
from autospec.hardware.processes import ProcessRef
from tests.backends.waiting import wait_until


@pytest.fixture
def usual_umask():
    """Others may read new files, as with most users."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.process
def test_only_the_owner_reads_a_servers_log(state_dir, usual_umask):
    """Proxy review 15: the log was 0644 and its folder 0755, although the guard asks for 0600."""
    process = ServerProcess.start(("echo", "a prompt"), state_dir)
    process.wait_ended(20)
    process.stop()
    assert "a prompt" in process.log.read_text()
    assert process.log.stat().st_mode & 0o777 == 0o600
    assert process.log.parent.stat().st_mode & 0o777 == 0o700


def test_what_an_earlier_autospec_left_open_is_closed(state_dir, usual_umask):
    """Proxy review 15: fifty old logs stay in a folder that an update must not leave readable."""
    (state_dir / "launches").mkdir(parents=True, mode=0o755)
    record = LaunchRecord("x", "", ("llama-server", "--api-key", "secret"), ProcessRef(1, 1.0))
    record.write(state_dir)
    assert (state_dir / "launches").stat().st_mode & 0o777 == 0o700
    assert (state_dir / "launches" / "x.json").stat().st_mode & 0o777 == 0o600


def test_a_log_is_appended_to(tmp_path, usual_umask):
    """Its old lines stay, and its mode changes."""
    log = tmp_path / "log"
    log.write_bytes(b"old\n")
    with open_private_log(log) as file:
        file.write(b"new\n")
    assert log.read_bytes() == b"old\nnew\n"
    assert log.stat().st_mode & 0o777 == 0o600


LEFT_OUT = "autospec left out"
CHATTY = """
import time
print("device 0: GPU")
print(*(f"line {number:06d} {100 * 'x'}" for number in range(200_000)), sep=chr(10), flush=True)
while True:
    print("still here", flush=True)
    time.sleep(0.05)
"""


@pytest.mark.process
def test_a_server_that_prints_for_weeks_keeps_a_short_log(state_dir):
    """Its log grew for ever. Its start and its last lines stay, also for whoever reads while it goes on."""
    process = ServerProcess.start((sys.executable, "-c", CHATTY), state_dir)
    try:
        wait_until(lambda: any(LEFT_OUT in line for line in process.log_lines()))
        assert process.log_lines()[:2] == ("device 0: GPU", f"line 000000 {100 * 'x'}")
        assert process.log.stat().st_size < 16 * 2**20
        before = process.log.stat().st_size
        wait_until(lambda: process.log.stat().st_size > before)
        assert process.log_tail(1) == ("still here",)
        assert process.log.stat().st_mode & 0o777 == 0o600
    finally:
        process.stop()


def test_a_long_log_loses_whole_lines_of_its_middle(tmp_path, monkeypatch):
    """Also the second time. One that is short enough, or has no lines, stays readable."""
    monkeypatch.setattr(guard, "_LOG_BYTES", 100)
    monkeypatch.setattr(guard, "_LOG_END_BYTES", 25)
    path = tmp_path / "log"
    with open_private_log(path) as server:
        log = os.open(path, os.O_RDWR | os.O_APPEND)
        for begun in (0, 100):
            for number in range(begun, begun + 12):
                server.write(b"line %03d\n" % number)
            server.flush()
            guard._bound_log(log)
            read = path.read_text().splitlines()
            assert read[:2] == ["line 000", "line 001"]
            assert LEFT_OUT in read[2]
            assert read[3:] == [f"line {begun + 10:03}", f"line {begun + 11:03}"]
        server.write(200 * b".")
        server.flush()
        guard._bound_log(log)
        assert path.read_text().splitlines()[-1] == 25 * "."
        os.close(log)

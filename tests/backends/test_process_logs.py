"""Logs and records of launches are for their owner: they may hold prompts and keys."""

from __future__ import annotations

import os

import pytest

from autospec.backends.process import ServerProcess, open_private_log
from autospec.backends.records import LaunchRecord
from autospec.hardware.processes import ProcessRef


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

"""The records of launches, and the sweep of servers that a killed autospec left."""

from __future__ import annotations

import errno
import json
import os
import subprocess

import psutil
import pytest

from autospec.backends.process import ServerProcess
from autospec.backends.records import MARK, LaunchRecord, log_path, new_launch_id, prune_logs, sweep_orphans
from autospec.hardware.processes import ProcessRef
from tests.backends.waiting import gone

DEAD_OWNER = ProcessRef(pid=2**22 + 1, create_time=1.0)


@pytest.fixture
def sleeper():
    """Starts a process that sleeps; ends it after the test."""
    started = []

    def start(**environment):
        started.append(subprocess.Popen(["sleep", "300"], env={**os.environ, **environment}))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def record(state_dir, *, owner=DEAD_OWNER, processes=(), launch_id="20261123T000000Z-0"):
    """A record on disk."""
    made = LaunchRecord(
        launch_id, "2026-11-23T00:00:00Z", ("/opt/llama-server", "-m", "x"), owner, tuple(processes)
    )
    made.write(state_dir)
    return state_dir / "launches" / f"{launch_id}.json"


def test_what_a_dead_owner_left_is_ended(state_dir, sleeper):
    """The process ends, the record goes, and a sentence tells it."""
    left = sleeper()
    path = record(state_dir, processes=[ProcessRef.of(left.pid)])
    told = sweep_orphans(state_dir)
    assert gone({left.pid})
    assert not path.exists()
    (sentence,) = told
    assert f"llama-server (process {left.pid})" in sentence
    assert "2026-11-23T00:00:00Z" in sentence


def test_a_number_that_was_given_away_is_not_touched(state_dir, sleeper):
    """Same number, another start: somebody else's process."""
    other = sleeper()
    ref = ProcessRef(other.pid, psutil.Process(other.pid).create_time() - 3600)
    path = record(state_dir, processes=[ref])
    assert sweep_orphans(state_dir) == []
    assert other.poll() is None
    assert not path.exists()


def test_a_process_that_the_record_does_not_name_is_found_by_its_mark(state_dir, sleeper):
    """An autospec killed before it could write the numbers, or a wrapper script's child."""
    left = sleeper(**{MARK: "20261123T000000Z-0"})
    record(state_dir)
    assert len(sweep_orphans(state_dir)) == 1
    assert gone({left.pid})


def test_a_living_owners_launch_is_left_alone(state_dir):
    """Two autospecs may share a state folder; one never ends the other's servers."""
    process = ServerProcess.start(("sleep", "300"), state_dir)
    try:
        assert sweep_orphans(state_dir) == []
        assert not gone(process.pids)
        assert (state_dir / "launches" / f"{process.launch_id}.json").exists()
    finally:
        process.stop()


def test_the_record_names_owner_and_processes(state_dir):
    """With when each started, so that numbers cannot be mistaken."""
    process = ServerProcess.start(("sleep", "300"), state_dir)
    try:
        data = json.loads((state_dir / "launches" / f"{process.launch_id}.json").read_text())
        assert data["command"] == ["sleep", "300"]
        assert ProcessRef.from_json(data["owner"]) == ProcessRef.of(os.getpid())
        assert {p["pid"] for p in data["processes"]} == process.pids
        assert all(p["create_time"] == psutil.Process(p["pid"]).create_time() for p in data["processes"])
    finally:
        process.stop()


def test_a_stopped_launch_leaves_its_log_only(state_dir):
    """The record says what runs; the log is for reading later."""
    process = ServerProcess.start(("echo", "hello"), state_dir)
    process.wait_ended(20)
    process.stop()
    assert [p.name for p in (state_dir / "launches").iterdir()] == [f"{process.launch_id}.log"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"launch_id": 1}'])
def test_a_damaged_record_is_thrown_away(state_dir, content):
    """It can name nothing, and must not stop the sweep."""
    path = state_dir / "launches" / "x.json"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    assert sweep_orphans(state_dir) == []
    assert not path.exists()


def test_an_empty_state_folder(state_dir):
    """Nothing was ever launched."""
    assert sweep_orphans(state_dir) == []


def test_old_logs_are_pruned(state_dir):
    """The newest stay, and that of a launch that runs."""
    (state_dir / "launches").mkdir(parents=True)
    logs = [log_path(state_dir, f"20261123T0000{i:02}Z-0") for i in range(60)]
    for log in logs:
        log.touch()
    record(state_dir, launch_id="20261123T000000Z-0")
    prune_logs(state_dir)
    assert [log.exists() for log in logs] == [True] + [False] * 9 + [True] * 50


def test_logs_that_cannot_be_pruned_are_no_error(state_dir, monkeypatch):
    """They would keep every server from starting."""
    (state_dir / "launches").mkdir(parents=True)
    for i in range(60):
        log_path(state_dir, f"20261123T0000{i:02}Z-0").touch()

    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(type(state_dir), "unlink", refuse)
    prune_logs(state_dir)


def test_launch_ids_never_repeat():
    """Measurements name them."""
    assert len({new_launch_id() for _ in range(1000)}) == 1000


def test_a_record_that_cannot_be_removed_is_no_error(state_dir, monkeypatch):
    """Issue 17: a file system that became read-only ended the daemon that ended a step. A later sweep removes it."""
    path = record(state_dir)
    made = LaunchRecord("20261123T000000Z-0", "", ("x",), DEAD_OWNER)

    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as context:
        context.setattr(type(path), "unlink", refuse)
        made.remove(state_dir)
    assert path.exists()
    assert sweep_orphans(state_dir) == []
    assert not path.exists()

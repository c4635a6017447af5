"""The user's hook, with real programs."""

from __future__ import annotations

import json
import os
import time

import psutil
import pytest

from autospec.service.control import run_hook

DOCUMENT = {"schema": 1, "changes": [{"sentence": "größer"}]}


@pytest.fixture
def hook(tmp_path):
    """Write a script and give its command."""

    def write(text):
        script = tmp_path / "hook"
        script.write_text(f"#!/bin/sh\ncd {tmp_path}\n{text}\n")
        script.chmod(0o755)
        return (str(script),)

    return write


def test_it_reads_the_change_on_stdin(hook, tmp_path):
    """The whole document, as JSON."""
    assert run_hook(hook("cat > seen; echo done"), DOCUMENT).endswith("ended with exit code 0.")
    assert json.loads((tmp_path / "seen").read_text()) == DOCUMENT


def test_no_shell_reads_the_words(hook, tmp_path):
    """Unless the user wrote one."""
    words = ("$HOME", "; touch x", "*")
    run_hook((*hook('printf "%s\\n" "$@" > seen'), *words), DOCUMENT)
    assert (tmp_path / "seen").read_text().splitlines() == list(words)
    assert run_hook(("/bin/sh", "-c", "exit $((1 + 2))"), DOCUMENT).endswith("ended with exit code 3.")


def test_one_that_ignores_its_input_is_fine(hook):
    """A closed pipe is no failure, also with more than a pipe holds."""
    big = {"changes": ["x" * 1_000_000]}
    assert run_hook(hook("exit 0"), big).endswith("ended with exit code 0.")


def test_one_that_hangs_is_ended_with_all_that_it_started(hook, tmp_path):
    """Within its time."""
    said = run_hook(hook("sleep 600 & echo $! > child; wait"), DOCUMENT, timeout_s=0.5)
    assert "was killed after 0.5 s" in said
    child = int((tmp_path / "child").read_text())
    deadline = time.monotonic() + 10
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_what_it_leaves_in_the_background_is_not_waited_for(hook, tmp_path):
    """Though it holds the hook's output open."""
    began = time.monotonic()
    said = run_hook(hook("sleep 600 & echo $! > child"), DOCUMENT, timeout_s=20)
    seconds = time.monotonic() - began
    os.kill(int((tmp_path / "child").read_text()), 9)
    assert said.endswith("ended with exit code 0.")
    assert seconds < 10


def test_a_failure_is_told(hook):
    """However much it prints."""
    said = run_hook(hook("seq 100000; echo no route to host >&2; exit 7"), DOCUMENT)
    assert said.endswith("ended with exit code 7.")


def test_one_that_is_not_there_is_told():
    """Nothing is raised."""
    said = run_hook(("/nowhere/hook",), DOCUMENT)
    assert said == "The hook /nowhere/hook cannot be run: No such file or directory."


def test_it_cannot_speak_to_systemd_in_the_daemons_name(hook, tmp_path):
    """The rest of the environment is the daemon's."""
    environ = {"PATH": os.environ["PATH"], "NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "1", "MINE": "1"}
    run_hook(hook("env > seen"), DOCUMENT, environ=environ)
    said = (tmp_path / "seen").read_text()
    assert "MINE=1" in said
    assert "NOTIFY_SOCKET" not in said
    assert "WATCHDOG" not in said

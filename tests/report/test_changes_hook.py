"""The user's hook, with real programs."""

from __future__ import annotations

import json
import os
import time

import psutil
import pytest

from autospec.report.changes import run_hook

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
    outcome = run_hook(hook("cat > seen; echo done"), DOCUMENT)
    assert outcome.ok
    assert outcome.said == "done"
    assert json.loads((tmp_path / "seen").read_text()) == DOCUMENT


def test_no_shell_reads_the_words(hook, tmp_path):
    """Unless the user wrote one."""
    words = ("$HOME", "; touch x", "*")
    run_hook((*hook('printf "%s\\n" "$@" > seen'), *words), DOCUMENT)
    assert (tmp_path / "seen").read_text().splitlines() == list(words)
    assert run_hook(("/bin/sh", "-c", "exit $((1 + 2))"), DOCUMENT).sentence.endswith(
        "ended with exit code 3."
    )


def test_one_that_ignores_its_input_is_fine(hook):
    """A closed pipe is no failure, also with more than a pipe holds."""
    big = {"changes": ["x" * 1_000_000]}
    assert run_hook(hook("exit 0"), big).ok


def test_one_that_hangs_is_ended_with_all_that_it_started(hook, tmp_path):
    """Within its time."""
    outcome = run_hook(hook("sleep 600 & echo $! > child; wait"), DOCUMENT, timeout_s=0.5)
    assert not outcome.ok
    assert "was killed after 0.5 s" in outcome.sentence
    child = int((tmp_path / "child").read_text())
    deadline = time.monotonic() + 10
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_what_it_leaves_in_the_background_is_not_waited_for(hook, tmp_path):
    """Though it holds the hook's output open."""
    outcome = run_hook(hook("sleep 600 & echo $! > child"), DOCUMENT, timeout_s=20)
    os.kill(int((tmp_path / "child").read_text()), 9)
    assert outcome.ok
    assert outcome.seconds < 10


def test_a_failure_is_told_with_the_last_words(hook):
    """Not the whole of what it said."""
    outcome = run_hook(hook("seq 100000; echo no route to host >&2; exit 7"), DOCUMENT)
    assert not outcome.ok
    assert outcome.sentence.endswith("ended with exit code 7.")
    assert outcome.said.endswith("no route to host")
    assert len(outcome.said) <= 4096


def test_one_that_is_not_there_is_told():
    """Nothing is raised."""
    outcome = run_hook(("/nowhere/hook",), DOCUMENT)
    assert (outcome.ok, outcome.sentence) == (
        False,
        "The hook /nowhere/hook cannot be run: No such file or directory.",
    )


def test_it_cannot_speak_to_systemd_in_the_daemons_name(hook):
    """The rest of the environment is the daemon's."""
    environ = {"PATH": os.environ["PATH"], "NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "1", "MINE": "1"}
    said = run_hook(hook("env"), DOCUMENT, environ=environ).said
    assert "MINE=1" in said
    assert "NOTIFY_SOCKET" not in said
    assert "WATCHDOG" not in said

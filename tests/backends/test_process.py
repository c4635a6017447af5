"""One process under a guard is started, watched, ended, and never left behind. Plain programs, no model."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time

import psutil
import pytest

from autospec.backends.process import Ended, ServerProcess, child_environment, withheld_words
from autospec.backends.records import MARK
from autospec.errors import LaunchError
from tests.backends.waiting import gone, wait_until

SLEEP = ("sleep", "300")


def python(code: str) -> tuple[str, ...]:
    """A command that runs some Python."""
    return (sys.executable, "-I", "-S", "-c", code)


@pytest.fixture
def start(state_dir):
    """Starts processes and stops them after the test."""
    started = []

    def start_one(command):
        process = ServerProcess.start(command, state_dir)
        started.append(process)
        return process

    yield start_one
    for process in started:
        process.stop()


def test_stop_ends_server_and_guard(start):
    """Both are gone, and reaped, when stop returns."""
    process = start(SLEEP)
    assert len(process.pids) == 2
    process.stop()
    assert gone(process.pids)


def test_stop_twice(start):
    """The second call does nothing."""
    process = start(SLEEP)
    process.stop()
    process.stop()
    assert process.poll() == Ended(signal=signal.SIGTERM)


def test_a_server_that_ignores_sigterm_is_killed(start, monkeypatch):
    """After the grace comes SIGKILL."""
    monkeypatch.setattr("autospec.backends.process.STOP_GRACE_S", 0.3)
    process = start(
        python(
            "import signal,time; signal.signal(15, signal.SIG_IGN); print('on', flush=True); time.sleep(300)"
        )
    )
    wait_until(lambda: process.log_tail() == ("on",))
    process.stop()
    assert process.poll() == Ended(signal=signal.SIGKILL)
    assert gone(process.pids)


def test_a_wrapper_scripts_children_end_with_it(start):
    """`llama-server` may be a shell script that starts the real one without exec."""
    process = start(("sh", "-c", "sleep 300 & echo child $!; wait"))
    wait_until(process.log_tail)
    child = int(process.log_tail()[0].split()[1])
    process.stop()
    assert gone({child})


@pytest.mark.parametrize(
    ("code", "ended"),
    [
        ("raise SystemExit(7)", Ended(code=7)),
        ("import os; os.kill(os.getpid(), 9)", Ended(signal=signal.SIGKILL)),
    ],
)
def test_the_end_is_reported_as_it_was(start, code, ended):
    """The guard passes on status and signal."""
    assert start(python(code)).wait_ended(20) == ended


def test_the_log_holds_both_streams(start):
    """What a server prints can be read, last lines first asked."""
    process = start(python("import sys; print('one'); print('two', file=sys.stderr)"))
    process.wait_ended(20)
    assert set(process.log_tail()) == {"one", "two"}
    assert len(process.log_tail(1)) == 1


def test_a_program_that_is_not_there(state_dir):
    """Told plainly, and nothing is left of the launch."""
    with pytest.raises(LaunchError, match="/no/such/server could not be started: No such file") as caught:
        ServerProcess.start(("/no/such/server",), state_dir)
    assert caught.value.permanent
    assert not list(state_dir.glob("launches/*.json"))


@pytest.mark.parametrize("fails", ["open_private_log", "subprocess.Popen"])
def test_a_guard_that_cannot_be_started_leaves_no_record(state_dir, monkeypatch, fails):
    """Without a free file descriptor each attempt left one, and its owner lived on."""

    def refuse(*_, **__):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(f"autospec.backends.process.{fails}", refuse)
    with pytest.raises(OSError, match="Too many open files"):
        ServerProcess.start(("echo", "hello"), state_dir)
    assert not list(state_dir.glob("launches/*.json"))


def test_servers_do_not_inherit_settings():
    """A left-over LLAMA_ARG_DRAFT_MAX would be fatal, an API key would lock autospec out."""
    environment = {
        "LLAMA_ARG_DRAFT_MAX": "4",
        "LLAMA_API_KEY": "x",
        "CUDA_VISIBLE_DEVICES": "1",
        "PATH": "/bin",
    }
    assert child_environment(environment) == {"CUDA_VISIBLE_DEVICES": "1", "PATH": "/bin"}


def test_a_variable_that_reaches_no_server_is_named():
    """Forks read LLAMA_SPEC_… without any flag. Where llama.cpp keeps its models is no setting of a server."""
    withheld = {
        "LLAMA_ARG_SPEC_TYPE": "draft-mtp",
        "LLAMA_ARG_DRAFT_MAX": "4",
        "LLAMA_ARG_MODEL_DRAFT": "/d.gguf",
        "LLAMA_SPEC_CHAIN": "8",
        "LLAMA_SPEC_ADAPTIVE_CLIMB": "2,4",
        "LLAMA_ARG_CTX_SIZE": "1",
        "LLAMA_API_KEY": "x",
    }
    environment = {**withheld, "SPECIES": "cat", "LLAMA_CACHE": "/c"}
    assert withheld_words(environment).startswith(
        f"Not passed on to servers: {', '.join(sorted(withheld))}. "
    )
    assert not withheld_words({"PATH": "/bin", "LLAMA_CACHE": "/c"})
    assert child_environment(environment) == {"SPECIES": "cat", "LLAMA_CACHE": "/c"}


def test_a_launch_marks_its_processes(start):
    """By the mark a sweep knows them, whatever number they have."""
    process = start(SLEEP)
    assert all(psutil.Process(pid).environ()[MARK] == process.launch_id for pid in process.pids)


def test_priority_is_not_lowered(start):
    """A measurement at another priority would be another measurement."""
    process = start(SLEEP)
    assert {psutil.Process(pid).nice() for pid in process.pids} == {psutil.Process().nice()}


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="PR_SET_PDEATHSIG is Linux's; macOS is swept"
)
def test_the_server_dies_with_its_guard(start):
    """SIGKILL of the guard takes the server with it, by the kernel."""
    process = start(SLEEP)
    guard = next(pid for pid in process.pids if psutil.Process(pid).ppid() == os.getpid())
    os.kill(guard, signal.SIGKILL)
    wait_until(lambda: process.poll() is not None)
    wait_until(lambda: gone(process.pids))


def test_the_guard_sees_that_its_parent_is_gone_though_the_pipe_is_held(tmp_path, state_dir):
    """Another child of the killed autospec may hold the pipe's other end open; the guard also watches its parent."""
    script = (
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from autospec.backends.process import ServerProcess\n"
        f"p = ServerProcess.start(('sleep', '300'), Path({str(state_dir)!r}))\n"
        "os.set_inheritable(p._guard.stdin.fileno(), True)\n"
        "holder = os.fork()\n"
        "if holder == 0:\n"
        "    os.execvp('sleep', ['sleep', '60'])\n"
        "print(holder, *p.pids, flush=True)\n"
        "time.sleep(300)\n"
    )
    owner = psutil.Popen([sys.executable, "-c", script], stdout=-1, text=True)
    holder, *pids = map(int, owner.stdout.readline().split())
    try:
        owner.kill()
        owner.wait()
        wait_until(lambda: gone(pids))
        assert not gone({holder})
    finally:
        os.kill(holder, signal.SIGKILL)
        owner.stdout.close()


def test_a_long_line_of_starts_leaves_nothing(start):
    """No descriptor is lost from one launch to the next."""
    start(SLEEP).stop()
    before = psutil.Process().num_fds()
    for _ in range(5):
        start(SLEEP).stop()
    assert psutil.Process().num_fds() == before


def test_the_end_is_seen_at_once(start):
    """Waiting for the end returns when it comes, not when the time is over."""
    process = start(python("import time; time.sleep(0.2)"))
    begun = time.monotonic()
    assert process.wait_ended(60) == Ended(code=0)
    assert time.monotonic() - begun < 20


@pytest.mark.parametrize(
    ("ended", "words"),
    [
        (Ended(code=3), "ended with status 3"),
        (Ended(signal=signal.SIGKILL), "was ended by SIGKILL"),
        (Ended(signal=35), "was ended by signal 35"),  # a real-time signal has no name
    ],
)
def test_how_it_ended_in_words(ended, words):
    """Whatever ended it, there are words for it."""
    assert str(ended) == words

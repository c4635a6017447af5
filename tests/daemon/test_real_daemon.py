"""The daemon as a process, on real models and servers: requests, signals, kills, stops, a disk that takes nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from autospec.errors import NothingKnownError
from autospec.service.control import ask_status, control_path
from autospec.service.proxy_link import ProxyLink
from tests.small_suite import questions, write_suite
from tests.tuning.test_real_tune import ONE_THREAD, STUDY, rows, servers

DEADLINE_S = 120.0
# What the daemon promises, and what a machine busy with other tests may add.
PREEMPTED_S, SLACK_S = 1.0, 1.5


@pytest.fixture
def home(autospec_home: Path) -> Path:
    """A home whose config allows the daemon everything, without a model yet."""
    (autospec_home / "models").mkdir(parents=True)
    (autospec_home / "study.toml").write_text(STUDY, encoding="utf-8")
    texts = ("Count to ten.", "Name colours.", "Say one two three.", "Name the days.")
    write_suite(autospec_home / "suite.jsonl", questions(texts), max_tokens=64)
    (autospec_home / "config.toml").write_text(
        'model_dirs = ["models"]\nbackend = "embedded"\nstudy = "study.toml"\nsuite = "suite.jsonl"\n'
        'daemon_idle = "1s"\ndaemon_step = "60s"\n' + ONE_THREAD,
        encoding="utf-8",
    )
    return autospec_home


@pytest.fixture
def work(home: Path, lab_models) -> Path:
    """The same with two models: something is worth measuring."""
    for source in (lab_models.smollm2, lab_models.tiny):
        (home / "models" / source.name).symlink_to(source)
    return home


@contextlib.contextmanager
def daemon(
    *options: str, prepare: Callable[[], None] | None = None, env: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """A daemon that does not outlive the test."""
    command = [sys.executable, "-m", "tests.daemon.quiet_daemon", "--no-proxy", *options]
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        preexec_fn=prepare,  # noqa: PLW1509 - the test has no other thread
        env={**os.environ, **(env or {})},
    )  # fmt: skip
    try:
        yield child
    finally:
        child.send_signal(signal.SIGCONT)
        child.kill()
        child.communicate()


def status(home: Path) -> dict[str, Any]:
    """What it says of itself; empty while it does not."""
    try:
        return ask_status(home / "state")
    except NothingKnownError:
        return {}


def until(
    condition: Callable[[], object], what: str, deadline_s: float = DEADLINE_S, every_s: float = 0.2
) -> float:
    """Poll for something that must happen; how long it took.

    Seldom by default: a process that polls fifty times a second is load, and the measuring waits for it.
    """
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < deadline_s, f"{what} did not happen within {deadline_s:.0f} s"
        time.sleep(every_s)
    return time.monotonic() - began


def children_of(child: subprocess.Popen[str]) -> list[psutil.Process]:
    """Everything below the daemon."""
    with contextlib.suppress(psutil.Error):
        return psutil.Process(child.pid).children(recursive=True)
    return []


def events(home: Path) -> str:
    """What the daemon says that happened, a line each."""
    return "\n".join(event["what"] for event in status(home).get("events", []))


def is_measuring(home: Path) -> bool:
    """True once a step has stored a measurement and is still at it."""
    return status(home).get("state") == "tuning" and rows(str(home)) > 0


@pytest.mark.slow
def test_a_request_stops_the_measurement_within_a_second_and_loses_none(work: Path):
    """Busy at the proxy: no server is left a second later, what was measured is there, and later it goes on."""
    with daemon() as child:
        until(lambda: is_measuring(work), "the first measurement")
        kept = rows(str(work))
        assert asyncio.run(_serve(work, child)) < PREEMPTED_S + SLACK_S
        assert rows(str(work)) >= kept
        said = status(work)
        assert said["state"] != "tuning"
        assert any("a request arrived" in event["what"] for event in said["events"])
        until(lambda: rows(str(work)) > kept, "another measurement")


async def _serve(home: Path, child: subprocess.Popen[str]) -> float:
    """Be a proxy with one request; seconds until everything of the measurement has ended."""
    link = ProxyLink(home / "state")
    await link.start()
    while link.daemon.get("event") != "tuning":  # noqa: ASYNC110 - polls for what the daemon says
        await asyncio.sleep(0.02)
    with link.serving():
        took = await asyncio.to_thread(
            until, lambda: not children_of(child), "the end of the measurement", every_s=0.02
        )
        assert await link.machine_is_free()
    await link.close()
    return took


@pytest.mark.slow
def test_asked_to_end_it_ends_with_0_and_leaves_nothing(work: Path):
    """In the middle of a measurement: no server, no socket, what was measured is kept. test_loop_end.py has the other signals."""
    with daemon() as child:
        until(lambda: is_measuring(work), "the first measurement")
        child.terminate()
        assert child.wait(timeout=20) == 0
        assert servers(str(work)) == []
        assert not control_path(work / "state").exists()
    assert rows(str(work)) > 0


@pytest.mark.slow
def test_killed_it_takes_its_measurement_along_and_the_next_goes_on(work: Path):
    """kill -9: everything below it ends, and a new daemon takes over socket, memory and study."""  # noqa: D403
    with daemon() as child:
        until(lambda: is_measuring(work), "the first measurement")
        child.kill()
        child.wait()
        until(lambda: servers(str(work)) == [], "the end of everything", 20.0)
    kept = rows(str(work))
    assert kept > 0
    with daemon():
        until(lambda: rows(str(work)) > kept, "another measurement")


@pytest.mark.slow
def test_suspended_with_all_that_it_runs_and_continued_it_goes_on_measuring(work: Path):
    """SIGSTOP for daemon, tune and servers: afterwards they go on where they were, and end when asked."""
    with daemon() as child:
        until(lambda: is_measuring(work), "the first measurement")
        everything = [psutil.Process(child.pid), *children_of(child)]
        for process in everything:
            with contextlib.suppress(psutil.Error):  # a server may have ended in between
                process.suspend()
        until(lambda: everything[0].status() == psutil.STATUS_STOPPED, "the stop")
        kept = rows(str(work))
        for process in reversed(everything):
            with contextlib.suppress(psutil.Error):
                process.resume()
        until(lambda: status(work), "an answer", 20.0)
        until(lambda: rows(str(work)) > kept or "Tuned" in events(work), "that it goes on")
        child.terminate()
        assert child.wait(timeout=20) == 0
        assert servers(str(work)) == []


def _set_clock(home: Path, seconds: int) -> None:
    """Move the daemon's wall clock forward; it never reads a file that is half written."""
    new = home / "clock-moved-by.new"
    new.write_text(str(seconds), "ascii")
    new.replace(home / "clock-moved-by")


@pytest.mark.slow
def test_a_clock_that_jumps_voids_the_measurement_and_no_more(work: Path):
    """An hour forward, as after a sleep: the step is stopped with its reason, what was measured stays, it goes on."""
    with daemon():
        until(lambda: is_measuring(work), "the first measurement")
        kept = rows(str(work))
        # A step may end just before the clock jumps; then the next one has to be stopped.
        for hours in range(1, 6):
            until(lambda: is_measuring(work), "a step")
            _set_clock(work, 3600 * hours)
            with contextlib.suppress(AssertionError):
                until(lambda: "the clock jumped by 3600 s" in events(work), "the end of the step", 15.0)
                break
        assert "the clock jumped by 3600 s" in events(work), events(work)
        assert rows(str(work)) >= kept
        until(lambda: status(work).get("state") == "tuning" or "Tuned" in events(work), "the next step")


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(psutil.Process, "rlimit"), reason="limits of other processes are Linux's")
def test_a_disk_that_fills_up_while_it_measures_costs_nothing_that_was_measured(work: Path):
    """No file may grow any more: the step fails and says so, the daemon stays, the database is whole."""
    with daemon() as child:
        until(lambda: is_measuring(work), "the first measurement")
        kept = rows(str(work))
        for process in [psutil.Process(child.pid), *children_of(child)]:
            with contextlib.suppress(psutil.Error):
                process.rlimit(psutil.RLIMIT_FSIZE, (0, psutil.RLIM_INFINITY))
        until(lambda: "failed: " in events(work), "the failure")
        said = status(work)
        assert any("cannot be written" in text for text in said["trouble"]), said["trouble"]
        assert child.poll() is None
        assert rows(str(work)) >= kept
        psutil.Process(child.pid).rlimit(psutil.RLIMIT_FSIZE, (psutil.RLIM_INFINITY,) * 2)
        child.terminate()
        assert child.wait(timeout=20) == 0
        assert servers(str(work)) == []
    with contextlib.closing(sqlite3.connect(work / "state" / "autospec.db")) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_without_anything_to_measure_it_rests_and_says_so(home: Path):
    """A newcomer asks what it is doing and why."""
    with daemon():
        until(lambda: status(home).get("state") == "resting", "rest")
        said = subprocess.run(
            [sys.executable, "-m", "autospec", "daemon", "--status"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert "is resting" in said
        assert "nothing is worth measuring" in said


def test_at_rest_it_holds_nothing_heavy(home: Path):
    """Not one of the libraries that a tune needs is loaded by the modules of the loop."""
    program = (
        "import autospec.cli.daemon, autospec.daemon.loop, autospec.daemon.children, sys\n"
        "print(*sorted({n.split('.')[0] for n in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    heavy = {
        "optuna",
        "numpy",
        "scipy",
        "sqlalchemy",
        "httpx",
        "gguf",
        "rich",
        "asyncio",
        "filelock",
        "xllamacpp",
    }
    assert not heavy & set(done.stdout.split())


def test_a_second_daemon_says_that_one_runs(home: Path):
    """Two would fight over the machine."""
    with daemon():
        until(lambda: status(home), "the first")
        second = subprocess.run(
            [sys.executable, "-m", "autospec", "daemon", "--no-proxy"],
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
    assert second.returncode == 4
    assert "A daemon is already running" in second.stderr


def test_full_disk(home: Path):
    """No file may grow: the database cannot be made, and the daemon rests with that as its reason.

    The name is short: a socket path that is too long for the kernel needs a file that tells where the socket is.
    """

    def no_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    with daemon(prepare=no_room) as child:
        until(lambda: status(home).get("trouble"), "trouble")
        assert "database" in status(home)["trouble"][0]
        assert child.poll() is None
        child.terminate()
        assert child.wait(timeout=20) == 0


def test_with_a_read_only_store_it_stays_and_says_what_is_wrong(home: Path):
    """A storage that cannot be written is trouble to tell, and no reason to end."""
    with daemon(env={"AUTOSPEC_STORAGE": "sqlite:////proc/autospec.db"}) as child:
        until(lambda: status(home).get("trouble"), "trouble")
        assert child.poll() is None

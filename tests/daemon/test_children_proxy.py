"""The proxy as a child process: restarted when it crashes, left running when the daemon crashes."""

from __future__ import annotations

import errno
import sys
import time
from pathlib import Path

import psutil
import pytest

from autospec.daemon.children import ProxyChild
from autospec.service.managers import STOP_WITHIN_S
from tests.backends.waiting import wait_until
from tests.daemon.test_work import SetClock

LIVES = (sys.executable, "-c", "import time; time.sleep(60)")
CRASHES = (sys.executable, "-c", "raise SystemExit(1)")


def ended(proxy: ProxyChild) -> None:
    """Poll until it has ended."""
    deadline = time.monotonic() + 20
    while proxy.pid is not None:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_crashed_proxy_is_started_again_after_longer_and_longer_pauses(tmp_path: Path):
    """One second, two, four; by an injected clock."""
    clock = SetClock()
    proxy = ProxyChild(CRASHES, tmp_path, tmp_path / "log", clock)
    pauses = []
    for _ in range(3):
        assert proxy.keep() is None
        ended(proxy)
        pauses.append(proxy.keep())
        clock.now_s += pauses[-1] or 0.0
    assert pauses == [1.0, 2.0, 4.0]
    assert proxy.last_end == "it ended with exit code 1"
    proxy.stop()


def test_a_proxy_that_crashes_for_days_is_started_again_every_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Somebody else has its port: after 17 hours, 1025 crashes, the pause was no float any more, and the daemon ended."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr("autospec.daemon.children.subprocess.Popen", fail)
    proxy = ProxyChild(LIVES, tmp_path, tmp_path / "log", SetClock())
    proxy.crashes = 5000
    assert proxy.keep() is None
    assert (proxy.crashes, proxy.keep()) == (5001, 60.0)


def test_what_happens_to_it_is_told_once(tmp_path: Path):
    """Issue 17, item 9: the daemon said nothing of a proxy that was killed. A row of crashes hides no other event."""
    clock = SetClock()
    proxy = ProxyChild(LIVES, tmp_path, tmp_path / "log", clock)
    told = []
    for _ in range(5):
        proxy.keep()
        assert not proxy.news()
        assert proxy.pid is not None
        psutil.Process(proxy.pid).kill()
        ended(proxy)
        clock.now_s += 5.0
        clock.now_s += proxy.keep() or 0.0
        told.append(proxy.news())
    assert told == ["The proxy was ended by SIGKILL after 5 s; it will be started again."] * 3 + [""] * 2
    proxy.stop()


def test_wrong_usage_is_not_tried_every_second(tmp_path: Path):
    """Exit code 2: its configuration has to change first."""
    proxy = ProxyChild((sys.executable, "-c", "raise SystemExit(2)"), tmp_path, tmp_path / "log", SetClock())
    proxy.keep()
    ended(proxy)
    assert proxy.keep() == 60.0


def test_the_next_daemon_adopts_the_proxy_of_one_that_crashed(tmp_path: Path):
    """The proxy keeps serving after a crash of the daemon; a daemon that stops on purpose stops it."""
    first = ProxyChild(LIVES, tmp_path, tmp_path / "log", SetClock())
    first.keep()
    second = ProxyChild(LIVES, tmp_path, tmp_path / "log", SetClock())
    assert second.keep() is None
    assert f"goes on (process {first.pid})" in second.news()
    assert not second.news()
    assert second.pid == first.pid is not None
    child = psutil.Process(second.pid)
    second.stop()
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    first.stop()


@pytest.mark.process
def test_the_time_of_its_end_begins_when_it_is_asked(tmp_path: Path):
    """It gets one signal, because a second one would cut its answers, and what is left of the 45 seconds."""
    asked = tmp_path / "asked"
    program = f"trap 'echo >> {asked}' TERM; touch {tmp_path}/ready; while :; do sleep 0.02; done"
    clock = SetClock()
    proxy = ProxyChild(("sh", "-c", program), tmp_path, tmp_path / "log", clock)
    proxy.keep()
    wait_until((tmp_path / "ready").exists)
    proxy.ask_to_stop()
    wait_until(asked.exists)
    clock.now_s += STOP_WITHIN_S - 0.2
    began_s = time.monotonic()
    proxy.stop()
    assert time.monotonic() - began_s < 20
    assert asked.read_text() == "\n"
    assert proxy.pid is None


def test_a_record_that_cannot_be_removed_does_not_hold_up_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A file system that became read-only."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(type(tmp_path), "unlink", refuse)
    ProxyChild(LIVES, tmp_path, tmp_path / "log", SetClock()).stop()

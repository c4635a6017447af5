"""The end of the daemon: what it ends with it, in which order, and what goes on."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from autospec.backends import process
from autospec.daemon import children
from autospec.daemon.loop import Daemon
from autospec.service.control import control_path
from autospec.service.managers import KILL_AFTER_S, STOP_WITHIN_S
from autospec.settings import load_settings
from tests.daemon.test_loop import ITEM


class Ends:
    """A daemon with a step and a proxy that only note what is done to them."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: list[str] = []
        self.said: list[str] = []
        self.pid = 7  # the proxy's
        self.item = ITEM
        self._monkeypatch = monkeypatch
        settings = load_settings(environ={"AUTOSPEC_HOME": str(home)})
        self.daemon = Daemon(settings, proxy=self, tell=self.said.append)  # type: ignore[arg-type]
        self.daemon._step = self  # type: ignore[assignment]

    def preempt(self) -> None:
        """Of the step."""
        self.done.append("step ended")

    def ask_to_stop(self) -> None:
        """Of the proxy."""
        self.done.append("proxy asked")

    def stop(self) -> None:
        """Of the proxy."""
        self.done.append("proxy ended")

    def run(self, turn: Callable[[], object]) -> int:
        """Run it until this ends it."""

        def turned(_: Daemon) -> float:
            turn()
            return 0.05

        self._monkeypatch.setattr(Daemon, "_turn", turned)
        return self.daemon.run()


@pytest.fixture
def ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ends]:
    """See `Ends`; the test's own handlers of signals come back."""
    handlers = {
        s: signal.getsignal(s) for s in (signal.SIGCHLD, signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
    }
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also where these tests run under nohup
    yield Ends(tmp_path, monkeypatch)
    for number, handler in handlers.items():
        signal.signal(number, handler)


def fails(*_: Any) -> None:
    """Whatever it stands for."""
    raise OSError(errno.EROFS, "Read-only file system")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_who_asks_it_to_end_ends_its_proxy(ends: Ends, number: int):
    """Answers and step end side by side, or both would take longer than the supervisor waits; the socket is gone."""
    assert ends.run(lambda: os.kill(os.getpid(), number)) == 0
    assert ends.done == ["proxy asked", "step ended", "proxy ended"]
    assert not control_path(ends.daemon.settings.state_dir).exists()


def test_nohup_is_heeded(ends: Ends):
    """It ignores SIGHUP for whatever it starts."""
    signals = iter((signal.SIGHUP, signal.SIGTERM))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert ends.run(lambda: os.kill(os.getpid(), next(signals))) == 0
    assert not list(signals)


def test_an_error_of_the_daemon_does_not_end_its_proxy(ends: Ends):
    """Issue 17: the proxy was stopped, and answers with it. The next daemon finds it."""
    with pytest.raises(OSError, match="Read-only"):
        ends.run(fails)
    assert ends.done == ["step ended"]
    assert ends.said[-1] == "The daemon ends because of an error; its proxy goes on (process 7)."
    assert not control_path(ends.daemon.settings.state_dir).exists()


def test_an_error_at_the_end_leaves_nothing_behind(ends: Ends, monkeypatch: pytest.MonkeyPatch):
    """The step cannot be ended in order; the proxy is, all the same."""
    monkeypatch.setattr(ends, "preempt", fails)
    with pytest.raises(OSError, match="Read-only"):
        ends.run(lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert ends.done == ["proxy asked", "proxy ended"]


def test_nobody_has_to_read_what_it_says(ends: Ends):
    """The terminal is closed, and each write fails with EIO."""
    ends.daemon.tell = fails
    assert ends.run(lambda: os.kill(os.getpid(), signal.SIGTERM)) == 0
    assert ends.done == ["proxy asked", "step ended", "proxy ended"]


def test_the_whole_end_fits_into_the_time_that_the_supervisor_gives():
    """Issue 17: the step, up to 17 seconds, came before the 45 of the proxy; after 60 seconds comes SIGKILL."""
    step_s = children._PREEMPT_GRACE_S + children._KILLED_WAIT_S + process.STOP_GRACE_S + process._GUARD_END_S
    assert step_s < STOP_WITHIN_S
    assert STOP_WITHIN_S + children._KILLED_WAIT_S < KILL_AFTER_S

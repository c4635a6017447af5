"""What is shown of a tune, and what a signal does to it, wherever Python stands when it arrives."""

from __future__ import annotations

import io
import signal
import threading
import weakref

import pytest
from rich.console import Console

from autospec.cli.shell import Shell
from autospec.cli.tune_display import TuneDisplay, interruptible

# Long beyond what delivering a signal takes on a busy machine.
DEADLINE_S = 30.0


class Thing:
    """Something to be collected."""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_polite_kill_is_an_interruption(number):
    """SIGTERM and SIGHUP end like Ctrl-C."""
    with pytest.raises(KeyboardInterrupt), interruptible():
        signal.raise_signal(number)


def test_an_interruption_that_a_callback_swallowed_comes_again():
    """What is raised within a weak reference's callback is printed and lost; the tune must end all the same."""
    thing = Thing()
    reference = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGTERM))

    def collect_and_wait():
        nonlocal thing
        thing = None
        assert reference() is None
        assert not threading.Event().wait(DEADLINE_S)
        pytest.fail("nobody was interrupted")

    with pytest.raises(KeyboardInterrupt), interruptible():
        collect_and_wait()


def test_signals_are_as_they_were_afterwards():
    """Handlers are given back."""
    before = signal.getsignal(signal.SIGTERM)
    with interruptible():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_clock_goes_on_while_nothing_is_told():
    """A minute of recording answers does not look like a program that hangs; and there is no empty table."""
    now = [0.0]
    shell = Shell()
    shell.console = Console(width=100, force_terminal=True, file=io.StringIO())
    with TuneDisplay(shell, "Main-7B", clock=lambda: now[0]):
        now[0] = 61.0
    text = shell.console.file.getvalue()
    assert "1:01" in text
    assert "prompt type" not in text

"""What a signal does to a tune, wherever Python stands when it arrives."""

from __future__ import annotations

import signal
import threading
import weakref

import pytest

from autospec.cli.tune_display import interruptible

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

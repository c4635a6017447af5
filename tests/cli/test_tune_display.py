"""What a tune displays, and what a signal does to it at any moment."""

from __future__ import annotations

import io
import re
import signal
import threading
import weakref
from datetime import UTC, datetime

import pytest
from rich.console import Console

from autospec.cells import PromptType
from autospec.cli.shell import Shell
from autospec.cli.tune import TuneDisplay, interruptible
from autospec.drafting import OFF, Drafting, Mode
from autospec.tuning.cell import CellProgress, TuneStep

NGRAM = Drafting(Mode.NGRAM_SIMPLE, ngram_n=4, ngram_m=8, min_hits=1)
NOON = datetime(2026, 11, 28, 12, tzinfo=UTC)

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


def seen(*steps, at_s=300.0, later_s=0.0, width=100, **console):
    """What a terminal shows after these steps, five minutes after the beginning, or later."""
    now = [0.0]
    shell = Shell()
    shell.console = Console(width=width, force_terminal=True, file=io.StringIO(), **console)
    with TuneDisplay(shell, "Main-7B", clock=lambda: now[0], now=lambda: NOON) as display:
        now[0] = at_s
        for step in steps:
            display.step(step)
        display.standing((CellProgress(PromptType.CODING, NGRAM, 1.5, 8, "proving"),))
        now[0] += later_s
    last = shell.console.file.getvalue().rsplit("autospec tune", 1)[1]
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", last)


def lined(*steps, at_s=300.0):
    """What is printed where no terminal is."""
    now = [0.0]
    shell = Shell()
    shell.console = Console(width=100, force_terminal=False, file=io.StringIO())
    with TuneDisplay(shell, "Main-7B", clock=lambda: now[0], now=lambda: NOON) as display:
        now[0] = at_s
        for step in steps:
            display.step(step)
    return shell.console.file.getvalue()


PROOF = TuneStep("prove", NGRAM, 2, 24, 3, 8, 900.0, 100.0)


def test_a_bar_shows_the_whole_tune_and_when_it_ends():
    """Five minutes are over, and 100 seconds are expected: three quarters."""
    text = seen(PROOF)
    assert "━" * 25 in text
    assert "75 %, about 2 min left, until 12:01" in text
    assert "5:00  proof round 2 of at most 24: ngram-simple" in text


def test_the_estimate_goes_on_between_steps():
    """A long request does not stop the clock; what takes longer than expected is said, never 0:00."""
    assert "about 1 min left" in seen(PROOF, later_s=50.0)
    text = seen(PROOF, later_s=150.0)
    assert "99 %, longer than expected" in text
    assert "0:00" not in text


def test_beyond_the_budget_it_says_by_how_much():
    """What was begun is finished; nothing is clamped."""
    text = seen(TuneStep("prove", NGRAM, 2, 24, 3, 8, -10.0, -10.0), later_s=30.0)
    assert "0:40 over the budget, finishing the current step" in text


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (TuneStep("record", OFF, 1, 1, 3, 12, 600.0), "recording answers without drafting: 3 of 12"),
        (TuneStep("read", OFF, 1, 2, 0, 12, 600.0), "reading the answers with draft 1 of 2"),
        (TuneStep("launch", NGRAM, 1, 20, 0, 3, 600.0), "trial 1 of at most 20: launching ngram-simple"),
        (
            TuneStep("search", NGRAM, 1, 20, 2, 3, 600.0),
            "ngram-simple ngram_n=4 ngram_m=8 min_hits=1, pair 2 of 3",
        ),
    ],
)
def test_every_phase_has_its_words_and_its_bar(step, words):
    """Before the proof only the budget is known: at most. Elsewhere the same stands in a line."""
    text = seen(step)
    assert words in " ".join(text.split())
    assert "33 %, at most 10 min left, until 12:10" in text
    assert lined(step).strip().endswith("(33 %, at most 10 min left)")
    assert words in lined(step)


def test_before_the_first_step_the_model_is_launched():
    """Not: nothing is launched."""
    assert "launching the model without drafting" in seen()


def test_a_narrow_terminal_and_one_without_colours(monkeypatch):
    """The bar shrinks; without colours it has no more than its done part."""
    assert all(len(line) <= 30 for line in seen(PROOF, width=30).splitlines())
    assert "75 %" in seen(PROOF, width=30)
    monkeypatch.setenv("NO_COLOR", "1")
    text = seen(PROOF)
    assert "75 %, about 2 min left" in text
    assert "━" * 25 in text


def test_long_times_are_told_in_hours():
    """Nobody counts 150 minutes."""
    assert "about 2 h 30 min left" in lined(TuneStep("prove", NGRAM, 1, 24, 0, 8, 9000.0, 9000.0))
    assert "about 1 min left" in lined(TuneStep("prove", NGRAM, 1, 24, 0, 8, 9000.0, 20.0))


def test_a_step_that_moves_on_is_no_line_of_its_own():
    """One line for a round, and then one in half a minute."""
    steps = [TuneStep("prove", NGRAM, 1, 24, done, 8, 900.0, 100.0) for done in range(9)]
    assert lined(*steps).count("proof round 1") == 1

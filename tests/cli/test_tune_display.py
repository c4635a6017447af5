"""What a tune displays, and what a signal does to it at any moment."""

from __future__ import annotations

import io
import re
import signal
import threading
import weakref
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from rich.console import Console

from autospec.cells import PromptType
from autospec.cli.shell import Shell
from autospec.cli.tune import interruptible
from autospec.cli.tune_display import TuneDisplay, phases_of
from autospec.drafting import OFF, Drafting, Mode
from autospec.tuning.cell import CellProgress, TuneStep
from autospec.tuning.definition import LimitsDefinition, load_definition

NGRAM = Drafting(Mode.NGRAM_SIMPLE, ngram_n=4, ngram_m=8, min_hits=1)
NOON = datetime(2026, 11, 28, 12, tzinfo=UTC)

# Long beyond what delivering a signal takes on a busy machine.
DEADLINE_S = 30.0


class Thing:
    """Something to be collected."""


@pytest.fixture
def hangup():
    """SIGHUP does what it does in a terminal, also where these tests run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hangup")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_polite_kill_is_an_interruption(number):
    """SIGTERM and SIGHUP end like Ctrl-C."""
    with pytest.raises(KeyboardInterrupt), interruptible():
        signal.raise_signal(number)


@pytest.mark.usefixtures("hangup")
def test_under_nohup_a_closed_terminal_ends_no_tune():
    """It ignores SIGHUP for what it starts, which was taken back."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with interruptible():
        signal.raise_signal(signal.SIGHUP)


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
    shell.console = Console(width=100, force_terminal=True, file=io.StringIO(), _environ={})
    with TuneDisplay(shell, "Main-7B", clock=lambda: now[0]):
        now[0] = 61.0
    text = shell.console.file.getvalue()
    assert "1:01" in text
    assert "prompt type" not in text


PROVING = CellProgress(PromptType.CODING, NGRAM, 1.5, 8, "proving")


class Encoded(io.StringIO):
    """A stream with an encoding of its own."""

    def __init__(self, encoding: str) -> None:
        super().__init__()
        self._encoding = encoding

    @property
    def encoding(self) -> str:
        """As a terminal's."""
        return self._encoding


def seen(
    *steps,
    at_s=300.0,
    later_s=0.0,
    width=100,
    height=50,
    standings=(PROVING,),
    encoding="utf-8",
    env=(),
    **display,
):
    """What a terminal shows after these steps, five minutes after the beginning, or later."""
    now = [0.0]
    shell = Shell()
    shell.console = Console(
        width=width, height=height, force_terminal=True, file=Encoded(encoding), _environ=dict(env)
    )
    with TuneDisplay(shell, "Main-7B", clock=lambda: now[0], now=lambda: NOON, **display) as shown:
        now[0] = at_s
        for step in steps:
            shown.step(step)
        if standings:
            shown.standing(standings)
        now[0] += later_s
    last = shell.console.file.getvalue().rsplit("autospec tune", 1)[1]
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", last)


def lined(*steps, at_s=300.0, console=(), **display):
    """What is printed where no terminal is."""
    now = [0.0]
    shell = Shell()
    options = {"force_terminal": False, "_environ": {}} | dict(console)
    shell.console = Console(width=100, file=io.StringIO(), **options)
    with TuneDisplay(shell, "Main-7B", clock=lambda: now[0], now=lambda: NOON, **display) as shown:
        now[0] = at_s
        for step in steps:
            shown.step(step)
    return shell.console.file.getvalue()


PROOF = TuneStep("prove", NGRAM, 2, 24, 3, 8, 900.0, 100.0)


def test_a_bar_shows_the_whole_tune_and_when_it_ends():
    """Five minutes are over, and 100 seconds are expected: three quarters."""
    text = seen(PROOF)
    assert f"{'█' * 30}{'░' * 10} 75 %, about 2 min left, until 12:01" in text
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
        (TuneStep("start", OFF, 1, 1, 0, 1, 600.0), "launching the model without drafting"),
        (TuneStep("record", OFF, 1, 1, 3, 12, 600.0), "recording answers without drafting: 3 of 12"),
        (TuneStep("read", OFF, 1, 2, 0, 12, 600.0), "reading the answers with draft 1 of 2"),
        (TuneStep("launch", NGRAM, 1, 20, 0, 3, 600.0), "trial 1 of at most 20: launching ngram-simple"),
        (
            TuneStep("search", NGRAM, 1, 20, 2, 3, 600.0),
            "ngram-simple ngram_n=4 ngram_m=8 min_hits=1, pair 2 of 3",
        ),
        (TuneStep("idle", NGRAM, 1, 1, 0, 1, 600.0), "what a loaded draft costs while it does not draft"),
        (TuneStep("limits", NGRAM, 2, 5, 0, 3, 600.0), "limit check 2 of 5"),
        (TuneStep("overall", NGRAM, 2, 8, 1, 4, 600.0), "all prompt types together, round 2"),
    ],
)
def test_every_phase_has_its_words_and_its_bar(step, words):
    """Before the proof only the budget is known: at most. Elsewhere the same stands in a line."""
    text = seen(step)
    assert words in " ".join(text.split())
    assert "33 %, at most 10 min left, until 12:10" in text
    assert lined(step).strip().endswith("(33 %, at most 10 min left)")
    assert words in lined(step)


def test_before_the_first_step_it_gets_ready():
    """Builds are looked at and the database is opened: nothing is launched yet, and nothing says so."""
    text = seen()
    assert "5:00  getting ready" in text
    assert "launch" not in text


WAITING = CellProgress(PromptType.SUMMARIZATION, OFF, None, 0, "searching")


def test_while_answers_are_recorded_the_table_says_so():
    """A prompt type that waits for its first pair is neither searched nor launched yet."""
    recording = seen(TuneStep("record", OFF, 1, 1, 3, 12, 600.0), standings=(WAITING, PROVING))
    assert re.search(r"summarization +│ recording", recording)
    assert re.search(r"coding +│ proving", recording)
    assert re.search(
        r"summarization +│ searching",
        seen(TuneStep("search", NGRAM, 1, 20, 2, 3, 600.0), standings=(WAITING,)),
    )


LONG = Drafting(
    Mode.DRAFT_MODEL, draft="/m/Some-Family-Draft-0.6B-Instruct-Q4_K_M.gguf", n_max=13, p_min=0.25
)


@pytest.mark.parametrize("width", [40, 60, 80])
def test_a_narrow_terminal_cuts_no_word_and_no_figure(width):
    """Long sentences go on in the next line at a word; a row is one line, whose long name is cut."""
    step = TuneStep("prove", LONG, 2, 24, 3, 8, 900.0, 100.0)
    standings = tuple(CellProgress(kind, LONG, 1.5, 8, "undecided") for kind in PromptType)
    text = seen(step, width=width, standings=standings)
    lines = [line.rstrip() for line in text.splitlines()]
    assert max(map(len, lines)) <= width
    assert "75 %, about 2 min left, until 12:01" in " ".join(text.split())
    assert "n_max=13" in text
    rows = [line for line in lines if "undecided" in line]
    assert len(rows) == len(PromptType)
    assert all("1.50×" in row and "8" in row.split("×")[1] for row in rows)
    assert max(map(len, seen(step, width=30).splitlines())) <= 30


def test_a_low_terminal_keeps_the_bar_and_the_clock():
    """Only rows of the table are left out where twelve of them do not fit; what is decided goes first."""
    decided = CellProgress(PromptType.CODING, NGRAM, 1.5, 8, "enable")
    others = tuple(CellProgress(kind, NGRAM, 1.5, 8, "proving") for kind in list(PromptType)[1:])
    fits = seen(PROOF, height=20, standings=(decided, *others))
    assert "coding" not in fits
    assert "and 3 more" in fits
    assert len(fits.splitlines()) <= 20
    shell = Shell()
    shell.console = Console(width=80, height=10, force_terminal=True, file=io.StringIO(), _environ={})
    with TuneDisplay(shell, "Main-7B", clock=lambda: 0.0, now=lambda: NOON) as display:
        display.step(PROOF)
        display.standing(tuple(CellProgress(kind, NGRAM, 1.5, 8, "proving") for kind in PromptType))
    last = shell.console.file.getvalue().rsplit("autospec tune", 1)[1]
    assert "min left" in last
    assert "Ctrl-C stops" in last
    assert str(list(PromptType)[-1]) not in last
    assert "and 12 more, for which this terminal has too few lines" in last


def test_without_colours_the_bar_says_the_same():
    """Its done part has another sign, not another colour."""
    plain = seen(PROOF, env={"NO_COLOR": "1"})
    assert plain == seen(PROOF)


def test_a_terminal_that_has_no_block_characters_gets_others():
    """LANG=C: no sign beyond ASCII."""
    text = seen(PROOF, encoding="ascii")
    assert f"{'#' * 30}{'.' * 10} 75 %" in text
    assert "1.50x" in text
    assert text.isascii()


@pytest.mark.parametrize(
    "console",
    [
        {"force_terminal": True, "_environ": {"TERM": "dumb"}},
        {"force_terminal": True, "force_interactive": False, "_environ": {"FORCE_COLOR": "1"}},
    ],
)
def test_a_terminal_that_cannot_redraw_gets_plain_lines(console):
    """TERM=dumb, CI and a pipe with forced colours: each event once, without bar, table and escape codes."""
    text = lined(PROOF, console=console)
    assert "Phase 4 of 6: proof; then limits, overall answer." in text
    assert "proof round 2 of at most 24" in text
    assert "\x1b" not in text
    assert text.isascii()


@pytest.mark.parametrize(
    ("tty", "env", "redraws"),
    [
        (True, {}, True),
        (True, {"CI": "true"}, False),
        (False, {}, False),
        (False, {"FORCE_COLOR": "1"}, False),
    ],
)
def test_where_the_shell_redraws(monkeypatch, tty, env, redraws):
    """Only on a terminal that a person looks at."""
    for name in ("CI", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.stderr", io.StringIO())
    monkeypatch.setattr("sys.stderr.isatty", lambda: tty, raising=False)
    assert Shell().console.is_interactive is redraws


def test_the_phases_are_those_of_the_study():
    """Trials without prediction record and read nothing; only some studies check limits."""
    assert phases_of(load_definition("default"))[-2:] == ("limits", "overall answer")
    unchecked = replace(load_definition("quick"), limits=LimitsDefinition())
    assert "limits" not in phases_of(unchecked)
    assert phases_of(replace(unchecked, predict=False)) == ("search", "proof", "overall answer")


def test_a_phase_is_named_once_and_never_goes_back():
    """The proof may record more answers: it is still the proof."""
    record = TuneStep("record", OFF, 1, 1, 3, 12, 600.0)
    text = lined(record, replace(record, done=4), PROOF, record, replace(PROOF, number=3))
    assert (
        text.count("Phase 1 of 6: recording; then reading drafts, search, proof, limits, overall answer.")
        == 1
    )
    assert text.count("Phase 4 of 6") == 1
    assert text.count("Phase") == 2
    assert "Phase 4 of 6: proof; then limits, overall answer" in seen(PROOF, record)


def test_the_bar_never_goes_back():
    """A longer estimate is told in words."""
    later = TuneStep("limits", NGRAM, 1, 5, 0, 3, 3000.0)
    text = seen(PROOF, later)
    assert "75 %, at most 50 min left" in text


def test_the_time_that_is_kept_for_limits_is_told_apart():
    """Whether they are checked is only known when something is proven."""
    text = " ".join(seen(PROOF, limits_s=240.0).split())
    assert "47 %, about 2 min left, and at most 4 min for limits, until 12:05" in text
    assert "at most 14 min left" in seen(TuneStep("search", NGRAM, 1, 20, 2, 3, 600.0), limits_s=240.0)
    assert "at most 2 min left" in seen(PROOF, limits_s=240.0, later_s=200.0)
    over = TuneStep("prove", NGRAM, 2, 24, 3, 8, -10.0, -10.0)
    assert "over the budget" not in seen(over, limits_s=240.0)
    assert "over the budget" in seen(over, limits_s=240.0, later_s=300.0)


def test_long_times_are_told_in_hours():
    """Nobody counts 150 minutes."""
    assert "about 2 h 30 min left" in lined(TuneStep("prove", NGRAM, 1, 24, 0, 8, 9000.0, 9000.0))
    assert "about 1 min left" in lined(TuneStep("prove", NGRAM, 1, 24, 0, 8, 9000.0, 20.0))


def test_a_step_that_moves_on_is_no_line_of_its_own():
    """One line for a round, and then one in half a minute."""
    steps = [TuneStep("prove", NGRAM, 1, 24, done, 8, 900.0, 100.0) for done in range(9)]
    assert lined(*steps).count("proof round 1") == 1

"""How the end of a tune process is interpreted."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from autospec.cells import PromptType
from autospec.daemon.children import TuneOutcome, TuneProcess
from autospec.daemon.work import WorkItem

ITEM = WorkItem("m", "/m.gguf", PromptType.CODING, "embedded", "basis", 1.0, 0.1, 1.0, 60.0, 1, "because")
# What a tune prints and how it ends, as `autospec.cli` has it, without the imports of a tune.
RAISES = """
import click
from autospec.cli.shell import command_options
from autospec.errors import {error}

@click.command()
@command_options
def command(shell):
    raise {error}({message!r}, "Wait.")

command()
"""


def outcome(program: str, state_dir: Path) -> TuneOutcome:
    """Of a step that runs a program."""
    step = TuneProcess(ITEM, state_dir, (sys.executable, "-c", program))
    deadline_s = time.monotonic() + 60.0
    while (ended := step.outcome()) is None:
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    return ended


def test_busy_is_told_by_the_exit_code_whatever_the_sentence(tmp_path: Path):
    """The sentence is for people: it may change, and it goes into the daemon's events as it is."""
    program = RAISES.format(error="BusyError", message="Somebody else is at it.")
    assert outcome(program, tmp_path) == TuneOutcome(ok=False, busy=True, words="Somebody else is at it.")


def test_a_failure_that_speaks_of_another_autospec_is_a_failure(tmp_path: Path):
    """A log may hold any sentence."""
    program = RAISES.format(error="LaunchError", message="Another autospec is measuring badly.")
    assert outcome(program, tmp_path) == TuneOutcome(
        ok=False, busy=False, words="Another autospec is measuring badly."
    )


def test_done_and_died(tmp_path: Path):
    """Nothing to say of the one; of the other how it ended."""
    assert outcome("", tmp_path) == TuneOutcome(ok=True)
    assert outcome("raise SystemExit(7)", tmp_path) == TuneOutcome(ok=False, words="it ended with status 7")

"""The daemon's status in words."""

from __future__ import annotations

from autospec.cells import PromptType
from autospec.cli.daemon import status_lines
from autospec.daemon.work import LaterReason, effort_key

CELLS = [effort_key("big|model", "embedded", kind) for kind in list(PromptType)[:7]]
PROVEN = effort_key("small", "mlx", PromptType.QA)
DOCUMENT = {"pid": 1, "state": "resting", "why": "nothing", "later": {
    **dict.fromkeys(CELLS, "it waits"), PROVEN: "proven",
}}  # fmt: skip
REASONS = {**dict.fromkeys(CELLS, str(LaterReason.NO_CLEAR_ANSWER)), PROVEN: str(LaterReason.PROVEN)}


def test_cells_that_are_left_alone_are_named_with_their_reasons():
    """A model and its kind of prompt, also where the name holds the key's own separator; the rest is counted."""
    lines = status_lines(DOCUMENT | {"later_reasons": REASONS})
    assert "  1 proven, 7 not measured for now." in lines
    assert "    big|model, coding: it waits" in lines
    assert sum("big|model" in line for line in lines) == 5
    assert "    … and 2 more (--json has them all)" in lines


def test_what_is_proven_does_not_depend_on_the_words():
    """The words are for people, and may be others in another version."""
    words = dict.fromkeys(CELLS, "proven elsewhere") | {PROVEN: "measured and settled"}
    lines = status_lines(DOCUMENT | {"later": words, "later_reasons": REASONS})
    assert "  1 proven, 7 not measured for now." in lines


def test_a_daemon_of_an_older_version_does_not_tell_how_many_are_proven():
    """Its cells are listed all the same."""
    assert "  8 not measured for now." in status_lines(DOCUMENT)


def test_notes_are_told():
    """A missing backend, or an aim that this machine cannot pursue."""
    assert "  Note: The aim is speed instead." in status_lines(
        DOCUMENT | {"notes": ["The aim is speed instead."]}
    )

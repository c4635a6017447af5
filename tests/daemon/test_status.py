"""What the daemon says of itself, in words."""

from __future__ import annotations

from autospec.cells import PromptType
from autospec.daemon.status import status_lines
from autospec.daemon.work import effort_key


def test_cells_that_are_left_alone_are_named_with_their_reasons():
    """A model and its kind of prompt, also where the name holds the key's own separator; the rest is counted."""
    later = {effort_key("big|model", "embedded", kind): "it waits" for kind in list(PromptType)[:7]}
    later[effort_key("small", "mlx", PromptType.QA)] = "proven"
    lines = status_lines({"pid": 1, "state": "resting", "why": "nothing", "later": later})
    assert "  1 are proven, 7 are left alone for now." in lines
    assert "    big|model, coding: it waits" in lines
    assert sum("big|model" in line for line in lines) == 5
    assert "    … and 2 more (--json has them all)" in lines

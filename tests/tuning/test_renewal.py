"""Measuring afresh: which cells begin anew and which go on."""

from __future__ import annotations

from autospec.tuning.resume import Renewal, to_begin

OPEN = Renewal(100.0)
DONE = Renewal(100.0, finished=True, holds=True)


def test_where_nothing_is_open_all_begin():
    """Never begun, or all done: the user wants it measured again."""
    assert to_begin({"a": Renewal(), "b": Renewal()}) == {"a", "b"}
    assert to_begin({"a": DONE, "b": DONE}) == {"a", "b"}


def test_while_one_is_open_those_that_are_done_stay_so():
    """However often it is interrupted, it gets to its end."""
    assert to_begin({"a": DONE, "b": OPEN}) == set()
    assert to_begin({"a": OPEN, "b": OPEN}) == set()


def test_a_cell_that_joins_an_open_renewal_begins():
    """The user asks for more prompt types than before."""
    assert to_begin({"a": OPEN, "b": Renewal()}) == {"b"}


def test_a_kill_while_it_begins_makes_nothing_old_new():
    """The first cell was begun, the second is still as the renewal before left it, done or not."""
    assert to_begin({"a": Renewal(200.0), "b": DONE}) == {"b"}


def test_a_proof_that_went_stale_meanwhile_is_measured_once_more():
    """It was done, and does not hold."""
    assert to_begin({"a": OPEN, "b": Renewal(100.0, finished=True, holds=False)}) == {"b"}


def test_a_cell_that_was_renewed_alone_since_counts():
    """Its renewal is younger than the open one."""
    assert to_begin({"a": OPEN, "b": Renewal(200.0, finished=True, holds=True)}) == set()

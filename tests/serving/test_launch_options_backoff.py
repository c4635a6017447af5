"""When a failed launch is tried again, and when never."""

from __future__ import annotations

import pytest

from autospec.drafting import OFF
from autospec.errors import LaunchError, ServerDiedError
from autospec.serving.launch_options import Backoff
from tests.serving.scene import LOOKUP

DIED = ServerDiedError("The server was ended by SIGKILL.")
PASSING, LASTING = LaunchError("The port was taken."), LaunchError("Unknown flag.", permanent=True)


def test_nothing_against_it():
    """Whatever never failed may be launched at once."""
    setbacks = Backoff()
    assert setbacks.allows("a", LOOKUP, 0.0)
    assert setbacks.not_before_s("a", LOOKUP) < 0.0


def test_crashes_wait_longer_each_time():
    """At once, then 1, 2, 4 … seconds, a minute at most; off is never given up."""
    setbacks = Backoff()
    waits = [setbacks.crashed("a", OFF, DIED, 100.0).not_before_s - 100.0 for _ in range(9)]
    assert waits == [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]
    assert setbacks.allows("a", OFF, 100.0)
    assert not setbacks.to_json(100.0)[0]["given_up"]


def test_a_row_may_be_long():
    """After 17 hours of a client that tries each minute the pause was more than a number holds, and the launch's error was lost."""
    setbacks = Backoff()
    for fails in (setbacks.failed, setbacks.crashed):
        waits = [fails("a", OFF, PASSING, 60.0 * n).not_before_s - 60.0 * n for n in range(1100)]
        assert waits[-1] == max(waits) == 60.0


def test_a_drafting_has_three_chances():
    """Then it is not tried for an hour, or until something new is known of the model."""
    setbacks = Backoff()
    assert [setbacks.crashed("a", LOOKUP, DIED, 0.0).not_before_s for _ in range(3)] == [0.0, 1.0, 3600.0]
    assert not setbacks.allows("a", LOOKUP, 3599.0)
    assert setbacks.allows("a", LOOKUP, 3600.0)
    assert setbacks.allows("b", LOOKUP, 0.0)
    setbacks.forgive("a")
    assert setbacks.allows("a", LOOKUP, 0.0)


@pytest.mark.parametrize(("error", "given_up", "later"), [(PASSING, False, True), (LASTING, True, False)])
def test_a_drafting_that_does_not_start(error, given_up, later):
    """What would fail again is given up at once; the rest is set aside for a minute."""
    setbacks = Backoff()
    assert setbacks.failed("a", LOOKUP, error, 0.0).given_up is given_up
    assert not setbacks.allows("a", LOOKUP, 59.0)
    assert setbacks.allows("a", LOOKUP, 61.0) is later


def test_off_that_does_not_start_is_tried_again():
    """There is nothing to fall back to, even where the error looks lasting."""
    setbacks = Backoff()
    assert not setbacks.failed("a", OFF, LASTING, 0.0).given_up
    assert setbacks.not_before_s("a", OFF) == 0.0


def test_a_long_life_clears_the_record():
    """Three deaths in a year are not three in a row."""
    setbacks = Backoff()
    setbacks.crashed("a", LOOKUP, DIED, 0.0)
    setbacks.lives("a", LOOKUP, 10.0)
    assert [row["times"] for row in setbacks.to_json(10.0)] == [1]
    setbacks.lives("a", LOOKUP, 601.0)
    assert setbacks.to_json(601.0) == []


def test_what_is_told():
    """The sentence, the count and the wait, as JSON."""
    setbacks = Backoff()
    setbacks.failed("a", LOOKUP, PASSING, 0.0)
    assert setbacks.to_json(10.0) == [
        {
            "model": "a",
            "drafting": LOOKUP.to_json(),
            "times": 1,
            "error": "The port was taken.",
            "given_up": False,
            "again_in_s": 50.0,
        }
    ]

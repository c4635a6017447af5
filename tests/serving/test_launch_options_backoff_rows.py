"""Which failures make a row, and which of them speak against a drafting."""

from __future__ import annotations

from autospec.drafting import OFF
from autospec.errors import LaunchError, ServerDiedError
from autospec.serving.launch_options import Backoff
from tests.serving.scene import LOOKUP

DIED = ServerDiedError("The server was ended by SIGABRT while it was in use.")
WEEK_S = 7 * 86400.0


def test_failures_weeks_apart_are_not_in_a_row():
    """Proxy review 16: where models are unloaded after 5 minutes, nothing ever ended a row."""
    backoff = Backoff()
    for week in range(5):
        crash = backoff.crashed("a", LOOKUP, DIED, week * WEEK_S)
        assert (crash.times, crash.not_before_s) == (1, week * WEEK_S)
        assert backoff.crashed("a", OFF, DIED, week * WEEK_S).times == 1
        assert backoff.failed("b", LOOKUP, LaunchError("The port was taken."), week * WEEK_S).times == 1


def test_a_failure_without_drafting_clears_the_drafting():
    """Proxy review 2: off died of the very same request, and the drafting was blamed."""
    backoff = Backoff()
    for _ in range(3):
        backoff.crashed("a", LOOKUP, DIED, 0.0)
        backoff.crashed("b", LOOKUP, DIED, 0.0)
    backoff.crashed("a", OFF, DIED, 10.0)
    assert not backoff.allows("a", LOOKUP, 69.0)
    assert backoff.allows("a", LOOKUP, 70.0)
    assert not backoff.allows("b", LOOKUP, 70.0)
    # It has all its chances again.
    assert backoff.crashed("a", LOOKUP, DIED, 80.0).not_before_s < 3600.0


def test_a_drafting_that_never_starts_is_not_cleared():
    """An unknown flag has nothing to do with what happens to off."""
    backoff = Backoff()
    backoff.failed("a", LOOKUP, LaunchError("Unknown flag.", permanent=True), 0.0)
    backoff.crashed("a", OFF, DIED, 10.0)
    assert not backoff.allows("a", LOOKUP, 1e9)


def test_one_request_is_one_strike():
    """Proxy review 2: the proxy tries a request twice, so two bad requests were three deaths."""
    backoff = Backoff()
    for number in (1, 1, 2, 2):
        setback = backoff.crashed("a", LOOKUP, DIED, 0.0, requests=frozenset({number, 7 + number}))
    assert (setback.times, setback.strikes) == (4, 2)
    assert backoff.allows("a", LOOKUP, 60.0)
    assert backoff.crashed("a", LOOKUP, DIED, 0.0, requests=frozenset({3})).not_before_s == 3600.0


def test_a_kill_is_no_strike():
    """Proxy review 2: the kernel was short of memory. The waits grow all the same."""
    backoff = Backoff()
    kills = [backoff.crashed("a", LOOKUP, DIED, 0.0, killed=True) for _ in range(9)]
    assert [kill.not_before_s for kill in kills] == [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]
    assert not any(kill.given_up for kill in kills)

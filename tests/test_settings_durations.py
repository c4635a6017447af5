"""Durations as users write them."""

from __future__ import annotations

import pytest

from autospec.errors import UsageError
from autospec.settings import parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("20m", 1200),
        ("1h30m", 5400),
        ("2h", 7200),
        ("1.5h", 5400),
        ("1h 5m 10s", 3910),
        ("20M", 1200),
    ],
)
def test_durations_are_read(text: str, seconds: float):
    """Hours, minutes and seconds, in that order."""
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "5", "m", "20 minutes", "1m1h", "5m5m", "-5m", "0s", "1e3s", "5m!", "∞h"]
)
def test_what_is_no_duration_is_refused(text: str):
    """Anything else is a usage error that shows how to write one."""
    with pytest.raises(UsageError) as caught:
        parse_duration(text)
    assert "20m" in caught.value.hint

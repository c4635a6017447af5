"""What the tests of tunes on simulated machines share."""

from __future__ import annotations

import pytest


@pytest.fixture
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A simulated machine does not wait until this one is idle."""
    monkeypatch.setattr("autospec.tuning.load_guard.busy", lambda _: False)

"""Traffic: counts that fade."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autospec.cells import PromptType
from autospec.serving.traffic import Traffic

CODING, CHAT = PromptType.CODING, PromptType.CHAT


def test_nothing_was_seen_at_first():
    """No model has any traffic."""
    assert Traffic().tokens_per_s("main", 0.0) == {}


def test_a_count_halves_in_its_half_life():
    """Tokens and requests alike."""
    traffic = Traffic(half_life_s=100.0).arrived("main", CODING, 0.0).answered("main", CODING, 400, 0.0)
    now = traffic.tokens_per_s("main", 0.0)[CODING]
    assert traffic.tokens_per_s("main", 100.0)[CODING] == pytest.approx(now / 2)
    assert traffic.to_json(200.0)["models"]["main"]["coding"]["requests"] == 0.25


def test_a_steady_stream_is_seen_at_its_own_rate():
    """300 tokens every 10 seconds for many half-lives are 30 tokens a second."""
    traffic = Traffic(half_life_s=600.0)
    for step in range(1000):
        traffic = traffic.arrived("main", CODING, step * 10.0).answered("main", CODING, 300, step * 10.0)
    assert traffic.tokens_per_s("main", 10_000.0)[CODING] == pytest.approx(30.0, rel=0.01)


def test_types_and_models_are_counted_apart():
    """What one model writes says nothing of another."""
    traffic = (
        Traffic().answered("a", CODING, 100, 0.0).answered("a", CHAT, 300, 0.0).answered("b", CHAT, 7, 0.0)
    )
    rates = traffic.tokens_per_s("a", 0.0)
    assert rates[CHAT] / rates[CODING] == pytest.approx(299 / 99)
    assert set(traffic.tokens_per_s("b", 0.0)) == {CHAT}


def test_a_request_that_only_arrived_gives_its_type_a_little_weight():
    """The first launch is chosen for the request that asks for it."""
    assert set(Traffic().arrived("main", CODING, 0.0).tokens_per_s("main", 0.0)) == {CODING}


def test_a_value_is_not_changed_by_what_comes_after():
    """Each change makes a new value."""
    before = Traffic().arrived("main", CODING, 0.0)
    before.answered("main", CODING, 500, 1.0)
    assert before == Traffic().arrived("main", CODING, 0.0)


def test_status_shows_faded_counts():
    """The document of `status`, rounded."""
    traffic = Traffic(half_life_s=100.0).arrived("main", CODING, 0.0).answered("main", CODING, 41, 0.0)
    assert traffic.to_json(100.0)["models"] == {"main": {"coding": {"tokens": 20.5, "requests": 0.5}}}


def test_a_half_life_must_be_longer_than_nothing():
    """Zero would forget everything at once, and divide by nothing."""
    with pytest.raises(ValueError, match="half-life"):
        Traffic(half_life_s=0.0)


@given(st.lists(st.tuples(st.floats(0.0, 1e5), st.integers(0, 5000)), max_size=20), st.floats(0.0, 1e6))
def test_rates_are_finite_and_never_negative(seen: list[tuple[float, int]], now_s: float):
    """Also when the clock steps back."""
    traffic = Traffic()
    for at_s, tokens in seen:
        traffic = traffic.arrived("main", CODING, at_s).answered("main", CODING, tokens, at_s)
    for rate in traffic.tokens_per_s("main", now_s).values():
        assert rate >= 0.0
        assert math.isfinite(rate)

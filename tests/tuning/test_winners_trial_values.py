"""The values of one cell's trials, compared across prompts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autospec.drafting import OFF, Drafting, Mode
from autospec.measure.measurements import Measurement, Pair, Phase, RequestShape
from autospec.tuning.winners import trial_values

FOUR, EIGHT, SIXTEEN = (
    Drafting(Mode.DRAFT_MODEL, draft="/d.gguf", n_max=n, n_min=0, p_min=0.0) for n in (4, 8, 16)
)


def pair(prompt: str, off_s: float, drafted_s: float) -> Pair:
    """A hundred tokens on each side."""
    off, drafted = (
        Measurement(
            cell_key="c", protocol="p", phase=Phase.SEARCH, round=0, drafting=OFF, compared=FOUR, prompt_id=prompt,
            launch_id="l", position=0, started_at=0.0, prompt_tokens=9, predicted_tokens=100, prompt_ms=0.0,
            predicted_ms=1000 * s, wall_ms=1000 * s, drafted=0, accepted=0, text_digest="",
        )
        for s in (off_s, drafted_s)
    )  # fmt: skip
    return Pair(off, drafted)


def test_equal_prompts_give_the_mean_of_each():
    """Nothing to correct: geometric means."""
    pairs = {
        FOUR: [pair("a", 4.0, 2.0), pair("b", 4.0, 4.0)],
        EIGHT: [pair("a", 4.0, 1.0), pair("b", 4.0, 4.0)],
    }
    values = trial_values(pairs)
    assert values[FOUR] == pytest.approx(2**0.5)
    assert values[EIGHT] == pytest.approx(2.0)


def test_fewer_prompts_are_compared_on_those_that_both_were_asked():
    """Prompt a gains most with anything: one that was asked a alone is not the better for it."""
    pairs = {
        FOUR: [pair("a", 4.0, 1.0), pair("b", 4.0, 4.0)],
        EIGHT: [pair("a", 4.0, 1.1)],
        SIXTEEN: [pair("c", 4.0, 3.2)],
    }
    values = trial_values(pairs)
    assert values[FOUR] == pytest.approx(2.0)
    assert values[EIGHT] == pytest.approx(2.0 / 1.1)
    assert values[SIXTEEN] == pytest.approx(1.25)


def test_a_stalled_off_does_not_make_a_drafting_fast():
    """Off took three times as long once: the other trials know what it takes for this prompt."""
    pairs = {
        FOUR: [pair("a", 12.0, 3.0)],
        EIGHT: [pair("a", 4.0, 2.5)],
        SIXTEEN: [pair("a", 4.1, 2.0)],
    }
    values = trial_values(pairs)
    assert values[FOUR] == pytest.approx(4.1 / 3.0)
    assert max(values, key=lambda d: values[d]) == SIXTEEN


def test_a_slow_stretch_of_the_machine_slows_both_halves():
    """A tenth slower on both sides is no stall: the pair says what it says."""
    pairs = {
        FOUR: [pair("a", 4.4, 2.2)],
        EIGHT: [pair("a", 4.0, 2.5)],
        SIXTEEN: [pair("a", 4.0, 2.5)],
    }
    assert trial_values(pairs)[FOUR] == pytest.approx(2.0)


def test_nothing_measured_gives_nothing():
    """A trial that failed has no pair."""
    assert trial_values({}) == {}
    assert trial_values({FOUR: []}) == {}


def test_a_stall_is_taken_away_as_the_request_shows_it():
    """Off generated three times as slowly: in a request of long answers that is nearly all, measured only a half."""
    shape = RequestShape(prompt_tokens=9.0, answer_tokens=1000.0)

    def shaped(off_s: float, drafted_s: float) -> Pair:
        """Four seconds of prompt on both sides, besides the generation."""
        halves = (
            replace(half, prompt_ms=4000.0, wall_ms=half.wall_ms + 4000.0)
            for half in (pair("a", off_s, drafted_s).off, pair("a", off_s, drafted_s).drafted)
        )
        return Pair(*halves, shape)

    calm = trial_values({FOUR: [shaped(4.0, 3.0)]})[FOUR]
    pairs = {FOUR: [shaped(12.0, 3.0)], EIGHT: [shaped(4.0, 2.5)], SIXTEEN: [shaped(4.0, 2.0)]}
    assert trial_values(pairs)[FOUR] == pytest.approx(calm, rel=0.01)

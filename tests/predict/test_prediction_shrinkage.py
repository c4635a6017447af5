"""A prediction from few prompts is completed by the other prompt types of the same drafting."""

from __future__ import annotations

import math

import numpy as np
import pytest

from autospec.drafting import Drafting, Mode
from autospec.predict.prediction import Prediction, less_luck, shrink, shrunk

SIZES = [Drafting(Mode.NGRAM_SIMPLE, ngram_n=n, ngram_m=16, min_hits=1) for n in (4, 8, 12)]


def predicted(ratios, answers=2):
    """One type's predictions, 10 % wide to each side."""
    return {
        d: Prediction(d, r, r / 1.1, r * 1.1, 0.5, 100, 2.0, answers)
        for d, r in zip(SIZES, ratios, strict=True)
    }


def test_a_type_keeps_its_best():
    """What is drawn is which drafting is better, not how much a type gains."""
    given = np.log([[1.1, 1.2, 1.6], [1.0, 0.9, 0.8], [2.0, 2.2, 1.9]])
    drawn = shrunk(given, np.array([2.0, 2.0, 4.0]))
    assert drawn.max(axis=1) == pytest.approx(given.max(axis=1))
    assert not np.allclose(drawn, given)


def test_a_type_that_gains_nothing_is_not_lent_a_gain():
    """Another one that gains greatly tells which size to try first, not that it would pay."""
    given = np.log([[1.0, 1.4, 2.1], [1.0, 0.99, 0.98]])
    drawn = shrunk(given, np.array([2.0, 2.0]))
    assert np.exp(drawn[1]).max() == pytest.approx(1.0)
    assert np.exp(drawn[0]).max() == pytest.approx(2.1)


def test_two_equal_types_meet_half_way_but_for_what_types_differ():
    """By hand: one other type of 8 prompts is worth 1 / ((1 + 1) / 8 + 1 / 8) = 8 / 3 of a prompt."""
    given = np.array([[0.0, 0.3], [0.3, 0.0]])
    drawn = shrunk(given, np.array([2.0, 8.0]))
    own, worth = 2.0, 8.0 / 3.0
    assert drawn[0, 1] - drawn[0, 0] == pytest.approx(0.3 * (own - worth) / (own + worth))


def test_many_prompts_speak_for_themselves():
    """A hundred of a type's own outweigh everybody else's."""
    given = np.array([[0.0, 0.3], [0.3, 0.0]])
    assert shrunk(given, np.array([100.0, 100.0]))[0] == pytest.approx(given[0], abs=0.03)


def test_types_that_agree_stay_where_they_are():
    """Nothing is drawn to anywhere else."""
    given = np.array([[0.1, 0.4, 0.0], [0.3, 0.6, 0.2]])
    assert shrunk(given, np.array([1.0, 5.0])) == pytest.approx(given)


def test_one_type_alone_stays_as_it_is():
    """There is nobody to ask."""
    given = np.array([[0.1, 0.4]])
    assert shrunk(given, np.array([2.0])) is given


def test_the_choice_is_right_more_often():
    """Types that like the same sizes, few noisy prompts each: the largest of many noisy figures is the luckiest."""
    rng = np.random.default_rng(7)
    lost = {"raw": 0.0, "drawn": 0.0}
    for _ in range(200):
        pattern = rng.normal(0.0, 0.05, 40)
        truth = pattern + rng.normal(0.0, 0.1 / math.sqrt(8.0), (6, 40))
        seen = truth + rng.normal(0.0, 0.1 / math.sqrt(2.0), truth.shape)
        for name, values in (("raw", seen), ("drawn", shrunk(seen, np.full(6, 2.0)))):
            chosen = truth[np.arange(6), values.argmax(axis=1)]
            lost[name] += float((truth.max(axis=1) - chosen).mean()) / 200
    assert lost["drawn"] < 0.8 * lost["raw"]


def test_the_interval_moves_with_the_ratio():
    """Its width is what the type's own prompts and the costs leave open."""
    found = shrink({"a": predicted([1.0, 1.5, 1.0]), "b": predicted([1.3, 1.1, 1.0])}, SIZES)
    for own in found.values():
        for p in own.values():
            assert p.low == pytest.approx(p.ratio / 1.1)
            assert p.high == pytest.approx(p.ratio * 1.1)
    assert found["a"][SIZES[0]].ratio > 1.05
    assert found["a"][SIZES[1]].ratio == pytest.approx(1.5)


def test_a_cell_that_lacks_one_stays_as_it_is():
    """A draft that was not read for it."""
    whole, other = predicted([1.0, 1.5, 1.0]), predicted([1.3, 1.1, 1.0])
    lacking = {SIZES[0]: predicted([3.0, 1.0, 1.0])[SIZES[0]]}
    found = shrink({"a": whole, "b": other, "c": lacking}, SIZES)
    assert found["c"] == lacking
    assert found["a"] == shrink({"a": whole, "b": other}, SIZES)["a"] != whole


@pytest.mark.parametrize("predictions", [{}, {"a": predicted([1.0, 1.5, 1.0])}])
def test_without_other_types(predictions):
    """What was predicted is what is found."""
    assert shrink(predictions, SIZES) == predictions


def test_what_one_lucky_prompt_shows_does_not_beat_what_all_show():
    """What a tune met: ngram-simple +95 %, carried by some of its prompts, was +3 % on others; the draft +57 %, on all of them."""
    assert less_luck(1.95, 0.28) < less_luck(1.57, 0.08)
    assert less_luck(1.95, 0.08) > less_luck(1.57, 0.08)
    assert less_luck(1.57, 0.0) == pytest.approx(1.57)
    assert 0.7 < less_luck(0.7, 0.3) < 1.0

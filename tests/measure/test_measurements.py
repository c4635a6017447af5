"""Pairs: which halves belong together."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from autospec.drafting import OFF
from autospec.measure.measurements import MAX_PAIR_GAP_S, pair_up
from tests.store.test_database import DRAFT, MEASUREMENT

DRAFTED = MEASUREMENT
OFF_HALF = replace(MEASUREMENT, drafting=OFF, position=0, started_at=99.0, wall_ms=1300.0)


def test_pair_is_the_ratio_of_whole_requests():
    """Half the time for the same tokens is twice the speed."""
    (pair,) = pair_up([DRAFTED, OFF_HALF])
    assert pair.log_ratio == pytest.approx(math.log(2.0))
    assert pair.decode_log_ratio == pytest.approx(0.0)
    assert pair.same_text


@pytest.mark.parametrize(
    "changes", [{"round": 1}, {"prompt_id": "b"}, {"cell_key": "x"}, {"compared": replace(DRAFT, n_max=4)}]
)
def test_halves_of_different_pairs_do_not_meet(changes):
    """Another round, prompt, cell or drafting is another pair."""
    assert pair_up([DRAFTED, replace(OFF_HALF, **changes)]) == []


def test_halves_far_apart_in_time_are_no_pair():
    """What lies an hour apart does not stand for one moment."""
    assert pair_up([DRAFTED, replace(OFF_HALF, started_at=100.0 - MAX_PAIR_GAP_S - 1)]) == []


def test_newest_of_repeated_halves_counts():
    """A half that was measured again replaces the first."""
    again = replace(DRAFTED, started_at=101.0, wall_ms=1300.0)
    (pair,) = pair_up([DRAFTED, OFF_HALF, again])
    assert pair.drafted is again


def test_different_texts_are_noticed():
    """The lossless check compares digests."""
    (pair,) = pair_up([DRAFTED, replace(OFF_HALF, text_digest="e" * 64)])
    assert not pair.same_text

"""The bar of a ratio: what is left of the mark is below the threshold."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autospec.recommendations import Verdict
from autospec.report.tables import RatioBars
from tests.report.samples import recommendation


def row(speedup, interval=None, threshold=0.02):
    """A row with this ratio."""
    return recommendation(
        Verdict.UNDECIDED, speedup=speedup, speedup_ci=interval, evidence={"threshold": threshold}
    )


def bar(r, *others, width=13, ascii_only=True):
    """Its bar in a table with the others."""
    bars = RatioBars.of([r, *others], width=width, ascii_only=ascii_only)
    assert bars is not None
    return bars.bar(r)


def test_a_clear_gain_is_right_of_the_mark():
    """With its interval; nothing of it is left."""
    left, right = bar(row(1.3, (1.2, 1.4))).split("|")
    assert set(left) == {"."}
    assert "#" in right
    assert "-" in right


def test_an_interval_over_the_threshold_is_on_both_sides():
    """The mark stays visible within it."""
    left, right = bar(row(1.1, (0.9, 1.3))).split("|")
    assert left.endswith("-")
    assert "#" in right


def test_blocks_where_the_output_has_them():
    """One sign for each meaning, and the legend names them."""
    bars = RatioBars.of([row(0.8, (0.7, 0.9))], width=13, ascii_only=False)
    assert bars is not None
    assert set(bars.bar(row(0.8, (0.7, 0.9)))) == {"·", "▒", "█", "│"}
    assert bars.legend == "gain: █ measured, ▒ interval, │ +2 %, the threshold to enable"


def test_rows_share_their_scale():
    """Twice the logarithm of the gain is twice as far from the mark."""
    small, large = row(1.02 * 1.2), row(1.02 * 1.44)
    places = [bar(r, small, large, width=41).index("#") - 3 for r in (small, large)]
    assert places[1] == pytest.approx(2 * places[0], abs=1)


def test_rows_of_two_studies_are_drawn_around_their_own_thresholds():
    """+4 % is above one study's threshold and below the other's."""
    one, other = row(1.04, threshold=0.02), row(1.04, threshold=0.05)
    assert "#" in bar(one, other).split("|")[1]
    assert "#" in bar(other, one).split("|")[0]
    bars = RatioBars.of([one, other], width=13, ascii_only=True)
    assert bars is not None
    assert "| +2 % or +5 %, the threshold" in bars.legend


@pytest.mark.parametrize(
    "r",
    [
        row(None),
        recommendation(evidence={}),
        recommendation(evidence={"threshold": "2 %"}),
        row(float("inf")),
        row(float("nan")),
        row(-1.0),
    ],
)
def test_what_has_no_ratio_or_no_threshold_has_no_bar(r):
    """Imported records often have neither; a table of them alone has no bars."""
    assert RatioBars.of([r], width=13, ascii_only=True) is None
    assert bar(row(1.2)).count("#") == 1
    bars = RatioBars.of([row(1.2), r], width=13, ascii_only=True)
    assert bars is not None
    assert bars.bar(r) == ""


def test_what_is_far_away_is_cut_and_says_so():
    """Ten times as fast does not squeeze the others into a cell."""
    fast, usual = row(10.0, (9.0, 11.0)), row(1.2)
    assert bar(fast, usual).endswith(">")
    assert "#" in bar(usual, fast).split("|")[1][:5]
    assert bar(row(0.1, (0.0, 0.2))).startswith("<")
    # An unbounded end is no interval.
    assert bar(row(1.2, (0.5, math.inf))).count("-") == 0


ratios = st.floats(0.01, 100.0)


@given(speedup=ratios, low=ratios, high=ratios, threshold=st.floats(0.0, 0.5), width=st.integers(9, 60))
def test_a_side_never_lies(speedup, low, high, threshold, width):
    """However coarse: each end is on the side of the mark that its figure is on, and the width is what was asked for."""
    low, high = min(low, speedup), max(high, speedup)
    text = bar(row(speedup, (low, high), threshold), width=width)
    assert len(text) == width
    left, right = text.split("|")
    least = math.log1p(threshold)
    assert (left.strip(".") == "") == (math.log(low) - least >= 0.0)
    assert (right.strip(".") == "") == (math.log(high) - least < 0.0)
    if "#" in text:
        assert ("#" in right) == (math.log(speedup) - least >= 0.0)

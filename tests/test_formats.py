"""Counts, durations and sizes as people read them."""

from __future__ import annotations

import pytest

from autospec.formats import conditions_words, counted, duration, gigabytes
from tests.report.samples import recommendation


def test_numbers_agree_with_their_noun():
    """One round, and several."""
    assert [counted(n, "round") for n in (0, 1, 2)] == ["0 rounds", "1 round", "2 rounds"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(2.5, "2.5 s"), (90.0, "90 s"), (720.0, "12 min"), (12600.0, "3.5 h")]
)
def test_durations_have_one_unit(seconds, text):
    """The largest one that keeps two digits."""
    assert duration(seconds) == text


def test_sizes_are_decimal():
    """As model files are named on download pages."""
    assert (gigabytes(4.7e9), gigabytes(638e6)) == ("4.7 GB", "638 MB")


def test_conditions_tell_which_side_has_a_prompt_cache():
    """MLX's server has none while it drafts."""
    told = {"max_tokens": 64, "answer_tokens": 300, "cached_share": 0.5, "drafted_cached_share": 0.0}
    words = conditions_words(recommendation(evidence={"conditions": told}))
    assert words.endswith("300-token answers with 50% of the prompt cached without drafting and none with it")


def test_conditions_for_traffic_have_no_cached_share():
    """Its computed tokens are those of each side."""
    told = {"max_tokens": 64, "answer_tokens": 300, "cached_share": 0.0, "drafted_cached_share": 0.0}
    words = conditions_words(recommendation(evidence={"conditions": told}))
    cached = "with as much of the prompt cached as in live traffic without drafting and none with it"
    assert words.endswith(f"; computed for 300-token answers {cached}")


@pytest.mark.parametrize("damage", [{"temperature": "0.8"}, {"cached_share": [1]}])
def test_conditions_that_cannot_be_read_are_not_told(damage):
    """Of an import that somebody edited; `recommend` goes on with the rest."""
    told = {"temperature": 0.0, "max_tokens": 64, "answer_tokens": 300, "cached_share": 0.5}
    assert conditions_words(recommendation(evidence={"conditions": told})).startswith("greedy, 64 tokens")
    assert conditions_words(recommendation(evidence={"conditions": told | damage})) == ""

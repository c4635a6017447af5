"""The limits of a recommendation: JSON and back, and what a missing key means."""

from __future__ import annotations

import json
import math

import pytest

from autospec.recommendations import NO_LIMITS, LimitCheck, Limits, LimitVerdict

_LIMITS = Limits(
    concurrent=(
        LimitCheck(2, 1.31, (1.12, 1.5), 8, LimitVerdict.FASTER),
        LimitCheck(4, 0.8, (0.7, 0.9), 8, LimitVerdict.SLOWER, "4 slots"),
    ),
    context=(LimitCheck(8192, note="The model was trained with 4096 tokens of context."),),
    temperature=(LimitCheck(0.8, 1.02, (0.0, math.inf), 2, LimitVerdict.OPEN),),
    second_turn=(LimitCheck(2, 1.2, (1.1, 1.3), 4, LimitVerdict.FASTER, out_of_time=True),),
    most_concurrent=2,
    highest_temperature=0.0,
)


def test_limits_come_back_from_json():
    """What is written reads back as it was, open ends of an interval included."""
    written = json.loads(json.dumps(_LIMITS.to_json()))
    assert Limits.from_json(written) == _LIMITS
    assert written["concurrent"][0] == {
        "at": 2, "ratio": 1.31, "interval": [1.12, 1.5], "pairs": 8, "verdict": "faster", "note": "",
        "answer_tokens": None, "out_of_time": False,
    }  # fmt: skip
    assert written["temperature"][0]["interval"] == [0.0, None]
    assert (written["most_concurrent"], written["deepest_context"], written["highest_temperature"]) == (
        2,
        None,
        0.0,
    )


@pytest.mark.parametrize("missing", [None, {}, {"concurrent": None}, {"later_key": 1}])
def test_evidence_without_limits_limits_nothing(missing):
    """Old evidence has no such key, and newer evidence may have others."""
    assert Limits.from_json(missing) == NO_LIMITS


@pytest.mark.parametrize(
    ("told", "out_of_time"),
    [
        ({"note": "The budget ended before the second launch."}, True),
        ({"note": "1 of 8 pairs was disturbed. The budget ended before the second launch."}, True),
        ({"note": "4 slots"}, False),
        ({}, False),
        ({"note": "The budget ended before the second launch.", "out_of_time": False}, False),
        ({"out_of_time": True}, True),
    ],
)
def test_an_old_check_that_was_cut_short_is_recognised(told, out_of_time):
    """Before there was a field for it, only the note said so; where the field is there, it alone counts."""
    [read] = Limits.from_json({"second_turn": [{"at": 2, "pairs": 4, **told}]}).second_turn
    assert read.out_of_time is out_of_time


def test_check_of_a_newer_version_is_open():
    """A verdict that this version does not know shows nothing."""
    read = Limits.from_json({"concurrent": [{"at": 2, "verdict": "unclear"}], "most_concurrent": 1})
    assert read == Limits(concurrent=(LimitCheck(2),), most_concurrent=1)

"""The contract of recommendations: to JSON and back, the schema, and invalid ones."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import jsonschema
import pytest

from autospec.cells import Aim
from autospec.recommendations import SCHEMA, Recommendation, Verdict, document
from tests.store.test_database import MACHINE, RECOMMENDATION


def test_document_keeps_its_schema_and_comes_back():
    """What `document` writes validates, and each entry reads back as it was."""
    written = json.loads(json.dumps(document(MACHINE, [RECOMMENDATION])))
    jsonschema.validate(written, SCHEMA)
    assert [Recommendation.from_json(r) for r in written["recommendations"]] == [RECOMMENDATION]


def test_open_interval_is_null_in_json_and_open_again_after():
    """JSON has no infinity: too few pairs leave an end null, and reading restores it."""
    open_ended = replace(RECOMMENDATION, speedup_ci=(0.0, math.inf))
    written = open_ended.to_json()
    assert written["speedup_ci"] == [0.0, None]
    jsonschema.validate(document(MACHINE, [open_ended]), SCHEMA)
    assert Recommendation.from_json(written) == open_ended


@pytest.mark.parametrize("verdict", [Verdict.DISABLE, Verdict.UNDECIDED])
def test_only_enable_may_configure_a_drafting(verdict):
    """A verdict other than enable with a drafting is a mistake that cannot be made."""
    with pytest.raises(ValueError, match="configures as off"):
        replace(RECOMMENDATION, verdict=verdict)


@pytest.mark.parametrize(
    "damage",
    [
        {"speedup": 0.0},
        {"speedup": -1.2},
        {"baseline_tps": -3.0},
        {"tried": {"mode": "draft-model", "draft": ["/models/draft.gguf"], "n_max": 8}},
        {"evidence": {"limits": {"concurrent": [{"at": "2"}]}}},
        {"evidence": {"limits": {"context": [{"at": 8192, "ratio": "0.9"}]}}},
        {"evidence": {"limits": {"temperature": [{"at": 0.8, "note": 1}]}}},
        {"evidence": {"limits": {"highest_temperature": "0.8"}}},
        {"evidence": {"limits": {"concurrent": [{"at": math.inf}]}}},
    ],
)
def test_a_damaged_row_is_refused_where_it_is_read(damage):
    """A file from elsewhere may hold anything. Such a row kept the proxy from planning for any model, and `recommend` from answering."""
    with pytest.raises((ValueError, TypeError)):
        Recommendation.from_json({**RECOMMENDATION.to_json(), **damage})


def test_rows_from_before_there_were_aims_are_about_speed():
    """And an aim of a later version is not understood, instead of being taken for one of these."""
    written = RECOMMENDATION.to_json()
    assert written.pop("aim") == "speed"
    assert Recommendation.from_json(written).aim is Aim.SPEED
    with pytest.raises(ValueError, match="money"):
        Recommendation.from_json({**written, "aim": "money"})


def test_the_gain_is_of_what_the_aim_compares():
    """Speed, or off ÷ drafting of the joules; nothing else stands in for them."""
    assert RECOMMENDATION.gain == RECOMMENDATION.speedup
    frugal = replace(RECOMMENDATION, aim=Aim.ENERGY, evidence={"energy": {"ratio": 0.8}})
    assert frugal.gain == pytest.approx(1.25)
    assert replace(frugal, evidence={}).gain is None
    assert replace(frugal, evidence={"energy": {"ratio": "less"}}).gain is None

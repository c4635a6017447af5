"""`autospec explain`: how far live traffic falls short of the proof."""

from __future__ import annotations

import json
from contextlib import closing

from click.testing import CliRunner

from autospec.cli import cli
from autospec.hardware import identify
from autospec.settings import load_settings
from autospec.store.database import open_store
from tests.daemon.test_staleness_gap import CELL, HOT, PROOF, traffic


def test_a_shortfall_is_told_with_its_conditions(autospec_home):
    """In words, and as a figure."""
    with closing(open_store(load_settings().storage)) as store:
        store.save_recommendation(PROOF, identify(), CELL)
        store.add_samples(traffic(35.0, 400, **HOT))
    result = CliRunner().invoke(cli, ["explain", "-m", "main", "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    (explained,) = json.loads(result.stdout)["explanations"]
    assert explained["figures"]["traffic"]["conditions"] == ["100% at a temperature above 0"]
    assert "at a temperature above 0; no request was" in explained["sentences"][-1]


def test_traffic_as_proven_is_not_told(autospec_home):
    """Nor where there is none."""
    with closing(open_store(load_settings().storage)) as store:
        store.save_recommendation(PROOF, identify(), CELL)
        store.add_samples(traffic(50.0, 400))
    result = CliRunner().invoke(cli, ["explain", "-m", "main", "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    (explained,) = json.loads(result.stdout)["explanations"]
    assert "traffic" not in explained["figures"]

"""A short soak: mixed traffic, switches and kills through a real proxy; `studies.bench.soak` runs for longer."""

from __future__ import annotations

import sys

import pytest

from studies.bench.soak import ANSWERED, LEFT, Plan, soak


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no servers on Windows")
def test_nothing_is_lost_mixed_up_or_left(lab_models, llama_server_binary):
    """Every kind of client came, servers were killed, and each answer was its own request's."""
    plan = Plan(lab_models.tiny, str(llama_server_binary), 25.0, 9, switch_every_s=6.0, kill_every_s=8.0)
    result = soak(plan)
    assert result.failures(with_rss=False) == [], "\n".join(result.lines())
    assert result.kills
    assert result.recommendations
    assert result.servers > 1
    kinds = {kind for kind, _ in result.outcomes}
    assert {"streamed", "whole", "20 MB", "never reads", "ends its own side", "leaves in mid-stream"} <= kinds
    assert result.number(ANSWERED) > 0
    assert result.number(LEFT) > 0

"""Tunes on a machine that is hot, or disturbed, all the time: a steady disturbance counts, others are reported."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from autospec.cells import PromptType
from autospec.hardware.state import MachineState, between
from autospec.recommendations import Status, Verdict
from autospec.tuning import load_guard as calm
from autospec.tuning import run as run_module
from autospec.tuning.request import TuneRequest
from tests.hardware.test_state import FIRST, LAST
from tests.tuning.simulated import SimulatedBackend
from tests.tuning.test_run import Silent, pays_for_coding, request_with, tune


class Laptop:
    """A watch whose throttle counter rises in a share of the windows."""

    def __init__(self, share: float) -> None:
        self.share = share
        self.random = np.random.default_rng(5)

    def start(self) -> None:
        """Nothing to begin."""

    def finish(self) -> MachineState:
        """What the real readings make of such a window."""
        return between(FIRST, replace(LAST, throttles=2 + int(self.random.random() < self.share)))


@pytest.fixture(autouse=True)
def only_the_types_own_proofs(monkeypatch):
    """Requests and launches are counted here: without those that the answer for all types together needs."""
    monkeypatch.setattr("autospec.tuning.overall_proof.OverallProof._can_measure", lambda *_: False)


@pytest.fixture
def hot_request(tmp_path, monkeypatch) -> TuneRequest:
    """Two prompt types, one draft, the quick study; nobody is waited for."""
    monkeypatch.setattr(calm, "busy", lambda _state: False)
    return request_with(tmp_path, "draft")


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9, 1.0])
def test_a_throttling_laptop_gets_its_verdicts(hot_request, monkeypatch, share):
    """Earlier versions got no pair of 672 requests with an event in every window, and three with one in nine of ten."""
    monkeypatch.setattr(run_module, "StateWatch", lambda *_: Laptop(share))
    backend, progress = SimulatedBackend(pays_for_coding), Silent()
    result = tune(hot_request, backend, progress)
    assert result[PromptType.CODING].verdict is Verdict.ENABLE
    assert result[PromptType.WRITING].verdict is Verdict.DISABLE
    assert {r.status for r in result.values()} == {Status.PROVEN}
    assert all("left_out" not in r.evidence for r in result.values())
    proof = [text for _, _, text in backend.asked if "prove" in text]
    # No pair was measured twice.
    assert len(proof) == 2 * sum(r.pairs for r in result.values())


def test_what_does_not_count_is_said_with_its_reason(hot_request, monkeypatch):
    """A neighbour is at work whenever a drafted request runs: no pair counts, and the tune says so."""
    backend, progress = SimulatedBackend(pays_for_coding), Silent()

    class Neighbour(Laptop):
        def finish(self) -> MachineState:
            state = super().finish()
            drafted = bool(backend.asked) and not backend.asked[-1][1].is_off
            return replace(state, other_load=3.0 if drafted else 0.0)

    monkeypatch.setattr(run_module, "StateWatch", lambda *_: Neighbour(0.0))
    result = tune(hot_request, backend, progress)
    for kind, recommendation in result.items():
        assert recommendation.verdict is Verdict.UNDECIDED
        assert recommendation.pairs == 0
        ((cause, count),) = recommendation.evidence["left_out"].items()
        assert cause == "load of other processes"
        assert count >= 8
        assert f"{kind}, round 1: 8 pairs do not count: load of other processes (8)." in progress.told


def test_a_draft_that_makes_memory_short_is_not_judged_by_its_lucky_half(hot_request, monkeypatch):
    """Every second drafted request swaps and takes twice as long as off, the others gain 30 %: a loss of a fifth.

    With only the pairs that did not swap it would be enabled.
    """
    random = np.random.default_rng(3)
    short: list[bool] = []

    def speedup(_drafting, _text) -> float:
        short.append(bool(random.random() < 0.5))
        return 0.5 if short[-1] else 1.3

    backend, progress = SimulatedBackend(speedup), Silent()

    class Swapping(Laptop):
        def finish(self) -> MachineState:
            state = super().finish()
            drafted = bool(backend.asked) and not backend.asked[-1][1].is_off
            return replace(state, swap_in_bytes=(64 << 20) if drafted and short[-1] else 0)

    monkeypatch.setattr(run_module, "StateWatch", lambda *_: Swapping(0.0))
    result = tune(hot_request, backend, progress)
    assert {r.verdict for r in result.values()} <= {Verdict.DISABLE, Verdict.UNDECIDED}
    assert all(r.speedup < 1.0 for r in result.values())
    assert any("Memory is short for two servers" in told for told in progress.told)
    assert backend.most_running == 2

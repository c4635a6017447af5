"""What a look of the proof rests on."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import pytest

from autospec.measure.measurements import Pair
from autospec.measure.verdict import Rule
from autospec.recommendations import Verdict
from autospec.tuning.cell_run import CellRun
from autospec.tuning.proof import Proof, of_round
from tests.report.samples import DRAFTING, measurement


def pair(prompt: str, round_: int) -> Pair:
    """One in which drafting is faster by half."""
    halves = (measurement(with_drafting=d, prompt=prompt, round=round_) for d in (False, True))
    return Pair(*halves)


@pytest.mark.parametrize("rounds", [1, 2])
def test_a_resumed_proof_looks_at_its_own_rounds_only(rounds):
    """Rounds that an earlier run measured belong to later looks: each has its own share of the error rate."""
    stored = [pair(f"p{k}", round_) for round_ in range(1, 5) for k in range(8)]
    pairing = SimpleNamespace(known=lambda *_: stored)
    definition = SimpleNamespace(rule=Rule(looks=(1, 2, 4)), prompts_per_round=8)
    rig = SimpleNamespace(
        pairing=pairing,
        definition=definition,
        progress=SimpleNamespace(standing=lambda _: None, tell=lambda _: None),
    )
    prompts = tuple(SimpleNamespace(id=f"p{k}") for k in range(8))
    cell = CellRun(
        SimpleNamespace(key="c", prompt_type="qa"), None, (), prompts, winner=DRAFTING, rounds=rounds
    )
    Proof([cell], rig, lambda _: None)._look(cell)
    assert cell.decision.verdict is Verdict.ENABLE
    assert cell.decision.estimate.n == 8 * rounds


@pytest.mark.parametrize(("count", "turns"), [(1, 1), (8, 1), (9, 2), (12, 2), (16, 2), (17, 3), (30, 4)])
def test_rounds_ask_every_prompt_before_they_ask_one_again(count, turns):
    """Each round asks eight different ones, or all; after any number of rounds they have been asked equally often, but for one."""
    prompts = tuple(range(count))
    asked = Counter[int]()
    for round_ in range(1, 12):
        chosen = of_round(prompts, round_, 8)
        assert len(chosen) == len(set(chosen)) == min(count, 8)
        asked.update(chosen)
        counts = [asked[p] for p in prompts]
        assert max(counts) - min(counts) <= 1
        assert (min(counts) > 0) == (round_ >= turns)


def test_a_round_takes_prompts_from_all_over_the_file():
    """Where the short ones stand first, both rounds ask short and long ones."""
    for round_ in (1, 2):
        assert sum(of_round(range(16), round_, 8)) == pytest.approx(60, abs=4)

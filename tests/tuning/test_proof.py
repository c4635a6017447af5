"""What a look of the proof rests on."""

from __future__ import annotations

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
    definition = SimpleNamespace(rule=Rule(looks=(1, 2, 4)))
    rig = SimpleNamespace(
        pairing=pairing,
        definition=definition,
        progress=SimpleNamespace(standing=lambda _: None, tell=lambda _: None),
    )
    cell = CellRun(SimpleNamespace(key="c", prompt_type="qa"), None, (), (), winner=DRAFTING, rounds=rounds)
    Proof([cell], rig, lambda _: None)._look(cell)
    assert cell.decision.verdict is Verdict.ENABLE
    assert cell.decision.estimate.n == 8 * rounds


@pytest.mark.parametrize(("count", "turns"), [(1, 1), (8, 1), (9, 2), (16, 2), (17, 3), (30, 4)])
def test_rounds_ask_every_prompt_before_they_ask_one_again(count, turns):
    """Each round asks at most eight, all rounds nearly as many, and after so many turns every prompt has had one."""
    prompts = tuple(range(count))
    rounds = [of_round(prompts, round_, 8) for round_ in range(1, turns + 1)]
    assert sorted(p for asked in rounds for p in asked) == list(prompts)
    sizes = {len(asked) for asked in rounds}
    assert max(sizes) <= 8
    assert max(sizes) - min(sizes) <= 1
    assert of_round(prompts, turns + 1, 8) == rounds[0]

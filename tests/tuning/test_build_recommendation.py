"""What a recommendation says of a proof."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from autospec.cells import Aim
from autospec.measure.log_ratios import of_pairs
from autospec.measure.measurements import Pair
from autospec.measure.verdict import Rule, decide
from autospec.tuning.build_recommendation import Cost, conclude, conditions_of
from autospec.tuning.cell import CellRun
from tests.report.samples import DRAFTING, measurement
from tests.tuning.test_run import request_with

RULE = Rule(looks=(1, 2, 4))


def round_of(number: int) -> list[Pair]:
    """Eight pairs; a request takes 10 200 ms without drafting."""
    return [
        Pair(
            *(
                replace(measurement(with_drafting=d, prompt=f"p{k}", round=number), position=(k + d) % 2)
                for d in (False, True)
            )
        )
        for k in range(8)
    ]


def looked_at(rounds: int, proof: list[Pair]) -> CellRun:
    """A cell whose proof was last looked at after two rounds."""
    model = SimpleNamespace(name="Main", path="/models/main.gguf")
    build = SimpleNamespace(backend="llama-server", version="b1")
    cell = SimpleNamespace(key="c", prompt_type="qa", model=model, build=build, settings=(), aim=Aim.SPEED)
    run = CellRun(cell, SimpleNamespace(name="study"), (), (), winner=DRAFTING, rounds=rounds)
    values = of_pairs([p for p in proof if p.off.round <= 2])
    run.decision = decide(values, 2, RULE)
    return run


@pytest.mark.parametrize("rounds", [2, 3])
def test_all_figures_are_of_the_pairs_that_were_looked_at(rounds):
    """The budget ends in the third round, or after it: its pairs, four times slower, are in no interval yet."""
    seen = [*round_of(1), *round_of(2)]
    later = [
        replace(p, drafted=replace(p.drafted, wall_ms=40_800.0, predicted_ms=40_500.0)) for p in round_of(3)
    ]
    r = conclude(
        looked_at(rounds, seen), [*seen, *later], [], rule=RULE, arguments=(), command=(), cost=Cost()
    )
    assert r.pairs == r.evidence["compared_texts"] == 16
    assert r.drafting_tps / r.baseline_tps == pytest.approx(r.speedup) == pytest.approx(10_200 / 6_300)


def test_answers_within_the_reasoning_are_a_condition(tmp_path):
    """Their share, of the halves with drafting, which are not cut shorter than the study says; nothing where there is none."""
    pairs, request = round_of(1), request_with(tmp_path)
    assert "within_reasoning" not in conditions_of(request, pairs, 0.0)
    cut = {"within_reasoning": True}
    off = [replace(p, off=replace(p.off, machine=cut)) for p in pairs]
    assert "within_reasoning" not in conditions_of(request, off, 0.0)
    some = [replace(p, drafted=replace(p.drafted, machine=cut)) for p in pairs[:6]]
    assert conditions_of(request, [*some, *pairs[6:]], 0.0)["within_reasoning"] == 0.75


def test_before_the_first_look_they_are_of_all_pairs():
    """An incomplete first round has no interval."""
    pairs = round_of(1)[:5]
    cell = looked_at(2, round_of(1))
    cell.decision, cell.rounds = None, 0
    r = conclude(cell, pairs, [], rule=RULE, arguments=(), command=(), cost=Cost())
    assert (r.pairs, r.evidence["phase"], r.speedup_ci) == (5, "prove", None)


def test_an_answer_that_came_in_one_part_has_no_speed_of_generation():
    """It made the evidence NaN, which JSON and PostgreSQL refuse. Without any other answer there is no such figure."""
    pairs = round_of(1)
    whole = [replace(p, drafted=replace(p.drafted, predicted_ms=0.0)) for p in pairs]
    for own, told in (([whole[0], *pairs[1:]], True), (whole, False)):
        r = conclude(looked_at(1, own), own, [], rule=RULE, arguments=(), command=(), cost=Cost())
        json.dumps(r.to_json(), allow_nan=False)
        assert (r.evidence["decode_baseline_tps"] is not None) is told
        assert (r.evidence["decode_drafting_tps"] is not None) is told

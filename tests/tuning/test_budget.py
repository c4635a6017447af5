"""The budget is kept, and its time goes first to cells with a near decision and a large gain."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from autospec.drafting import OFF
from autospec.measure.verdict import DEFAULT_RULE
from autospec.tuning.budget import Budget, Pace, rounds_to_decide, worth
from tests.tuning.proofs import lab, ngram
from tests.tuning.simulated import FakeClock

BUDGET_S = 1200.0
ALLOWED_S = 1260.0  # a minute is more than 5 %


def twelve(winners):
    """Twelve searched types, their winners taken in turn, all of them faster by half."""
    return [(f"type{n:02}", ngram(2 + n % winners), 1.5) for n in range(12)]


@pytest.mark.parametrize("winners", [1, 3, 6])
@pytest.mark.parametrize("request_s", [5, 10])
@pytest.mark.parametrize("resident", [1, 2])
def test_a_proof_of_many_types_ends_in_time_and_decides_some(
    tmp_path, monkeypatch, resident, request_s, winners
):
    """Earlier versions took 24 to 45 minutes of 20, and decided none of the twelve."""
    made = lab(
        tmp_path,
        monkeypatch,
        resident=resident,
        budget_s=BUDGET_S,
        spent_s=BUDGET_S / 2,
        cells=twelve(winners),
        request_s=request_s,
    )
    decided = made.prove()
    assert made.context.budget.spent_s <= ALLOWED_S
    assert len(decided) >= 2
    begun = [cell for cell in made.cells if cell not in decided and made.known(cell)]
    assert len(begun) <= 1, "time went to types that it did not suffice for"


@pytest.mark.parametrize("resident", [1, 2])
@pytest.mark.parametrize("slower", [1.0, 3.0])
def test_it_holds_where_requests_take_longer_than_they_did_in_the_search(
    tmp_path, monkeypatch, resident, slower
):
    """The plan was for a third of it: a started round is finished within the minute, and the rest is left."""
    made = lab(
        tmp_path, monkeypatch, resident=resident, budget_s=BUDGET_S, spent_s=BUDGET_S / 2, cells=twelve(3)
    )
    for cell in made.cells:
        cell.prove_prompts = tuple(
            replace(p, max_tokens=round(5 * slower * p.max_tokens)) for p in cell.prove_prompts
        )
    made.prove()
    assert made.context.budget.spent_s <= ALLOWED_S


@pytest.mark.parametrize("resident", [1, 2])
def test_a_round_that_does_not_fit_is_not_begun(tmp_path, monkeypatch, resident):
    """After the rounds that fit, the rest of the time is left; no pair is measured that counts for nothing."""
    made = lab(
        tmp_path,
        monkeypatch,
        resident=resident,
        budget_s=400.0,
        cells=twelve(6),
        request_s=10,
        spent_s=200.0,
        launch_s=5.0,
    )
    made.prove()
    assert made.context.budget.spent_s <= 460.0
    assert [made.known(cell) for cell in made.cells if not cell.rounds] == [0] * sum(
        not cell.rounds for cell in made.cells
    )


@pytest.mark.parametrize("resident", [1, 2])
def test_where_not_even_one_round_fits_its_first_pairs_are_measured(tmp_path, monkeypatch, resident):
    """Otherwise the next tune would make no progress either; the budget holds, and the pairs are found again."""
    made = lab(tmp_path, monkeypatch, resident=resident, budget_s=300.0, request_s=30, launch_s=10.0)
    made.backend.clock.pass_by(300.0 - 200.0 - made.context.budget.spent_s)
    assert made.prove() == []
    assert made.context.budget.spent_s <= 360.0
    assert 0 < made.known(made.cells[0]) < 8
    asked = len(made.backend.asked)
    made.context.budget.total_s = 1e6
    assert made.prove() == made.cells
    assert len(made.backend.asked) - asked <= 16


def test_what_pays_most_is_proved_first(tmp_path, monkeypatch):
    """There is time for one type: that with the largest gain, wherever it stands."""
    gains = {"small": 1.05, "middle": 1.4, "large": 1.8, "none": 1.0}
    made = lab(
        tmp_path,
        monkeypatch,
        budget_s=BUDGET_S,
        spent_s=BUDGET_S - 290.0,
        cells=[(name, ngram(4), ratio) for name, ratio in gains.items()],
        speedup=lambda _d, text: next(r for name, r in gains.items() if name in text),
        request_s=10,
    )
    assert [cell.cell.key for cell in made.prove()] == ["large"]
    assert [cell.cell.key for cell in made.cells if made.known(cell)] == ["large"]


def test_an_interrupted_proof_looks_at_what_is_stored_without_time(tmp_path, monkeypatch):
    """Its rounds cost nothing and are looked at, though the budget is spent: the looks were not noted."""
    made = lab(tmp_path, monkeypatch, cells=twelve(3))
    decided = len(made.prove())
    for cell in made.cells:
        cell.decision, cell.rounds, cell.history = None, 0, replace(cell.history, looks={})
    made.context.budget.total_s = 1.0
    asked = len(made.backend.asked)
    assert len(made.prove()) == decided
    assert len(made.backend.asked) == asked


def test_repeats_do_not_exceed_the_budget(tmp_path, monkeypatch):
    """All pairs are disturbed: they are told, the round counts, and the budget holds."""
    made = lab(tmp_path, monkeypatch, budget_s=400.0, request_s=10, launch_s=20.0)
    made.backend.clock.pass_by(200.0 - made.context.budget.spent_s)
    states = iter(range(10_000))
    watch = made.context.pairing._asking.watch
    calm = watch.finish
    monkeypatch.setattr(watch, "finish", lambda: replace(calm(), other_load=2.0 * (next(states) % 2)))
    monkeypatch.setattr("autospec.tuning.load_guard.busy", lambda _state: False)
    made.prove()
    assert made.context.budget.spent_s <= 460.0
    assert made.cells[0].rounds == 1
    assert any("8 pairs do not count" in told for told in made.watcher.told)


def test_a_decision_that_is_near_takes_fewer_rounds():
    """A large gain takes one, although the interval is wide; a gain near the threshold takes many."""
    few = [rounds_to_decide(math.log(r), 0.15, DEFAULT_RULE, done=0, per_round=8) for r in (1.5, 1.2, 1.1)]
    assert few == sorted(few)
    assert few[0] == 1
    assert rounds_to_decide(math.log(1.03), 0.15, DEFAULT_RULE, done=0, per_round=8) == 24
    assert rounds_to_decide(math.log(0.8), 0.05, DEFAULT_RULE, done=2, per_round=8) == 2


def test_worth_is_gain_over_time():
    """Twice the time halves it, a loss is worth little, and a proof without cost comes first."""
    assert worth(math.log(1.5), 100.0) == pytest.approx(2 * worth(math.log(1.5), 200.0))
    assert worth(math.log(1.5), 100.0) > worth(math.log(1.05), 20.0) > worth(math.log(0.5), 20.0) > 0.0
    assert worth(math.log(0.5), 0.0) == math.inf


def test_the_pace_of_the_most_alike_is_taken():
    """The cell's own on this side; then its other side's; then this side's of others; then anything."""
    pace = Pace()
    assert pace.request_s("a", OFF) == 0.0
    pace.note("b", ngram(4), 7.0)
    assert pace.request_s("a", OFF) == 7.0
    pace.note("b", OFF, 5.0)
    assert pace.request_s("a", OFF) == 5.0
    pace.note("a", ngram(4), 3.0)
    assert pace.request_s("a", OFF) == 3.0
    pace.note("a", OFF, 1.0)
    pace.note("a", OFF, 2.0)
    assert pace.request_s("a", OFF) == 1.5
    assert pace.pair_s("a", ngram(4)) == 4.5


def test_what_finishes_something_has_a_minute_or_a_twentieth():
    """Beyond the budget, whichever is more."""
    for total_s, grace_s in ((600.0, 60.0), (7200.0, 360.0)):
        clock = FakeClock()
        budget = Budget(total_s, clock)
        clock.pass_by(total_s - 1.0)
        assert budget.allows(1.0)
        assert not budget.allows(1.1)
        assert budget.allows(1.0 + grace_s, to_finish=True)
        clock.pass_by(11.0)
        assert (budget.left_s, budget.until_end_s) == (0.0, -10.0)
        assert not budget.allows(grace_s, to_finish=True)


def test_a_long_prompt_is_expected_to_take_longer():
    """Seen on two cores: prompts of 500 tokens took 8 s, of 1,900 tokens 28 s, and a round of long ones overran its budget."""
    pace = Pace()
    for size, seconds in ((400, 5.0), (800, 6.0), (1200, 7.0), (1600, 8.0)):
        pace.note("coding", OFF, seconds, size)
    assert pace.request_s("coding", OFF, 1000) == pytest.approx(6.5)
    assert pace.request_s("coding", OFF, 6000) == pytest.approx(19.0)
    assert pace.request_s("editing", OFF, 6000) == pytest.approx(19.0)  # another type, the same server
    assert pace.request_s("coding", OFF, 1) == pytest.approx(4.0025)
    assert pace.request_s("coding", OFF) == 6.5  # an unknown size: the mean
    # A drafting that has not been measured has the times of off.
    assert pace.request_s("coding", ngram(4), 6000) == pytest.approx(19.0)


def test_a_size_changes_nothing_where_it_explains_nothing():
    """Too few requests, one size only, or a cached prompt whose length costs nothing."""
    few, one_size, falling = Pace(), Pace(), Pace()
    for size in (100, 200, 300):
        few.note("a", OFF, size / 10, size)
    assert few.request_s("a", OFF, 900) == 20.0
    for seconds in (1.0, 2.0, 3.0, 4.0):
        one_size.note("a", OFF, seconds, 100)
        falling.note("a", OFF, seconds, 500 - round(seconds * 100))
    assert one_size.request_s("a", OFF, 900) == 2.5
    assert falling.request_s("a", OFF, 900) == 2.5


def test_a_short_prompt_still_takes_a_part_of_the_usual_time():
    """A steep line through two groups of prompts would give a short one less than nothing."""
    pace = Pace()
    for size, seconds in ((4000, 10.0), (4100, 12.0), (4200, 14.0), (4300, 16.0)):
        pace.note("a", OFF, seconds, size)
    assert pace.request_s("a", OFF, 100) == 0.25 * 13.0

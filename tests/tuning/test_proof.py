"""The measurements that a look of the proof uses."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import pytest

from autospec.cells import Aim
from autospec.measure.measurements import Pair, Phase
from autospec.measure.verdict import Rule, decide
from autospec.recommendations import Verdict
from autospec.tuning import proof
from autospec.tuning.budget import Budget
from autospec.tuning.cell import CellRun
from autospec.tuning.proof import Proof, of_round
from autospec.tuning.resume import CellHistory, Look
from autospec.tuning.tasks import Task
from tests.report.samples import DRAFTING, measurement
from tests.tuning.proofs import lab, ngram

# A study that keeps no notes.
STUDY = SimpleNamespace(note=lambda _key, _value: None)


def pair(prompt: str, round_: int) -> Pair:
    """One in which drafting is faster by half, on launches of its round, the order turning from prompt to prompt."""
    first = int(prompt.removeprefix("p")) % 2
    off, drafted = (
        replace(
            measurement(with_drafting=d, prompt=prompt, round=round_),
            launch_id=f"{'drafted' if d else 'off'}-{round_}",
            position=(first + d) % 2,
        )
        for d in (False, True)
    )
    return Pair(off, drafted)


def looked_at(rounds: int, history: CellHistory, stored: Sequence[Pair] = ()) -> CellRun:
    """A cell of eight prompts whose four rounds are stored, looked at after so many."""
    stored = stored or [pair(f"p{k}", round_) for round_ in range(1, 5) for k in range(8)]
    pairing = SimpleNamespace(known=lambda *_: stored, failing=lambda *_: frozenset())
    definition = SimpleNamespace(rule=Rule(looks=(1, 2, 4)), prompts_per_round=8)
    context = SimpleNamespace(
        pairing=pairing,
        definition=definition,
        progress=SimpleNamespace(standing=lambda _: None, tell=lambda _: None),
    )
    prompts = tuple(SimpleNamespace(id=f"p{k}") for k in range(8))
    cell = CellRun(
        SimpleNamespace(key="c", prompt_type="qa", aim=Aim.SPEED),
        STUDY,
        (),
        prompts,
        winner=DRAFTING,
        rounds=rounds,
    )
    cell.history = history
    Proof([cell], context, lambda _: None)._look(cell)
    return cell


@pytest.mark.parametrize("rounds", [1, 2])
def test_a_resumed_proof_looks_at_its_own_rounds_only(rounds):
    """Rounds of an earlier tune belong to later looks: each has its own share of the error rate."""
    cell = looked_at(rounds, CellHistory())
    assert cell.decision.verdict is Verdict.ENABLE
    assert cell.decision.estimate.n == 8 * rounds


def undecided(history):
    """The same, as if its looks had not enabled the drafting."""
    return replace(history, looks={d: replace(look, enabled=()) for d, look in history.looks.items()})


def test_a_look_that_enabled_enables_again():
    """By the same rule and pairs: a stale recommendation, or one that a kill kept from the store, was turned off without a request."""
    first = looked_at(1, CellHistory(epoch_s=7.0))
    again = looked_at(1, first.history)
    assert (again.decision.verdict, again.decision.final) == (Verdict.ENABLE, True)


def test_a_look_is_taken_once():
    """A later tune does not enable at a look that an earlier one has taken: its share of the error rate is spent."""
    first = looked_at(1, CellHistory(epoch_s=7.0))
    assert first.decision.verdict is Verdict.ENABLE
    again = looked_at(1, undecided(first.history))
    assert (again.decision.verdict, again.decision.final) == (Verdict.UNDECIDED, False)
    assert "already took this look" in again.decision.reason
    second = looked_at(2, again.history)
    assert second.decision.verdict is Verdict.ENABLE
    assert looked_at(1, second.history).decision is None
    # Measured again from the beginning.
    assert looked_at(1, second.history.begun_again()).decision.verdict is Verdict.ENABLE


def test_another_rule_judges_the_same_pairs_at_the_same_look():
    """A proof that is evaluated again keeps its verdict where its pairs give it; each rule spends its error rate once."""
    first = looked_at(2, CellHistory(epoch_s=7.0, rule="old"))
    by_new_rule = looked_at(2, replace(first.history, rule="new"))
    assert (by_new_rule.decision.verdict, by_new_rule.decision.final) == (Verdict.ENABLE, True)
    for rule in ("new", "old"):
        again = looked_at(2, undecided(replace(by_new_rule.history, rule=rule)))
        assert (again.decision.verdict, again.decision.final) == (Verdict.UNDECIDED, False)
        assert looked_at(4, again.history).decision.verdict is Verdict.ENABLE
    # An earlier look is none of the last one's pairs.
    assert looked_at(1, replace(first.history, rule="new")).decision is None


def test_another_rule_takes_no_look_again_at_other_pairs():
    """One pair was left out and measured again since: which pairs there are depends on what was seen."""
    first = looked_at(1, CellHistory(epoch_s=7.0, rule="old"))
    stored = [pair(f"p{k}", 1) for k in range(8)]
    last = stored[-1]
    changed = [*stored[:-1], replace(last, drafted=replace(last.drafted, launch_id="drafted-later"))]
    for pairs, verdict in ((stored, Verdict.ENABLE), (changed, Verdict.UNDECIDED)):
        again = looked_at(1, replace(first.history, rule="new"), pairs)
        assert again.decision.verdict is verdict


def test_after_a_larger_study_a_smaller_one_has_no_look_left():
    """The proof stayed open for ever; now it ends, not enabled."""
    history = CellHistory(epoch_s=7.0)
    history = replace(history, looks={history.digest(DRAFTING): Look(8, "", ())})
    assert looked_at(2, history).decision is None
    last = looked_at(4, history)
    assert (last.decision.verdict, last.decided) == (Verdict.UNDECIDED, True)
    assert "an earlier study looked at 8 rounds" in last.decision.reason


def by_launch(made):
    """Of the proof's launches: how many cells and rounds each was measured in."""
    store = made.context.pairing._store
    rows = [
        m for c in made.cells for m in store.measurements(c.cell.key, protocol="protocol", phase=Phase.PROVE)
    ]
    off = {(m.cell_key, m.round, m.launch_id) for m in rows if m.drafting.is_off}
    drafted = {(m.cell_key, m.round, m.launch_id) for m in rows if not m.drafting.is_off}
    return off, drafted


@pytest.mark.parametrize("resident", [1, 2])
def test_no_launch_serves_two_rounds_of_a_cell(tmp_path, monkeypatch, resident):
    """Neither off nor the drafted one: a launch's luck is in one round only. Each round asks eight of the sixteen prompts."""
    cells = [("a", ngram(4), 1.05), ("b", ngram(4), 1.05), ("c", ngram(8), 1.05)]
    made = lab(
        tmp_path, monkeypatch, resident=resident, cells=cells, speedup=lambda *_: 1.04, noise=0.04, prove=16
    )
    made.prove()
    assert min(cell.rounds for cell in made.cells) >= 2
    for side in by_launch(made):
        rounds = defaultdict(set)
        for cell, round_, launch in side:
            rounds[cell, launch].add(round_)
        assert all(len(numbers) == 1 for numbers in rounds.values())
    for cell in made.cells:
        asked = defaultdict(set)
        for m in made.context.store.measurements(
            cell.cell.key, protocol="protocol", phase=Phase.PROVE, since=0.0
        ):
            asked[m.round].add(m.prompt_id)
        assert {len(prompts) for prompts in asked.values()} == {8}
        assert asked[1].isdisjoint(asked[2])
        assert asked.get(3, asked[1]) == asked[1]


def test_winners_in_the_same_round_share_its_off(tmp_path, monkeypatch):
    """Three winners, as many rounds: off is launched once a round, and compared with the one before."""
    compared = []
    cells = [(name, ngram(n), 1.05) for n, name in enumerate("abc", start=2)]
    made = lab(
        tmp_path,
        monkeypatch,
        cells=cells,
        speedup=lambda *_: 1.04,
        noise=0.04,
        on_renewed=lambda old, new: compared.append((old.launch_id, new.launch_id)),
    )
    made.prove()
    rounds = max(cell.rounds for cell in made.cells)
    assert rounds >= 2
    off, drafted = by_launch(made)
    assert len({launch for *_, launch in off}) == rounds
    assert len(compared) == rounds - 1
    assert len({launch for *_, launch in drafted}) == sum(cell.rounds for cell in made.cells)


def test_nothing_is_launched_for_rounds_that_are_stored(tmp_path, monkeypatch):
    """An interrupted proof continues where it was, with new launches."""
    made = lab(tmp_path, monkeypatch, speedup=lambda *_: 1.04, noise=0.04)
    made.prove()
    rounds, launches = made.cells[0].rounds, made.context.launches.count
    made.cells[0].decision, made.cells[0].rounds = None, 0
    made.prove()
    assert (made.cells[0].rounds, made.context.launches.count) == (rounds, launches)


def test_the_end_is_expected_when_it_comes(tmp_path, monkeypatch):
    """What the display is told at the proof's beginning, against what it takes: four types with two winners."""
    cells = [(f"type{n}", ngram(2 + n % 2), 1.5) for n in range(4)]
    made = lab(tmp_path, monkeypatch, cells=cells, request_s=10, prove=16)
    begun = made.backend.clock.now
    made.prove()
    took_s = made.backend.clock.now - begun
    first, last = made.watcher.steps[0], made.watcher.steps[-1]
    assert first.ends_in_s == pytest.approx(took_s, rel=0.1)
    assert last.ends_in_s == pytest.approx(0.0, abs=0.1 * took_s)
    assert last.left_s < first.left_s


def test_all_prompts_have_been_asked_when_each_has_a_pair_that_counts(tmp_path, monkeypatch):
    """Two rounds of eight were measured; what was left out in the second one is not asked yet."""
    seen = []
    monkeypatch.setattr(
        proof, "decide", lambda *args, **options: seen.append(options) or decide(*args, **options)
    )
    made = lab(tmp_path, monkeypatch, prove=16, speedup=lambda _d, _t: 1.15)
    cell, pairing = made.cells[0], made.context.pairing
    for round_ in (1, 2):
        tasks = [Task.of("a", prompt) for prompt in of_round(cell.prove_prompts, round_, 8)]
        list(pairing.block(tasks, cell.winner, Phase.PROVE, round_))
    cell.rounds = 2
    Proof([cell], made.context, lambda _: None)._look(cell)
    assert seen.pop()["complete"]
    known = pairing.known("a", cell.winner, Phase.PROVE)
    monkeypatch.setattr(pairing, "known", lambda *_: known[:-4])
    Proof([cell], made.context, lambda _: None)._look(cell)
    assert not seen.pop()["complete"]
    assert cell.decision.verdict is not Verdict.ENABLE


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


def test_time_that_the_checks_did_not_need_is_the_proofs(tmp_path, monkeypatch):
    """A real tune ended after 8:35 of 10 minutes: no check fitted into what was kept, and a minute would have proven coding."""
    own = lab(tmp_path, monkeypatch)
    budget = Budget(own.context.budget.spent_s + 160.0, own.backend.clock, kept=0.9)
    proof = Proof(own.cells, replace(own.context, budget=budget), lambda _: None)
    proof.run()
    assert not own.cells[0].decided
    assert proof.go_on()
    assert own.cells[0].enabled
    assert not proof.go_on()
    assert budget.whole.left_s > 0.0

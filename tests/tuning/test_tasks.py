"""By turns: if only one launch fits into memory, a round is cut into stretches, and no pair is lost."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from autospec.measure.measurements import MAX_PAIR_GAP_S, Phase
from autospec.tuning.tasks import MOST_S, Task, next_stretch
from tests.tuning.proofs import lab, ngram, prompts, sides
from tests.tuning.test_paired_runner import CALM, Watch

TWELVE = tuple((f"type{n:02}", ngram(4), 1.0) for n in range(12))


def tasks_of(made):
    """What a round of every cell asks."""
    return [Task.of(c.cell.key, prompt) for c in made.cells for prompt in c.prove_prompts]


def block(made, **options):
    """All of a round, as it is yielded."""
    return made.context.pairing.block(tasks_of(made), ngram(4), Phase.PROVE, 1, **options)


@pytest.mark.parametrize("request_s", [10, 18, 19, 30, 120])
def test_a_long_round_keeps_all_of_its_pairs(tmp_path, monkeypatch, request_s):
    """Twelve types of eight prompts: before, from 19 seconds a request on, none of the 96 pairs counted."""
    made = lab(tmp_path, monkeypatch, resident=1, cells=TWELVE, speedup=lambda *_: 1.0, request_s=request_s)
    assert len(list(block(made))) == 96
    assert sum(made.known(cell) for cell in made.cells) == 96
    assert made.watcher.told == []


@pytest.mark.parametrize("ratio", [0.4, 1.0, 2.5])
def test_no_side_of_a_stretch_lasts_more_than_ten_minutes(tmp_path, monkeypatch, ratio):
    """However much one side is slower than the other."""
    made = lab(tmp_path, monkeypatch, resident=1, cells=TWELVE, speedup=lambda *_: ratio, request_s=30)
    found = [m.pair for m in block(made)]
    halves = sorted((h for p in found for h in (p.off, p.drafted)), key=lambda h: h.started_at)
    for _, side in itertools.groupby(halves, key=lambda h: (h.launch_id, h.position)):
        assert sum(half.wall_ms for half in side) <= 1000 * MOST_S
    assert all(abs(p.off.started_at - p.drafted.started_at) <= MAX_PAIR_GAP_S / 2 for p in found)


def test_pairs_come_after_each_stretch(tmp_path, monkeypatch):
    """Progress is not held back until the end of a round."""
    made = lab(tmp_path, monkeypatch, resident=1, cells=TWELVE, speedup=lambda *_: 1.0, request_s=30)
    begun = made.backend.clock.now
    at = [made.backend.clock.now - begun for _ in block(made)]
    gaps = [after - before for before, after in itertools.pairwise([0.0, *at])]
    assert max(gaps) <= 2 * MOST_S + 2 * made.backend.launch_s


def test_a_stretch_shows_that_it_moves(tmp_path, monkeypatch):
    """A side of ten minutes and its launch pass without a pair: each half is told, and the count never falls."""
    made = lab(tmp_path, monkeypatch, resident=1, cells=TWELVE, speedup=lambda *_: 1.0, request_s=30)
    clock, told = made.backend.clock, []
    found = list(block(made, on_done=lambda done: told.append((clock.now, done))))
    assert [done for _, done in told] == list(range(1, len(found) + 1))
    gaps = [after - before for (before, _), (after, _) in itertools.pairwise(told)]
    assert max(gaps) <= 2 * 35 + made.backend.launch_s


def test_a_round_by_turns_reports_its_steps(tmp_path, monkeypatch):
    """Also in the proof's own steps; two servers side by side report each pair once."""
    for resident in (1, 2):
        made = lab(tmp_path / str(resident), monkeypatch, resident=resident, budget_s=600.0)
        at: list[float] = []
        made.watcher.step = lambda step, at=at, made=made: at.append(made.backend.clock.now)  # type: ignore[method-assign]
        made.prove()
        gaps = [after - before for before, after in itertools.pairwise(at)]
        assert max(gaps) < 2 * 20.0 + 5.0, resident


def test_every_cell_is_measured_in_both_orders(tmp_path, monkeypatch):
    """Half of a cell's pairs start with off, half with drafting, which cancels a later slowdown."""
    made = lab(tmp_path, monkeypatch, resident=1, cells=TWELVE, speedup=lambda *_: 1.0, request_s=19)
    found = list(block(made))
    for cell in made.cells:
        own = [m.pair.off.position for m in found if m.task.cell_key == cell.cell.key]
        assert sorted(own) == [0] * 4 + [1] * 4


def test_a_launch_serves_the_end_of_a_stretch_and_the_beginning_of_the_next(tmp_path, monkeypatch):
    """Two stretches cost three launches, and none is asked a prompt twice."""
    made = lab(tmp_path, monkeypatch, resident=1)
    list(block(made))
    runs = sides(made.backend)
    assert [is_off for _, is_off in runs] in ([True, False, True], [False, True, False])
    assert len({launch for launch, _ in runs}) == 3
    asked = [(launch, text) for launch, _, text in made.backend.asked]
    assert len(asked) == len(set(asked))
    assert made.backend.most_running == 1


def test_a_request_that_takes_longer_than_a_stretch_has_one_of_its_own(tmp_path, monkeypatch):
    """Eleven minutes a request: the halves of a pair follow each other."""
    made = lab(tmp_path, monkeypatch, resident=1, speedup=lambda *_: 1.0, request_s=660, prove=3)
    assert len(list(block(made))) == 3
    assert made.known(made.cells[0]) == 3


def test_a_pair_whose_halves_are_too_far_apart_is_told(tmp_path, monkeypatch):
    """Half an hour a request cannot be paired; the block ends anyway, with a sentence."""
    made = lab(tmp_path, monkeypatch, resident=1, speedup=lambda *_: 1.0, request_s=1900, prove=2)
    assert len(list(block(made, repeats=2))) == 2
    assert made.known(made.cells[0]) == 0
    assert made.watcher.told == [
        f"{ngram(4).label}: 2 pairs do not count. The halves of a pair must not be more than 30 minutes apart."
    ]


@pytest.mark.parametrize("resident", [1, 2])
def test_a_pair_that_stays_disturbed_is_told(tmp_path, monkeypatch, resident):
    """After its repeats the round continues without it, and it is counted as left out."""
    busy = replace(CALM, other_load=2.0)
    watch = Watch(CALM, CALM)  # the search's pair
    made = lab(tmp_path, monkeypatch, resident=resident, prove=1, watch=watch)
    watch.script = [CALM, busy, CALM] * 3
    (measured,) = block(made, repeats=2)
    assert measured.disturbed
    cell = made.cells[0]
    left_out = made.context.pairing.left_out(cell.cell.key, cell.winner, Phase.PROVE, 1)
    assert left_out == {"load of other processes": 1}


def test_what_an_interruption_leaves_is_completed(tmp_path, monkeypatch):
    """Interrupted in the second half of a stretch: the first halves are not asked again."""
    made = lab(tmp_path, monkeypatch, resident=1)
    before = len(made.backend.asked)

    def interrupt(_server, _text):
        if len(made.backend.asked) == before + 7:
            raise KeyboardInterrupt

    made.backend.before_answer = interrupt
    with pytest.raises(KeyboardInterrupt):
        list(block(made))
    assert len(made.backend.asked) == before + 7
    made.backend.before_answer = lambda _server, _text: None
    assert len(list(block(made))) == 8
    # 16 halves, and the one that was interrupted.
    assert len(made.backend.asked) == before + 17
    assert made.known(made.cells[0]) == 8


def test_a_stretch_ends_at_a_cell():
    """Of three cells of eight, two fit by halves; the next stretch has their other halves."""
    tasks = [Task.of(cell, prompt) for cell in "abc" for prompt in prompts(cell, 8, 1.0)]
    first = next_stretch(tasks, (), lambda _: (50.0, 30.0), both_orders=True)
    assert [t.cell_key for t in first] == ["a"] * 4 + ["b"] * 4
    left = [t for t in tasks if t not in first]
    second = next_stretch(left, {"a", "b"}, lambda _: (50.0, 30.0), both_orders=True)
    assert sorted(t.prompt_id for t in first + second) == sorted(t.prompt_id for t in tasks[:16])


def test_a_stretch_that_does_not_fit_into_the_budget_is_not_begun():
    """The cell's other half is counted with it."""
    tasks = [Task.of("a", prompt) for prompt in prompts("a", 8, 1.0)]
    for budget_s, count in ((79.0, 3), (80.0, 4), (9.0, 0)):
        found = next_stretch(tasks, (), lambda _: (5.0, 5.0), budget_s, both_orders=True)
        assert len(found) == count

"""What launches tell about settings that were not launched: closed forms against replayed cycles, and the choice that they allow."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from autospec.backends.protocol import Completion, LaunchSettings, Request
from autospec.drafting import OFF, Drafting, Mode
from autospec.measure.measurements import Measurement, Pair, Phase
from autospec.predict.launched_counts import DraftNumbers, Launch, cycles, foresee, foresee_copies
from autospec.predict.prediction import replay_drafts
from autospec.predict.profile import AnswerProfile
from tests.predict.machine import Costs, Machine

TOKENS = 4000
FIRST = Drafting(Mode.DRAFT_MODEL, draft="d", n_max=8, n_min=0, p_min=0.5)
SECOND = replace(FIRST, n_max=16, p_min=0.3)
GRID = [replace(FIRST, n_max=n, p_min=p) for n in (1, 2, 3, 4, 6, 8, 12, 16) for p in (0.0, 0.3, 0.5, 0.7)]


@pytest.mark.parametrize(("n_max", "p_min"), [(4, 0.0), (8, 0.5), (16, 0.3), (3, 0.8)])
def test_closed_forms_are_those_of_replayed_cycles(n_max, p_min):
    """A long answer of the model's own kind: calibrated confidence, after a miss as often that of a hit as of a miss."""
    random = np.random.default_rng(7)
    chance, sureness = 0.7, 1.8
    p = random.beta(chance * sureness, (1 - chance) * sureness, TOKENS)
    hits = random.random(TOKENS) < p
    misses = {}
    for k in np.flatnonzero(~hits):
        right = random.random(16) < 0.5
        a, b = chance * sureness + right, (1 - chance) * sureness + ~right
        misses[int(k)] = random.beta(a, b)
    counts = replay_drafts(
        AnswerProfile("q", hits, p, misses), [replace(FIRST, n_max=n_max, p_min=p_min)], TOKENS
    )
    one = (np.array([v]) for v in (chance, sureness, 0.0))
    model = cycles(DraftNumbers(*one), np.array([float(n_max)]), np.array([p_min]), 16)
    number = int(counts.cycles[0])
    assert model.accepted[0] == pytest.approx(counts.accepted[0] / number, rel=0.08)
    assert model.drafted[0] == pytest.approx(counts.drafted[0] / number, rel=0.08)
    assert model.steps[0] == pytest.approx(counts.steps[0] / number, rel=0.08)
    assert model.lengths[0].sum() == pytest.approx(1.0)


def launched(machine: Machine, drafting: Drafting, prompts: int = 2) -> Launch:
    """The pairs of one launch."""
    off = machine.launch("main", OFF, LaunchSettings())
    server = machine.launch("main", drafting, LaunchSettings())
    pairs = []
    for n in range(prompts):
        request = Request(messages=({"role": "user", "content": f"coding {n}"},), max_tokens=128)
        pairs.append(
            Pair(*(_measured(s.complete(request), d, n) for s, d in ((off, OFF), (server, drafting))))
        )
    return Launch(drafting, {"cell": pairs})


def _measured(answer: Completion, drafting: Drafting, prompt: int) -> Measurement:
    return Measurement(
        cell_key="cell", protocol="p", phase=Phase.SEARCH, round=0, drafting=drafting, compared=drafting,
        prompt_id=str(prompt), launch_id=drafting.key, position=0, started_at=0.0,
        prompt_tokens=answer.prompt_tokens, predicted_tokens=answer.predicted_tokens, prompt_ms=answer.prompt_ms,
        predicted_ms=answer.predicted_ms, wall_ms=answer.wall_ms, drafted=answer.drafted,
        accepted=answer.accepted, text_digest="",
    )  # fmt: skip


@pytest.mark.parametrize("more_ms", [0.5, 8.0, 35.0])
@pytest.mark.parametrize("chance", [0.5, 0.7, 0.88])
def test_two_launches_find_a_setting_near_the_best(more_ms, chance):
    """From memory-bound machines to those on which every further token of a batch costs nearly as much as the first."""
    machine = Machine(
        acceptance=lambda _: chance,
        costs=Costs(lambda k: 50.0 + more_ms * (k - 1), lambda _: 6.0, noise=0.01),
        main_path="main",
        seed=3,
    )
    foreseen = foresee([launched(machine, d) for d in (FIRST, SECOND)], GRID, step_share=0.12)["cell"]
    chosen = max(GRID, key=lambda d: foreseen[d].mean)

    def truth(drafting: Drafting) -> float:
        pairs = launched(machine, drafting, 8).pairs["cell"]
        return math.exp(float(np.mean([p.log_ratio for p in pairs])))

    assert truth(chosen) >= 0.9 * max(map(truth, GRID))


def test_a_launch_makes_its_neighbours_more_certain():
    """The standard error is small at a launched setting, and grows with the distance from it."""
    machine = Machine(main_path="main")
    foreseen = foresee([launched(machine, FIRST)], GRID, step_share=0.12)["cell"]
    near, far = replace(FIRST, n_max=6), replace(FIRST, n_max=1, p_min=0.0)
    assert foreseen[FIRST].error < foreseen[near].error < foreseen[far].error


def test_without_counts_nothing_is_foreseen():
    """Some servers tell no drafted and accepted tokens."""
    machine = Machine(main_path="main")
    launch = launched(machine, FIRST)
    silent = [
        replace(p, drafted=replace(p.drafted, drafted=None, accepted=None)) for p in launch.pairs["cell"]
    ]
    assert foresee([Launch(FIRST, {"cell": silent})], GRID, step_share=0.12) == {}
    assert foresee([], GRID, step_share=0.12) == {}


def test_sizes_near_a_fast_one_are_expected_to_be_fast():
    """Two launches of an n-gram mode that differ: the other mode is expected to follow, less surely."""
    costs = Costs(lambda k: 50.0 + 0.5 * (k - 1))
    machine = Machine(
        costs=costs, repeats=2.0, main_path="main", modes=frozenset({Mode.OFF, Mode.NGRAM_SIMPLE})
    )
    fast, slow = (
        Drafting(Mode.NGRAM_SIMPLE, ngram_n=n, ngram_m=m, min_hits=1) for n, m in ((4, 16), (24, 48))
    )
    near = replace(fast, ngram_n=3)
    other = Drafting(Mode.NGRAM_MOD, ngram_n=4, n_max=16, n_min=0)
    foreseen = foresee_copies([launched(machine, d) for d in (fast, slow)], [near, other, fast, slow])["cell"]
    assert foreseen[near].mean > foreseen[slow].mean
    assert foreseen[other].mean > foreseen[slow].mean
    assert foreseen[other].error > foreseen[near].error > foreseen[fast].error

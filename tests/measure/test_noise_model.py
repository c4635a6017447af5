"""The machine that simulations of the verdict are played on has the noise that it says."""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
import pytest

from studies.bench.noise_model import Course, Machine, Regimes, centred, play, skewed

QUIET = Machine(noise=0.0, launch_sd=0.0, stall_rate=0.0, drift=0.0)
FLAT = np.full(16, math.log(1.1))


def rng():
    """The same chance each time."""
    return np.random.default_rng(17)


def test_without_noise_every_pair_tells_its_prompts_gain():
    """Each round asks eight of sixteen prompts, on two launches of its own; the order alternates."""
    truth = centred(rng(), 0.05, 0.1)
    played = play(rng(), truth, QUIET, Course(rounds=4))
    assert np.allclose(played.composed, truth[played.prompt])
    assert np.allclose(played.whole, truth[played.prompt])
    rows = list(played.rows(2))
    assert len(rows) == 16
    assert {row[0] for row in rows} == {str(k) for k in range(16)}
    assert [row[1:3] for row in (rows[0], rows[8])] == [("off 0", "drafted 0"), ("off 1", "drafted 1")]
    assert [row[4] for row in rows[:4]] == [True, False, True, False]
    assert len(list(played.rows())) == 32


def test_by_turns_a_round_has_both_orders_and_one_launch_serves_both_stretches():
    """Off, drafting, drafting, off; the halves of a pair are a stretch apart."""
    played = play(rng(), FLAT, QUIET, Course(rounds=2, by_turns=True))
    launches = defaultdict(set)
    for _, off, drafted, _, off_first in played.rows():
        launches[off, drafted].add(off_first)
    assert dict(launches) == {
        ("off 0", "drafted 0"): {True},
        ("off 1", "drafted 0"): {False},
        ("off 2", "drafted 1"): {True},
        ("off 3", "drafted 1"): {False},
    }


def test_launches_scatter_as_stated():
    """The mean of a round has the luck of its two launches, and no more rounds than one share it."""
    machine = Machine(noise=0.0, launch_sd=0.02, stall_rate=0.0, drift=0.0)
    played = play(rng(), np.zeros(16), machine, Course(rounds=800))
    means = [played.composed[played.round == r].mean() for r in range(1, 801)]
    assert np.std(means) == pytest.approx(0.02 * math.sqrt(2), rel=0.1)
    assert np.std(played.composed[played.round == 1]) == pytest.approx(0.0, abs=1e-9)
    one_sided = Machine(noise=0.0, launch_sd=0.02, drafted_launch_sd=0.0, stall_rate=0.0, drift=0.0)
    played = play(rng(), np.zeros(16), one_sided, Course(rounds=800))
    assert np.std(played.composed) == pytest.approx(0.02, rel=0.1)


def test_requests_scatter_as_stated():
    """A pair has two requests; stalls come on top."""
    machine = Machine(noise=0.03, launch_sd=0.0, stall_rate=0.0, drift=0.0)
    played = play(rng(), np.zeros(16), machine, Course(rounds=400))
    assert np.std(played.composed) == pytest.approx(0.03 * math.sqrt(2), rel=0.05)
    stalled = play(rng(), np.zeros(16), Machine(noise=0.0, launch_sd=0.0, drift=0.0), Course(rounds=400))
    assert np.mean(np.abs(stalled.composed) > 0.15) == pytest.approx(0.04, abs=0.01)


@pytest.mark.parametrize("regimes", [Regimes.TWO, Regimes.WANDERING])
def test_regimes_hardly_touch_close_pairs_and_move_stretches(regimes):
    """Short requests, as in trap 10: blocks of one launch scatter by 7 to 8 %, the halves of a pair see the same regime."""
    machine = Machine(noise=0.0, launch_sd=0.0, stall_rate=0.0, drift=0.0, regimes=regimes)
    close = play(rng(), np.zeros(16), machine, Course(rounds=200, request_s=0.5))
    apart = play(rng(), np.zeros(16), machine, Course(rounds=200, request_s=0.5, by_turns=True))
    moved = [np.std([p.composed[p.round == r].mean() for r in range(1, 201)]) for p in (close, apart)]
    assert moved[0] < 0.015
    assert moved[1] > 0.03
    speeds = np.log(apart.off.prompt_s)
    assert np.std(speeds) == pytest.approx(0.075, abs=0.015)


def test_long_requests_see_the_mean_of_regimes():
    """A request of 200 seconds has several of them."""
    machine = Machine(noise=0.0, launch_sd=0.0, stall_rate=0.0, drift=0.0, regimes=Regimes.TWO)
    played = play(rng(), np.zeros(16), machine, Course(rounds=50, request_s=200.0, by_turns=True))
    assert np.std(np.log(played.off.prompt_s)) < 0.02


def test_drift_slows_both_sides():
    """Up to a tenth over the proof; the halves of a pair are a step apart."""
    machine = Machine(noise=0.0, launch_sd=0.0, stall_rate=0.0, drift=0.10)
    played = play(rng(), np.zeros(16), machine, Course())
    slower = np.log(played.off.prompt_s[-1] / played.off.prompt_s[0])
    assert 0.0 < slower <= 0.10
    assert np.abs(played.composed).max() < 0.001


def test_texts_that_diverge_give_fake_speeds_of_whole_requests_and_none_of_composed_ones():
    """Half of the prompts, the same ones in every round."""
    played = play(rng(), FLAT, QUIET, Course(rounds=8, diverging=0.5))
    assert np.allclose(played.composed, FLAT[0])
    wrong = np.abs(played.whole - FLAT[0]) > 0.01
    assert 0.25 < wrong.mean() < 0.75
    for prompt in range(16):
        assert len(set(np.round(played.whole[played.prompt == prompt], 9))) == 1


def test_a_small_suite_is_asked_in_every_round():
    """Eight prompts, eight to a round."""
    played = play(rng(), np.zeros(8), QUIET, Course(rounds=3))
    assert [sorted(played.prompt[played.round == r]) for r in (1, 2, 3)] == [list(range(8))] * 3


def test_skewed_kinds_have_their_stated_mean():
    """Base, and a part of the prompts that gain about as much more."""
    truth = skewed(rng(), -0.05, 0.5, 0.1, count=20_000)
    assert truth.mean() == pytest.approx(0.0, abs=0.01)
    assert np.median(truth) == pytest.approx(-0.05, abs=0.01)

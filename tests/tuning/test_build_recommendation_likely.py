"""The likely gain before it is proven."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from autospec.cells import Aim
from autospec.drafting import Drafting, Mode
from autospec.measure.measurements import Pair
from autospec.tuning.build_recommendation import likely_gain, likely_of, seconds_to_proof
from autospec.tuning.definition import load_definition
from tests.report.samples import measurement

THRESHOLD = 0.02


def pairs_of(log_ratios, launches=1):
    """One pair of each prompt, over so many launches of each side."""
    found = []
    for number, value in enumerate(log_ratios):
        launch = str(number % launches)
        off = measurement(
            with_drafting=False, prompt=f"p{number}", launch_id=f"off-{launch}", wall_ms=10000.0
        )
        found.append(
            Pair(
                off=off,
                drafted=measurement(
                    with_drafting=True,
                    prompt=f"p{number}",
                    launch_id=f"d-{launch}",
                    wall_ms=10000.0 / math.exp(value),
                ),
            )
        )
    return found


def test_the_interval_is_students_made_wider_by_a_launch_of_each_side():
    """Held against SciPy: standard error of the mean, and 3 % for each of two launches."""
    values = [0.50, 0.55, 0.60, 0.52, 0.48]
    found = likely_gain(pairs_of(values), THRESHOLD)
    error = math.hypot(float(stats.sem(values)), 0.03 * math.sqrt(2))
    t = (np.mean(values) - math.log(1.02)) / error
    assert found.speedup == pytest.approx(math.exp(np.mean(values)))
    assert found.chance == pytest.approx(float(stats.t.cdf(t, 4)))
    expected = np.exp(stats.t.interval(0.90, 4, loc=np.mean(values), scale=error))
    assert found.interval == pytest.approx(tuple(expected))


def test_more_launches_make_it_narrower():
    """What one launch has of its own, others do not."""
    one, four = (likely_gain(pairs_of([0.3] * 8, launches), THRESHOLD) for launches in (1, 4))
    assert one.chance < four.chance
    assert one.interval[0] < four.interval[0]


@pytest.mark.parametrize(
    "values",
    [[0.6] * 3, [0.05] * 8, [0.0] * 8, [-0.3] * 8, [1.5, 0.0, 0.0, 0.0], []],
    ids=["three prompts", "a gain within the scatter", "none", "a loss", "one prompt", "nothing"],
)
def test_what_is_not_likely(values):
    """Too few prompts, a gain that one launch may have by itself, and one prompt that gains it all."""
    assert likely_gain(pairs_of(values), THRESHOLD) is None


def test_a_choice_from_many_takes_more():
    """The best of twenty is fast by chance more often than one that was named before."""
    pairs = pairs_of([0.2, 0.16, 0.24, 0.2, 0.18, 0.2])
    assert likely_gain(pairs, THRESHOLD).chance > 0.98
    assert likely_gain(pairs, THRESHOLD, chosen_from=20) is None


def test_a_repeated_prompt_counts_once():
    """By its median, so that a stall is none of its gain."""
    pairs = pairs_of([0.3] * 4)
    stalled = replace(pairs[0], off=replace(pairs[0].off, wall_ms=90000.0, round=2))
    calm = [replace(p, off=replace(p.off, round=1)) for p in pairs]
    assert likely_gain([*pairs, *calm, stalled], THRESHOLD).speedup == pytest.approx(math.exp(0.3))


@pytest.mark.parametrize("launch_sd", [0.0, 0.03])
def test_it_is_seldom_said_of_what_gains_too_little(launch_sd):
    """At a gain of exactly the threshold, with launches that scatter by what is allowed for: at most one in twenty."""
    random = np.random.default_rng(14)
    said = 0
    for _ in range(2000):
        luck = random.normal(0.0, launch_sd) - random.normal(0.0, launch_sd)
        values = math.log1p(THRESHOLD) + luck + random.normal(0.0, 0.04, 8)
        said += likely_gain(pairs_of(values), THRESHOLD) is not None
    assert said / 2000 <= 0.05


def test_a_large_gain_is_nearly_always_said():
    """+30 % with launches that scatter by 3 %."""
    random = np.random.default_rng(14)
    said = 0
    for _ in range(300):
        luck = random.normal(0.0, 0.03) - random.normal(0.0, 0.03)
        said += (
            likely_gain(pairs_of(math.log(1.3) + luck + random.normal(0.0, 0.04, 8)), THRESHOLD) is not None
        )
    assert said >= 297


def test_the_time_to_a_proof():
    """To the first look that would enable; none where no look would."""
    looks = (1, 2, 4, 8)
    assert seconds_to_proof(looks, 1, 60.0, lambda at: at >= 4) == 180.0
    assert seconds_to_proof(looks, 0, 60.0, lambda _: True) == 60.0
    assert seconds_to_proof(looks, 2, 60.0, lambda _: False) is None


def test_the_evidence_never_says_certain():
    """A chance of 1 is told as 0.9999; what no look would prove has no time."""
    told = likely_gain(pairs_of([2.0] * 40, 20), THRESHOLD).to_json()
    assert told["chance"] == 0.9999
    assert told["about_s"] is None
    assert list(told) == ["speedup", "interval", "chance", "about_s"]


def test_the_time_to_a_proof_is_that_of_asking():
    """Not that of answers without drafting which were cut and count as whole: ten seconds in these pairs, three really."""
    cell = SimpleNamespace(
        winner=Drafting(Mode.NGRAM_SIMPLE, ngram_n=4, ngram_m=8, min_hits=1),
        decision=None,
        cell=SimpleNamespace(aim=Aim.SPEED),
        trial_values={},
        prove_prompts=("p",) * 16,
        shares_rate=False,
        rounds=1,
    )
    definition, proof = load_definition("quick"), pairs_of([0.3] * 8)
    told = [likely_of(cell, proof, (), definition, pair_s=s, launch_s=2.0)["about_s"] for s in (3.0, 6.0)]
    rounds = (told[1] - told[0]) / (8 * 3.0)
    assert rounds >= 1
    assert told[0] == pytest.approx(rounds * (8 * 3.0 + 2 * 2.0))
    # It will not be enabled, however the proof goes on.
    assert likely_of(cell, proof, (), definition, pair_s=3.0, launch_s=2.0, failing=1) is None

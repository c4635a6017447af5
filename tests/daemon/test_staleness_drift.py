"""The change-point test: no alarm without a change, a quick one with a change. studies/bench/drift.py measures its rates."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from autospec.cells import PromptType
from autospec.daemon.staleness import (
    BLOCK,
    FALSE_ALARMS_PER_1000,
    RankCusum,
    drift_of,
    first_change,
    samples_of,
)
from autospec.daemon.work_finder import _drifted
from autospec.drafting import OFF
from autospec.measure.measurements import Sample
from tests.report.samples import recommendation

SAMPLE = Sample(0.0, "big", "llama-server", "b1", PromptType.CODING, 100, 100, 50.0, 2000.0)


def speeds(rng: random.Random, count: int, level: float = 50.0) -> list[float]:
    """Speeds with 5 % of noise."""
    return [level * (1 + rng.gauss(0.0, 0.05)) for _ in range(count)]


def samples(values: list[float]) -> list[Sample]:
    """Requests with these speeds."""
    return [replace(SAMPLE, at=float(n), predicted_ms=1e5 / v) for n, v in enumerate(values)]


def test_false_alarms_keep_the_stated_rate():
    """25000 requests without a change, a new chart each thousand; seeded."""
    rng = random.Random(3)
    alarms = sum(drift_of(samples(speeds(rng, 1000))) is not None for _ in range(25))
    assert alarms <= 25 * FALSE_ALARMS_PER_1000


def test_false_alarms_keep_the_stated_rate_where_neighbours_resemble_each_other():
    """An AR(1) of 0.6 with 10 % of noise, 20000 requests; the bench has the rates, this guards against their loss."""
    rng = random.Random(4)

    def wandering() -> list[float]:
        value, values = rng.gauss(0.0, 0.1), []
        for _ in range(1000):
            values.append(50.0 * math.exp(value))
            value = 0.6 * value + rng.gauss(0.0, 0.08)
        return values

    # Speed alone: half of what is stated for speed and acceptance together.
    alarms = sum(drift_of(samples(wandering())) is not None for _ in range(20))
    assert alarms <= 20 * FALSE_ALARMS_PER_1000 / 2


def test_a_change_is_not_taken_for_correlation():
    """It makes neighbours alike as well: what the chart knows of them is from before."""
    rng = random.Random(6)
    found = drift_of(samples(speeds(rng, 400) + speeds(rng, 100, 40.0)))
    assert found.requests <= 480


def test_the_chart_does_not_care_for_the_distribution():
    """Ranks are the same for any stretched values: the alarm comes at the same place."""
    rng = random.Random(5)
    values = [rng.random() - (0.5 if n > 100 else 0.0) for n in range(200)]
    assert first_change(values, matters=lambda *_: True) is not None
    seen = [
        first_change(v, matters=lambda *_: True).seen_at for v in (values, [2.0 ** (9 * x) for x in values])
    ]
    assert seen[0] == seen[1]


def test_a_loss_of_ten_percent_is_seen_within_a_hundred_requests():
    """And the words say from what to what."""
    rng = random.Random(7)
    found = drift_of(samples(speeds(rng, 200) + speeds(rng, 100, 45.0)))
    assert found.what == "speed"
    assert 48 < found.before < 52
    assert 43 < found.after < 47
    assert found.reason.startswith("live speed fell from")


def test_what_is_too_small_to_matter_is_not_told():
    """Two percent are seen by the chart and are no reason to measure again."""
    rng = random.Random(9)
    values = [50 * (1 + rng.gauss(0, 0.002)) for _ in range(100)] + [
        49 * (1 + rng.gauss(0, 0.002)) for _ in range(100)
    ]
    assert first_change(values, matters=lambda *_: True) is not None
    assert first_change(values) is None


def test_a_change_that_begins_during_a_harmless_alarm_is_still_seen():
    """The chart falls back and keeps its ranks."""
    rng = random.Random(15)
    chart = RankCusum()
    for _ in range(50):
        chart.add(rng.random())
    chart.fall_back()
    assert any(chart.add(100.0 + n) is not None for n in range(12))


def test_acceptance_drifts_as_well():
    """The speed stays, the draft's luck does not: another kind of text."""
    rng = random.Random(11)
    told = [
        replace(s, drafted=100, accepted=int(100 * min(1.0, (0.8 if n < 200 else 0.5) + rng.gauss(0, 0.05))))
        for n, s in enumerate(samples(speeds(rng, 300)))
    ]
    assert drift_of(told).what == "acceptance"


@pytest.mark.parametrize(
    "change", [{}, {"prompt_type": PromptType.CHAT}, {"drafting": OFF}, {"model": "small"}, {"at": 0.0}]
)
def test_only_requests_with_the_recommendation_s_drafting_count(change):
    """Another prompt type, drafting or model, or a time before the recommendation: no drift of this one."""
    rng = random.Random(13)
    made = recommendation(backend=SAMPLE.backend, created_at="1970-01-01T00:00:01+00:00")
    own = {"model": made.model, "prompt_type": made.prompt_type, "drafting": made.drafting, "at": 2.0}
    found = [replace(s, **own | change) for s in samples(speeds(rng, 200) + speeds(rng, 100, 30.0))]
    stale = _drifted(samples_of(made, found))
    assert (stale is None) is bool(change)


def test_few_requests_say_nothing():
    """Less than the chart needs to warm up."""
    assert drift_of(samples([50.0] * BLOCK + [5.0] * BLOCK)) is None

"""Energy per token of off and of a drafting, from what the halves of pairs took."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from autospec.drafting import OFF
from autospec.hardware.state import MachineState
from autospec.measure.energy import compare_energy, energy_ratios
from autospec.measure.log_ratios import Estimate
from autospec.measure.measurements import Pair
from tests.store.test_database import MEASUREMENT

STATE = MachineState(window_s=4.0, cores=4)


def pair(
    prompt: str, off: dict[str, float | None], drafted: dict[str, float | None], tokens=(100, 100)
) -> Pair:
    """One prompt; the energy of each half by part, in joules."""
    halves = [
        replace(
            MEASUREMENT,
            prompt_id=prompt,
            drafting=OFF if energy is off else MEASUREMENT.drafting,
            predicted_tokens=count,
            machine=replace(STATE, **energy).to_json(),
        )
        for energy, count in ((off, tokens[0]), (drafted, tokens[1]))
    ]
    return Pair(*halves)


def gpu(joules: float) -> dict[str, float | None]:
    """A half of which the GPU's energy is known."""
    return {"gpu_energy_j": joules}


def test_joules_per_token_and_their_ratio():
    """Eight prompts: 2 J per token without, 1.5 J with, whatever their lengths."""
    pairs = [pair(f"p{k}", gpu(200.0 + 2 * k), gpu(150.0 + 1.5 * k), (100 + k, 100 + k)) for k in range(8)]
    found = compare_energy(pairs)
    assert found is not None
    assert (found.parts, found.pairs) == (("gpu",), 8)
    assert found.off_j_per_token == pytest.approx(2.0)
    assert found.drafting_j_per_token == pytest.approx(1.5)
    assert found.ratio == pytest.approx(0.75)
    assert found.interval == (pytest.approx(0.75), pytest.approx(0.75))
    assert found.to_json() == {
        "parts": ["gpu"], "pairs": 8, "off_j_per_token": 2.0, "drafting_j_per_token": 1.5, "ratio": 0.75,
        "interval": [0.75, 0.75],
    }  # fmt: skip


def test_answers_of_different_length_are_compared_by_token():
    """The drafted answer is twice as long and takes as much."""
    found = compare_energy([pair(f"p{k}", gpu(100.0), gpu(100.0), (50, 100)) for k in range(4)])
    assert found is not None
    assert found.ratio == pytest.approx(0.5)


def test_the_interval_shows_how_far_prompts_differ():
    """With four prompts there is none at this level."""
    pairs = [pair(f"p{k}", gpu(100.0), gpu(60.0 + 5 * k)) for k in range(12)]
    found = compare_energy(pairs)
    assert found is not None
    assert found.interval is not None
    assert 0.6 < found.interval[0] < found.ratio < found.interval[1] < 1.15
    few = compare_energy(pairs[:4])
    assert few is not None
    assert few.interval is None
    assert few.to_json()["interval"] is None


def test_only_parts_that_both_halves_know_are_compared():
    """The processor's counter of one half is unknown: the GPU's alone counts. A pair with both is another sum."""
    odd = {"gpu_energy_j": 100.0, "cpu_energy_j": 900.0}
    pairs = [pair(f"p{k}", odd, gpu(80.0)) for k in range(4)]
    found = compare_energy([*pairs, pair("both", odd, odd)])
    assert found is not None
    assert (found.parts, found.pairs) == (("gpu",), 4)
    assert found.off_j_per_token == pytest.approx(1.0)
    both = compare_energy([pair(f"p{k}", odd, odd) for k in range(4)])
    assert both is not None
    assert both.parts == ("cpu", "gpu")
    assert both.off_j_per_token == pytest.approx(10.0)


@pytest.mark.parametrize(
    "pairs",
    [
        [],
        [pair(f"p{k}", gpu(100.0), {}) for k in range(9)],
        [pair(f"p{k}", gpu(100.0), gpu(0.0)) for k in range(9)],
        [pair(f"p{k}", gpu(100.0), gpu(90.0)) for k in range(3)],
        [pair(f"p{k}", gpu(1.0) | {"window_s": 0.3}, gpu(1.0) | {"window_s": 0.3}) for k in range(9)],
    ],
    ids=["none", "one half", "stopped counter", "too few", "shorter than the driver's interval"],
)
def test_what_is_not_known_is_not_compared(pairs):
    """Nothing is made up."""
    assert compare_energy(pairs) is None


def test_measurements_of_earlier_versions_know_no_energy():
    """Their state has no such key."""
    old = replace(MEASUREMENT, machine={"other_load": 0.1})
    assert compare_energy([Pair(replace(old, drafting=OFF), old)] * 9) is None


def cpu(joules: float, **state: object) -> dict[str, Any]:
    """A half of which the processor's energy is known."""
    return {"cpu_energy_j": joules, **state}


def test_a_verdict_looks_at_off_by_drafting():
    """Above 0 the drafting takes less; a longer answer counts by its tokens."""
    (value,) = energy_ratios([pair("p", cpu(200.0), cpu(100.0))])
    assert value.value == pytest.approx(math.log(2.0))
    assert (value.prompt, value.off_launch) == ("p", MEASUREMENT.launch_id)
    (longer,) = energy_ratios([pair("p", cpu(200.0), cpu(200.0), (50, 100))])
    assert longer.value == pytest.approx(math.log(2.0))
    assert energy_ratios([]) == []


def test_a_late_counter_does_not_favour_the_shorter_request():
    """Two requests at 20 W, one twice as long; the counter lacks the last 0.1 s of each. It never looks better than it is."""
    late = [
        pair(
            "p",
            gpu(20.0 * (off_s - 0.1)) | {"window_s": off_s},
            gpu(20.0 * (drafted_s - 0.1)) | {"window_s": drafted_s},
        )
        for off_s, drafted_s in ((2.0, 1.0), (1.0, 2.0))
    ]
    shorter, longer = energy_ratios(late)
    assert math.log(1.9 / 0.9) > math.log(2.0)
    assert shorter.value == pytest.approx(math.log(2.0))
    assert longer.value == pytest.approx(-math.log(1.9 / 0.9))
    # RAPL is renewed every millisecond.
    processor = energy_ratios([pair("p", cpu(200.0), cpu(100.0, window_s=2.0))])
    assert processor[0].value == pytest.approx(math.log(2.0))


@pytest.mark.parametrize(
    "neighbour",
    [{"other_load": 1.0}, {"steal": 1.0}, {"gpu_other_load": 0.5}],
    ids=["a program", "another guest", "a program on the GPU"],
)
def test_a_reading_beside_others_is_not_valid(neighbour):
    """A counter is of the whole package, so what others take would be in it. One busy half spoils its pair."""
    quiet = [pair(f"p{k}", cpu(100.0), cpu(80.0)) for k in range(4)]
    beside = [pair("busy", cpu(100.0), cpu(20.0, **neighbour))]
    assert [v.prompt for v in energy_ratios([*beside, *quiet])] == ["p0", "p1", "p2", "p3"]
    found = compare_energy([*quiet, *beside])
    assert found is not None
    assert found.pairs == 4


def test_swapping_and_heat_are_the_draftings_own():
    """A draft that makes memory short costs energy, too: such pairs are not left out."""
    assert energy_ratios([pair("p", cpu(100.0), cpu(300.0, swap_in_bytes=1 << 30, thermal="throttled"))])


def test_a_reading_without_what_computes_is_not_valid():
    """The model is on the processor, whose counter was not told: the GPU that rests decides nothing."""
    resting = pair("gpu", gpu(100.0), gpu(50.0))
    both = {"gpu_energy_j": 10.0, "cpu_energy_j": 90.0}
    assert energy_ratios([resting], ("cpu",)) == []
    assert [v.prompt for v in energy_ratios([resting, pair("both", both, both)], ("cpu",))] == ["both"]
    assert len(energy_ratios([resting], ("gpu",))) == 1


def test_the_verdicts_own_estimate_is_told():
    """With the aim energy: one ratio and one interval, turned round."""
    pairs = [pair(f"p{k}", cpu(200.0), cpu(100.0)) for k in range(4)]
    found = compare_energy(pairs, Estimate(4, math.log(1.9), math.log(1.5), math.inf, 0.01))
    assert found is not None
    assert found.ratio == pytest.approx(1 / 1.9)
    assert found.interval is None
    found = compare_energy(pairs, Estimate(4, math.log(1.9), math.log(1.5), math.log(2.5), 0.01))
    assert found is not None
    assert found.interval == (pytest.approx(0.4), pytest.approx(1 / 1.5))

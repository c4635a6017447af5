"""A tune with the aim `energy`: what it decides where time and joules disagree, and what keeps the two aims apart."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from autospec.cells import Aim, PromptType
from autospec.drafting import Drafting
from autospec.errors import UnsupportedError
from autospec.formats import caution_words
from autospec.hardware.state import StateWatch
from autospec.measure.energy import energy_ratios
from autospec.measure.verdict import DEFAULT_RULE
from autospec.recommendations import LIMITS, Limits, LimitVerdict, Recommendation, Status, Verdict
from autospec.report.explanation import explain
from autospec.store.database import open_store
from autospec.tuning import load_guard, proof
from autospec.tuning import run as run_module
from autospec.tuning.limits import check_of
from autospec.tuning.run import Tuning
from tests.tuning.simulated import SimulatedBackend
from tests.tuning.test_limits import DEEP, KNOWN, pairs_of
from tests.tuning.test_limits_in_a_tune import request_for
from tests.tuning.test_run import MACHINE, Silent, request_with

pytestmark = pytest.mark.usefixtures("no_waits")

Joules = Callable[[Drafting], float | None]


@pytest.fixture(autouse=True)
def a_quiet_machine_with_a_meter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests share their machine, which has no counters."""
    monkeypatch.setattr(load_guard, "busy", lambda _state: False)
    monkeypatch.setattr(run_module, "energy_refusal", lambda _needed: None)
    monkeypatch.setattr(run_module, "devices_here", lambda _hardware: ())


def metered(monkeypatch: pytest.MonkeyPatch, backend: SimulatedBackend, joules: Joules) -> SimulatedBackend:
    """The backend on a machine whose processor takes these joules for a request, with 1 % of noise."""
    finish, random = StateWatch.finish, np.random.default_rng(11)

    def read(watch: StateWatch):
        told = joules(backend.asked[-1][1]) if backend.asked else None
        cpu_j = None if told is None else told * float(np.exp(random.normal(0.0, 0.01)))
        quiet = {"window_s": 4.0, "other_load": 0.0, "steal": 0.0, "gpu_other_load": None, "swap_in_bytes": 0}
        return replace(finish(watch), **quiet, cpu_energy_j=cpu_j, gpu_energy_j=None)

    monkeypatch.setattr(StateWatch, "finish", read)
    return backend


def coding(request, backend: SimulatedBackend, aim: Aim) -> Recommendation:
    """The verdict about coding."""
    request = replace(request, aim=aim, prompt_types=(PromptType.CODING,))
    (found,) = Tuning(request, backend, MACHINE, Silent()).run()
    return found


def by(off: float | None, drafted: float | None) -> Joules:
    """So many joules without drafting, and with it."""
    return lambda drafting: off if drafting.is_off else drafted


def test_faster_and_more_energy(tmp_path, monkeypatch):
    """Half as fast again, for a quarter more joules: enabled for speed, not for energy. Both are kept."""
    request = request_with(tmp_path, "draft")
    backend = metered(monkeypatch, SimulatedBackend(lambda _d, _t: 1.5), by(40.0, 50.0))
    fast, frugal = (coding(request, backend, aim) for aim in Aim)
    assert (fast.aim, fast.verdict, fast.status) == (Aim.SPEED, Verdict.ENABLE, Status.PROVEN)
    assert (frugal.aim, frugal.verdict, frugal.status) == (Aim.ENERGY, Verdict.DISABLE, Status.PROVEN)
    assert frugal.drafting.is_off
    assert frugal.reason.startswith("The best drafting found changes the tokens per joule by -")
    # The speed is told all the same; the verdict's figures are of energy.
    assert frugal.speedup == pytest.approx(1.5, rel=0.02)
    assert frugal.speedup_ci is None
    energy = frugal.evidence["energy"]
    assert energy["ratio"] == pytest.approx(1.25, rel=0.02)
    assert energy["interval"][0] > 1.05
    assert frugal.gain == pytest.approx(0.8, rel=0.02)
    assert frugal.evidence["basis"]["aim"] == "energy"
    assert "aim" not in fast.evidence["basis"]
    store = open_store(request.storage)
    stored = {s.recommendation.aim: s for s in store.recommendations()}
    assert stored[Aim.SPEED].cell_key != stored[Aim.ENERGY].cell_key
    # No measurement counts for both: each aim has its own looks at its own pairs.
    assert not {m.launch_id for m in store.measurements(stored[Aim.SPEED].cell_key)} & {
        m.launch_id for m in store.measurements(stored[Aim.ENERGY].cell_key)
    }
    assert store.overall_answers()
    assert {s.recommendation.aim for s in store.overall_answers()} == {Aim.SPEED}
    store.close()
    said = " ".join(explain(frugal).sentences)
    assert "The aim is energy: the verdict compares these joules, and not the speeds." in said
    assert "judged by energy, not by speed" in said
    assert "The aim is energy" not in " ".join(explain(fast).sentences)


def test_slower_and_less_energy(tmp_path, monkeypatch):
    """A tenth slower, for four fifths of the joules: enabled for energy alone."""
    request = request_with(tmp_path, "draft")
    backend = metered(monkeypatch, SimulatedBackend(lambda _d, _t: 0.9), by(50.0, 40.0))
    fast, frugal = (coding(request, backend, aim) for aim in Aim)
    assert fast.verdict is Verdict.DISABLE
    assert frugal.verdict is Verdict.ENABLE
    assert not frugal.drafting.is_off
    assert frugal.reason.startswith("Drafting takes less energy: +2")
    assert " tokens per joule" in frugal.reason
    assert frugal.gain == pytest.approx(1.25, rel=0.02)
    assert frugal.speedup == pytest.approx(0.9, rel=0.02)
    document = json.loads(json.dumps(frugal.to_json()))
    assert document["aim"] == "energy"
    assert Recommendation.from_json(document).aim is Aim.ENERGY
    assert "likely" not in document["evidence"]


def test_a_gain_within_the_noise_is_not_enabled(tmp_path, monkeypatch):
    """The same joules, and much faster."""
    backend = metered(monkeypatch, SimulatedBackend(lambda _d, _t: 2.0), by(40.0, 40.0))
    assert coding(request_with(tmp_path, "draft"), backend, Aim.ENERGY).verdict is not Verdict.ENABLE


def test_a_proof_without_readings_ends_undecided(tmp_path, monkeypatch):
    """Much better than off by every reading, of which most are missing: one round, and no verdict."""
    numbers = iter(range(10_000))
    backend = SimulatedBackend(lambda _d, _t: 2.0)
    metered(monkeypatch, backend, lambda d: (40.0 if d.is_off else 10.0) if next(numbers) % 5 == 0 else None)
    found = coding(request_with(tmp_path, "draft"), backend, Aim.ENERGY)
    assert (found.verdict, found.status) == (Verdict.UNDECIDED, Status.PROVEN)
    assert found.reason.startswith("Only ")
    assert "of 8 pairs have a valid reading of energy" in found.reason
    assert found.evidence["rounds"] == 1


def test_the_joules_of_a_gpu_that_rests_decide_nothing(tmp_path, monkeypatch):
    """The model computes on the processor, whose counter is not told."""
    backend = metered(monkeypatch, SimulatedBackend(lambda _d, _t: 2.0), by(40.0, 20.0))
    finish = StateWatch.finish

    def of_gpu(watch: StateWatch):
        state = finish(watch)
        return replace(state, cpu_energy_j=None, gpu_energy_j=state.cpu_energy_j)

    monkeypatch.setattr(StateWatch, "finish", of_gpu)
    monkeypatch.setattr(run_module, "devices_here", lambda _hardware: ())
    found = coding(request_with(tmp_path, "draft"), backend, Aim.ENERGY)
    assert found.verdict is Verdict.UNDECIDED
    assert found.reason.startswith("Only 0 of 8 pairs have a valid reading")
    monkeypatch.setattr(run_module, "devices_here", lambda _hardware: None)
    (tmp_path / "gpu").mkdir()
    assert coding(request_with(tmp_path / "gpu", "draft"), backend, Aim.ENERGY).verdict is Verdict.ENABLE


def test_a_few_missing_readings_are_left_out(tmp_path, monkeypatch):
    """One in twelve: the verdict rests on the others."""
    numbers = iter(range(10_000))
    backend = SimulatedBackend(lambda _d, _t: 1.2)
    metered(monkeypatch, backend, lambda d: None if next(numbers) % 12 == 5 else (50.0 if d.is_off else 30.0))
    found = coding(request_with(tmp_path, "draft"), backend, Aim.ENERGY)
    assert found.verdict is Verdict.ENABLE
    assert found.pairs == found.evidence["energy"]["pairs"] < found.evidence["compared_texts"]


def test_without_a_meter_nothing_is_measured(tmp_path, monkeypatch):
    """The refusal comes before the first launch, and names what computes."""
    needed: list[tuple[str, ...]] = []

    def refuse(parts):
        needed.append(tuple(parts))
        return "No meter.", "Use the aim speed."

    monkeypatch.setattr(run_module, "energy_refusal", refuse)
    monkeypatch.setattr(run_module, "devices_here", lambda _hardware: ())
    backend = SimulatedBackend(lambda _d, _t: 1.5)
    with pytest.raises(UnsupportedError, match="No meter"):
        coding(request_with(tmp_path, "draft"), backend, Aim.ENERGY)
    assert backend.launched == []
    assert needed == [("cpu",)]
    monkeypatch.setattr(run_module, "devices_here", lambda _hardware: None)
    with pytest.raises(UnsupportedError):
        coding(request_with(tmp_path, "draft"), backend, Aim.ENERGY)
    with pytest.raises(UnsupportedError):
        coding(request_with(tmp_path, "draft", args=("-ngl", "0")), backend, Aim.ENERGY)
    assert needed[1:] == [("gpu",), ("cpu",)]


def test_the_limits_of_a_frugal_drafting_compare_joules(tmp_path, monkeypatch):
    """A tenth slower everywhere, for half of the joules: by its times it held nowhere before, and the proxy used it nowhere."""
    request = request_for(tmp_path)
    metered(monkeypatch, backend := SimulatedBackend(lambda _d, _t: 0.9), by(50.0, 25.0))
    frugal = coding(request, backend, Aim.ENERGY)
    limits = Limits.from_json(frugal.evidence[LIMITS])
    assert (limits.most_concurrent, limits.deepest_context, limits.highest_temperature) == (4, 8192, 0.8)
    for check in (*limits.concurrent, *limits.context, *limits.temperature, *limits.second_turn):
        assert check.verdict is LimitVerdict.FASTER
        assert check.ratio == pytest.approx(2.0, rel=0.03)
    assert "temperature 0.8: +" in " ".join(said := explain(frugal).sentences)
    assert " tokens per joule (less energy)" in " ".join(said)
    assert "faster" not in caution_words(frugal)


def test_a_limit_without_a_reading_is_not_measured():
    """Half of the pairs have one: they alone count. None has: that is said, and the limit is not known."""
    read = [
        replace(pair, **{
            side: replace(half, machine={"window_s": 2.0, "cores": 4, "cpu_energy_j": joules})
            for side, half, joules in (("off", pair.off, 50.0), ("drafted", pair.drafted, 30.0))
        })
        for pair in pairs_of(0.9)
    ]  # fmt: skip
    energy = partial(energy_ratios, computing=("cpu",))
    check = check_of(DEEP, [*read, *pairs_of(0.9)], DEFAULT_RULE, KNOWN, compared=energy)
    assert (check.pairs, check.verdict) == (8, LimitVerdict.FASTER)
    assert check.ratio == pytest.approx(50 / 30)
    unread = check_of(DEEP, pairs_of(0.9), DEFAULT_RULE, KNOWN, compared=energy)
    assert (unread.ratio, unread.note) == (None, "None of 8 pairs has a valid reading of energy.")


def test_the_scatter_of_energy_is_assumed():
    """What was measured of times is at most made larger."""
    from autospec.measure.launch_scatter import LaunchScatter

    steady, wild = LaunchScatter(0.002, 30.0, 0.001, 20), LaunchScatter(0.05, 30.0, 0.001, 20)
    assert proof.scatter_of(steady, Aim.SPEED) is steady
    assert proof.scatter_of(steady, Aim.ENERGY).assumed
    assert proof.scatter_of(steady, Aim.ENERGY).counted_sd == 0.03
    assert proof.scatter_of(wild, Aim.ENERGY).counted_sd == 0.05

"""Predictions in a tune: few launches, no hopeless drafts, and the measurements decide."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from autospec.cells import PromptType
from autospec.drafting import OFF, Drafting, Mode
from autospec.errors import SpeculationInactiveError
from autospec.hardware.state import StateWatch
from autospec.predict.recording import record
from autospec.prompts.suite import Half
from autospec.recommendations import Verdict
from autospec.store.database import open_store
from autospec.tuning import run as run_module
from autospec.tuning.budget import Budget
from autospec.tuning.forecast import Forecast
from autospec.tuning.profiling import Profiler
from autospec.tuning.request import TuneRequest, draft_file
from autospec.tuning.run import Tuning
from autospec.tuning.search import Search
from autospec.tuning.space import Arm, Space
from tests.predict.machine import Costs, Machine, MachineServer
from tests.tuning.test_run import MACHINE, TYPES, Silent, request_with

# Verifying is nearly free: whatever is accepted is won.
WAITS_FOR_MEMORY = Costs(main=lambda k: 50.0 + 0.4 * (k - 1), draft=lambda k: 5.0 + 0.1 * (k - 1))
# Every token in a batch costs as much as one alone: nothing can be won.
COMPUTES = Costs(main=lambda k: 50.0 * k, draft=lambda k: 5.0 * k)


@pytest.fixture(autouse=True)
def calm(monkeypatch, no_waits):
    """The simulated machine ignores the load of this one."""
    monkeypatch.setattr("autospec.measure.disturbances.disturbance", lambda _: "")
    monkeypatch.setattr("autospec.tuning.paired_runner.disturbance", lambda _: "")


@pytest.fixture
def request_(tmp_path: Path) -> TuneRequest:
    """A main model and two drafts that differ by their names alone; every file exists."""
    made = request_with(tmp_path, "draft", "second", prompt_types=(PromptType.CODING,))
    for model in made.models:
        model.path.touch()
    return made


def machine(request: TuneRequest, **changes) -> Machine:
    """A machine for the request's models."""
    return Machine(main_path=str(request.model.path), **changes)


def tune(request: TuneRequest, backend: Machine) -> tuple:
    """The recommendation for coding, and the sentences that were told."""
    progress = Silent()
    [recommendation] = Tuning(request, backend, MACHINE, progress).run()
    return recommendation, progress.told


def drafts_launched(backend: Machine) -> set[str]:
    """Names of the drafts that the main model was launched with."""
    return {Path(d.draft).stem for d in backend.main_launches() if d.draft}


def test_a_clear_gain_takes_few_launches(request_):
    """Where a draft is good and verifying is nearly free, a handful of launches find and prove it."""
    backend = machine(request_, acceptance=lambda _: 0.85, costs=WAITS_FOR_MEMORY)
    recommendation, _ = tune(request_, backend)
    assert recommendation.verdict is Verdict.ENABLE
    assert recommendation.speedup > 2.0
    assert len(backend.main_launches()) <= 4
    assert recommendation.evidence["prediction"]["expected"] == pytest.approx(recommendation.speedup, rel=0.2)


def test_a_hopeless_draft_is_never_launched(request_):
    """Its best case is below the other draft's result; the study says why."""
    worse = {str(request_.models[2].path): 0.75}
    backend = machine(request_, acceptance=lambda _: 0.85, costs=WAITS_FOR_MEMORY, worse=worse)
    recommendation, told = tune(request_, backend)
    assert recommendation.verdict is Verdict.ENABLE
    assert drafts_launched(backend) == {"draft"}
    [ruled_out] = recommendation.evidence["prediction"]["ruled_out"]
    assert "second" in ruled_out["arm"]
    assert (
        ruled_out["acceptance"] < ruled_out["break_even"] or ruled_out["best_case"] < recommendation.speedup
    )
    # 2 % is the least gain that may be enabled.
    assert ruled_out["beaten"] == (ruled_out["best_case"] > 1.02)
    assert any("second" in line and "is not launched: best case" in line for line in told)


def test_neighbours_of_what_was_tried_are_not_launched_by_luck(request_):
    """On a noisy machine half of the launches show less than predicted: that makes the next n_max no better."""
    noisy = replace(WAITS_FOR_MEMORY, noise=0.05, luck=0.02)
    for seed in range(3):
        storage = f"{request_.storage}-{seed}"
        backend = machine(request_, acceptance=lambda _: 0.85, costs=noisy, seed=seed)
        recommendation, _ = tune(replace(request_, storage=storage), backend)
        assert recommendation.verdict is Verdict.ENABLE
        assert recommendation.evidence["trials"] <= 3


def test_a_draft_that_is_never_right_is_dropped_on_its_first_answers(request_):
    """It reads three answers of six, is never launched, and the other draft is proved as usual."""
    worse = {str(request_.models[2].path): 0.75}
    request_, progress = replace(request_, prompt_types=TYPES), Silent()
    backend = machine(request_, acceptance=lambda _: 0.8, costs=WAITS_FOR_MEMORY, worse=worse)
    recommendations = {r.prompt_type: r for r in Tuning(request_, backend, MACHINE, progress).run()}
    assert any("second.gguf is dropped" in line for line in progress.told)
    assert not any("draft.gguf is dropped" in line for line in progress.told)
    # Each phase is reported, and recording up to its last answer: what follows it must not look like recording.
    assert list(dict.fromkeys(s.phase for s in progress.steps))[:4] == ["start", "record", "read", "launch"]
    recorded = [s.done for s in progress.steps if s.phase == "record" and s.todo == 6]
    assert recorded == list(range(7))
    assert drafts_launched(backend) == {"draft"}
    assert {r.verdict for r in recommendations.values()} == {Verdict.ENABLE}
    store = open_store(request_.storage)
    try:
        for recommendation in recommendations.values():
            read = store.surveys(recommendation.evidence["cell"], request_.protocol, "profile")
            assert 1 <= sum(name.startswith(draft_file(request_.models[2]).identity) for name in read) <= 2
            assert sum(name.startswith(draft_file(request_.models[1]).identity) for name in read) == 3
            assert any("second" in r["arm"] for r in recommendation.evidence["prediction"]["ruled_out"])
    finally:
        store.close()


def test_disable_costs_one_launch_for_each_draft_and_a_round_of_proof(request_):
    """If nothing can be won, one launch measures the draft's costs, and eight pairs on other prompts disable it."""
    backend = machine(request_, acceptance=lambda _: 0.6, costs=COMPUTES)
    recommendation, _ = tune(request_, backend)
    assert recommendation.verdict is Verdict.DISABLE
    assert len(backend.main_launches()) <= len(request_.models[1:]) + 1
    assert recommendation.pairs == 8


def test_disable_costs_no_trial_where_even_the_best_case_loses(request_):
    """Off, the readings, and the proof's launch: a trial would show nothing more."""
    main = replace(COMPUTES, draft=lambda k: 45.0 * k)
    backend = machine(request_, acceptance=lambda _: 0.6, costs=main)
    recommendation, _ = tune(request_, backend)
    assert recommendation.verdict is Verdict.DISABLE
    assert len(backend.main_launches()) == 1
    assert {r["break_even"] > 1 for r in recommendation.evidence["prediction"]["ruled_out"]} == {True}


def test_prediction_that_fails_is_said_and_no_longer_trusted(request_):
    """A draft that is never right in the server: its result is far below the prediction, so its other settings are tried."""
    backend = machine(request_, acceptance=lambda _: 0.9, costs=WAITS_FOR_MEMORY, served_worse=0.85)
    recommendation, told = tune(request_, backend)
    assert recommendation.verdict is not Verdict.ENABLE
    assert any("no longer trusted" in line for line in told)
    assert recommendation.speedup < 1.05


def test_wrong_costs_leave_prediction_in_charge(request_):
    """In the server the draft costs four times as much as alone: a few launches correct that, and the best setting is found."""
    served = Costs(main=lambda k: 50.0 + 3.0 * (k - 1), draft=lambda k: 20.0 + 0.4 * (k - 1))
    backend = machine(request_, acceptance=lambda _: 0.8, costs=WAITS_FOR_MEMORY, served=served)
    recommendation, told = tune(request_, backend)
    assert any("its costs are corrected" in line for line in told)
    assert not any("no longer trusted" in line for line in told)
    assert recommendation.verdict is Verdict.ENABLE
    assert recommendation.evidence["trials"] <= 8
    arm = Arm(Mode.DRAFT_MODEL, recommendation.drafting.draft)
    grid = [d for d in Space((arm,), request_.definition.space).grid() if not d.n_min]
    best = max(generated(backend, request_, d) for d in grid)
    assert generated(backend, request_, recommendation.drafting) >= 0.95 * best


def generated(backend: Machine, request: TuneRequest, drafting: Drafting) -> float:
    """Speed ratio to off on the prompts of the proof, without noise."""
    logs = []
    for prompt in request.suite.of(PromptType.CODING, Half.PROVE):
        words = json.dumps(list(prompt.messages))
        text = backend.text(words, prompt.max_tokens, drafting.draft or "")
        times = [
            sum(MachineServer(backend, "exact", d, 1.0).exact(text, prompt.max_tokens)[:2])
            for d in (OFF, drafting)
        ]
        logs.append(math.log(times[0] / times[1]))
    return math.exp(statistics.fmean(logs))


def test_a_server_that_tells_no_tokens_is_searched_by_trials(request_):
    """Without tokens nothing is predicted, and the sampler does the work."""
    backend = machine(request_, acceptance=lambda _: 0.85, costs=WAITS_FOR_MEMORY, tells_tokens=False)
    recommendation, _ = tune(request_, backend)
    assert recommendation.verdict is Verdict.ENABLE
    assert "prediction" not in recommendation.evidence
    assert len(backend.main_launches()) > 4


def test_what_was_recorded_is_not_recorded_again(request_, monkeypatch):
    """A second tune of the same cell has no draft read the answers again; the first one ended after that."""
    monkeypatch.setattr(Profiler, "_over", False)
    first, second = (machine(request_, acceptance=lambda _: 0.85, costs=WAITS_FOR_MEMORY) for _ in range(2))
    tune(replace(request_, budget_s=1e-6), first)
    tune(request_, second)
    alone = [path for path, _ in second.launched if path != str(request_.model.path)]
    assert not alone


def by_clock(monkeypatch, backend: Machine) -> None:
    """Let budgets and trials pass on the machine's clock."""

    def clock() -> float:
        return backend.spent_ms / 1000.0

    monkeypatch.setattr(run_module, "Budget", partial(Budget, clock=clock))
    monkeypatch.setattr(run_module, "Search", partial(Search, now=clock))


def test_a_long_prompt_is_not_recorded_where_only_shorter_ones_fit(request_, monkeypatch):
    """81 s are for recording: of two long prompts the one of 100 s is left out, and the short one after it is recorded."""
    lengths = {"coding": (20, 400, 40_000), "writing": (30, 600, 200)}
    prompts = [
        replace(p, messages=({"role": "user", "content": "x" * lengths[p.prompt_type][int(p.id[-1])]},))
        if p.half is Half.TUNE
        else p
        for p in request_.suite.prompts
    ]
    request_ = replace(
        request_, prompt_types=TYPES, budget_s=600.0, suite=replace(request_.suite, prompts=tuple(prompts))
    )
    backend = machine(request_, acceptance=lambda _: 0.85, costs=WAITS_FOR_MEMORY)
    by_clock(monkeypatch, backend)

    def slow(tokens, prompt_id, request):
        """2.5 ms for each byte of the prompt."""
        recording = record(tokens, prompt_id, request)
        more_ms = 2.5 * len(request.messages[0]["content"])
        backend.spent_ms += more_ms
        return replace(
            recording, prompt_ms=recording.prompt_ms + more_ms, wall_ms=recording.wall_ms + more_ms
        )

    monkeypatch.setattr("autospec.tuning.profiling.record", slow)
    progress = Silent()
    recommendations = Tuning(request_, backend, MACHINE, progress).run()
    assert {r.verdict for r in recommendations} == {Verdict.ENABLE}
    store = open_store(request_.storage)
    try:
        recorded = [
            name
            for r in recommendations
            for name in store.surveys(r.evidence["cell"], request_.protocol, "recording")
            if "tune" in name
        ]
    finally:
        store.close()
    every = {f"{t}-tune-{n}" for t in lengths for n in range(3)}
    assert set(recorded) == every - {"coding-tune-2"}


@pytest.mark.parametrize(("budget_s", "trials"), [(3600.0, True), (180.0, False)])
def test_large_gains_are_proved_first_where_the_time_is_short(request_, monkeypatch, budget_s, trials):
    """Of 180 s the readings leave what the proofs may take, but not a trial too."""
    request_ = replace(request_, prompt_types=TYPES, budget_s=budget_s)
    backend = machine(request_, acceptance=lambda _: 0.85, costs=WAITS_FOR_MEMORY)
    by_clock(monkeypatch, backend)
    progress = Silent()
    recommendations = Tuning(request_, backend, MACHINE, progress).run()
    assert {r.verdict for r in recommendations} == {Verdict.ENABLE}
    assert {r.evidence["trials"] > 0 for r in recommendations} == {trials}
    assert any("the time is short" in line for line in progress.told) is not trials


@pytest.mark.parametrize("runner_up", [False, True])
def test_a_predicted_winner_that_cannot_be_launched_opens_the_search_again(request_, monkeypatch, runner_up):
    """The proof came first and failed: the runner-up is proved at once; without one the next tune knows it, and proves the other draft."""
    if not runner_up:
        monkeypatch.setattr(Forecast, "rival", lambda *_: None)
    request_ = replace(request_, prompt_types=TYPES, budget_s=180.0)
    first, second = (machine(request_, acceptance=lambda _: 0.85, costs=WAITS_FOR_MEMORY) for _ in range(2))
    broken = Path(request_.models[1].path)
    launch = Machine.launch

    def refusing(backend, model_path, drafting, settings):
        if drafting.draft == str(broken):
            raise SpeculationInactiveError("The server ignores the draft.")
        return launch(backend, model_path, drafting, settings)

    monkeypatch.setattr(Machine, "launch", refusing)
    by_clock(monkeypatch, first)
    progress = Silent()
    found = Tuning(request_, first, MACHINE, progress).run()
    assert any("no more settings are tried" in line for line in progress.told)
    assert {r.verdict for r in found} == {Verdict.ENABLE if runner_up else Verdict.UNDECIDED}
    assert drafts_launched(first) == ({"second"} if runner_up else set())
    by_clock(monkeypatch, second)
    found = Tuning(replace(request_, budget_s=3600.0), second, MACHINE, Silent()).run()
    assert {r.verdict for r in found} == {Verdict.ENABLE}
    assert drafts_launched(second) == (set() if runner_up else {"second"})


@pytest.mark.parametrize("broken", [False, True])
def test_what_no_trial_had_time_for_is_launched_by_its_proof(request_, monkeypatch, broken):
    """The only trial went to an n-gram mode that gains nothing. A real tune proved that mode, and never launched the draft."""
    modes = frozenset({Mode.OFF, Mode.DRAFT_MODEL, Mode.NGRAM_SIMPLE})
    backend, later = (
        machine(request_, acceptance=lambda _: 0.85, costs=WAITS_FOR_MEMORY, modes=modes) for _ in range(2)
    )
    launch, best = Machine.launch, str(request_.models[2].path)

    def refusing(own, model_path, drafting, settings):
        if broken and drafting.draft == best:
            raise SpeculationInactiveError("The server ignores the draft.")
        return launch(own, model_path, drafting, settings)

    monkeypatch.setattr(Machine, "launch", refusing)
    progress = Silent()
    with monkeypatch.context() as hasty:
        ngram = Drafting(Mode.NGRAM_SIMPLE, ngram_n=12, ngram_m=48, min_hits=1)
        hasty.setattr(Forecast, "next", lambda _self, _cells, known: None if ngram in known else ngram)
        hasty.setattr(Search, "_time_for_another", lambda self: not self._trial_s)
        hasty.setattr(Forecast, "rival", lambda *_: None)
        [found] = Tuning(request_, backend, MACHINE, progress).run()
    assert any("is measured by its proof" in line for line in progress.told)
    assert found.evidence["trials"] == 1
    if broken:  # the next tune searches again
        assert found.verdict is Verdict.UNDECIDED
        [found] = Tuning(request_, later, MACHINE, Silent()).run()
    assert found.verdict is Verdict.ENABLE
    assert found.drafting.mode is Mode.DRAFT_MODEL


def test_what_was_recorded_on_battery_does_not_count_on_mains(request_, monkeypatch):
    """A machine that saves power has other times, which must not be used on mains power."""
    finish = StateWatch.finish
    monkeypatch.setattr(StateWatch, "finish", lambda w: replace(finish(w), on_battery=True))
    recommendation, _ = tune(request_, machine(request_, acceptance=lambda _: 0.85, costs=WAITS_FOR_MEMORY))
    store = open_store(request_.storage)
    try:
        for kind in ("recording", "profile", "times"):
            cell, protocol = recommendation.evidence["cell"], request_.protocol
            assert not store.surveys(cell, protocol, kind)
            assert store.surveys(cell, f"{protocol}/battery", kind)
    finally:
        store.close()


def test_times_taken_beside_a_busy_neighbour_are_taken_again(request_, monkeypatch):
    """A draft timed under load would look several times as expensive, and be ruled out."""
    # The second recording's window, the batches', the first draft's pass.
    told = iter([False, False, False, True])
    monkeypatch.setattr("autospec.tuning.load_guard.LoadGuard.after", lambda *_: next(told, False))
    backend = machine(request_, acceptance=lambda _: 0.85, costs=WAITS_FOR_MEMORY)
    recommendation, _ = tune(request_, backend)
    assert next(told, None) is None
    assert recommendation.verdict is Verdict.ENABLE


def test_answers_are_forgotten_where_the_user_wants_that(request_, tmp_path):
    """No token id stays in the database."""
    backend = machine(request_, acceptance=lambda _: 0.85, costs=WAITS_FOR_MEMORY)
    recommendation, _ = tune(replace(request_, forget_answers=True), backend)
    store = open_store(request_.storage)
    try:
        for kind in ("recording", "profile", "times", "canary"):
            assert not store.surveys(recommendation.evidence["cell"], request_.protocol, kind)
    finally:
        store.close()


def test_drafting_free_modes_are_predicted_too(request_):
    """Text that repeats itself: an n-gram mode wins where there is no draft model at all."""
    modes = frozenset({Mode.OFF, Mode.NGRAM_SIMPLE, Mode.NGRAM_MOD})
    backend = machine(request_, costs=WAITS_FOR_MEMORY, repeats=0.9, modes=modes)
    recommendation, _ = tune(replace(request_, models=(request_.model,)), backend)
    assert recommendation.verdict is Verdict.ENABLE
    assert recommendation.drafting.mode.draft_free
    assert recommendation.evidence["prediction"]["step_ms"] == 0


REPEATS = {Mode.OFF, Mode.DRAFT_MODEL, Mode.NGRAM_SIMPLE}


def test_several_modes_are_launched_where_they_are_expected_to_win(request_):
    """Text that repeats itself and a draft that is often right: the n-gram mode copies, the draft does the rest."""
    backend = machine(
        request_,
        acceptance=lambda _: 0.8,
        costs=WAITS_FOR_MEMORY,
        repeats=0.5,
        modes=frozenset(REPEATS),
        combines=True,
    )
    recommendation, _ = tune(request_, backend)
    assert recommendation.verdict is Verdict.ENABLE
    assert [d.mode for d in recommendation.drafting.parts] == [Mode.DRAFT_MODEL, Mode.NGRAM_SIMPLE]
    prediction = recommendation.evidence["prediction"]
    assert prediction["break_even"] is None
    checks = [c for c in prediction["checks"] if "parts" in c["drafting"]]
    assert checks
    for check in checks:
        assert check["measured"] == pytest.approx(check["predicted"], rel=0.1)
    together = [d for d in dict.fromkeys(backend.main_launches()) if d.beside]
    assert 1 <= len(together) <= 3
    assert backend.main_launches()[0].beside, "nothing is expected to be faster"


@pytest.mark.parametrize(("repeats", "combines"), [(0.0, True), (0.5, False)])
def test_several_modes_are_not_launched_for_nothing(request_, repeats, combines):
    """Nothing repeats; or the build takes one mode at a time."""
    backend = machine(
        request_,
        acceptance=lambda _: 0.8,
        costs=WAITS_FOR_MEMORY,
        repeats=repeats,
        modes=frozenset(REPEATS),
        combines=combines,
    )
    recommendation, _ = tune(request_, backend)
    assert recommendation.verdict is Verdict.ENABLE
    assert not any(d.beside for d in backend.main_launches())


def test_a_head_that_cannot_be_predicted_gets_an_n_gram_mode_beside_it(request_):
    """MTP is measured, n-grams are predicted: if both gain, they are launched together."""
    request_ = replace(request_, model=replace(request_.model, mtp_layers=1), models=())
    backend = machine(
        request_,
        acceptance=lambda _: 0.8,
        costs=WAITS_FOR_MEMORY,
        repeats=0.6,
        modes=frozenset({Mode.OFF, Mode.MTP, Mode.NGRAM_SIMPLE}),
        combines=True,
    )
    recommendation, _ = tune(request_, backend)
    assert [d.mode for d in recommendation.drafting.parts] == [Mode.MTP, Mode.NGRAM_SIMPLE]
    together = [d for d in dict.fromkeys(backend.main_launches()) if d.beside]
    assert 1 <= len(together) <= 3


@pytest.mark.parametrize("tells_energy", [False, True])
def test_off_is_planned_as_long_as_it_is_asked(request_, monkeypatch, tells_energy):
    """At 50 ms a token 51 of 64 tokens are enough; all are generated where joules are counted, and the plan knows."""
    finish, planned = StateWatch.finish, []
    if tells_energy:
        monkeypatch.setattr(StateWatch, "finish", lambda w: replace(finish(w), gpu_energy_j=1.0))

    def look(search: Search) -> None:
        (cell,) = search._cells
        planned.append(search._context.pairing.pace.request_s(cell.cell.key, OFF))
        raise KeyboardInterrupt

    monkeypatch.setattr(Search, "run", look)
    costs = replace(WAITS_FOR_MEMORY, prompt_ms=0.0)
    with pytest.raises(KeyboardInterrupt):
        tune(request_, machine(request_, acceptance=lambda _: 0.85, costs=costs))
    tokens = 64 if tells_energy else 51
    assert planned == [pytest.approx(tokens * 0.05, rel=0.05)]


def test_that_no_other_setting_is_tried_is_said_only_where_it_is_so(request_, monkeypatch):
    """Predictions that are trusted may launch another setting, whatever one launch alone would tell."""
    monkeypatch.setattr("autospec.tuning.search.Reach.weigh", lambda *_: True)
    _, told = tune(request_, machine(request_, acceptance=lambda _: 0.85, costs=WAITS_FOR_MEMORY))
    assert any("draft-model" in line and "×" in line for line in told)
    assert not any("no other setting is tried" in line for line in told)


@pytest.mark.parametrize(("spread", "is_rival"), [(0.01, False), (0.3, True)])
def test_a_rival_is_what_may_be_faster_on_other_prompts(request_, spread, is_rival):
    """Four prompts show a drafting of another arm 5 % behind: a rival where the difference varies much between prompts."""
    one, other = (
        Drafting(Mode.DRAFT_MODEL, draft=d, n_max=4, n_min=0, p_min=0.0) for d in ("/one", "/other")
    )
    logs = {
        one: [0.40, 0.40, 0.40, 0.40],
        other: [0.35 - spread, 0.35 + spread, 0.35 - spread, 0.35 + spread],
    }
    ratios = {d: math.exp(statistics.fmean(values)) for d, values in logs.items()}
    predictor = SimpleNamespace(
        covers=lambda _: True,
        trusts=lambda _: True,
        hopeless=lambda _: False,
        compare=lambda _: {"cell": {d: SimpleNamespace(ratio=r) for d, r in ratios.items()}},
        log_ratios=lambda _, drafting: {str(n): v for n, v in enumerate(logs[drafting])},
    )
    space = Space((Arm(Mode.DRAFT_MODEL, "/one"), Arm(Mode.DRAFT_MODEL, "/other")), request_.definition.space)
    forecast = Forecast(predictor, space, 0.02, lambda _: None)
    forecast._grid = [one, other]
    cell = SimpleNamespace(cell=SimpleNamespace(key="cell"))
    assert forecast.rival(cell, one) == (other if is_rival else None)

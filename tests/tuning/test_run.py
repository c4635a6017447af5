"""A whole tune on simulated servers: search, proof, what is stored, and what continues after an interruption."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from autospec.catalog.model import Model
from autospec.cells import Hardware, PromptType
from autospec.drafting import OFF, Drafting, Engine, Mode
from autospec.errors import (
    BusyError,
    LaunchError,
    ServerDiedError,
    StoreError,
)
from autospec.hardware.state import StateWatch
from autospec.measure.measurements import Phase
from autospec.prompts.suite import Half, Prompt, Suite
from autospec.recommendations import Recommendation, Status, Verdict
from autospec.store.database import Store, open_store
from autospec.tuning import load_guard as calm
from autospec.tuning import run as run_module
from autospec.tuning.cell import CellProgress, TuneStep
from autospec.tuning.definition import LimitsDefinition, load_definition
from autospec.tuning.request import TuneRequest
from autospec.tuning.run import Tuning
from autospec.tuning.study import CellStudy, open_storage
from studies.bench.crash_phases import Database
from tests.catalog.making import make_model
from tests.tuning.simulated import SimulatedBackend, SimulatedServer

pytestmark = pytest.mark.usefixtures("no_waits")

MACHINE = Hardware(id="test-machine", chip="Test", memory_bytes=64 << 30, cores=8, os="linux")
TYPES = (PromptType.CODING, PromptType.WRITING)


class Silent:
    """A progress that keeps what it gets."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.steps: list[TuneStep] = []

    def step(self, step: TuneStep) -> None:
        """Keep it."""
        self.steps.append(step)

    def standing(self, standings: tuple[CellProgress, ...]) -> None:
        """Never empty."""
        assert standings

    def tell(self, text: str) -> None:
        """Keep it."""
        self.told.append(text)


def suite(prove: int = 8) -> Suite:
    """Three tune prompts and eight prove prompts of each of two types."""
    prompts = [
        Prompt(f"{t}-{half}-{n}", t, ({"role": "user", "content": f"{t} {half} {n}"},), 64, half)
        for t in TYPES
        for half, count in ((Half.TUNE, 3), (Half.PROVE, prove))
        for n in range(count)
    ]
    return Suite("test", tuple(prompts), "0" * 12)


@pytest.fixture(autouse=True)
def nobody_else_is_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tune waits a minute for busy neighbours; tests share their machine and do not."""
    monkeypatch.setattr(calm, "busy", lambda _state: False)


def draft_of(main: Model, name: str) -> Model:
    """A draft model that fits, beside the main model."""
    size = {"bytes_per_token": main.bytes_per_token // 8, "size_bytes": main.size_bytes // 8}
    return make_model(name=name, path=main.path.with_name(f"{name}.gguf"), fingerprint=name, **size)


def request_with(folder: Path, *drafts: str, **changes) -> TuneRequest:
    """A main model with these drafts, the quick study, an empty database; keywords set other fields."""
    main = make_model(name="main", path=folder / "main.gguf")
    models = (main, *(draft_of(main, name) for name in drafts))
    storage = f"sqlite:///{folder / 'autospec.db'}"
    # What is checked after a proof has tests of its own, and takes launches.
    definition = replace(load_definition("quick"), limits=LimitsDefinition())
    return TuneRequest(main, models, definition, suite(), storage, **changes)


@pytest.fixture
def request_(tmp_path: Path) -> TuneRequest:
    """A main model with one draft."""
    return request_with(tmp_path, "draft")


def tune(
    request: TuneRequest, backend: SimulatedBackend, progress: Silent | None = None
) -> dict[PromptType, object]:
    """Run a tune, and see that it left no server."""
    recommendations = Tuning(request, backend, MACHINE, progress or Silent()).run()
    assert not backend.running, "servers were left running"
    return {r.prompt_type: r for r in recommendations}


def pays_for_coding(drafting: Drafting, text: str) -> float:
    """A draft model with 8 tokens helps coding by half and hurts writing by a fifth; n-grams do nothing."""
    if drafting.mode is not Mode.DRAFT_MODEL:
        return 0.99
    distance = abs(drafting.n_max - 8) / 40
    return (1.5 - distance) if "coding" in text else 0.8


def interrupted_at(number: int) -> SimulatedBackend:
    """A backend that is interrupted at that request."""
    count = itertools.count(1)

    def interrupt(server: SimulatedServer, text: str) -> None:
        if next(count) == number:
            raise KeyboardInterrupt

    return SimulatedBackend(pays_for_coding, before_answer=interrupt)


def test_finds_where_drafting_pays_and_where_not(request_):
    """Coding is enabled with a good n_max, writing is disabled, and both rest on proof pairs."""
    result = tune(request_, SimulatedBackend(pays_for_coding))
    coding, writing = result[PromptType.CODING], result[PromptType.WRITING]
    assert coding.verdict is Verdict.ENABLE
    assert coding.drafting.mode is Mode.DRAFT_MODEL
    assert pays_for_coding(coding.drafting, "coding") >= 0.95 * 1.5
    assert coding.speedup == pytest.approx(pays_for_coding(coding.drafting, "coding"), rel=0.01)
    assert coding.speedup_ci[0] > 1.02
    assert coding.status is Status.PROVEN
    assert coding.pairs >= 8
    assert writing.verdict is Verdict.DISABLE
    assert writing.drafting == OFF
    assert writing.speedup < 1.0


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_what_the_server_adapts_is_measured_like_any_drafting(request_, temperature):
    """An engine that pays is found, proven and stored by its name; sampled drafts are an arm above temperature 0 only."""
    engines = (Engine.ADAPTIVE, Engine.PROBABILISTIC)
    backend = SimulatedBackend(
        lambda drafting, _text: 1.6 if drafting.engine is Engine.ADAPTIVE else 1.1,
        engines=frozenset((Mode.DRAFT_MODEL, engine) for engine in engines),
    )
    result = tune(replace(request_, temperature=temperature), backend)
    coding = result[PromptType.CODING]
    assert coding.verdict is Verdict.ENABLE
    assert coding.drafting.engine is Engine.ADAPTIVE
    assert coding.to_json()["drafting"]["engine"] == "adaptive"
    tried = {d.engine for d in backend.launched}
    assert tried == {None, Engine.ADAPTIVE} | ({Engine.PROBABILISTIC} if temperature else set())


def test_search_and_proof_never_share_prompts(request_):
    """No prompt of the prove half is asked before the winner is fixed, and the proof asks no tune prompt."""
    backend = SimulatedBackend(pays_for_coding)
    tune(request_, backend)
    store = open_store(request_.storage)
    with_rows = [m for t in TYPES for m in store.measurements(_cell_key(request_, backend, t))]
    store.close()
    assert {m.phase for m in with_rows} == {Phase.SEARCH, Phase.PROVE}
    for m in with_rows:
        assert ("tune" in m.prompt_id) is (m.phase is Phase.SEARCH)


def test_every_exposure_of_a_prompt_to_a_drafting_is_the_first(request_):
    """No launch with drafting is asked the same prompt twice."""
    backend = SimulatedBackend(pays_for_coding, noise=0.03)
    tune(request_, backend)
    asked = Counter((launch, text) for launch, drafting, text in backend.asked if not drafting.is_off)
    assert max(asked.values()) == 1


def test_order_of_halves_alternates(request_):
    """Off is asked first in half of the pairs (ABBA), give or take one."""
    backend = SimulatedBackend(pays_for_coding)
    tune(request_, backend)
    # Old and new launches of off are compared with a prompt of their own.
    asked = [a for a in backend.asked if "Count from one" not in a[2]]
    firsts = [a[1].is_off for a, b in zip(asked[::2], asked[1::2], strict=True)]
    assert abs(sum(firsts) - len(firsts) / 2) <= 1
    assert firsts[0] is not firsts[1]


def test_one_launch_serves_all_prompt_types(request_):
    """Each drafting of the search is launched once, whatever the number of prompt types."""
    backend = SimulatedBackend(pays_for_coding)
    progress = Silent()
    tune(request_, backend, progress)
    tried = {s.drafting for s in progress.steps if s.phase == "launch"}
    rounds = {(s.phase, s.drafting, s.number) for s in progress.steps if s.phase in {"prove", "overall"}}
    proof_rounds = {(d, number) for phase, d, number in rounds if phase == "prove"}
    # What the answer for all types together asks besides, on servers of its own.
    overall = len(rounds) - len(proof_rounds)
    drafted = [d for d in backend.launched if not d.is_off]
    assert len(drafted) == len(tried) + len(proof_rounds) + overall
    # Off is launched once for the search and once for each round of the proof at most.
    assert len(backend.launched) - len(drafted) <= 1 + len(proof_rounds) + overall


def test_studies_hold_off_and_every_drafting(request_, tmp_path):
    """Each cell's Optuna study has off with value 1 and a trial for each drafting that was launched."""
    import optuna

    backend = SimulatedBackend(pays_for_coding)
    tune(request_, backend)
    storage = open_storage(request_.storage)
    names = optuna.get_all_study_names(storage)
    assert len(names) == len(TYPES)
    assert all(name.startswith("main | ") for name in names)
    study = optuna.load_study(study_name=next(n for n in names if "| coding |" in n), storage=storage)
    by_mode = {t.user_attrs["drafting"]["mode"]: t for t in study.trials}
    assert by_mode["off"].value == 1.0
    assert {"draft-model", "ngram-simple"} <= set(by_mode)
    assert all(t.state.is_finished() for t in study.trials)


def test_within_noise_is_never_enabled(request_):
    """A drafting that changes nothing is disabled or left undecided, with 2 % of noise."""
    result = tune(request_, SimulatedBackend(lambda _d, _t: 1.0, noise=0.02))
    assert all(r.verdict is not Verdict.ENABLE and r.drafting == OFF for r in result.values())


def test_gain_on_one_prompt_only_is_not_enabled(request_):
    """Seven prompts at −2 % and one at three times the speed do not make an enable."""
    result = tune(request_, SimulatedBackend(lambda _d, text: 3.0 if text.endswith('0"}]') else 0.98))
    assert all(r.verdict is not Verdict.ENABLE for r in result.values())


def test_launch_that_cannot_work_is_not_tried_twice(request_):
    """A draft that the server refuses for good costs one launch; the reason is told and kept."""

    def refuse(drafting: Drafting) -> None:
        if drafting.mode is Mode.DRAFT_MODEL:
            raise LaunchError("The draft model is damaged.", "Download it again.", permanent=True)

    backend = SimulatedBackend(lambda _d, _t: 0.9, before_launch=refuse)
    progress = Silent()
    result = tune(request_, backend, progress)
    assert sum(d.mode is Mode.DRAFT_MODEL for d in backend.launched) == 1
    assert any("The draft model is damaged." in line for line in progress.told)
    assert all(r.tried.mode is Mode.NGRAM_SIMPLE for r in result.values())
    tune(replace(request_, again=True), backend)
    assert sum(d.mode is Mode.DRAFT_MODEL for d in backend.launched) == 1


def test_all_draftings_failing_says_why(request_):
    """Where nothing could be measured the verdict is undecided, off, with the server's reason."""

    def refuse(drafting: Drafting) -> None:
        if not drafting.is_off:
            raise LaunchError("No memory.", permanent=True)

    result = tune(request_, SimulatedBackend(pays_for_coding, before_launch=refuse))
    for r in result.values():
        assert (r.verdict, r.drafting) == (Verdict.UNDECIDED, OFF)
        assert "No memory." in r.reason


def test_off_that_does_not_start_ends_the_tune(request_):
    """Without off there is nothing to compare with: the launch error itself is raised."""

    def refuse(drafting: Drafting) -> None:
        raise LaunchError("The model file is damaged.")

    with pytest.raises(LaunchError, match="The model file is damaged"):
        tune(request_, SimulatedBackend(pays_for_coding, before_launch=refuse))


def test_server_that_dies_once_is_launched_again(request_):
    """One death costs a launch, not the trial."""
    deaths = []

    def die(server: SimulatedServer, text: str) -> None:
        if not server.drafting.is_off and "coding prove 2" in text and not deaths:
            deaths.append(server.launch_id)
            raise ServerDiedError("It was killed.")

    result = tune(request_, SimulatedBackend(pays_for_coding, before_answer=die))
    assert deaths
    assert result[PromptType.CODING].verdict is Verdict.ENABLE


@pytest.mark.parametrize("at", [1, 2, 7, 20, 33, 60])
def test_goes_on_after_an_interruption(request_, at):
    """Interrupted at any request, the next tune asks for nothing that was finished, and reaches the same verdict."""
    count = 0

    def interrupt(server: SimulatedServer, text: str) -> None:
        nonlocal count
        count += 1
        if count == at:
            raise KeyboardInterrupt

    first = SimulatedBackend(pays_for_coding, before_answer=interrupt)
    with pytest.raises(KeyboardInterrupt):
        tune(request_, first)
    assert not first.running
    second = SimulatedBackend(pays_for_coding)
    result = tune(request_, second)
    assert result[PromptType.CODING].verdict is Verdict.ENABLE
    finished = [_exposure(a) for a in first.asked[: at - 1]]
    repeated = Counter(_exposure(a) for a in second.asked)
    uninterrupted = SimulatedBackend(pays_for_coding)
    tune(replace(request_, storage=request_.storage.replace("autospec.db", "other.db")), uninterrupted)
    assert len(finished) + len(second.asked) <= len(uninterrupted.asked) + 4, repeated.most_common(3)


def test_interrupted_tune_keeps_a_provisional_recommendation(request_):
    """After Ctrl-C in the search the store says undecided, off, provisional, with the best so far."""
    count = 0

    def interrupt(server: SimulatedServer, text: str) -> None:
        nonlocal count
        count += 1
        if count == 20:
            raise KeyboardInterrupt

    tuning = Tuning(
        request_,
        SimulatedBackend(pays_for_coding, before_answer=interrupt),
        MACHINE,
        Silent(),
    )
    with pytest.raises(KeyboardInterrupt):
        tuning.run()
    known = tuning.known()
    assert {r.prompt_type for r in known} == set(TYPES)
    assert all((r.status, r.drafting) == (Status.PROVISIONAL, OFF) for r in known)


def test_a_remeasurement_continues_after_an_interruption(request_):
    """The second `again` uses what the first one measured; a third one starts over."""
    again = replace(request_, again=True)
    proven = tune(request_, SimulatedBackend(pays_for_coding))[PromptType.CODING]
    with pytest.raises(KeyboardInterrupt):
        tune(again, interrupted_at(20))
    second, third = SimulatedBackend(pays_for_coding), SimulatedBackend(pays_for_coding)
    assert "epoch" in proven.evidence
    assert tune(again, second)[PromptType.CODING].evidence["epoch"] > proven.evidence["epoch"]
    tune(again, third)
    searched = [sum(" tune " in text for _, _, text in b.asked) for b in (second, third)]
    assert searched[0] <= searched[1] - 12


def test_a_remeasurement_continues_where_nothing_was_ever_proven(request_):
    """An interruption stores a provisional recommendation, which ends nothing: every tune continues until there is a proof."""
    again = replace(request_, again=True)
    whole = SimulatedBackend(pays_for_coding)
    tune(replace(again, storage=request_.storage.replace("autospec.db", "other.db")), whole)
    starts = [interrupted_at(20) for _ in range(3)]
    for backend in starts:
        with pytest.raises(KeyboardInterrupt):
            tune(again, backend)
    last = SimulatedBackend(pays_for_coding)
    assert {r.status for r in tune(again, last).values()} == {Status.PROVEN}
    # An interruption costs the pair that it breaks, and what a new launch is asked first.
    assert sum(len(b.asked) for b in [*starts, last]) <= len(whole.asked) + 4 * len(starts)


def test_the_crash_benchmark_agrees_on_whether_the_next_tune_starts_over(request_, tmp_path):
    """It reads the database from outside: an interrupted tune is not finished, whatever recommendation was stored."""
    again = replace(request_, again=True, prompt_types=(PromptType.CODING,))
    database = Database(tmp_path / "autospec.db", tmp_path, halves=1)
    assert not database.is_finished()
    with pytest.raises(KeyboardInterrupt):
        tune(again, interrupted_at(20))
    assert database.recommendations() == 1
    assert not database.is_finished()
    tune(again, SimulatedBackend(pays_for_coding))
    assert database.is_finished()


def test_a_remeasurement_keeps_the_finished_cells(request_):
    """Coding is proven again, writing is interrupted: the next tune asks nothing of coding, the one after it everything."""
    again = replace(request_, again=True)
    proven = tune(request_, SimulatedBackend(pays_for_coding))
    progress = Silent()

    def interrupt(server: SimulatedServer, text: str) -> None:
        if "writing prove" in text and any(line.startswith("coding: enable") for line in progress.told):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(again, SimulatedBackend(pays_for_coding, before_answer=interrupt), progress)
    second, third = SimulatedBackend(pays_for_coding), SimulatedBackend(pays_for_coding)
    done = tune(again, second)
    assert [text for _, _, text in second.asked if "coding" in text] == []
    assert second.asked
    assert all(done[t].evidence["epoch"] > proven[t].evidence["epoch"] for t in TYPES)
    tune(again, third)
    assert [text for _, _, text in third.asked if "coding" in text]


def test_what_is_known_of_one_cell_is_kept_whatever_becomes_of_another(request_, monkeypatch):
    """Coding cannot be stored at the end: writing is, no cell's answers stay, and the first error is raised."""
    kept, forgotten = [], []
    forget = Store.forget_surveys

    def fail(_store: Store, recommendation: Recommendation, *_: object) -> None:
        if recommendation.prompt_type is PromptType.CODING:
            raise StoreError("The disk is full.")
        kept.append(recommendation.prompt_type)

    def noted(store: Store, key: str) -> None:
        forgotten.append(key)
        forget(store, key)

    monkeypatch.setattr(run_module, "save_recommendation", fail)
    monkeypatch.setattr(Store, "forget_surveys", noted)
    # Nothing is decided, so that all is stored at the end only.
    monkeypatch.setattr(run_module.Proof, "run", lambda _: None)
    with pytest.raises(StoreError, match="The disk is full"):
        tune(replace(request_, forget_answers=True), SimulatedBackend(pays_for_coding))
    assert kept == [PromptType.WRITING]
    assert len(forgotten) == len(TYPES)
    with pytest.raises(KeyboardInterrupt):  # what ended the tune comes first
        tune(
            replace(request_, storage=request_.storage.replace("autospec.db", "other.db")), interrupted_at(1)
        )


def test_a_proof_is_kept_without_the_notes_of_studies_that_went_away(request_, monkeypatch):
    """The studies may be behind a proxy on another machine; the measurements are in the local database."""
    real = CellStudy.noted

    def gone(study: CellStudy, key: str) -> object:
        if key == "idle_draft":
            raise StoreError("Optuna's gRPC proxy at hub:13000 no longer answers.")
        return real(study, key)

    monkeypatch.setattr(CellStudy, "noted", gone)
    progress = Silent()
    result = tune(request_, SimulatedBackend(pays_for_coding), progress)
    assert {r.status for r in result.values()} == {Status.PROVEN}
    assert any("hub:13000 no longer answers" in line for line in progress.told)


def test_by_turns_where_two_launches_do_not_fit(request_, monkeypatch):
    """With memory for one launch no two ever run at once, and the verdicts are the same."""
    monkeypatch.setattr(run_module, "resident_launches", lambda **_: 1)
    backend = SimulatedBackend(pays_for_coding)
    result = tune(request_, backend)
    assert backend.most_running == 1
    assert result[PromptType.CODING].verdict is Verdict.ENABLE
    assert result[PromptType.WRITING].verdict is Verdict.DISABLE
    asked = Counter((launch, text) for launch, drafting, text in backend.asked if not drafting.is_off)
    assert max(asked.values()) == 1


def test_two_that_do_not_fit_after_all_go_on_by_turns(request_):
    """A launch beside off that runs out of memory is repeated alone, and the study continues."""
    backend = SimulatedBackend(pays_for_coding)

    def refuse(drafting: Drafting) -> None:
        if backend.running:
            raise LaunchError("Out of memory.")

    backend.before_launch = refuse
    result = tune(request_, backend)
    assert backend.most_running == 1
    assert result[PromptType.CODING].verdict is Verdict.ENABLE


def test_no_arms_is_undecided_and_launches_nothing(request_):
    """A build without drafting modes gets a sentence, and no launch."""
    backend = SimulatedBackend(pays_for_coding, modes=frozenset({Mode.OFF}))
    result = tune(request_, backend)
    assert backend.launched == []
    assert all(r.verdict is Verdict.UNDECIDED and "modes" in r.reason for r in result.values())


def test_budget_that_is_spent_leaves_undecided(request_, monkeypatch):
    """When the time is over, the search ends after its first trial and the proof stays as far as it is."""
    from autospec.tuning import budget

    clock = iter(range(0, 10_000_000, 30))
    monkeypatch.setattr(budget.Budget.__init__, "__defaults__", (lambda: float(next(clock)),))
    result = tune(replace(request_, budget_s=1200.0), SimulatedBackend(pays_for_coding, noise=0.05))
    assert set(result) == set(TYPES)
    for r in result.values():
        if r.verdict is Verdict.UNDECIDED:
            assert r.status is Status.PROVISIONAL
            assert "run tune again" in r.reason


def test_second_tune_is_told_who_holds_the_machine(request_, tmp_path):
    """While a tune measures, another one is refused; the error names process, work and time."""
    refused: list[str] = []

    def tune_too(_server: SimulatedServer, _text: str) -> None:
        if not refused:
            second = request_with(tmp_path / "second")
            with pytest.raises(BusyError) as caught:
                Tuning(second, SimulatedBackend(pays_for_coding), MACHINE, Silent()).run()
            refused.append(str(caught.value))

    tune(request_, SimulatedBackend(pays_for_coding, before_answer=tune_too))
    assert re.search(rf"process {os.getpid()} \(tune main\), since \d{{4}}-", refused[0]), refused


def test_json_of_the_result_holds_the_evidence(request_):
    """The recommendation carries the arguments of the drafting, the pairs, and what it cost."""
    coding = tune(request_, SimulatedBackend(pays_for_coding))[PromptType.CODING]
    document = json.loads(json.dumps(coding.to_json()))
    assert document["evidence"]["args"][0] == "--mode=draft-model"
    assert document["evidence"]["same_text"] == document["evidence"]["compared_texts"] == document["pairs"]
    assert document["evidence"]["cost"]["launches"] > 2
    assert document["acceptance"] == 0.5


def test_energy_is_in_the_evidence_only_where_it_is_known(request_, tmp_path, monkeypatch):
    """A GPU that takes 40 J for each request; this machine's own counters are left out."""
    finish = StateWatch.finish

    def known(watch):
        return replace(finish(watch), window_s=1.0, cpu_energy_j=None, gpu_energy_j=40.0)

    monkeypatch.setattr(StateWatch, "finish", known)
    energy = tune(request_, SimulatedBackend(pays_for_coding))[PromptType.CODING].evidence["energy"]
    assert energy["parts"] == ["gpu"]
    assert energy["ratio"] == 1.0
    monkeypatch.setattr(StateWatch, "finish", lambda w: replace(known(w), gpu_energy_j=None))
    other = tune(request_with(tmp_path / "other"), SimulatedBackend(pays_for_coding))[PromptType.CODING]
    assert "energy" not in other.evidence


def _exposure(asked: tuple[str, Drafting, str]) -> tuple[str, str]:
    return asked[1].key, asked[2]


def _cell_key(request: TuneRequest, backend: SimulatedBackend, prompt_type: PromptType) -> str:
    from autospec.cells import Cell

    build = backend.capabilities().build
    return Cell(request.model.ref, prompt_type, build, MACHINE, request.settings().args).key

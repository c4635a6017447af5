"""A server that answers some prompts with an error, and lives: they are left out, and the others go on."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import optuna
import pytest

from autospec.cells import PromptType
from autospec.drafting import OFF, Mode
from autospec.errors import AutospecError, BackendError, LateAnswerError, NoAnswerError, RequestError
from autospec.measure import disturbances
from autospec.measure.measurements import Phase
from autospec.prompts.suite import Half
from autospec.recommendations import FAILING, Status, Verdict
from autospec.tuning import load_guard
from autospec.tuning.paired_runner import MOST_FAILING, Measured, PairedRunner
from autospec.tuning.run import Tuning
from autospec.tuning.search import Search
from autospec.tuning.space import Arm
from autospec.tuning.study import open_storage
from autospec.tuning.tasks import Task
from tests.predict.machine import Machine, MachineServer, MachineTokens
from tests.tuning.proofs import lab, ngram, prompts
from tests.tuning.simulated import SimulatedBackend, SimulatedServer
from tests.tuning.test_forecast import WAITS_FOR_MEMORY
from tests.tuning.test_paired_runner import CALM, DRAFTING, TASKS, Watch, pairing, with_states
from tests.tuning.test_run import (
    MACHINE,
    TYPES,
    Silent,
    nobody_else_is_at_work,
    pays_for_coding,
    request_,
    tune,
)

pytestmark = pytest.mark.usefixtures("no_waits")

ARM = Arm(Mode.NGRAM_SIMPLE)

__all__ = ["nobody_else_is_at_work", "request_"]


def refusing(*words: str, off: bool | None = None):
    """Refuses prompts with one of these words: all servers, or only those with or without drafting."""

    def refuse(server: SimulatedServer, text: str) -> None:
        if off in (None, server.drafting.is_off) and any(word in text for word in words):
            raise RequestError("status 500: the answer cannot be parsed.")

    return refuse


def late(*words: str, off: bool):
    """Does not answer prompts with one of these words in time, with drafting or without."""

    def hang(server: SimulatedServer, text: str) -> None:
        if server.drafting.is_off == off and any(word in text for word in words):
            raise LateAnswerError("It did not answer within 600 s.")

    return hang


@pytest.mark.parametrize("resident", [2, 1])
@pytest.mark.parametrize("off", [True, False])
def test_one_failing_prompt_leaves_the_others(tmp_path, resident, off):
    """It comes back without a pair and with the reason, and is not asked again in this tune."""
    told: list[str] = []
    runner, backend = pairing(tmp_path, Watch(), [], resident=resident)
    runner._tell = told.append
    backend.before_answer = refusing('"1"', off=off)
    for round_ in (1, 2):
        measured = {m.task.prompt_id: m for m in runner.block(TASKS, DRAFTING, Phase.PROVE, round_)}
        assert measured.keys() == {"p0", "p1", "p2"}
        assert [name for name, m in measured.items() if m.pair is None] == ["p1"]
        assert measured["p1"].disturbed == "status 500: the answer cannot be parsed."
        assert len(runner.known("cell", DRAFTING, Phase.PROVE, round_)) == 2
    side = "without drafting" if off else f"with {DRAFTING.label}"
    assert told == [
        f"The prompt p1 is left out, because it fails {side}: status 500: the answer cannot be parsed."
    ]
    assert runner.failing("cell", OFF if off else DRAFTING) == {"p1"}
    assert runner.missing(TASKS[1:2], DRAFTING, Phase.PROVE, 3) == []
    assert not runner.gave_up("cell", DRAFTING)
    runner._launches.close()


@pytest.mark.parametrize("resident", [2, 1])
@pytest.mark.parametrize("off", [True, False])
def test_after_several_the_rest_of_the_type_is_not_asked(tmp_path, monkeypatch, resident, off):
    """Each may take as long as a request; the cell beside it is measured as usual."""
    made = lab(tmp_path, monkeypatch, resident=resident, cells=(("a", ngram(4), 1.5), ("b", ngram(4), 1.5)))
    made.backend.before_answer = refusing("a prove", off=off)
    before = len(made.backend.asked)
    tasks = [Task.of(name, p) for name in ("b", "a") for p in prompts(name, 8, 1.0)]
    measured = list(made.context.pairing.block(tasks, ngram(4), Phase.PROVE, 1))
    assert len(measured) == 16
    assert {m.task.cell_key for m in measured if m.pair is None} == {"a"}
    assert sum(m.pair is not None for m in measured) == 8
    refused = [text for _, d, text in made.backend.asked[before:] if "a prove" in text and d.is_off == off]
    assert len(refused) == MOST_FAILING + 1
    assert made.context.pairing.gave_up("a", ngram(4))
    assert made.context.pairing.gave_up("a", ngram(5)) is off
    assert sum("no more of its prompts are asked" in line for line in made.watcher.told) == 1
    made.context.launches.close()


@pytest.mark.parametrize("resident", [2, 1])
def test_a_prompt_that_fails_on_both_sides_is_no_fault_of_the_drafting(tmp_path, monkeypatch, resident):
    """Off is asked, too, where drafting was asked first; the other prompts are measured."""
    told: list[str] = []
    runner, backend = pairing(tmp_path, Watch(), [], resident=resident)
    runner._tell = told.append
    monkeypatch.setattr(runner, "_next_order", lambda drafting: (drafting, OFF))
    backend.before_answer = refusing('"1"')
    measured = list(runner.block(TASKS, DRAFTING, Phase.PROVE, 1))
    assert sorted(m.task.prompt_id for m in measured if m.pair is not None) == ["p0", "p2"]
    assert runner.failing("cell", OFF) == {"p1"}
    assert not runner.failing("cell", DRAFTING)
    assert told[-1] == "The prompt p1 fails without drafting, too: status 500: the answer cannot be parsed."
    runner._launches.close()


def test_a_server_that_answers_nothing_without_drafting_ends_the_tune(request_):
    """That is a fault of the settings; the error names the prompt."""
    with pytest.raises(AutospecError, match=r"coding-tune-\d .*: status 500"):
        tune(request_, SimulatedBackend(pays_for_coding, before_answer=refusing("tune", "prove", off=True)))


@pytest.mark.parametrize("off", [True, False])
def test_a_server_that_does_not_answer_in_time_is_no_fault_of_a_prompt(tmp_path, off):
    """The next request may take the ten minutes as well: the trial or the tune ends, as earlier."""
    runner, backend = pairing(tmp_path, Watch(), [])

    def hang(server: SimulatedServer, text: str) -> None:
        if server.drafting.is_off == off and '"1"' in text:
            raise NoAnswerError("It did not answer within 600 s.")

    backend.before_answer = hang
    with pytest.raises(AutospecError, match="within 600 s") as raised:
        list(runner.block(TASKS, DRAFTING, Phase.PROVE, 1))
    assert isinstance(raised.value, BackendError) is not off
    runner._launches.close()


@pytest.mark.parametrize("off", [True, False])
def test_one_late_answer_among_others_is_the_prompts_fault(tmp_path, off):
    """The server has just answered others in time: the prompt is left out, and the others are measured."""
    runner, backend = pairing(tmp_path, Watch(), [])
    backend.before_answer = late('"1"', off=off)
    measured = list(runner.block(TASKS, DRAFTING, Phase.PROVE, 1))
    assert [m.task.prompt_id for m in measured if m.pair is None] == ["p1"]
    assert runner.failing("cell", OFF if off else DRAFTING) == {"p1"}
    runner._launches.close()


@pytest.mark.parametrize("off", [True, False])
@pytest.mark.parametrize("words", [('"0"',), ('"1"', '"2"')])
def test_a_server_that_answers_nothing_in_time_ends_it(tmp_path, off, words):
    """The first request, or two in a row: no prompt is at fault, and each would take the whole time."""
    runner, backend = pairing(tmp_path, Watch(), [])
    backend.before_answer = late(*words, off=off)
    with pytest.raises(AutospecError, match="within 600 s") as raised:
        list(runner.block(TASKS, DRAFTING, Phase.PROVE, 1))
    assert isinstance(raised.value, BackendError) is not off
    runner._launches.close()


@pytest.mark.parametrize("resident", [2, 1])
@pytest.mark.parametrize(("busy_s", "fails"), [(1, set()), (1000, {"p1"})])
def test_an_answer_that_other_programs_made_late_is_asked_once_more(
    tmp_path, monkeypatch, resident, busy_s, fails
):
    """It was blamed on the drafting, which no tune enabled then. Where the load stays, off has answered under it, too."""
    monkeypatch.setattr(load_guard, "busy", disturbances.busy)
    watch = Watch()
    runner, backend = pairing(tmp_path, watch, [], resident=resident)
    asked: list[str] = []

    def hang(server: SimulatedServer, text: str) -> None:
        if not server.drafting.is_off and '"1"' in text and (fails or not asked):
            asked.append(server.launch_id)
            watch.script = [replace(CALM, other_load=3.0)] * busy_s
            raise LateAnswerError("It did not answer within 600 s.")

    backend.before_answer = hang
    measured = list(runner.block(TASKS, DRAFTING, Phase.PROVE, 1))
    assert {m.task.prompt_id for m in measured if m.pair is None} == fails
    assert runner.failing("cell", DRAFTING) == fails
    assert len(asked) == 1
    runner._launches.close()


def test_a_type_is_proved_without_its_failing_prompts(request_):
    """One in the search, one in the proof: the same verdicts as without them."""
    progress = Silent()
    refuse = refusing("coding tune 0", "coding prove 3", "writing prove 5", off=True)
    result = tune(request_, SimulatedBackend(pays_for_coding, before_answer=refuse), progress)
    assert result[PromptType.CODING].verdict is Verdict.ENABLE
    assert result[PromptType.CODING].evidence[FAILING] == {"off": ["coding-prove-3"], "drafted": []}
    assert result[PromptType.WRITING].verdict in (Verdict.DISABLE, Verdict.UNDECIDED)
    assert not any("the proof could not be measured" in line for line in progress.told)


@pytest.mark.parametrize("half", ["tune", "prove"])
def test_a_drafting_that_fails_where_off_answers_is_not_enabled(request_, half):
    """Its users would get errors; the evidence names the prompt, and later tunes do not measure it again."""
    refuse = refusing(f"coding {half} 0", off=False)
    backend = SimulatedBackend(pays_for_coding, before_answer=refuse)
    coding = tune(request_, backend)[PromptType.CODING]
    assert coding.verdict is Verdict.UNDECIDED
    assert coding.drafting.is_off
    assert coding.reason == "1 prompt fails with drafting only."
    assert coding.status is Status.PROVEN
    told = coding.evidence[FAILING]
    assert (told["off"], told["drafted"]) == ([], [f"coding-{half}-0"])
    # The search asked other draftings only the tune prompts.
    assert ("others" in told) is (half == "tune")
    asked = len(backend.asked)
    assert tune(request_, backend)[PromptType.CODING].verdict is Verdict.UNDECIDED
    assert len(backend.asked) == asked


def test_it_is_not_enabled_for_all_types_together(request_):
    """Not by the tune that saw the failure, and not from the evidence alone."""
    refuse = refusing("writing prove 0", off=False)
    backend = SimulatedBackend(lambda d, _: 2.0 if d.mode is Mode.DRAFT_MODEL else 0.9, before_answer=refuse)
    result = tune(request_, backend)
    assert result[PromptType.CODING].verdict is Verdict.ENABLE
    for _ in range(2):
        tuning = Tuning(request_, backend, MACHINE, Silent())
        tuning.run()
        assert tuning.overall().verdict is Verdict.UNDECIDED
        assert tuning.overall().drafting.is_off


def test_one_type_that_gave_up_in_the_search_leaves_the_others_proved(tmp_path, monkeypatch):
    """Nothing of it is left to be measured; earlier that ended the proof of all types."""
    cells = (("a", ngram(4), 1.5), ("b", ngram(4), 1.5), ("c", ngram(5), 1.5))
    made = lab(tmp_path, monkeypatch, cells=cells)
    made.backend.before_answer = refusing("a tune", off=False)
    failing = [Task.of("a", replace(p, id=f"{p.id} again")) for p in prompts("a", 3, 1.0, Half.TUNE)]
    list(made.context.pairing.block(failing, ngram(4), Phase.SEARCH, 0))
    assert made.context.pairing.gave_up("a", ngram(4))
    assert [cell.cell.key for cell in made.prove()] == ["a", "b", "c"]
    assert [cell.enabled for cell in made.cells] == [False, True, True]
    made.context.launches.close()


def test_one_type_that_gives_up_in_the_proof_leaves_the_others_proved(tmp_path, monkeypatch):
    """Its last prompts may be clean."""
    cells = (("a", ngram(4), 1.5), ("b", ngram(4), 1.5))
    made = lab(tmp_path, monkeypatch, cells=cells)
    made.backend.before_answer = refusing("a prove", off=False)
    assert [cell.cell.key for cell in made.prove()] == ["a", "b"]
    assert [cell.enabled for cell in made.cells] == [False, True]
    made.context.launches.close()


def test_a_type_that_cannot_be_answered_ends_no_other(request_):
    """The server cannot parse any answer of one type: that type stays off, and says why."""
    progress = Silent()
    result = tune(request_, SimulatedBackend(pays_for_coding, before_answer=refusing("writing")), progress)
    assert result[PromptType.CODING].verdict is Verdict.ENABLE
    assert result[PromptType.WRITING].verdict is Verdict.UNDECIDED
    assert result[PromptType.WRITING].drafting.is_off
    assert any(line.startswith("writing: no more of its prompts are asked") for line in progress.told)


def test_a_type_that_off_cannot_answer_is_not_tried_again_and_again(request_):
    """One failed trial in a tune, and the next tune searches it again."""
    backend = SimulatedBackend(pays_for_coding, before_answer=refusing("writing"))
    result = tune(request_, backend)
    assert result[PromptType.WRITING].reason.startswith("No drafting could be measured.")
    assert failed_trials(request_, PromptType.WRITING) == 1
    backend.before_answer = lambda _server, _text: None
    assert tune(request_, backend)[PromptType.WRITING].verdict is Verdict.DISABLE


def failed_trials(request, kind) -> int:
    """Number of the failed trials of a type."""
    storage = open_storage(request.storage)
    (name,) = [n for n in optuna.get_all_study_names(storage) if f"| {kind} |" in n]
    trials = optuna.load_study(study_name=name, storage=storage).trials
    return sum(t.state is optuna.trial.TrialState.FAIL for t in trials)


def test_a_disturbed_pair_stays_if_its_repeat_fails():
    """A trial with it is better than a failed one."""
    first = Measured(TASKS[0], with_states(CALM, replace(CALM, on_battery=True)), "on battery")
    pairs = {"cell": {"p0": first}}
    repeats = SimpleNamespace(block=lambda *_: [Measured(TASKS[0], None, "status 500")])
    search = SimpleNamespace(_context=SimpleNamespace(pairing=repeats))
    Search._repeat_disturbed(search, DRAFTING, pairs, {})
    assert pairs == {"cell": {"p0": first}}


@pytest.mark.parametrize("recorded", [True, False])
def test_a_cell_without_a_prediction_is_searched_by_trials(recorded):
    """Of a trusted drafting, too: its answers could not be recorded, and those of other types do not cover it."""
    cell = SimpleNamespace(cell=SimpleNamespace(key="cell"), tune_prompts=[t.prompt for t in TASKS])
    search = SimpleNamespace(
        _dead_arms=set(),
        _reach=SimpleNamespace(may_win=lambda *_: True),
        _space=SimpleNamespace(leaders=lambda: [DRAFTING], arm_of=lambda _: ARM),
        _forecast=SimpleNamespace(trusts=lambda _: True, predicted=lambda *_: 1.2 if recorded else None),
        _pairs={"cell": {DRAFTING: [with_states(CALM, CALM)]}},
        _definition=SimpleNamespace(prompts=3),
        _context=SimpleNamespace(pairing=SimpleNamespace(failure=lambda *_: "")),
    )
    search._covers = partial(Search._covers, search)
    assert Search._is_open(search, ARM, [cell]) is not recorded
    assert bool(Search._unasked(search, cell, DRAFTING)) is not recorded


def test_a_drafting_that_fails_for_one_type_is_measured_for_the_other(request_):
    """A trial's results stay, where earlier the whole trial failed."""

    def refuse(server: SimulatedServer, text: str) -> None:
        if server.drafting.mode is Mode.DRAFT_MODEL and "writing" in text:
            raise RequestError("status 500")

    result = tune(request_, SimulatedBackend(pays_for_coding, before_answer=refuse))
    assert result[PromptType.CODING].verdict is Verdict.ENABLE
    assert result[PromptType.CODING].drafting.mode is Mode.DRAFT_MODEL
    assert result[PromptType.WRITING].drafting.is_off


@pytest.mark.parametrize("words", ["coding tune 1", "coding"])
def test_answers_that_cannot_be_recorded_leave_the_others_predicted(request_, monkeypatch, words):
    """A chat template that refuses a prompt, or a whole type."""
    request_ = replace(request_, prompt_types=TYPES)
    for model in request_.models:
        model.path.touch()
    encode = MachineTokens.encode

    def refuse(self, request):
        if words in str(request.messages):
            raise RequestError("the template raised an exception")
        return encode(self, request)

    monkeypatch.setattr(MachineTokens, "encode", refuse)
    backend = Machine(main_path=str(request_.model.path), acceptance=lambda _: 0.85, costs=WAITS_FOR_MEMORY)
    progress = Silent()
    result = tune_on(request_, backend, progress)
    assert "prediction" in result[PromptType.WRITING].evidence
    assert result[PromptType.WRITING].verdict is result[PromptType.CODING].verdict is Verdict.ENABLE
    assert any("is not predicted: the template raised" in line for line in progress.told)
    assert not any("Predictions are not possible" in line for line in progress.told)


@pytest.mark.parametrize(
    ("words", "all_predicted"), [(("coding tune 1",), True), (("tune 0", "tune 1"), False)]
)
def test_one_late_answer_does_not_end_all_predictions(request_, monkeypatch, words, all_predicted):
    """It is not predicted; where the server answers nothing in time, nothing is."""
    request_ = replace(request_, prompt_types=TYPES)
    for model in request_.models:
        model.path.touch()
    encode = MachineTokens.encode

    def hang(self, request):
        if any(word in str(request.messages) for word in words):
            raise LateAnswerError("It did not answer within 600 s.")
        return encode(self, request)

    monkeypatch.setattr(MachineTokens, "encode", hang)
    backend = Machine(main_path=str(request_.model.path), acceptance=lambda _: 0.85, costs=WAITS_FOR_MEMORY)
    progress = Silent()
    tune_on(request_, backend, progress)
    assert any("Predictions are not possible" in line for line in progress.told) is not all_predicted
    assert any("is not predicted: It did not" in line for line in progress.told) is all_predicted


def test_a_prompt_that_is_late_in_its_recording_is_not_asked_again(request_, monkeypatch):
    """It would take its ten minutes two or three times in a tune."""
    for model in request_.models:
        model.path.touch()
    encode, complete, asked = MachineTokens.encode, MachineServer.complete, []

    def hang(self, request):
        if "coding tune 1" in str(request.messages):
            raise LateAnswerError("It did not answer within 600 s.")
        return encode(self, request)

    def listen(self, request):
        asked.append(str(request.messages))
        return complete(self, request)

    monkeypatch.setattr(MachineTokens, "encode", hang)
    monkeypatch.setattr(MachineServer, "complete", listen)
    backend = Machine(main_path=str(request_.model.path), acceptance=lambda _: 0.85, costs=WAITS_FOR_MEMORY)
    result = tune_on(request_, backend, Silent())
    assert result[PromptType.CODING].verdict is Verdict.ENABLE
    assert any("coding tune" in text for text in asked)
    assert not any("coding tune 1" in text for text in asked)


def test_a_prompt_that_off_has_answered_in_a_pair_stays_where_its_recording_is_late(tmp_path):
    """Of a very slow model, an answer of a pair is cut and in time, and a whole one is not: that ends nothing."""
    runner, _ = pairing(tmp_path, Watch(), [])
    list(runner.block(TASKS[:1], DRAFTING, Phase.PROVE, 1))
    for task in TASKS:
        runner.note_late("cell", task.prompt_id, "It did not answer within 600 s.")
    assert runner.failing("cell", OFF) == {"p1", "p2"}
    [measured] = runner.block(TASKS[:1], DRAFTING, Phase.PROVE, 2)
    assert measured.pair is not None
    runner._launches.close()


def test_late_recordings_do_not_end_the_tune_where_a_prompt_fails(tmp_path):
    """No pair is stored yet, but off has answered: other answers were recorded."""
    runner, backend = pairing(tmp_path, Watch(), [])
    for name in ("q1", "q2"):
        runner.note_late("another cell", name, "It did not answer within 600 s.")
    backend.before_answer = refusing('"0"', off=True)
    measured = list(runner.block(TASKS, DRAFTING, Phase.SEARCH, 0))
    assert [m.task.prompt_id for m in measured if m.pair is None] == ["p0"]
    runner._launches.close()


def test_a_prompt_that_fails_without_drafting_is_not_recorded(request_, monkeypatch):
    """The pairs have shown it: the predictions of a proof would wait for it once more."""
    for model in request_.models:
        model.path.touch()
    failing, encode, encoded = PairedRunner.failing, MachineTokens.encode, []

    def known(self, cell_key, side):
        return failing(self, cell_key, side) | ({"coding-tune-1"} if side.is_off else set())

    def listen(self, request):
        encoded.append(str(request.messages))
        return encode(self, request)

    monkeypatch.setattr(PairedRunner, "failing", known)
    monkeypatch.setattr(MachineTokens, "encode", listen)
    backend = Machine(main_path=str(request_.model.path), acceptance=lambda _: 0.85, costs=WAITS_FOR_MEMORY)
    tune_on(request_, backend, Silent())
    assert any("coding tune" in text for text in encoded)
    assert not any("coding tune 1" in text for text in encoded)


def tune_on(request, backend, progress):
    """A tune on a machine whose servers are not counted."""
    backend.running = set()
    return tune(request, backend, progress)

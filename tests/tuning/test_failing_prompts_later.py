"""What an earlier tune has seen to fail: later tunes, the proof and the answer for all prompt types know it."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from autospec.cells import PromptType
from autospec.drafting import OFF, Mode
from autospec.errors import RequestError, ServerDiedError
from autospec.measure.measurements import Phase
from autospec.recommendations import FAILING, Status, Verdict
from autospec.store.database import open_store
from autospec.tuning.cell import CellRun
from autospec.tuning.overall import Known
from autospec.tuning.overall_answer import for_mix
from autospec.tuning.overall_proof import OverallProof
from autospec.tuning.proof import Proof
from autospec.tuning.resume import FAILED_BEFORE
from autospec.tuning.run import Tuning
from tests.report.samples import DRAFTING as ITS_DRAFTING
from tests.report.samples import recommendation
from tests.tuning.proofs import lab, ngram
from tests.tuning.simulated import SimulatedBackend, SimulatedServer
from tests.tuning.test_failing_prompts import late as late_answer
from tests.tuning.test_failing_prompts import refusing
from tests.tuning.test_overall import pairs
from tests.tuning.test_paired_runner import DRAFTING, TASKS, Watch, pairing
from tests.tuning.test_run import (
    MACHINE,
    Silent,
    nobody_else_is_at_work,
    pays_for_coding,
    request_,
    suite,
    tune,
)
from tests.tuning.test_runner_up import on_prove_prompts

pytestmark = pytest.mark.usefixtures("no_waits")

__all__ = ["nobody_else_is_at_work", "request_"]

CODING, WRITING = PromptType.CODING, PromptType.WRITING
OTHER = ngram(5)


def refusing_drafts(*words: str):
    """Refuses prompts with one of these words where a draft model drafts."""

    def refuse(server: SimulatedServer, text: str) -> None:
        if server.drafting.mode is Mode.DRAFT_MODEL and any(word in text for word in words):
            raise RequestError("status 500: the answer cannot be parsed.")

    return refuse


def interrupted_before_the_proof(request, backend) -> None:
    """A tune that ends when its search has chosen."""

    def interrupt(_: Proof) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Proof, "run", interrupt)
        with pytest.raises(KeyboardInterrupt):
            tune(request, backend)


def stored(request) -> dict[PromptType, object]:
    """The stored recommendations."""
    store = open_store(request.storage)
    found = {s.recommendation.prompt_type: s.recommendation for s in store.recommendations()}
    store.close()
    return found


@pytest.mark.parametrize("where", ["study", "evidence"])
def test_what_an_earlier_tune_saw_fail_is_not_enabled_later(request_, monkeypatch, where):
    """Its winner answers every prompt of the proof; `--again` forgets it.

    A kill leaves it in the study only; the first version left it in the evidence only.
    """
    request = replace(request_, prompt_types=(CODING,))
    backend = SimulatedBackend(pays_for_coding, before_answer=refusing("coding tune 0", off=False))
    with monkeypatch.context() as patch:
        if where == "study":
            patch.setattr("autospec.tuning.run.failing_json", lambda *_: None)
        else:
            patch.setattr(CellRun, "note_failing", lambda *_: None)
        interrupted_before_the_proof(request, backend)
    first = stored(request)[CODING]
    assert first.status is Status.PROVISIONAL
    assert "likely" not in first.evidence
    assert (FAILING in first.evidence) is (where == "evidence")
    backend.before_answer = lambda _server, _text: None
    launched = len(backend.launched)
    second = tune(request, backend)[CODING]
    assert (second.verdict, second.status, second.drafting) == (Verdict.UNDECIDED, Status.PROVEN, OFF)
    assert second.reason == "1 prompt fails with drafting only."
    assert second.evidence[FAILING]["drafted"] == ["coding-tune-0"]
    assert all(d.is_off for d in backend.launched[launched:]), "a proof that cannot enable was launched"
    assert tune(replace(request, again=True), backend)[CODING].verdict is Verdict.ENABLE


def test_a_failure_that_off_shares_is_not_noted(tmp_path, monkeypatch):
    """Before off was asked too, it is no fault of the drafting; afterwards, it never is."""
    kept: list[object] = []
    runner, backend = pairing(tmp_path, Watch(), [])
    runner._on_failing = lambda *found: kept.append(found)
    monkeypatch.setattr(runner, "_next_order", lambda drafting: (drafting, OFF))
    backend.before_answer = refusing('"1"')
    list(runner.block(TASKS, DRAFTING, Phase.PROVE, 1))
    assert not kept
    backend.before_answer = refusing('"2"', off=False)
    list(runner.block(TASKS, DRAFTING, Phase.PROVE, 2))
    assert kept == [("cell", DRAFTING, {"p2": "status 500: the answer cannot be parsed."})]
    assert runner.all_failing("cell") == {OFF: {"p1"}, DRAFTING: {"p2"}}
    runner._launches.close()


@pytest.mark.parametrize("late", [True, False])
def test_that_off_is_late_once_excuses_no_failure_that_is_known(tmp_path, late):
    """Off answered it when the other drafting failed; an error without drafting is another matter."""
    kept: list[object] = []
    runner, backend = pairing(tmp_path, Watch(), [])
    runner._on_failing = lambda *found: kept.append(found)
    for known in (runner._failing, runner._known_failing):
        known["cell", OTHER] = {"p1": FAILED_BEFORE}
    backend.before_answer = late_answer('"1"', off=True) if late else refusing('"1"', off=True)
    list(runner.block(TASKS, DRAFTING, Phase.PROVE, 1))
    assert runner.failing("cell", OFF) == {"p1"}
    assert runner.failing("cell", OTHER) == ({"p1"} if late else set())
    assert kept == ([] if late else [("cell", OTHER, {})])
    runner._launches.close()


def test_a_drafting_that_is_known_to_fail_is_not_enabled_where_off_is_late(tmp_path, monkeypatch):
    """Neither is counted out against the other."""
    made = lab(tmp_path, monkeypatch)
    [cell] = made.cells
    pairing_ = made.context.pairing
    pairing_._failing[cell.cell.key, ngram(4)] = {"a-prove-0": FAILED_BEFORE}
    pairing_._failing[cell.cell.key, OFF] = {"a-prove-0": "It did not answer within 600 s."}
    assert made.prove() == [cell]
    assert cell.decision is not None
    assert cell.decision.reason == "1 prompt fails with drafting only"
    made.context.launches.close()


def test_the_runner_up_is_proved_instead_without_a_launch_of_the_winner(request_):
    """The search has seen it fail: its proof could not enable it."""
    backend = SimulatedBackend(on_prove_prompts(1.5, 1.3), before_answer=refusing_drafts("tune 0"))
    for found in tune(request_, backend).values():
        assert (found.verdict, found.drafting.mode) == (Verdict.ENABLE, Mode.NGRAM_SIMPLE)
        [other] = found.evidence["also_proved"]
        assert (other["drafting"]["mode"], other["verdict"], other["rounds"]) == (
            "draft-model",
            "undecided",
            0,
        )
        failing = {"drafting": other["drafting"], "prompts": [f"{found.prompt_type}-tune-0"]}
        assert any(failing.items() <= told.items() for told in found.evidence[FAILING]["others"])
    asked = [text for _, d, text in backend.asked if d.mode is Mode.DRAFT_MODEL and "prove" in text]
    assert not asked


def test_where_the_runner_up_does_not_run_either_the_answer_is_final(request_):
    """Otherwise every tune would launch it again."""

    def breaks(server: SimulatedServer, text: str) -> None:
        refusing_drafts("tune 0")(server, text)
        if server.drafting.mode is Mode.NGRAM_SIMPLE and "prove" in text:
            raise ServerDiedError("It died.", "Look.")

    result = tune(request_, SimulatedBackend(on_prove_prompts(1.5, 1.3), before_answer=breaks))
    for found in result.values():
        assert (found.verdict, found.status) == (Verdict.UNDECIDED, Status.PROVEN)
        assert found.tried.mode is Mode.DRAFT_MODEL
        assert found.reason == "1 prompt fails with drafting only."


@pytest.mark.parametrize("runner_up", [True, False])
def test_several_failing_prompts_are_a_result_as_one_is(tmp_path, monkeypatch, runner_up):
    """The first round leaves it open, three prompts of the second fail: earlier such a cell was never decided."""
    made = lab(tmp_path, monkeypatch, speedup=lambda _d, _t: 1.08, prove=24)
    [cell] = made.cells
    if runner_up:
        cell.runner_up, cell.shares_rate = ngram(5), True
        made.backend.speedup = lambda d, _: 1.08 if d == ngram(4) else 1.5

    def refuse(server: SimulatedServer, text: str) -> None:
        # The second round asks every third prompt, from the second on.
        if server.drafting == ngram(4) and any(f'a prove {n}"' in text for n in (1, 4, 7)):
            raise RequestError("status 500")

    made.backend.before_answer = refuse
    assert made.prove() == [cell]
    reason = "3 prompts fail with drafting only"
    if runner_up:
        assert (cell.enabled, cell.winner) == (True, ngram(5))
        assert cell.other is not None
        assert (cell.other.decision.reason, cell.other.rounds) == (reason, 1)
    else:
        assert cell.decision is not None
        assert (cell.decision.verdict, cell.decision.reason) == (Verdict.UNDECIDED, reason)
        assert cell.decision.estimate is not None
    made.context.launches.close()


def test_a_winner_without_a_trial_is_not_searched_again_for_failing_prompts(tmp_path, monkeypatch):
    """They are an answer; a launch that fails is none."""
    made = lab(tmp_path, monkeypatch)
    [cell] = made.cells
    cell.trial_values.clear()
    made.backend.before_answer = refusing("a prove", off=False)
    assert made.prove() == [cell]
    assert cell.searched
    assert made.watcher.told[-1] == "a: undecided: 3 prompts fail with drafting only"
    made.context.launches.close()


def test_a_mix_knows_what_failed_with_a_drafting_that_a_type_did_not_choose(request_):
    """Eight clean pairs in both types would enable it; a prompt of one of them failed, and another drafting was proved there."""
    definition = replace(request_.definition, prompts_per_round=9)
    request = replace(request_, definition=definition, suite=suite(prove=9))
    backend = SimulatedBackend(on_prove_prompts(1.5, 1.3), before_answer=refusing_drafts("writing prove 0"))
    result = tune(request, backend)
    assert result[CODING].drafting.mode is Mode.DRAFT_MODEL
    assert result[WRITING].drafting.mode is Mode.NGRAM_SIMPLE
    answer = mixed(request)
    assert answer.drafting.mode is not Mode.DRAFT_MODEL
    told = {c["drafting"]["mode"]: c["verdict"] for c in answer.evidence["candidates"]}
    assert told["draft-model"] == "undecided"


def mixed(request):
    """What `recommend --mix coding=1,writing=1` says."""
    store = open_store(request.storage)
    try:
        answers = [s.recommendation for s in store.overall_answers()]
        [answer] = for_mix(store, store.recommendations(), answers, {CODING: 1.0, WRITING: 1.0})
    finally:
        store.close()
    return answer


def test_a_mix_knows_what_failed_in_the_overall_measuring(request_):
    """Writing has its own drafting, so that only the step for all types asks it with coding's."""

    def speedup(drafting, text: str) -> float:
        draft_model, other = (1.5, 1.1) if "coding" in text else (1.2, 1.4)
        return draft_model if drafting.mode is Mode.DRAFT_MODEL else other

    backend = SimulatedBackend(speedup, before_answer=refusing_drafts("writing prove 0"))
    result = tune(request_, backend)
    assert [result[t].drafting.mode for t in (CODING, WRITING)] == [Mode.DRAFT_MODEL, Mode.NGRAM_SIMPLE]
    [failing] = result[WRITING].evidence[FAILING]["others"]
    assert (failing["drafting"]["mode"], failing["prompts"]) == ("draft-model", ["writing-prove-0"])
    answer = mixed(request_)
    assert answer.drafting.mode is not Mode.DRAFT_MODEL
    assert (answer.evidence["next"] or {}).get("mode") != "draft-model"


def test_a_prompt_that_off_cannot_answer_is_not_asked_for_all_types_again(request_):
    """The step for all types would launch both sides for it in every tune."""
    refuse = refusing("coding prove 3", off=True)
    tune(request_, SimulatedBackend(pays_for_coding, before_answer=refuse))
    later = Tuning(request_, SimulatedBackend(pays_for_coding), MACHINE, Silent())
    later.run()
    [found] = [ids for (_, side), ids in later._failing.items() if side.is_off]
    assert set(found) == {"coding-prove-3"}


def test_a_round_is_complete_without_what_off_cannot_answer():
    """Otherwise it would be open forever."""
    measured = [p for p in pairs(CODING, 1.5) if p.off.prompt_id != "coding-3"]
    cell = SimpleNamespace(
        prompt_type=CODING,
        cell=None,
        prove_prompts=tuple(SimpleNamespace(id=f"coding-{n}") for n in range(8)),
    )
    rule = SimpleNamespace(looks=(1, 2))
    session = SimpleNamespace(
        request=SimpleNamespace(definition=SimpleNamespace(rule=rule, prompts_per_round=8))
    )
    step = OverallProof(session, [cell], None, None, resident=lambda: 2, step=print, failing={})
    known = Known(recommendation(), {ITS_DRAFTING: measured}, prompts=8)
    for failing, rounds in (({}, 0), ({OFF: frozenset({"coding-3"})}, 1)):
        answer = SimpleNamespace(known={CODING: replace(known, failing=failing)}, next=ITS_DRAFTING)
        assert step._rounds_of(answer, CODING) == rounds

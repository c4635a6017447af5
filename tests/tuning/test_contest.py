"""A runner-up that is expected to be faster on the prompts of the proof is proved, though the winner is enabled."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autospec.drafting import OFF, Drafting, Mode
from autospec.errors import ServerDiedError
from autospec.recommendations import NO_LIMITS, Status, Verdict
from autospec.store.database import open_store
from autospec.tuning import winners
from autospec.tuning.budget import Budget
from autospec.tuning.cell import CellRun
from autospec.tuning.forecast import Forecast
from autospec.tuning.proof import Proof
from autospec.tuning.proof_predictions import ProofPredictions
from autospec.tuning.run import Tuning
from tests.predict.machine import Machine, MachineServer, MachineTokens, Text
from tests.tuning.test_forecast import WAITS_FOR_MEMORY, calm, request_
from tests.tuning.test_run import MACHINE, Silent

__all__ = ["calm", "request_"]  # fixtures

MODES = frozenset({Mode.OFF, Mode.DRAFT_MODEL, Mode.NGRAM_SIMPLE})


class Copying(Machine):
    """Answers of the search's prompts copy little, one of them much; those of the proof copy as much as `proof`."""

    proof = 6.0

    def _make(self, words: str, n: int, draft: str) -> Text:
        self.repeats = self.proof if "prove" in words else (6.0 if "tune 1" in words else 0.6)
        return super()._make(words, n, draft)


def machine(request, proof: float = 6.0) -> Copying:
    """A machine where the draft model wins the search."""
    made = Copying(
        main_path=str(request.model.path),
        acceptance=lambda _: 0.75,
        worse={str(request.models[2].path): 0.7},
        costs=WAITS_FOR_MEMORY,
        modes=MODES,
    )
    made.proof = proof
    return made


@pytest.fixture
def limits(monkeypatch) -> None:
    """The checks after the proof, which store the cell once more, find nothing."""

    def check(_self, cells, _context, keep):
        for cell in cells:
            cell.limits = NO_LIMITS
            keep(cell)
        return []

    monkeypatch.setattr(Tuning, "_check_limits", check)


def tune(request, backend: Copying):
    """The served recommendation, and what was told."""
    progress = Silent()
    [found] = Tuning(request, backend, MACHINE, progress).run()
    return found, progress


def proved(progress: Silent) -> list[Mode]:
    """The modes that were proved, in the order of their first rounds."""
    return list(dict.fromkeys(s.drafting.mode for s in progress.steps if s.phase == "prove"))


@pytest.mark.usefixtures("limits")
def test_the_faster_of_two_is_served(request_):
    """The draft model is enabled first; the answers of the proof show that n-grams are faster there, and they are."""
    found, progress = tune(request_, machine(request_))
    assert proved(progress) == [Mode.DRAFT_MODEL, Mode.NGRAM_SIMPLE]
    assert (found.verdict, found.status) == (Verdict.ENABLE, Status.PROVEN)
    assert found.drafting.mode is Mode.NGRAM_SIMPLE
    [other] = found.evidence["also_proved"]
    assert (other["drafting"]["mode"], other["verdict"]) == ("draft-model", "enable")
    assert found.speedup > 1.05 * other["speedup"]
    assert "limits" in found.evidence
    assert sum("is proved, too: it is expected" in line for line in progress.told) == 1


def test_nothing_is_launched_for_a_runner_up_that_is_not_expected_to_be_faster(request_):
    """The answers of the proof copy as little as those of the search."""
    backend = machine(request_, 0.6)
    found, progress = tune(request_, backend)
    assert found.drafting.mode is Mode.DRAFT_MODEL
    assert proved(progress) == [Mode.DRAFT_MODEL]
    assert found.evidence["also_proved"] == []


@pytest.fixture
def unnamed(monkeypatch) -> None:
    """The search names no runner-up: in its few answers no other mode may be faster."""
    monkeypatch.setattr(Forecast, "rival", lambda *_: None)
    monkeypatch.setattr(winners, "_runner_up", lambda *_: OFF)


@pytest.mark.usefixtures("limits", "unnamed")
def test_a_draft_free_drafting_that_the_search_did_not_name_is_proved(request_, monkeypatch):
    """The answers of the proof copy much: its replay needs no further request, and no draft reads them for it."""
    read: list[str] = []
    propose = MachineTokens.propose
    monkeypatch.setattr(
        MachineTokens, "propose", lambda self, *a: (read.append(self.server.alone), propose(self, *a))[1]
    )
    contest, before = Proof.contest, []
    monkeypatch.setattr(Proof, "contest", lambda self, *a: (before.append(len(read)), contest(self, *a))[1])
    found, progress = tune(request_, machine(request_))
    assert proved(progress) == [Mode.DRAFT_MODEL, Mode.NGRAM_SIMPLE]
    assert (found.verdict, found.status, found.drafting.mode) == (
        Verdict.ENABLE,
        Status.PROVEN,
        Mode.NGRAM_SIMPLE,
    )
    [other] = found.evidence["also_proved"]
    assert (other["drafting"]["mode"], other["verdict"]) == ("draft-model", "enable")
    assert len(read) == before[0]


@pytest.mark.usefixtures("limits")
def test_a_draft_free_rival_leaves_the_runner_up_and_its_prediction_alone(request_, monkeypatch):
    """The runner-up is still there to be proved if the winner falls; its predicted figures are no evidence for the rival."""
    named = Drafting(Mode.NGRAM_SIMPLE, ngram_n=24, ngram_m=8, min_hits=1)
    monkeypatch.setattr(Forecast, "rival", lambda *_: named)
    monkeypatch.setattr(ProofPredictions, "ahead", lambda *_: 0.0)
    monkeypatch.setattr("autospec.tuning.resume._better", lambda _new, _old: False)
    contest, seen = Proof.contest, []

    def watched(self, stored):
        contest(self, stored)
        seen.extend((c.winner.mode, c.runner_up, c.has_another(c.winner)) for c in self._cells)

    monkeypatch.setattr(Proof, "contest", watched)
    stored, figures = CellRun.note_look, []
    monkeypatch.setattr(
        CellRun,
        "note_look",
        lambda self, *a, **k: (figures.append((self.winner, self.prediction)), stored(self, *a, **k))[1],
    )
    _, progress = tune(request_, machine(request_))
    assert proved(progress) == [Mode.DRAFT_MODEL, Mode.NGRAM_SIMPLE]
    assert seen == [(Mode.DRAFT_MODEL, named, True)]
    rivals = [found for winner, found in figures if winner.draft is None]
    assert rivals
    assert rivals == [None] * len(rivals)


@pytest.mark.usefixtures("limits", "unnamed")
def test_a_draft_free_drafting_that_is_not_faster_on_the_proofs_answers_is_not_launched(request_):
    """They copy as little as those of the search."""
    found, progress = tune(request_, machine(request_, 0.6))
    assert proved(progress) == [Mode.DRAFT_MODEL]
    assert found.evidence["also_proved"] == []


@pytest.mark.usefixtures("limits")
def test_a_runner_up_that_is_slower_than_expected_leaves_the_winner(request_, monkeypatch):
    """Its proof is kept beside the winner's, whose limits are checked."""
    exact = MachineServer.exact

    def slow(self, text, max_tokens):
        prompt_ms, generate_ms, *counts = exact(self, text, max_tokens)
        return (prompt_ms, (2.0 if self.drafting.mode is Mode.NGRAM_SIMPLE else 1.0) * generate_ms, *counts)

    monkeypatch.setattr(MachineServer, "exact", slow)
    found, progress = tune(request_, machine(request_))
    assert proved(progress) == [Mode.DRAFT_MODEL, Mode.NGRAM_SIMPLE]
    assert (found.verdict, found.status) == (Verdict.ENABLE, Status.PROVEN)
    assert found.drafting.mode is Mode.DRAFT_MODEL
    assert [other["drafting"]["mode"] for other in found.evidence["also_proved"]] == ["ngram-simple"]
    assert "limits" in found.evidence


@pytest.mark.usefixtures("limits")
def test_the_limits_are_those_of_the_drafting_that_is_served(request_, monkeypatch):
    """The store keeps the greater gain of the table. Another comparison served one drafting and checked the other."""
    monkeypatch.setattr("autospec.tuning.resume._better", lambda _new, _old: False)
    found, progress = tune(request_, machine(request_))
    assert proved(progress) == [Mode.DRAFT_MODEL, Mode.NGRAM_SIMPLE]
    assert found.drafting.mode is Mode.DRAFT_MODEL


def test_no_draft_reads_answers_for_a_runner_up_that_cannot_be_predicted(request_, monkeypatch):
    """An MTP head beside a draft model: the contest read the drafts for minutes, and could never be decided."""

    def ahead(*_):
        raise AssertionError("nothing can be expected of it")

    monkeypatch.setattr("autospec.tuning.proof.predictable", lambda d: d.mode is not Mode.NGRAM_SIMPLE)
    monkeypatch.setattr(ProofPredictions, "ahead", ahead)
    found, progress = tune(request_, machine(request_))
    assert proved(progress) == [Mode.DRAFT_MODEL]
    assert found.drafting.mode is Mode.DRAFT_MODEL


@pytest.mark.parametrize("ends", [KeyboardInterrupt, ServerDiedError])
def test_the_winner_stays_enabled_where_the_contest_breaks_off(request_, monkeypatch, ends):
    """Ctrl-C, or a runner-up that dies: what was proven is served."""
    complete = MachineServer.complete

    def breaks(self, request):
        if self.drafting.mode is Mode.NGRAM_SIMPLE and "prove" in str(request.messages):
            raise KeyboardInterrupt if ends is KeyboardInterrupt else ServerDiedError("It died.", "Look.")
        return complete(self, request)

    monkeypatch.setattr(MachineServer, "complete", breaks)
    if ends is KeyboardInterrupt:
        with pytest.raises(KeyboardInterrupt):
            tune(request_, machine(request_))
    else:
        tune(request_, machine(request_))
    store = open_store(request_.storage)
    [served] = [s.recommendation for s in store.recommendations()]
    store.close()
    assert (served.verdict, served.status) == (Verdict.ENABLE, Status.PROVEN)
    assert served.drafting.mode is Mode.DRAFT_MODEL


@pytest.mark.parametrize("allowed", [0, 1])
def test_without_time_for_the_contest_the_winner_stays(request_, monkeypatch, allowed):
    """The rest of the budget does not suffice for a round, or does not decide the runner-up, so it is not begun."""
    answers = iter([True] * allowed)
    contest = Proof.contest
    monkeypatch.setattr(Budget, "allows", allows := Budget.allows)

    def at_the_end(self, stored):
        monkeypatch.setattr(Budget, "allows", lambda *_, **__: next(answers, False))
        contest(self, stored)
        monkeypatch.setattr(Budget, "allows", allows)

    monkeypatch.setattr(Proof, "contest", at_the_end)
    found, progress = tune(request_, machine(request_))
    assert next(answers, None) is None
    assert proved(progress) == [Mode.DRAFT_MODEL]
    assert found.drafting.mode is Mode.DRAFT_MODEL
    assert found.evidence["also_proved"] == []


def breaks_off(monkeypatch, answers: int) -> list[str]:
    """Ends the tune after so many answers of n-grams to prompts of the proof; returns the prompts that they answered."""
    complete, asked = MachineServer.complete, []

    def breaks(self, request):
        if self.drafting.mode is Mode.NGRAM_SIMPLE and "prove" in str(request.messages):
            if len(asked) == answers:
                raise KeyboardInterrupt
            asked.append(str(request.messages))
        return complete(self, request)

    monkeypatch.setattr(MachineServer, "complete", breaks)
    return asked


def proofs_asked(monkeypatch) -> list[tuple[Mode, str]]:
    """What is asked of the proof's prompts from now on."""
    complete, asked = MachineServer.complete, []

    def listen(self, request):
        if "prove" in str(request.messages):
            asked.append((self.drafting.mode, str(request.messages)))
        return complete(self, request)

    monkeypatch.setattr(MachineServer, "complete", listen)
    return asked


@pytest.mark.usefixtures("limits")
@pytest.mark.parametrize("named", [True, False])
def test_an_interrupted_contest_goes_on_in_the_next_tune(request_, monkeypatch, named):
    """The rival's pairs count; nothing of the winner is measured again, and what is proven is served meanwhile."""
    if not named:
        monkeypatch.setattr(Forecast, "rival", lambda *_: None)
        monkeypatch.setattr(winners, "_runner_up", lambda *_: OFF)
    with monkeypatch.context() as patch:
        answered = breaks_off(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            tune(request_, machine(request_))
    with monkeypatch.context() as patch:
        asked = proofs_asked(patch)
        found, progress = tune(request_, machine(request_))
    assert any(
        "already proven, but the proof of ngram-simple" in line and "is not finished" in line
        for line in progress.told
    )
    assert proved(progress) == [Mode.NGRAM_SIMPLE]
    assert {mode for mode, _ in asked} <= {Mode.OFF, Mode.NGRAM_SIMPLE}
    assert not {text for mode, text in asked if mode is Mode.NGRAM_SIMPLE} & set(answered)
    assert (found.verdict, found.status, found.drafting.mode) == (
        Verdict.ENABLE,
        Status.PROVEN,
        Mode.NGRAM_SIMPLE,
    )
    [other] = found.evidence["also_proved"]
    assert (other["drafting"]["mode"], other["verdict"]) == ("draft-model", "enable")
    third = machine(request_)
    assert tune(request_, third)[0] == found
    assert third.main_launches() == []


@pytest.mark.usefixtures("limits")
def test_a_contest_whose_budget_ends_goes_on_and_ends(request_, monkeypatch):
    """The rival turns out to be slower: the proof stands with it beside, and no later tune measures it."""
    exact, prove = MachineServer.exact, Proof._prove

    def slow(self, text, max_tokens):
        prompt_ms, generate_ms, *counts = exact(self, text, max_tokens)
        return (prompt_ms, (2.0 if self.drafting.mode is Mode.NGRAM_SIMPLE else 1.0) * generate_ms, *counts)

    monkeypatch.setattr(MachineServer, "exact", slow)
    with monkeypatch.context() as patch:
        patch.setattr(
            Proof,
            "_prove",
            lambda self, cells: None if any(c.contests for c in cells) else prove(self, cells),
        )
        first, progress = tune(request_, machine(request_))
    assert first.drafting.mode is Mode.DRAFT_MODEL
    assert progress.told[-1].endswith("is not finished; the next tune goes on with it.")
    found, progress = tune(request_, machine(request_))
    assert proved(progress) == [Mode.NGRAM_SIMPLE]
    assert (found.verdict, found.status, found.drafting) == (Verdict.ENABLE, Status.PROVEN, first.drafting)
    assert [other["drafting"]["mode"] for other in found.evidence["also_proved"]] == ["ngram-simple"]
    third = machine(request_)
    tune(request_, third)
    assert third.main_launches() == []


def test_a_rival_that_dies_is_not_proved_by_the_next_tune(request_, monkeypatch):
    """It would die again; `--again` forgets it."""
    complete = MachineServer.complete

    def breaks(self, request):
        if self.drafting.mode is Mode.NGRAM_SIMPLE and "prove" in str(request.messages):
            raise ServerDiedError("It died.", "Look.")
        return complete(self, request)

    monkeypatch.setattr(MachineServer, "complete", breaks)
    tune(request_, machine(request_))
    again = machine(request_)
    tune(request_, again)
    assert again.main_launches() == []
    _, progress = tune(replace(request_, again=True), machine(request_))
    assert proved(progress) == [Mode.DRAFT_MODEL, Mode.NGRAM_SIMPLE]


def test_a_second_tune_measures_nothing(request_):
    """What the contest decided is a proof as any other."""
    tune(request_, machine(request_))
    again = machine(request_)
    found, progress = tune(replace(request_), again)
    assert found.drafting.mode is Mode.NGRAM_SIMPLE
    assert again.main_launches() == []
    assert found.tried != OFF
    assert any("already proven" in line for line in progress.told)

"""The runner-up is proved with the rest of the error rate if the search's winner fails on other prompts."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest

from autospec.drafting import OFF, Drafting, Mode
from autospec.errors import ServerDiedError
from autospec.measure.launch_scatter import LaunchScatter
from autospec.measure.verdict import DEFAULT_RULE, Rule, decide
from autospec.recommendations import Status, Verdict
from autospec.store.database import open_store
from autospec.tuning import run as run_module
from autospec.tuning.budget import Budget
from autospec.tuning.proof import Proof
from tests.measure.rows import of_rows
from tests.tuning.simulated import SimulatedBackend, SimulatedServer
from tests.tuning.test_run import TYPES, Silent, interrupted_at, nobody_else_is_at_work, request_, tune

pytestmark = pytest.mark.usefixtures("no_waits")

__all__ = ["nobody_else_is_at_work", "request_"]


def on_prove_prompts(draft_model: float, ngram: float) -> Callable[[Drafting, str], float]:
    """The draft model wins the search by far; on the prove prompts these hold."""

    def speedup(drafting: Drafting, text: str) -> float:
        by_draft = drafting.mode is Mode.DRAFT_MODEL
        if "prove" in text:
            return draft_model if by_draft else ngram
        return 1.5 if by_draft else 1.2

    return speedup


def proved(progress: Silent) -> list[Mode]:
    """The modes that were proved, in the order of their first rounds."""
    return list(dict.fromkeys(s.drafting.mode for s in progress.steps if s.phase == "prove"))


def test_the_runner_up_is_enabled_where_the_winner_is_slower(request_):
    """One round shows that the draft model is slower on fresh prompts; the n-grams are proved and enabled."""
    progress = Silent()
    result = tune(request_, SimulatedBackend(on_prove_prompts(0.9, 1.3)), progress)
    for prompt_type in TYPES:
        found = result[prompt_type]
        assert (found.verdict, found.status) == (Verdict.ENABLE, Status.PROVEN)
        assert found.drafting.mode is Mode.NGRAM_SIMPLE
        (other,) = found.evidence["also_proved"]
        assert other["drafting"]["mode"] == "draft-model"
        assert (other["verdict"], other["rounds"]) == ("disable", 1)
        assert other["speedup"] == pytest.approx(0.9, rel=0.02)
    assert proved(progress) == [Mode.DRAFT_MODEL, Mode.NGRAM_SIMPLE]
    assert any("Proving ngram-simple" in told and "instead" in told for told in progress.told)


def test_where_neither_pays_the_better_one_is_told(request_):
    """Both are slower: disable, with the figures of the one that is less so."""
    for draft_model, ngram, better in ((0.8, 0.9, Mode.NGRAM_SIMPLE), (0.9, 0.8, Mode.DRAFT_MODEL)):
        request = replace(request_, storage=request_.storage.replace("autospec", f"{ngram}"))
        result = tune(request, SimulatedBackend(on_prove_prompts(draft_model, ngram)))
        for found in result.values():
            assert (found.verdict, found.drafting, found.status) == (Verdict.DISABLE, OFF, Status.PROVEN)
            assert found.tried.mode is better
            assert found.speedup == pytest.approx(max(draft_model, ngram), rel=0.02)


def test_what_gave_way_early_goes_on_where_the_other_is_no_better(request_):
    """Slightly slower, in noise: it gives way after a round, comes back as the better of two, and is ruled out."""
    progress = Silent()
    backend = SimulatedBackend(on_prove_prompts(0.93, 0.8), noise=0.03)
    for found in tune(request_, backend, progress).values():
        assert (found.verdict, found.status) == (Verdict.DISABLE, Status.PROVEN)
        assert found.tried.mode is Mode.DRAFT_MODEL
        assert [other["drafting"]["mode"] for other in found.evidence["also_proved"]] == ["ngram-simple"]
    assert proved(progress) == [Mode.DRAFT_MODEL, Mode.NGRAM_SIMPLE]


def test_a_runner_up_that_does_not_run_leaves_the_winner_to_its_own_proof(request_):
    """Its proof fails; the winner, which gave way in noise, is decided all the same."""

    def breaks(server: SimulatedServer, text: str) -> None:
        if server.drafting.mode is Mode.NGRAM_SIMPLE and "prove" in text:
            raise ServerDiedError("It died.", "Look.")

    backend = SimulatedBackend(on_prove_prompts(0.93, 1.3), noise=0.03, before_answer=breaks)
    for found in tune(request_, backend).values():
        assert (found.verdict, found.status) == (Verdict.DISABLE, Status.PROVEN)
        assert found.tried.mode is Mode.DRAFT_MODEL


def test_a_winner_that_does_not_run_leaves_the_proof_to_the_runner_up(request_):
    """It was measured in the search, and dies on the prove prompts."""

    def breaks(server: SimulatedServer, text: str) -> None:
        if server.drafting.mode is Mode.DRAFT_MODEL and "prove" in text:
            raise ServerDiedError("It died.", "Look.")

    backend = SimulatedBackend(on_prove_prompts(1.5, 1.3), before_answer=breaks)
    for found in tune(request_, backend).values():
        assert (found.verdict, found.drafting.mode) == (Verdict.ENABLE, Mode.NGRAM_SIMPLE)


def test_interrupted_in_the_proof_of_the_runner_up(request_):
    """Nothing is decided yet and nothing is served; the next tune decides."""
    speedup = on_prove_prompts(0.9, 1.3)
    count = itertools.count()

    def interrupt(server: SimulatedServer, text: str) -> None:
        if server.drafting.mode is Mode.NGRAM_SIMPLE and "prove" in text and next(count) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(request_, SimulatedBackend(speedup, before_answer=interrupt))
    store = open_store(request_.storage)
    stored = [s.recommendation for s in store.recommendations()]
    store.close()
    assert len(stored) == len(TYPES)
    assert {(found.status, found.drafting) for found in stored} == {(Status.PROVISIONAL, OFF)}
    result = tune(request_, SimulatedBackend(speedup))
    assert all(found.verdict is Verdict.ENABLE for found in result.values())


def test_without_time_for_the_runner_up_the_cell_stays_open(request_, monkeypatch):
    """The budget ends after the winner's round: provisional, and the next tune proves the runner-up."""
    speedup = on_prove_prompts(0.9, 1.3)
    proved_requests = itertools.count(1)
    spent_s = 0.0

    def spend(server: SimulatedServer, text: str) -> None:
        nonlocal spent_s
        if "prove" in text and not server.drafting.is_off:
            spent_s = 10.0 * next(proved_requests)

    with monkeypatch.context() as patched:
        patched.setattr(run_module, "Budget", lambda total_s, **how: Budget(total_s, lambda: spent_s, **how))
        first = tune(replace(request_, budget_s=170.0), SimulatedBackend(speedup, before_answer=spend))
    assert all(found.status is Status.PROVISIONAL for found in first.values())
    assert all("run tune again" in found.reason for found in first.values())
    second = tune(request_, SimulatedBackend(speedup))
    assert all(found.verdict is Verdict.ENABLE for found in second.values())


def test_a_winner_that_pays_is_proved_alone(request_):
    """No launch is spent on the runner-up."""
    progress = Silent()
    result = tune(request_, SimulatedBackend(on_prove_prompts(1.4, 1.3)), progress)
    assert proved(progress) == [Mode.DRAFT_MODEL]
    assert all(found.evidence["also_proved"] == [] for found in result.values())


def test_without_a_runner_up_that_is_worth_it_nothing_changes(request_):
    """N-grams that gained nothing in the search are not proved."""

    def speedup(drafting: Drafting, text: str) -> float:
        return on_prove_prompts(0.9, 1.3)(drafting, text) if drafting.mode is Mode.DRAFT_MODEL else 1.0

    result = tune(request_, SimulatedBackend(speedup))
    assert all(found.verdict is Verdict.DISABLE for found in result.values())


def test_an_interrupted_proof_of_the_runner_up_goes_on(request_):
    """The next tune finds the winner's pairs in the store, turns to the runner-up again, and asks only what is missing."""
    speedup = on_prove_prompts(0.9, 1.3)
    whole = SimulatedBackend(speedup)
    tune(replace(request_, storage=request_.storage.replace("autospec", "whole")), whole)
    first = interrupted_at(len(whole.asked) - 3)
    first.speedup = speedup
    with pytest.raises(KeyboardInterrupt):
        tune(request_, first)
    second = SimulatedBackend(speedup)
    result = tune(request_, second)
    assert all(found.verdict is Verdict.ENABLE for found in result.values())
    assert all(found.drafting.mode is Mode.NGRAM_SIMPLE for found in result.values())
    assert len(second.asked) < 12


def test_two_draftings_share_the_error_rate_of_the_cell():
    """In whatever order they are looked at; and eight prompts can still decide at the first look."""
    shared = DEFAULT_RULE.shared()
    assert 2 * sum(shared.level(look) for look in range(6)) == pytest.approx(DEFAULT_RULE.error_rate)
    assert shared.level(0) == pytest.approx(DEFAULT_RULE.level(0))
    assert shared.level(0) > 1 / 256
    assert Rule(looks=(1,)).shared().level(0) == pytest.approx(0.005)


def test_a_few_prompts_do_not_make_a_drafting_give_way():
    """With seven the interval has no end: the sign of their mean is a stall's."""
    for prompts, gives_way in ((7, False), (8, True)):
        decision = decide(
            of_rows([[-0.02 * k] for k in range(1, prompts + 1)]), 1, scatter=LaunchScatter(0.001, 20)
        )
        assert (decision.final, DEFAULT_RULE.gives_way(replace(decision, final=False))) == (
            gives_way,
            gives_way,
        )


def test_a_typical_loss_beside_a_large_gain_does_not_give_way():
    """One prompt in eight that takes half of the time makes up for seven that lose a thirtieth: other prompts will tell."""
    losses = [[-0.03 - 0.001 * k] for k in range(7)]
    assert DEFAULT_RULE.gives_way(decide(of_rows([*losses, [0.05]]), 1))
    assert not DEFAULT_RULE.gives_way(decide(of_rows([*losses, [0.7]]), 1))


@pytest.mark.parametrize(("other", "reopened"), [(None, 1), (object(), 0)])
def test_a_runner_up_that_does_not_start_leaves_the_winners_search(other, reopened):
    """Nothing was launched in the search: the failure of the winner itself opens it again."""
    times = []
    cell = SimpleNamespace(
        cell=SimpleNamespace(key="k"),
        trial_values={},
        rounds=0,
        other=other,
        contests=False,
        reopen=times.append,
    )
    proof = Proof([], SimpleNamespace(), lambda _: None)
    proof._give_up(
        [cell], Drafting(Mode.NGRAM_SIMPLE, ngram_n=4, ngram_m=8, min_hits=1), ServerDiedError("", "")
    )
    assert len(times) == reopened

"""The search without predictions: which drafts are launched, and that none is launched twice."""

from __future__ import annotations

import itertools
from dataclasses import replace
from unittest import mock

import pytest

from autospec.cells import PromptType
from autospec.drafting import Drafting, Mode
from autospec.recommendations import Verdict
from autospec.tuning.search import Search
from tests.tuning.simulated import SimulatedBackend
from tests.tuning.test_run import (
    TYPES,
    Silent,
    interrupted_at,
    nobody_else_is_at_work,
    request_,
    request_with,
    tune,
)

pytestmark = pytest.mark.usefixtures("no_waits")

__all__ = ["nobody_else_is_at_work", "request_"]


@pytest.fixture
def two_drafts(tmp_path):
    """A request with a second draft model."""
    return request_with(tmp_path, "draft", "hopeless")


def one_is_hopeless(drafting: Drafting, text: str) -> float:
    """As in a real tune of a Gemma-3-type model: one draft at 0.41, the other best with sixteen tokens, n-grams between."""
    if drafting.mode is not Mode.DRAFT_MODEL:
        return 1.25 if "coding" in text else 1.05
    if (drafting.draft or "").endswith("hopeless.gguf"):
        return 0.41
    return 1.2 + 0.04 * min(drafting.n_max or 1, 16)


def test_a_hopeless_draft_is_launched_once(two_drafts):
    """At two fifths of the speed of off no other setting of it can win: one trial, one prompt of each type."""
    backend = SimulatedBackend(one_is_hopeless)
    progress = Silent()
    result = tune(two_drafts, backend, progress)
    hopeless = [d for d in backend.launched if (d.draft or "").endswith("hopeless.gguf")]
    assert len(hopeless) == 1
    asked = [text for _, drafting, text in backend.asked if drafting == hopeless[0]]
    assert len(asked) == len(result) == 2
    assert any("hopeless" in line and "no other setting is tried" in line for line in progress.told)


@pytest.mark.process
@pytest.mark.parametrize(("trials", "untried"), [(1, ["hopeless", "ngram-simple"]), (3, [])])
def test_what_the_search_has_no_time_for_is_told(two_drafts, trials, untried):
    """A draft that was neither launched nor ruled out is named, and only that."""
    backend, progress = SimulatedBackend(one_is_hopeless), Silent()
    times = itertools.chain([True] * trials, itertools.repeat(False))
    with mock.patch.object(Search, "_time_for_another", side_effect=times):
        tune(two_drafts, backend, progress)
    told = [line for line in progress.told if line.startswith("No time was left to try")]
    names = ("draft #", "hopeless #", "ngram-simple")
    named = [name.removesuffix(" #") for line in told for name in names if name in line]
    assert named == untried
    assert len(told) == bool(untried)

    # A proof of what was tried does not keep the next tune from trying the rest.
    backend, progress = SimulatedBackend(one_is_hopeless), Silent()
    tune(two_drafts, backend, progress)
    launched = {n for d in backend.launched for n in untried if n in f"{d.draft} {d.mode}"}
    assert launched == set(untried)
    why = [line for line in progress.told if "there was no time to try" in line]
    assert len(why) == (len(TYPES) if untried else 0)
    backend = SimulatedBackend(one_is_hopeless)
    tune(two_drafts, backend)
    assert not backend.launched


def test_an_untried_draft_is_tried_after_a_tune_without_it(two_drafts, tmp_path):
    """A tune while its disk was not there forgot that nothing had tried it, and no later tune did."""
    times = itertools.chain([True], itertools.repeat(False))
    with mock.patch.object(Search, "_time_for_another", side_effect=times):
        tune(two_drafts, SimulatedBackend(one_is_hopeless))
    tune(request_with(tmp_path, "draft"), SimulatedBackend(one_is_hopeless))
    backend = SimulatedBackend(one_is_hopeless)
    tune(two_drafts, backend)
    assert [d for d in backend.launched if (d.draft or "").endswith("hopeless.gguf")]
    backend = SimulatedBackend(one_is_hopeless)
    tune(two_drafts, backend)
    assert not backend.launched


def test_the_best_setting_of_a_draft_is_found_without_prediction(two_drafts):
    """Sixteen tokens are the second leader of a leading draft: within the trials of `quick` in every cell."""
    backend = SimulatedBackend(one_is_hopeless)
    for prompt_type, recommendation in tune(two_drafts, backend).items():
        assert recommendation.verdict is Verdict.ENABLE
        assert one_is_hopeless(recommendation.drafting, prompt_type) >= 0.95 * one_is_hopeless(
            Drafting(Mode.DRAFT_MODEL, draft="draft", n_max=16), prompt_type
        )


def test_a_hopeless_draft_stays_known_when_the_tune_goes_on(two_drafts):
    """Interrupted after its trial: the next run reads the stored pairs, and does not launch it."""
    first = interrupted_at(30)
    first.speedup = one_is_hopeless
    with pytest.raises(KeyboardInterrupt):
        tune(two_drafts, first)
    assert any((d.draft or "").endswith("hopeless.gguf") for d in first.launched)
    second = SimulatedBackend(one_is_hopeless)
    tune(two_drafts, second)
    assert not any((d.draft or "").endswith("hopeless.gguf") for d in second.launched)


def test_a_draft_that_is_slow_for_one_type_alone_is_tried_on(request_):
    """Writing at two fifths, coding at 1.3: other settings of the draft may serve coding better."""
    backend = SimulatedBackend(lambda d, text: 1.0 if d.draft is None else 1.3 if "coding" in text else 0.4)
    result = tune(request_, backend)
    assert result[PromptType.CODING].verdict is Verdict.ENABLE
    tried = {(d.n_max, d.p_min) for d in backend.launched if d.draft}
    assert {n for n, _ in tried} >= {8, 16}
    assert len(tried) >= 3


def test_an_n_gram_mode_that_is_far_behind_takes_no_further_trials(two_drafts):
    """A draft at 1.84 and n-grams at 1.25: the trials go to the draft."""
    backend = SimulatedBackend(one_is_hopeless)
    progress = Silent()
    tune(two_drafts, backend, progress)
    tried = [s.drafting for s in progress.steps if s.phase == "launch"]
    assert sum(d.mode is Mode.NGRAM_SIMPLE for d in tried) == 1
    assert sum(d.mode is Mode.DRAFT_MODEL for d in tried) >= 5


def test_the_leader_is_asked_the_prompts_that_it_was_not_asked(request_):
    """If each trial asks one prompt, the choice rests on more than the first of them."""

    def lucky_first(drafting: Drafting, text: str) -> float:
        if drafting.mode is not Mode.DRAFT_MODEL:
            return 1.0
        if drafting.n_max == 4:
            return 2.0 if "tune 0" in text else 1.1
        return 1.6

    backend = SimulatedBackend(lucky_first)
    with mock.patch.object(Search, "_affordable_prompts", return_value=1):
        result = tune(request_, backend)
    for recommendation in result.values():
        assert recommendation.drafting.n_max != 4
        assert recommendation.speedup == pytest.approx(1.6, rel=0.02)


def both_gain(drafting: Drafting, text: str) -> float:
    """For coding a draft gains 40 %, n-grams 30 %, both together 70 %; for writing the draft alone is best."""
    model = drafting.mode is Mode.DRAFT_MODEL
    if "coding" in text:
        return 1.7 if drafting.beside else 1.4 if model else 1.3
    return 1.2 if drafting.beside else 1.5 if model else 0.9


def test_several_modes_are_launched_where_each_gained_alone(request_):
    """Without prediction: few launches after those of single modes, proven where they win, and not where they lose."""
    backend = SimulatedBackend(both_gain, combines=True)
    result = tune(request_, backend)
    coding, writing = result[PromptType.CODING], result[PromptType.WRITING]
    assert [d.mode for d in coding.drafting.parts] == [Mode.DRAFT_MODEL, Mode.NGRAM_SIMPLE]
    assert coding.speedup == pytest.approx(1.7, rel=0.02)
    assert writing.drafting.mode is Mode.DRAFT_MODEL
    assert not writing.drafting.beside
    order = [bool(d.beside) for d in dict.fromkeys(backend.launched) if not d.is_off]
    assert 1 <= sum(order) <= 3
    assert sum(not together for together in order[: order.index(True)]) >= 2


def test_several_modes_stay_known_when_the_tune_goes_on(request_):
    """Interrupted in its proof, the next run neither searches again nor launches another combination."""
    backend = SimulatedBackend(both_gain, combines=True)
    tune(request_, backend)
    asked = len([1 for _, d, _ in backend.asked if d.beside])
    stopped = interrupted_at(len(backend.asked) - asked // 4)
    stopped.speedup, stopped.combines = both_gain, True
    again = replace(request_, storage=f"{request_.storage}-again")
    with pytest.raises(KeyboardInterrupt):
        tune(again, stopped)
    second = SimulatedBackend(both_gain, combines=True)
    result = tune(again, second)
    assert result[PromptType.CODING].drafting.beside
    assert {d for d in second.launched if d.beside} <= {d for d in stopped.launched if d.beside}


@pytest.mark.parametrize(("speedup", "combines"), [(both_gain, False), (one_is_hopeless, True)])
def test_several_modes_are_not_launched_blindly(request_, speedup, combines):
    """A build that takes one type, or modes of which one gains nothing."""
    alone = speedup if not combines else lambda d, t: 0.95 if d.mode.draft_free else speedup(d, t)
    backend = SimulatedBackend(alone, combines=combines)
    tune(request_, backend)
    assert not any(d.beside for d in backend.launched)


def test_the_prompts_of_a_trial_are_planned_by_the_time_that_requests_take(request_, monkeypatch):
    """Off is cut at 16 tokens of 64 once its pace is known; its pairs count as whole answers."""
    monkeypatch.setattr("autospec.measure.asking.enough_tokens", lambda _token_ms: 16)
    planned: list[float] = []

    def note(_search: Search, pair_s: float) -> int:
        planned.append(pair_s)
        raise KeyboardInterrupt

    monkeypatch.setattr(Search, "_affordable_prompts", note)
    with pytest.raises(KeyboardInterrupt):
        tune(request_, SimulatedBackend(lambda _d, _t: 1.0, noise=0.0))
    # At 50 tokens a second: 1.28 s with drafting, and without it once whole and once cut.
    assert planned == [pytest.approx(1.28 + (1.28 + 0.32) / 2)]

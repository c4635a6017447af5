"""Expected speed ratios with their intervals: by hand, and against a simulated machine."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np
import pytest

from autospec.drafting import Drafting, Mode
from autospec.measure.measurements import RequestShape
from autospec.predict.costs import first_guess
from autospec.predict.prediction import PredictedAnswer, less_luck, predict, replay_drafts
from autospec.predict.profile import AnswerProfile, Recording

# A token in 10 ms, every further one of a batch 1 ms more; a draft of 1 ms a step.
COSTS = first_guess(10.0, {1: 10.0, 9: 18.0}, {1: 1.0, 9: 1.0}, 1.0, 8)


def drafting(n_max=4, p_min=0.0):
    """One of a draft model."""
    return Drafting(Mode.DRAFT_MODEL, draft="d", n_max=n_max, n_min=0, p_min=p_min)


def recording(n=41, prompt_ms=100.0):
    """An answer of `n` tokens at 10 ms each."""
    generated = (n - 1) * 10.0
    return Recording("p", (1, 2), tuple(range(n)), n, False, prompt_ms, generated, prompt_ms + generated)


def answer(draftings, hits, prompt_ms=100.0, draft_prompt_ms=0.0):
    """An answer under a draft that is right where `hits` says so."""
    known = recording(len(hits), prompt_ms)
    profile = AnswerProfile("p", np.array(hits), np.full(len(hits), 0.9), {})
    counts = replay_drafts(profile, draftings, known.max_tokens)
    return PredictedAnswer(known, counts, draft_prompt_ms, RequestShape(len(known.prompt_ids), len(hits)))


def test_ratio_of_a_perfect_draft_follows_from_cycles_and_costs():
    """40 tokens in 8 cycles of 4 + 1: each verifies 5 tokens in 14 + 1 ms and drafts 4 in 4 ms."""
    [found] = predict([drafting()], [answer([drafting()], [True] * 41)], COSTS)
    with_ms = 100.0 + 8 * (14.0 + 1.0 + 4.0)
    assert found.ratio == pytest.approx(500.0 / with_ms)
    assert found.acceptance == 1.0
    assert found.tokens_per_cycle == pytest.approx(5.0)
    assert found.low < found.ratio < found.high


def test_the_drafts_prompt_processing_counts():
    """A draft that reads the prompt for 100 ms gains that much less."""
    with_, without = (
        predict([drafting()], [answer([drafting()], [True] * 41, draft_prompt_ms=ms)], COSTS)[0]
        for ms in (100.0, 0.0)
    )
    assert 500.0 / with_.ratio - 500.0 / without.ratio == pytest.approx(100.0)


def test_a_draft_that_is_never_right_costs():
    """Every token takes a whole cycle."""
    [found] = predict([drafting()], [answer([drafting()], [False] * 41)], COSTS)
    assert found.ratio < 0.7
    assert found.acceptance == 0.0


def test_prompts_that_agree_are_surer_than_prompts_that_differ():
    """The same mean, another spread."""
    good, bad, half = [True] * 41, [False] * 41, [True, False] * 20 + [True]
    draftings = [drafting(2)]
    alike = predict(draftings, [answer(draftings, half)] * 6, COSTS)[0]
    unlike = predict(draftings, [answer(draftings, good), answer(draftings, bad)] * 3, COSTS)[0]
    assert math.log(unlike.high / unlike.low) > 1.5 * math.log(alike.high / alike.low)


def test_one_answer_tells_less_of_a_mode_that_copies():
    """Prompts differ much more in what their answers copy than in how well a draft knows them."""
    copies = Drafting(Mode.NGRAM_SIMPLE, ngram_n=3, ngram_m=4, min_hits=1)
    three = [drafting(), copies, replace(drafting(), beside=(copies,))]
    one = answer([drafting()] * 3, [True] * 41)
    alone, *copying = predict(three, [one], COSTS)
    for found in copying:
        assert found.ratio == alone.ratio
        assert less_luck(found.ratio, found.prompts_error) < 0.8 * less_luck(alone.ratio, alone.prompts_error)
    # Twelve answers that agree tell it.
    alone, *copying = predict(three, [one] * 12, COSTS)
    for found in copying:
        assert less_luck(found.ratio, found.prompts_error) > 0.97 * less_luck(
            alone.ratio, alone.prompts_error
        )


def test_surer_costs_narrow_the_interval():
    """Half of the standard deviation, less width."""
    draftings = [drafting()]
    answers = [answer(draftings, [True] * 41)] * 4
    wide = predict(draftings, answers, COSTS)[0]
    sure = predict(draftings, answers, replace(COSTS, covariance=COSTS.covariance / 4))[0]
    assert math.log(sure.high / sure.low) < math.log(wide.high / wide.low)


def test_nothing_drafted_has_no_acceptance():
    """A p-min that nothing reaches: no draft, no rate, and little cost."""
    [found] = predict([drafting(p_min=0.95)], [answer([drafting(p_min=0.95)], [True] * 41)], COSTS)
    assert found.drafted == 0
    assert math.isnan(found.acceptance)


def test_thousands_of_draftings_at_once():
    """They are arrays: the same figures as one by one, and no loop over draftings that a person would notice."""
    random = np.random.default_rng(1)
    many = [drafting(n, round(p, 4)) for n in range(1, 9) for p in np.linspace(0.0, 0.95, 500)]
    hits = (random.random(64) < 0.7).tolist()
    begun = time.process_time()
    found = predict(many, [answer(many, hits) for _ in range(4)], COSTS)
    spent_s = time.process_time() - begun
    [alone] = predict([many[777]], [answer([many[777]], hits) for _ in range(4)], COSTS)
    assert len(found) == 4000
    assert found[777].ratio == pytest.approx(alone.ratio)
    assert (
        spent_s < 30.0
    )  # a loop over draftings would take minutes; figures are in studies/bench/prediction.py

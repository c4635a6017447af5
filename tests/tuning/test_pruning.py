"""Which drafts are dropped early, and which are kept."""

from __future__ import annotations

import math

import numpy as np
import pytest

from autospec.drafting import OFF, Drafting, Mode
from autospec.measure.measurements import Measurement, Pair, Phase
from autospec.predict.costs import CostCurve, first_guess
from autospec.predict.prediction import replay_drafts
from autospec.predict.profile import AnswerProfile, Recording
from autospec.tuning.definition import load_definition
from autospec.tuning.pruning import beaten, best_elsewhere, nothing_pays, shortest_ms
from autospec.tuning.space import Arm, Space

FOUR = Drafting(Mode.DRAFT_MODEL, draft="d", n_max=4, n_min=0, p_min=0.0)
TOKENS = 101


def pair(speed: float, chance: float | None, n_max: int = 4) -> Pair:
    """A hundred tokens of 10 ms with drafting off; `chance` of each drafted token to be right, `None` untold."""
    run = sum((chance or 0.0) ** k for k in range(1, n_max + 1))
    cycles = (TOKENS - 1) / (1 + run)
    told = None if chance is None else (round(cycles * n_max), round(TOKENS - 1 - cycles))
    off = Measurement(
        cell_key="c", protocol="p", phase=Phase.SEARCH, round=0, drafting=OFF, compared=FOUR, prompt_id="q",
        launch_id="l", position=0, started_at=0.0, prompt_tokens=9, predicted_tokens=TOKENS, prompt_ms=100.0,
        predicted_ms=10.0 * (TOKENS - 1), wall_ms=10.0 * (TOKENS - 1) + 100, drafted=0, accepted=0, text_digest="",
    )  # fmt: skip
    ms = off.predicted_ms / speed
    drafted = Measurement(
        cell_key="c", protocol="p", phase=Phase.SEARCH, round=0, drafting=FOUR, compared=FOUR, prompt_id="q",
        launch_id="m", position=1, started_at=0.0, prompt_tokens=9, predicted_tokens=TOKENS, prompt_ms=100.0,
        predicted_ms=ms, wall_ms=ms + 100, drafted=told and told[0], accepted=told and told[1], text_digest="",
    )  # fmt: skip
    return Pair(off, drafted)


@pytest.mark.parametrize("chance", [0.1, 0.25, None])
def test_a_draft_at_two_fifths_of_the_speed_has_no_good_setting(chance):
    """A real tune of a Gemma-3-type model, twice with the same draft: 0.38 to 0.44."""
    assert best_elsewhere(FOUR, [pair(0.41, chance)]) < 1.02


def test_a_slow_launch_of_a_good_draft_leaves_other_settings_open():
    """Nearly every token is right, and the second one in a batch is expensive: longer drafts may pay for it."""
    assert best_elsewhere(FOUR, [pair(0.7, 0.95)]) > 1.3


def test_a_somewhat_slow_launch_leaves_shorter_drafts_open():
    """Half of the tokens are right; at n_max 1 or under a p-min the same draft may gain."""
    assert best_elsewhere(FOUR, [pair(0.85, 0.5)]) > 1.02


def test_pairs_that_tell_nothing_close_nothing():
    """No pair, no draft proposed, or a mode without n_max."""
    assert best_elsewhere(FOUR, []) == math.inf
    ngram = Drafting(Mode.NGRAM_SIMPLE, ngram_n=6, ngram_m=24, min_hits=1)
    assert best_elsewhere(ngram, [pair(0.4, 0.1)]) == math.inf


def read(chance: float) -> tuple[Recording, AnswerProfile]:
    """One answer of 100 tokens as read by a draft with this acceptance chance, and about that confidence."""
    random = np.random.default_rng(5)
    hits = random.random(100) < chance
    p = np.where(hits, random.beta(6, 1.2, 100), random.beta(2, 2.5, 100))
    misses = {int(k): random.beta(3, 2, 16) for k in np.flatnonzero(~hits)[:8]}
    recording = Recording("q", (1, 2), tuple(range(100)), 100, False, 100.0, 990.0, 1090.0)
    return recording, AnswerProfile("q", hits, p, misses)


def costs(step_ms: float, more: float) -> CostCurve:
    """10 ms a token; each further one in a batch takes `more` of that."""
    return first_guess(10.0, {1: 10.0, 17: 10.0 * (1 + 16 * more)}, {}, step_ms, 16)


@pytest.mark.parametrize(
    ("chance", "step_ms", "more", "dropped"),
    [
        (0.05, 3.0, 0.1, True),  # it is never right
        (0.4, 8.0, 0.8, True),  # it costs nearly as much as its main model, and batches are expensive, too
        (0.8, 1.0, 0.05, False),
        (0.6, 3.0, 0.3, False),  # it does not pay as timed, and might
    ],
)
def test_a_draft_is_dropped_on_its_first_answers_where_nothing_pays(chance, step_ms, more, dropped):
    """The whole grid of the draft is asked, with costs 40 % below those that were timed."""
    recording, profile = read(chance)
    grid = Space((Arm(Mode.DRAFT_MODEL, "d"),), load_definition("quick").space).grid()
    counts = replay_drafts(profile, grid, recording.max_tokens)
    assert nothing_pays([(recording, counts)] * 3, costs(step_ms, more), 0.02) is dropped


@pytest.mark.parametrize(
    ("chance", "step_ms", "stops"),
    [
        (0.6, 3.0, True),  # it pays, and nothing makes up for what the first draft gets right more often
        (0.88, 1.0, False),  # nearly as often right
        (0.8, 0.1, False),  # its steps cost next to nothing
    ],
)
def test_a_draft_that_another_one_beats_reads_no_further(chance, step_ms, stops):
    """The first draft is right 9 times in 10 at 1 ms; the second is judged with costs 40 % below those that were timed."""
    grid = Space((Arm(Mode.DRAFT_MODEL, "d"),), load_definition("quick").space).grid()

    def answer(right: float):
        recording, profile = read(right)
        return recording, replay_drafts(profile, grid, recording.max_tokens)

    rival_ms = {"q": shortest_ms(*answer(0.9), costs(1.0, 0.1))}
    assert beaten([answer(chance)] * 3, costs(step_ms, 0.1), rival_ms) is stops
    assert not beaten([answer(chance)], costs(step_ms, 0.1), {})

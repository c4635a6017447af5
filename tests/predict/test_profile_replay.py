"""The replay of drafting cycles, by hand and against cycles that are played one by one."""

from __future__ import annotations

import json

import numpy as np
import pytest

from autospec.backends.protocol import Cycle, LaunchSettings, Request
from autospec.drafting import OFF, Drafting, Mode
from autospec.predict.profile import AnswerProfile, profile_answer, replay
from autospec.predict.recording import record
from tests.predict.machine import Machine


def profile(
    hits: str, p: list[float] | None = None, after: dict[int, list[float]] | None = None
) -> AnswerProfile:
    """A profile from a text of 1 and 0."""
    return AnswerProfile(
        "p",
        np.array([c == "1" for c in hits]),
        np.array(p or [0.9] * len(hits)),
        {k: np.array(v) for k, v in (after or {}).items()},
    )


def test_draft_that_is_always_right_takes_n_max_tokens_and_one_more():
    """Ten tokens, the first from the prompt: cycles of 3 + 1, 3 + 1, and the last token alone."""
    counts = replay(profile("1" * 10), [3], [0.0], max_tokens=10)
    assert counts.verified.tolist() == [[1, 0, 0, 2]]
    assert (counts.drafted[0], counts.accepted[0], counts.cycles[0]) == (6, 6, 3)


def test_draft_that_is_never_right_costs_a_cycle_for_every_token():
    """Every cycle yields the main model's own token alone; the request's end shortens the last drafts."""
    counts = replay(profile("0" * 6, after={1: [0.9] * 8}), [2], [0.0], max_tokens=6)
    assert counts.accepted[0] == 0
    assert counts.cycles[0] == 5
    # With 1, 2, 3, 4 and 5 tokens generated there is room for 2, 2, 2, 1 and 0.
    assert counts.drafted[0] == 7


def test_the_cycle_of_mlx_begins_at_the_prompts_end():
    """Ten tokens, none given: cycles of 3 + 1, 3 + 1, and two tokens that leave no room for one of the main model's."""
    counts = replay(profile("1" * 10), [3], [0.0], max_tokens=10, cycle=Cycle.MLX_LM)
    assert counts.verified.tolist() == [[0, 0, 1, 2]]
    assert (counts.drafted[0], counts.accepted[0], counts.cycles[0]) == (8, 8, 3)
    # The time of the first cycle is the first token's.
    assert counts.opening.tolist() == [3]
    verified, steps = counts.after_first_token
    assert (verified.tolist(), steps.tolist()) == ([[0, 0, 1, 1]], [5])


def test_the_cycle_of_mlx_drafts_until_the_last_token():
    """A draft that is never right: room for 2 tokens in every cycle but the last."""
    counts = replay(profile("0" * 6), [2], [0.0], max_tokens=6, cycle=Cycle.MLX_LM)
    assert (counts.drafted[0], counts.accepted[0], counts.cycles[0]) == (11, 0, 6)


def test_draft_ends_before_the_token_below_p_min():
    """The refused token is computed and not proposed."""
    counts = replay(profile("11111", p=[0.9, 0.9, 0.9, 0.3, 0.9]), [4], [0.5], max_tokens=100)
    # From token 1: two proposed, the third refused; from token 4: one, and the answer ends.
    assert counts.drafted[0] >= 2
    assert counts.verified[0][2] == 1
    assert counts.steps[0] == counts.drafted[0] + 1


def test_builds_before_may_2026_propose_the_token_below_p_min():
    """And end the draft there: no token is computed in vain."""
    p = [0.9, 0.9, 0.9, 0.3, 0.9, 0.2, 0.9]
    counts = replay(profile("1111011", p=p), [4], [0.5], max_tokens=100, cycle=Cycle.LLAMA_CPP_KEEPS_LAST)
    # From token 1: three, of which the last is below p-min. From token 5: one, which is below it at once.
    assert counts.verified.tolist() == [[0, 1, 0, 1, 0]]
    assert (counts.drafted[0], counts.accepted[0], counts.steps[0]) == (4, 4, 4)
    without = [
        replay(profile("1111011"), [4], [0.0], max_tokens=100, cycle=cycle)
        for cycle in (Cycle.LLAMA_CPP, Cycle.LLAMA_CPP_KEEPS_LAST)
    ]
    assert without[0].drafted == without[1].drafted


def test_probabilities_after_a_miss_end_the_draft():
    """What the draft goes on to propose from its own wrong token counts as drafted until p-min ends it."""
    after = {1: [0.9, 0.9, 0.2, 0.9]}
    counts = replay(profile("10" + "1" * 20, after=after), [8], [0.5], max_tokens=100)
    # The first cycle: the miss, two more, the third refused.
    assert counts.verified[0][3] == 1


def test_miss_without_a_sample_takes_the_nearest_one():
    """Only some misses are sampled; the others go on like the nearest of them."""
    near = replay(profile("1010101", after={1: [0.1], 5: [0.9] * 9}), [4], [0.5], max_tokens=100)
    # The miss at 3 is as near to 1 as to 5: the earlier one.
    assert near.drafted[0] == replay(profile("1010101", after={1: [0.1], 3: [0.1], 5: [0.9] * 9}),
                                     [4], [0.5], max_tokens=100).drafted[0]  # fmt: skip


def test_draft_shorter_than_n_min_is_thrown_away():
    """Its steps are spent, nothing of it is verified."""
    kept = replay(profile("11111111", p=[0.9] * 3 + [0.1] + [0.9] * 4), [4], [0.5], [0], max_tokens=100)
    thrown = replay(profile("11111111", p=[0.9] * 3 + [0.1] + [0.9] * 4), [4], [0.5], [3], max_tokens=100)
    assert thrown.drafted[0] < kept.drafted[0]
    assert thrown.steps[0] >= thrown.drafted[0] + 3


def test_positions_count_the_cycles_that_accepted_each():
    """Two cycles accept three tokens each: every place twice."""
    counts = replay(profile("1" * 10), [3], [0.0], max_tokens=10)
    assert counts.by_position.tolist() == [[2, 2, 2]]


@pytest.mark.parametrize("seed", range(6))
def test_replay_equals_cycles_played_one_by_one(seed):
    """For a draft that is right now and then, over a grid: the same drafted and accepted counts as a server's loop."""
    machine = Machine(acceptance=lambda _: 0.3 + 0.1 * seed, main_path="main", seed=seed)
    main = machine.launch("main", OFF, LaunchSettings())
    draft = machine.launch("draft", OFF, LaunchSettings())
    request = Request(messages=[{"role": "user", "content": "x"}], max_tokens=150)
    recording = record(main.tokens, "x", request)
    found = profile_answer(draft.tokens, recording, longest=24, sampled_misses=10_000)
    truth = machine.text(json.dumps(list(request.messages)), 150, "draft")
    assert found.hits.tolist() == truth.hits.tolist()
    grid = [(n, p) for n in (1, 2, 3, 5, 8, 16, 24) for p in (0.0, 0.3, 0.6, 0.9)]
    counts = replay(found, [n for n, _ in grid], [p for _, p in grid], max_tokens=150)
    for row, (n, p) in enumerate(grid):
        drafting = Drafting(Mode.DRAFT_MODEL, draft="draft", n_max=n, n_min=0, p_min=p)
        answer = machine.launch("main", drafting, LaunchSettings()).complete(request)
        assert (counts.drafted[row], counts.accepted[row]) == (answer.drafted, answer.accepted), (n, p)

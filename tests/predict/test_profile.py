"""The teacher-forced pass over one answer."""

from __future__ import annotations

import math

import numpy as np
import pytest

from autospec.backends.protocol import Proposal
from autospec.errors import RequestError
from autospec.predict.profile import AnswerProfile, Recording, profile_answer, profile_scored

ANSWER = tuple(range(100, 120))


def recording() -> Recording:
    """Three prompt tokens, twenty of answer."""
    return Recording("p", (1, 2, 3), ANSWER, 20, False, 10.0, 190.0, 200.0)


class Scripted:
    """A draft that is wrong at some places, and tells no probability at others."""

    def __init__(self, wrong: set[int], untold: set[int] = frozenset()) -> None:
        self.wrong = wrong
        self.untold = untold
        self.asked: list[tuple[int, int]] = []

    def propose(self, ids, count):
        """Right on the path, its own words after a miss."""
        start = len(ids) - 3
        assert tuple(ids[3:]) == ANSWER[:start], "asked with another text than the recorded one"
        self.asked.append((start, count))
        found, lost = [], False
        for place in range(start, min(start + count, len(ANSWER))):
            lost = lost or place in self.wrong
            p = math.nan if place in self.untold else 0.5 + place / 100
            found.append(Proposal(-place if lost else ANSWER[place], p))
        return found

    def score(self, prompt_ids, answer_ids):
        """Each place by itself, the recorded text before it."""
        return [self.propose((*prompt_ids, *answer_ids[:k]), 1)[0] for k in range(len(answer_ids))]


def test_one_evaluation_gives_the_same_profile():
    """Read at every token at once, or asked stretch by stretch: the same hits and probabilities, misses sampled alike."""
    asked = profile_answer(Scripted({0, 4, 5, 19}), recording(), longest=8, sampled_misses=20)
    scored = profile_scored(Scripted({0, 4, 5, 19}), recording(), longest=8, sampled_misses=20)
    assert scored.hits.tolist() == asked.hits.tolist()
    assert scored.p == pytest.approx(asked.p)
    for place in set(scored.after_miss) & set(asked.after_miss):
        assert scored.after_miss[place] == pytest.approx(asked.after_miss[place])
    assert set(scored.after_miss) == {0, 4, 5, 19}


def test_few_misses_are_sampled_of_many():
    """No more continuations than asked for."""
    scored = profile_scored(Scripted(set(range(20))), recording(), longest=4, sampled_misses=3)
    assert len(scored.after_miss) == 3


def test_every_position_is_asked_with_the_recorded_text_before_it():
    """After each wrong token the next position is asked again; hits and probabilities come out in order."""
    draft = Scripted({0, 4, 5, 19})
    found = profile_answer(draft, recording(), longest=8, sampled_misses=4)
    assert np.flatnonzero(~found.hits).tolist() == [0, 4, 5, 19]
    assert found.p == pytest.approx([0.5 + i / 100 for i in range(20)])


def test_agreement_costs_few_requests():
    """A draft that is always right is asked in whole stretches."""
    draft = Scripted(set())
    profile_answer(draft, recording(), longest=8, sampled_misses=4)
    assert len(draft.asked) == 3


def test_sampled_misses_keep_what_a_whole_cycle_would_propose():
    """From a miss on, as many tokens as the longest cycle has left, wherever the stretch began."""
    found = profile_answer(Scripted({3}), recording(), longest=8, sampled_misses=4)
    assert list(found.after_miss) == [3]
    assert found.after_miss[3] == pytest.approx([0.5 + i / 100 for i in range(4, 11)])


def test_probability_that_is_not_told_is_the_nearest_one_of_the_same_outcome():
    """A token that ends within a character has none: its neighbour's stands for it."""
    found = profile_answer(Scripted({7}, untold={2, 7}), recording(), longest=8, sampled_misses=4)
    assert found.p[2] in (found.p[1], found.p[3])
    assert found.p[7] == 0.5  # no other miss is known
    assert not np.isnan(found.p).any()


def test_draft_that_proposes_nothing_is_an_error():
    """No endless loop where a server answers without tokens."""

    class Mute:
        def propose(self, ids, count):
            return []

    with pytest.raises(RequestError, match="proposed nothing"):
        profile_answer(Mute(), recording(), longest=8, sampled_misses=4)


def test_draft_without_any_probability_is_an_error():
    """A build that never tells them cannot be asked what p-min would do."""
    with pytest.raises(RequestError, match="no probabilities"):
        profile_answer(Scripted(set(), untold=set(range(100))), recording(), longest=8, sampled_misses=4)


def test_profile_survives_the_store():
    """To JSON and back, to five digits."""
    found = profile_answer(Scripted({3, 9}), recording(), longest=8, sampled_misses=4)
    again = AnswerProfile.from_json(found.to_json())
    assert again.hits.tolist() == found.hits.tolist()
    assert again.p == pytest.approx(found.p, abs=1e-5)
    assert list(again.after_miss) == list(found.after_miss)
    for place, rest in found.after_miss.items():
        assert again.after_miss[place] == pytest.approx(rest, abs=1e-5)

"""The space: what Optuna suggests becomes a drafting, and back."""

from __future__ import annotations

import optuna
import pytest

from autospec.drafting import OFF, Mode
from autospec.tuning.definition import load_definition
from autospec.tuning.space import Arm, Space

DEFINITION = load_definition("thorough").space
SPACE = Space(
    (
        Arm(Mode.DRAFT_MODEL, "/a/draft.gguf"),
        Arm(Mode.DRAFT_MODEL, "/b/draft.gguf", takes_p_min=False),
        Arm(Mode.EAGLE3, "/a/eagle.gguf", n_max_limit=5),
        Arm(Mode.MTP),
        Arm(Mode.NGRAM_SIMPLE),
        Arm(Mode.NGRAM_MOD),
        Arm(Mode.NGRAM_MAP_K4V),
        Arm(Mode.NGRAM_CACHE),
        Arm(Mode.PROMPT_LOOKUP),
    ),
    DEFINITION,
)


def test_every_suggestion_is_a_valid_drafting_within_the_ranges():
    """Two hundred random trials keep to the definition and reach every arm."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    seen = set()
    for _ in range(200):
        drafting = SPACE.suggest(study.ask())
        seen.add((drafting.mode, drafting.draft))
        if drafting.mode is Mode.EAGLE3:
            assert drafting.n_max <= 5
        if drafting.draft == "/b/draft.gguf":
            assert drafting.p_min is None
        if drafting.mode is Mode.DRAFT_MODEL:
            low, high = DEFINITION.n_max
            assert low <= drafting.n_max <= high
    assert len(seen) == 1 + len(SPACE.arms)


def test_leaders_go_through_optuna_unchanged():
    """Each leader, enqueued with its parameters, is suggested as itself."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    leaders = [OFF, *SPACE.leaders()]
    for leader in leaders:
        study.enqueue_trial(SPACE.parameters(leader))
        assert SPACE.suggest(study.ask()) == leader


def test_leaders_try_every_arm_once_before_any_twice():
    """The first trials are one of each arm."""
    first = SPACE.leaders()[: len(SPACE.arms)]
    assert {(d.mode, d.draft) for d in first} == {(a.mode, a.draft) for a in SPACE.arms}
    assert len(set(SPACE.leaders())) == len(SPACE.leaders())


def test_arm_parameter_changes_with_the_arms():
    """A draft model that was downloaded later does not break a study: its choices have another name."""
    fewer = Space(SPACE.arms[1:], DEFINITION)
    assert fewer.arm_parameter != SPACE.arm_parameter


def test_equal_file_names_are_different_arms():
    """Two drafts called draft.gguf are told apart."""
    assert SPACE.arms[0].label != SPACE.arms[1].label


def test_drafting_of_another_space_is_refused():
    """A drafting without an arm has no parameters."""
    with pytest.raises(ValueError, match="not in this space"):
        Space((Arm(Mode.NGRAM_MOD),), DEFINITION).parameters(SPACE.leaders()[0])

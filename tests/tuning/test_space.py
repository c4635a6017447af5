"""The space: a suggestion of Optuna becomes a drafting, and a drafting a suggestion."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from autospec.cells import Build, Cell, Hardware, ModelRef, PromptType
from autospec.drafting import OFF, Drafting, Engine, Mode
from autospec.tuning.definition import load_definition
from autospec.tuning.space import Arm, Space
from autospec.tuning.study import CellStudy, open_storage

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


ENGINES = Space(
    (
        Arm(Mode.MTP),
        Arm(Mode.DRAFT_MODEL, "/a/draft.gguf"),
        Arm(Mode.MTP, engine=Engine.MTP_ADAPTIVE, n_max_limit=9),
        Arm(Mode.DRAFT_MODEL, "/a/draft.gguf", engine=Engine.ADAPTIVE),
        Arm(Mode.DRAFT_MODEL, "/a/draft.gguf", engine=Engine.PROBABILISTIC),
        Arm(Mode.DRAFT_MODEL, "/a/draft.gguf", engine=Engine.AUTOTUNE),
    ),
    DEFINITION,
)


def test_what_a_server_adapts_is_an_arm_of_its_own():
    """It is tried, goes through Optuna unchanged, and is never predicted."""
    leaders = ENGINES.leaders()
    assert {(d.mode, d.engine) for d in leaders[:6]} == {(a.mode, a.engine) for a in ENGINES.arms}
    assert [d.label for d in leaders if d.engine is Engine.MTP_ADAPTIVE] == [
        "mtp n_max=9 n_min=3 p_min=0.0 engine=mtp-adaptive",
        "mtp n_max=8 n_min=1 p_min=0.0 engine=mtp-adaptive",
    ]
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    for leader in leaders:
        study.enqueue_trial(ENGINES.parameters(leader))
        assert ENGINES.suggest(study.ask()) == leader
    seen = {ENGINES.suggest(study.ask()) for _ in range(200)}
    assert {(d.mode, d.engine) for d in seen} == {(a.mode, a.engine) for a in ENGINES.arms} | {
        (Mode.OFF, None)
    }
    assert all(ENGINES.arm_of(d).engine == d.engine for d in seen if not d.is_off)
    assert {d.engine for d in ENGINES.grid()} == {None}
    assert len({arm.label for arm in ENGINES.arms}) == len(ENGINES.arms)


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


def test_n_min_is_searched_where_it_can_matter():
    """A draft model's with a p-min, and ngram-mod's; without a p-min every draft is as long as n_max."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    seen = [SPACE.suggest(study.ask()) for _ in range(400)]
    assert {d.n_min for d in seen if d.mode is Mode.NGRAM_MOD} > {0}
    of_models = [d for d in seen if d.mode in {Mode.DRAFT_MODEL, Mode.EAGLE3, Mode.MTP}]
    assert {d.n_min for d in of_models if d.p_min} > {0, 2}
    assert {d.n_min for d in of_models if not d.p_min} == {0}
    assert all((d.n_min or 0) <= (d.n_max or 99) and d.n_min != 1 for d in of_models)


def test_every_drafting_of_the_grid_goes_through_optuna_unchanged():
    """What prediction chooses is asked of the study with its parameters, n_min included."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    grid = SPACE.grid()
    assert len(grid) == len(set(grid))
    # Some of every arm: all of them would take a minute.
    for drafting in [d for d in grid if d.n_min][::19] + grid[::97]:
        study.enqueue_trial(SPACE.parameters(drafting))
        assert SPACE.suggest(study.ask()) == drafting


def test_defaults_of_llama_cpp_are_leaders():
    """llama-server --help of b11434: n_max 3; n 12, m 48, one hit; match 24, n_max 64, n_min 48."""
    for name in ("quick", "default", "thorough"):
        space = Space(
            (
                Arm(Mode.DRAFT_MODEL, "/a.gguf"),
                Arm(Mode.NGRAM_SIMPLE),
                Arm(Mode.NGRAM_MAP_K),
                Arm(Mode.NGRAM_MOD),
            ),
            load_definition(name).space,
        )
        sizes = {"ngram_n": 12, "ngram_m": 48, "min_hits": 1}
        defaults = {
            Drafting(Mode.DRAFT_MODEL, draft="/a.gguf", n_max=3, n_min=0, p_min=0.0),
            Drafting(Mode.NGRAM_SIMPLE, **sizes),
            Drafting(Mode.NGRAM_MAP_K, **sizes),
            Drafting(Mode.NGRAM_MOD, ngram_n=24, n_max=64, n_min=48),
        }
        assert defaults <= set(space.leaders())
        assert defaults <= set(space.grid())


def test_the_leaders_of_a_draft_reach_from_two_to_sixteen_tokens():
    """Where nothing can be predicted, the first four of a draft cover n_max and p-min."""
    leaders = Space((Arm(Mode.DRAFT_MODEL, "/a.gguf"),), load_definition("quick").space).leaders()
    assert [d.n_max for d in leaders[:4]] == [8, 16, 4, 2]
    assert len({d.p_min for d in leaders[:4]}) > 2


def test_a_narrow_space_of_the_users_own_has_a_grid():
    """Ranges between two steps of the ladders give no n-gram sizes, and no error."""
    narrow = load_definition("quick").space.__class__(
        (Mode.NGRAM_MOD,), drafts=1, n_max=(2, 2), p_min=(0.2, 0.2), ngram_n=(5, 5), ngram_m=(9, 10)
    )
    assert Space((Arm(Mode.NGRAM_MOD),), narrow).grid() == []
    [only] = Space((Arm(Mode.DRAFT_MODEL, "/a", takes_p_min=False),), narrow).grid()
    assert (only.p_min, only.n_min) == (None, 0)
    assert {d.n_max for d in Space((Arm(Mode.NGRAM_MOD),), narrow).leaders()} == {10}


def test_a_study_from_before_n_min_was_searched_goes_on(tmp_path: Path):
    """Its trials have no n_min and a narrower n_max: they count, and the study proposes and takes new ones."""
    arms = (Arm(Mode.DRAFT_MODEL, "/a.gguf"), Arm(Mode.NGRAM_MOD))
    space = Space(arms, load_definition("default").space)
    cell = Cell(
        ModelRef("m", "/m.gguf", "f"), PromptType.CODING, Build("simulated", "b1", "f" * 8),
        Hardware(id="h", chip="Test", memory_bytes=1 << 30, cores=2, os="linux"),
    )  # fmt: skip
    storage = open_storage(f"sqlite:///{tmp_path / 'studies.db'}")
    old = optuna.create_study(study_name=cell.study_name, storage=storage, direction="maximize")
    labels = CategoricalDistribution(["off", *(a.label for a in arms)])
    mod = Drafting(Mode.NGRAM_MOD, ngram_n=16, n_max=48, n_min=0)
    with_draft = Drafting(Mode.DRAFT_MODEL, draft="/a.gguf", n_max=8, n_min=0, p_min=0.4)
    written = (
        (mod, {"ngram-mod.ngram_n": 16, "ngram-mod.n_max": 48},
         {"ngram-mod.ngram_n": IntDistribution(3, 24, log=True), "ngram-mod.n_max": IntDistribution(8, 48, log=True)}),
        (with_draft, {"draft-model.n_max": 8, "draft-model.p_min": 0.4},
         {"draft-model.n_max": IntDistribution(1, 24, log=True),
          "draft-model.p_min": FloatDistribution(0.0, 0.95, step=0.05)}),
    )  # fmt: skip
    for drafting, values, ranges in written:
        label = next(a.label for a in arms if a.mode is drafting.mode)
        old.add_trial(
            optuna.trial.create_trial(
                params={space.arm_parameter: label, **values},
                distributions={space.arm_parameter: labels, **ranges},
                value=1.2,
                user_attrs={"drafting": drafting.to_json(), "protocol": "p"},
            )
        )
    study = CellStudy(cell, storage, load_definition("default"), space, "p")
    study.start(OFF).complete(1.0, {})
    assert [t.drafting for t in study.tried()] == [mod, with_draft, OFF]
    known = {mod, with_draft}
    for drafting in (Drafting(Mode.NGRAM_MOD, ngram_n=24, n_max=64, n_min=48), *space.grid()[-2:]):
        study.start(drafting).complete(1.1, {})
        known.add(drafting)
    for _ in range(3):
        proposed = study.propose(known)
        assert proposed is not None
        study.start(proposed).complete(1.0, {})
        known.add(proposed)
    assert len(study.tried()) == 9


MOD = Drafting(Mode.NGRAM_MOD, ngram_n=24, n_max=64, n_min=48)
TOGETHER = Drafting(Mode.DRAFT_MODEL, draft="/a/draft.gguf", n_max=8, n_min=0, p_min=0.0, beside=(MOD,))


def test_several_modes_are_an_arm_of_their_own():
    """What happens to them says nothing about the arms of the single modes."""
    space = replace(SPACE, combines=True)
    arm = space.arm_of(TOGETHER)
    assert arm is not None
    assert arm.label == f"{SPACE.arms[0].label} + ngram-mod"
    assert arm not in space.arms
    assert space.arm_of(replace(TOGETHER, beside=())) == SPACE.arms[0]
    assert SPACE.arm_of(TOGETHER) is None, "the build takes one mode"
    assert replace(space, arms=SPACE.arms[:1]).arm_of(TOGETHER) is None, "the study has no ngram-mod"


def test_a_trial_of_several_modes_is_kept_and_not_taught(tmp_path: Path):
    """The sampler proposes none, so such a trial has no parameters; the study keeps its value all the same."""
    space = replace(SPACE, combines=True)
    cell = Cell(
        ModelRef("m", "/m.gguf", "f"), PromptType.CODING, Build("simulated", "b1", "f" * 8),
        Hardware(id="h", chip="Test", memory_bytes=1 << 30, cores=2, os="linux"),
    )  # fmt: skip
    study = CellStudy(
        cell, open_storage(f"sqlite:///{tmp_path / 's.db'}"), load_definition("default"), space, "p"
    )
    study.start(MOD).complete(1.1, {})
    study.start(TOGETHER).complete(1.4, {})
    study.start(replace(TOGETHER, beside=())).complete(1.2, {})
    assert [(t.drafting, t.value) for t in study.tried()] == [
        (MOD, 1.1), (TOGETHER, 1.4), (replace(TOGETHER, beside=()), 1.2),
    ]  # fmt: skip
    proposed = study.propose({MOD, TOGETHER})
    assert proposed is not None
    assert not proposed.beside
    study.note_drafting("winner", TOGETHER)
    assert study.drafting_in(study.notes(), "winner", 0.0) == TOGETHER

"""Which recommendations apply to a model on this machine, and which of them are served."""

from __future__ import annotations

import dataclasses

import pytest

from autospec.cells import Aim, Build, Cell, Hardware, PromptType
from autospec.drafting import OFF, Drafting, Mode
from autospec.recommendations import (
    LIMITS,
    LimitCheck,
    Limits,
    LimitVerdict,
    Status,
    StoredRecommendation,
    Verdict,
)
from autospec.serving.advice import FAILED_LAUNCH, AdviceKey, ModelAdvice, known_of, marked_stale
from autospec.serving.dispatch import Limit
from autospec.serving.plan_inputs import advice_from
from tests.serving.scene import ALPHA, ARGS, BETA, BUILD, HERE, LOOKUP, LOOKUP_2, recommend

PLACE = AdviceKey(HERE, BUILD, ARGS)
TRUST = frozenset({Status.PROVEN, Status.STALE})
OTHER_BUILD = dataclasses.replace(BUILD, version="fake-2", fingerprint="f" * 16)


def known(*stored, place: AdviceKey = PLACE, trust=TRUST, exists=lambda _: True) -> ModelAdvice:
    """What is known of alpha."""
    return known_of(ALPHA, place, stored, trust, exists=exists)


def test_what_was_proven_here_is_served():
    """As it stands, without a word."""
    found = known(recommend(LOOKUP), recommend(OFF, PromptType.CHAT))
    assert [r.drafting for r in found.recommendations] == [LOOKUP, OFF]
    assert [r.status for r in found.recommendations] == [Status.PROVEN, Status.PROVEN]
    assert found.draftings == (LOOKUP,)
    assert found.notes == ()


def test_others_do_not_speak():
    """Another machine, another backend, another model."""
    entry = recommend(LOOKUP)
    elsewhere = dataclasses.replace(entry, hardware=Hardware("other", "Other", 1))
    backend = dataclasses.replace(BUILD, backend="llama-server")
    assert known(elsewhere, recommend(LOOKUP, of=BETA), recommend(LOOKUP, build=backend)) == ModelAdvice()


def test_another_build_counts_as_stale_and_is_served_with_a_mark():
    """The figures do not speak for this build; the setting says whether that is enough."""
    entry = recommend(LOOKUP, build=OTHER_BUILD)
    served, strict = known(entry), known(entry, trust=frozenset({Status.PROVEN}))
    assert served.recommendations[0].status is Status.STALE
    assert served.draftings == (LOOKUP,)
    assert "proven with fake-2, and this is fake-1" in served.notes[0]
    assert strict.draftings == ()
    assert "off: its status is stale" in strict.notes[0]


def test_other_server_arguments_count_as_stale():
    """Layers on the GPU make other speeds; the context, which measuring chooses by itself, does not."""
    found = known(recommend(LOOKUP), place=AdviceKey(HERE, BUILD, ("-ngl", "99")))
    assert found.recommendations[0].status is Status.STALE
    assert "server arguments -t 1 -c 4096" in found.notes[0]
    assert known(recommend(LOOKUP), place=AdviceKey(HERE, BUILD, (*ARGS, "-c", "32768"))).notes == ()


def test_another_file_of_the_same_name_counts_as_stale():
    """It was proven with other weights."""
    model = dataclasses.replace(ALPHA, fingerprint="another")
    found = known_of(model, PLACE, [recommend(LOOKUP)], TRUST, exists=lambda _: True)
    assert found.recommendations[0].status is Status.STALE
    assert "another file of the model" in found.notes[0]


def test_this_very_cell_goes_before_a_newer_one_of_another_build():
    """Whatever came later for another build says less about this one."""
    other = recommend(LOOKUP_2, build=OTHER_BUILD)
    later = dataclasses.replace(other.recommendation, created_at="2027-01-01T00:00:00+00:00")
    other = dataclasses.replace(other, recommendation=later)
    for stored in ((recommend(LOOKUP), other), (other, recommend(LOOKUP))):
        assert known(*stored).draftings == (LOOKUP,)


@pytest.mark.parametrize("status", [Status.PROVISIONAL, Status.IMPORTED])
def test_what_was_not_proven_is_off_unless_the_user_trusts_it(status):
    """A wrong enable is worse than a wrong disable."""
    entry = recommend(LOOKUP, status=status)
    assert known(entry).draftings == ()
    assert f"its status is {status}" in known(entry).notes[0]
    assert known(entry, trust=frozenset(Status)).draftings == (LOOKUP,)


def test_a_draft_that_is_gone_is_off():
    """Its file is looked for before a launch is spent on it."""
    drafting = Drafting(Mode.DRAFT_MODEL, draft="/models/gone.gguf", n_max=4, n_min=0, p_min=0.0)
    found = known(recommend(drafting), exists=lambda _: False)
    assert found.draftings == ()
    assert "/models/gone.gguf does not exist" in found.notes[0]


def test_the_mark_of_a_failed_launch():
    """Stale for everybody, off where it failed, and tried again with another build."""
    marked = marked_stale(recommend(LOOKUP), BUILD, "it ran without speculation")
    assert (marked.status, marked.verdict, marked.drafting) == (Status.STALE, Verdict.ENABLE, LOOKUP)
    assert marked.reason == f"{LOOKUP.label} no longer starts: it ran without speculation"
    assert marked.evidence[FAILED_LAUNCH]["build"] == "fake-1"
    entry = dataclasses.replace(recommend(LOOKUP), recommendation=marked)
    assert known(entry).draftings == ()
    assert "did not start with it (it ran without speculation)" in known(entry).notes[0]
    assert known(entry, place=AdviceKey(HERE, OTHER_BUILD, ARGS)).draftings == (LOOKUP,)


def test_a_recommendation_for_any_kind_of_prompt():
    """A record without a type speaks, as another cell's, for the model of its name."""
    found = known(recommend(LOOKUP, None))
    assert [(r.prompt_type, r.status) for r in found.recommendations] == [(None, Status.STALE)]


def test_naming():
    """The stored recommendations behind a drafting, to be marked."""
    coding, editing = recommend(LOOKUP), recommend(LOOKUP, PromptType.EDITING)
    assert known(coding, editing, recommend(OFF, PromptType.CHAT)).naming(LOOKUP) == [coding, editing]


LIKELY = {"speedup": 1.72, "interval": [1.5, 1.9], "chance": 0.99, "about_s": 240}


def undecided(**changes):
    """A cell whose proof is not finished, and whose drafting is likely."""
    entry = recommend(LOOKUP, status=Status.PROVISIONAL, likely=LIKELY)
    found = dataclasses.replace(entry.recommendation, verdict=Verdict.UNDECIDED, drafting=OFF, **changes)
    return dataclasses.replace(entry, recommendation=found)


def test_what_is_likely_is_off_unless_the_user_trusts_it():
    """A wrong drafting costs more than a missed one: the default is off."""
    assert known(undecided()).draftings == ()
    found = known_of(ALPHA, PLACE, [undecided()], TRUST, likely=True, exists=lambda _: True)
    assert found.draftings == (LOOKUP,)
    assert found.recommendations[0].speedup == 1.72
    assert found.likely(LOOKUP) == {PromptType.CODING}
    assert "is likely but not proven" in found.notes[0]
    assert found.stored[0].recommendation.verdict is Verdict.UNDECIDED


@pytest.mark.parametrize(
    "entry",
    [
        undecided(evidence={}),
        undecided(evidence={"likely": {"speedup": "much"}}),
        undecided(tried=OFF),
        undecided(status=Status.STALE),
        recommend(OFF, likely=LIKELY),
    ],
)
def test_only_what_is_likely_here_is_trusted(entry):
    """Not without the evidence, not where another verdict stands."""
    found = known_of(ALPHA, PLACE, [entry], TRUST, likely=True, exists=lambda _: True)
    assert found.draftings == ()


@pytest.mark.parametrize("drafted", [[], ["p3"]])
def test_what_fails_with_drafting_only_is_not_trusted(drafted):
    """An earlier version called it likely all the same."""
    evidence = undecided().recommendation.evidence | {"failing": {"off": ["p1"], "drafted": drafted}}
    found = known_of(ALPHA, PLACE, [undecided(evidence=evidence)], TRUST, likely=True, exists=lambda _: True)
    assert found.draftings == (() if drafted else (LOOKUP,))


def test_what_is_likely_for_another_build_or_without_its_draft_is_off():
    """It says nothing of another cell, and a draft that is gone cannot be launched."""
    elsewhere = AdviceKey(HERE, OTHER_BUILD, ARGS)
    assert known_of(ALPHA, elsewhere, [undecided()], TRUST, likely=True).draftings == ()
    drafted = undecided(tried=Drafting(Mode.DRAFT_MODEL, draft="/gone.gguf", n_max=8, n_min=0))
    assert known_of(ALPHA, PLACE, [drafted], TRUST, likely=True, exists=lambda _: False).draftings == ()


def test_what_is_proven_is_not_likely():
    """The mark is for what is not."""
    assert known(recommend(LOOKUP)).likely(LOOKUP) == frozenset()


def test_a_likely_drafting_that_does_not_start_is_not_tried_again():
    """Its recommendation stays undecided and provisional, with the mark for this build."""
    marked = marked_stale(undecided(), BUILD, "no")
    assert (marked.status, marked.verdict) == (Status.PROVISIONAL, Verdict.UNDECIDED)
    entry = dataclasses.replace(undecided(), recommendation=marked)
    assert known_of(ALPHA, PLACE, [entry], TRUST, likely=True).draftings == ()


def test_a_build_without_version_is_told_by_its_hash():
    """Source builds all call themselves build 0."""
    build = Build("embedded", "build 0", "a" * 16)
    marked = marked_stale(recommend(LOOKUP, build=build), build, "no")
    entry = dataclasses.replace(recommend(LOOKUP, build=build), recommendation=marked)
    assert known(entry, place=AdviceKey(HERE, build, ARGS)).draftings == ()
    rebuilt = dataclasses.replace(build, fingerprint="b" * 16)
    assert known(entry, place=AdviceKey(HERE, rebuilt, ARGS)).draftings == (LOOKUP,)


SLOWER = LimitCheck(0.8, 0.71, (0.6, 0.8), 8, LimitVerdict.SLOWER)
GREEDY = Limits(temperature=(SLOWER,), highest_temperature=0.0)


def limited(entry: StoredRecommendation, limits: Limits) -> StoredRecommendation:
    """The same with these limits in its evidence."""
    evidence = {**entry.recommendation.evidence, LIMITS: limits.to_json()}
    return dataclasses.replace(
        entry, recommendation=dataclasses.replace(entry.recommendation, evidence=evidence)
    )


def test_a_check_that_one_type_lacks_is_that_of_the_draftings_other_types():
    """The budget ended after coding was slower at 0.8; chat, with the same drafting, is not trusted there either."""
    coding = limited(recommend(LOOKUP, PromptType.CODING), GREEDY)
    chat = recommend(LOOKUP, PromptType.CHAT)
    found = known(coding, chat)
    assert found.limits_for(PromptType.CHAT).highest_temperature == 0.0
    advice = advice_from(found.recommendations)[PromptType.CHAT]
    assert advice.beyond == {Limit.TEMPERATURE: 0.71}


def test_a_types_own_check_and_another_drafting_count_more():
    """Chat was faster at 0.8 itself; editing has a drafting of which nothing is known."""
    holds = Limits(
        temperature=(dataclasses.replace(SLOWER, ratio=1.4, verdict=LimitVerdict.FASTER),),
        highest_temperature=0.8,
    )
    coding = limited(recommend(LOOKUP, PromptType.CODING), GREEDY)
    chat = limited(recommend(LOOKUP, PromptType.CHAT), holds)
    found = known(coding, chat, recommend(LOOKUP_2, PromptType.EDITING))
    assert found.limits_for(PromptType.CHAT).highest_temperature == 0.8
    assert found.limits_for(PromptType.EDITING).highest_temperature is None


def test_only_verdicts_of_the_aim_are_served():
    """The newer one of the other aim does not speak, and the cell of an aim is its own."""
    fast = recommend(LOOKUP)
    cell = Cell(ALPHA.ref, PromptType.CODING, BUILD, HERE, (*ARGS, "-c", "4096"), Aim.ENERGY)
    found = dataclasses.replace(
        recommend(LOOKUP_2).recommendation, aim=Aim.ENERGY, created_at="2026-11-25T10:00:00+00:00"
    )
    frugal = StoredRecommendation(cell.key, HERE, found)
    assert known(fast, frugal).draftings == (LOOKUP,)
    saving = dataclasses.replace(PLACE, aim=Aim.ENERGY)
    assert known(fast, frugal, place=saving).draftings == (LOOKUP_2,)
    assert known(fast, frugal, place=saving).notes == ()
    assert known(fast, place=saving) == ModelAdvice()


def test_an_enabled_drafting_is_served_for_its_energy_even_if_it_is_slower():
    """The plan weighs what the aim compares."""
    slower = dataclasses.replace(
        recommend(LOOKUP, speedup=0.9).recommendation,
        aim=Aim.ENERGY,
        evidence={"energy": {"ratio": 0.8}},
    )
    advice = advice_from([slower])[PromptType.CODING]
    assert advice.speedup == pytest.approx(1.25)
    assert advice.ratio(LOOKUP) > 1.0
    unknown = advice_from([dataclasses.replace(slower, evidence={})])[PromptType.CODING]
    assert unknown.drafting.is_off

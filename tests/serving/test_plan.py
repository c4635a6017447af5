"""The plan as a pure function: which launches it keeps, where it routes, when it switches, and its words."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autospec.cells import PromptType
from autospec.drafting import OFF, Drafting, Mode
from autospec.serving.plan import MARGIN, Plan, make_plan
from autospec.serving.plan_inputs import (
    UNMEASURED_RATIO,
    Advice,
    Capacity,
    LaunchEstimate,
    MemoryEstimate,
    ModelDemand,
)

MAIN_BYTES, DRAFT_BYTES, CACHE_BYTES = 1000, 100, 50
CODER = Drafting(Mode.DRAFT_MODEL, draft="small.gguf", n_max=8, n_min=0, p_min=0.7)
TALKER = Drafting(Mode.DRAFT_MODEL, draft="tiny.gguf", n_max=3, n_min=0, p_min=0.0)
LOOKUP = Drafting(Mode.NGRAM_MOD, ngram_n=12, n_max=16, n_min=0)
DRAFTINGS = (OFF, CODER, TALKER, LOOKUP)
AMPLE = Capacity(memory_bytes=10_000)


def possible(drafting: Drafting, main: str = "main.gguf", launch_s: float = 5.0) -> LaunchEstimate:
    """A launch that maps the main model, and its draft if it has one."""
    files = {main: MAIN_BYTES} | ({drafting.draft: DRAFT_BYTES} if drafting.draft else {})
    return LaunchEstimate(drafting, MemoryEstimate(CACHE_BYTES, files), launch_s)


def needs(model: str = "main", **changes) -> ModelDemand:
    """A model that is asked for coding and chat alike; drafting helps coding and hurts chat."""
    usual = ModelDemand(
        model,
        tuple(possible(drafting, f"{model}.gguf") for drafting in DRAFTINGS),
        {
            PromptType.CODING: Advice(CODER, 1.8, 15.0),
            PromptType.CHAT: Advice(OFF, 1.0, 15.0, {CODER: 0.7}),
        },
        {PromptType.CODING: 2.0, PromptType.CHAT: 2.0},
        in_use=True,
    )
    return replace(usual, **changes)


def carried_out(models: list[ModelDemand], plan: Plan) -> list[ModelDemand]:
    """The models with the plan's launches running."""
    return [replace(m, running=found.launches) for m in models if (found := plan.of(m.model)) is not None]


def test_one_kind_of_traffic_gets_its_drafting():
    """Only coding is asked for: the drafting that is best for coding, and nothing else."""
    part = make_plan([needs(tokens_per_s={PromptType.CODING: 2.0})], AMPLE).models[0]
    assert part.launches == (CODER,)
    assert part.saved_s == pytest.approx(2.0 * 1800 / 15.0 * (1 - 1 / 1.8))


def test_modes_beside_a_draft_are_another_launch():
    """The same draft with and without an n-gram mode beside it: two launches with two gains, and never mixed up."""
    both = replace(CODER, beside=(LOOKUP,))
    entries = tuple(possible(d, "alpha-1b.gguf") for d in (OFF, CODER, both))
    advice = {PromptType.CODING: Advice(both, 2.4, 15.0, {CODER: 1.8})}
    demand = needs(possible=entries, advice=advice, tokens_per_s={PromptType.CODING: 2.0})
    part = make_plan([demand], AMPLE).models[0]
    assert part.launches == (both,)
    assert part.routes[PromptType.CODING].drafting == both
    running = make_plan([replace(demand, running=(CODER,))], Capacity(MAIN_BYTES + DRAFT_BYTES + CACHE_BYTES))
    assert running.models[0].starts == (both,)
    assert running.models[0].stops == (CODER,)


def test_twins_where_memory_allows_and_each_type_to_its_own():
    """Half wants drafting and half must not have it: two launches of one file."""
    part = make_plan([needs()], AMPLE).models[0]
    assert set(part.launches) == {OFF, CODER}
    assert part.routes[PromptType.CODING].launch == CODER
    assert part.routes[PromptType.CHAT].launch == OFF
    assert part.memory_bytes == MAIN_BYTES + DRAFT_BYTES + 2 * CACHE_BYTES


def test_one_launch_where_memory_is_short():
    """The better of two compromises: coding gains more than chat loses."""
    part = make_plan([needs()], Capacity(memory_bytes=MAIN_BYTES + DRAFT_BYTES + CACHE_BYTES)).models[0]
    assert part.launches == (CODER,)
    assert part.routes[PromptType.CHAT].ratio == 0.7
    assert "memory" in part.reason


def test_no_twins_where_memory_is_unknown():
    """A second launch is never tried on hope."""
    assert len(make_plan([needs()], Capacity()).models[0].launches) == 1


def test_weights_that_are_copied_count_twice():
    """Where nothing is shared, twins need the room of two models."""
    copied = tuple(
        LaunchEstimate(entry.drafting, MemoryEstimate(MemoryEstimate.total_bytes([entry.footprint])), 5.0)
        for entry in needs().possible
    )
    limit = MAIN_BYTES + DRAFT_BYTES + 2 * CACHE_BYTES
    assert len(make_plan([needs()], Capacity(memory_bytes=limit)).models[0].launches) == 2
    assert len(make_plan([needs(possible=copied)], Capacity(memory_bytes=limit)).models[0].launches) == 1


def test_untuned_types_are_kept_away_from_drafting():
    """A type that nobody measured is expected to lose by drafting and goes to off where off runs."""
    routes = make_plan([needs()], AMPLE).models[0].routes
    assert routes[PromptType.WRITING].launch == OFF
    alone = make_plan([needs(tokens_per_s={PromptType.CODING: 2.0})], AMPLE).models[0].routes
    assert alone[PromptType.WRITING].ratio == UNMEASURED_RATIO


def test_a_measured_gain_that_was_not_proven_counts_for_nothing():
    """An undecided verdict with a lucky ratio does not argue for drafting."""
    lucky = {PromptType.CHAT: Advice(OFF, 1.0, 15.0, {CODER: 1.5})}
    part = make_plan([needs(advice=lucky, tokens_per_s={PromptType.CHAT: 5.0})], AMPLE).models[0]
    assert part.launches == (OFF,)


@pytest.mark.parametrize("likely", [False, True])
def test_the_plan_says_what_is_only_likely(likely):
    """The words name it; the routes are the same."""
    advice = {PromptType.CODING: Advice(CODER, 1.8, 15.0, likely=likely)}
    part = make_plan([needs(advice=advice, tokens_per_s={PromptType.CODING: 2.0})], AMPLE).models[0]
    assert part.launches == (CODER,)
    assert (f"{CODER.label} (likely) for coding" in part.reason) is likely


def test_first_launch_follows_the_request_that_asked_for_it():
    """A model that is started for coding is started with the drafting for coding, however little was seen."""
    part = make_plan([needs(tokens_per_s={PromptType.CODING: 0.001})], AMPLE).models[0]
    assert part.starts == (CODER,)


def test_little_traffic_does_not_pay_for_a_switch():
    """Ten seconds of work are not worth a launch of five."""
    little = {PromptType.CODING: 10 * 15.0 / 1800}
    part = make_plan([needs(tokens_per_s=little, running=(OFF,))], AMPLE).models[0]
    assert part.launches == (OFF,)
    # Twice the start of 5 s, and 2 % of the ten seconds.
    assert "drafting saves too little for this traffic so far" in part.reason
    assert "a change must save 10 s (5 s to start, twice, and a part of the busy time)" in part.reason


def test_the_plan_names_the_types_that_were_not_measured():
    """A chatty question is of another type than the two that were tuned: the reason says why it is served without drafting."""
    traffic = {PromptType.QA: 2.0, PromptType.CHAT: 0.5}
    part = make_plan([needs(tokens_per_s=traffic, running=(OFF,))], AMPLE).models[0]
    assert part.launches == (OFF,)
    assert (
        "no drafting pays for this traffic; not measured yet, so served without drafting: qa" in part.reason
    )
    known = make_plan([needs(tokens_per_s={PromptType.CHAT: 0.5}, running=(OFF,))], AMPLE).models[0]
    assert "not measured" not in known.reason


def test_much_traffic_pays_for_a_switch():
    """Minutes of work are, and off is given back."""
    part = make_plan([needs(tokens_per_s={PromptType.CODING: 5.0}, running=(OFF,))], AMPLE).models[0]
    assert (part.starts, part.stops) == ((CODER,), (OFF,))


def test_a_mix_at_the_edge_does_not_flap():
    """One launch only, and a mix that wanders around the point where both are equal: at most one switch."""
    room = Capacity(memory_bytes=MAIN_BYTES + DRAFT_BYTES + CACHE_BYTES)
    # Coding gains 1 − 1/1.8 = 0.444 of its time, chat loses 1/0.7 − 1 = 0.429 of its own.
    even = 0.429 / (0.444 + 0.429)
    running: tuple[Drafting, ...] = (OFF,)
    switches = 0
    for step in range(40):
        coding = even + (0.01 if step % 2 else -0.01)
        mix = {PromptType.CODING: 4.0 * coding, PromptType.CHAT: 4.0 * (1 - coding)}
        part = make_plan([needs(tokens_per_s=mix, running=running)], room).models[0]
        switches += part.launches != running
        running = part.launches
    assert switches <= 1


def test_a_twin_that_serves_nothing_any_more_is_given_back():
    """The mix turned to coding alone: off goes, without a new launch."""
    part = make_plan([needs(tokens_per_s={PromptType.CODING: 2.0}, running=(OFF, CODER))], AMPLE).models[0]
    assert (part.launches, part.starts, part.stops) == ((CODER,), (), (OFF,))


def test_least_used_model_is_unloaded_when_memory_is_short():
    """Three models run and two fit: the one with the least work goes."""
    rates = {"a": 1.0, "b": 3.0, "c": 2.0}
    models = [
        needs(name, tokens_per_s={PromptType.CHAT: rate}, running=(OFF,), in_use=False)
        for name, rate in rates.items()
    ]
    plan = make_plan(models, Capacity(memory_bytes=2 * (MAIN_BYTES + CACHE_BYTES)))
    assert {part.model: bool(part.launches) for part in plan.models} == {"a": False, "b": True, "c": True}
    unloaded = plan.of("a")
    assert unloaded is not None
    assert "used more" in unloaded.reason


def test_a_model_that_is_asked_for_goes_before_one_that_only_runs():
    """A request waits for b; a was used more but nobody asks for it now."""
    models = [
        needs("a", tokens_per_s={PromptType.CHAT: 9.0}, running=(OFF,), in_use=False),
        needs("b", tokens_per_s={PromptType.CHAT: 0.1}),
    ]
    plan = make_plan(models, Capacity(memory_bytes=MAIN_BYTES + CACHE_BYTES))
    assert [(part.model, part.launches) for part in plan.models] == [("b", (OFF,)), ("a", ())]


def test_a_long_wait_goes_before_steady_use():
    """Two models cannot run together: the one whose request has waited too long gets its turn."""
    busy = needs("a", tokens_per_s={PromptType.CHAT: 9.0}, running=(OFF,))
    late = needs("b", tokens_per_s={PromptType.CHAT: 0.1})
    room = Capacity(memory_bytes=MAIN_BYTES + CACHE_BYTES)
    assert make_plan([busy, late], room).models[0].model == "a"
    assert make_plan([busy, replace(late, waiting_s=30.0)], room).models[0].model == "b"


def test_a_twin_does_not_push_another_model_out():
    """A second launch of one model waits behind the first of another."""
    room = Capacity(memory_bytes=2 * (MAIN_BYTES + CACHE_BYTES) + DRAFT_BYTES)
    plan = make_plan([needs("a"), needs("b", tokens_per_s={PromptType.CHAT: 0.1})], room)
    assert [len(part.launches) for part in plan.models] == [1, 1]


def test_a_model_that_cannot_fit_says_so():
    """Memory below the smallest launch: none, and both figures in the sentence."""
    part = make_plan([needs()], Capacity(memory_bytes=100)).models[0]
    assert part.launches == ()
    assert part.route(PromptType.CHAT) is None
    assert "smallest server" in part.reason


def test_overlap_tells_whether_the_new_can_be_ready_before_the_old_goes():
    """A switch fits twice over or it does not."""
    switching = needs(tokens_per_s={PromptType.CODING: 5.0}, running=(OFF,))
    both = MAIN_BYTES + DRAFT_BYTES + 2 * CACHE_BYTES
    assert make_plan([switching], Capacity(memory_bytes=both)).overlap_fits
    assert not make_plan([switching], Capacity(memory_bytes=both - 1)).overlap_fits


def mlx_needs(**changes) -> ModelDemand:
    """Coding and chat want one draft model with different numbers, writing wants another one."""
    few, many, other = (
        Drafting(Mode.DRAFT_MODEL, draft=draft, n_max=n)
        for draft, n in (("small", 2), ("small", 6), ("large", 4))
    )
    usual = ModelDemand(
        "mlx",
        tuple(possible(drafting) for drafting in (OFF, few, many, other)),
        {
            PromptType.CHAT: Advice(few, 1.2, 15.0),
            PromptType.CODING: Advice(many, 1.6, 15.0),
            PromptType.WRITING: Advice(other, 1.3, 15.0),
            PromptType.MATH: Advice(OFF, 1.0, 15.0),
        },
        {PromptType.CHAT: 2.0, PromptType.CODING: 2.0, PromptType.WRITING: 1.0, PromptType.MATH: 1.0},
        in_use=True,
        per_request=True,
    )
    return replace(usual, **changes)


def test_per_request_one_launch_serves_every_number_of_its_draft():
    """MLX: one launch; each type its own number of draft tokens; off and foreign drafts become none at all."""
    part = make_plan([mlx_needs()], AMPLE).models[0]
    (launch,) = part.launches
    assert launch.draft == "small"
    in_force = {kind: part.routes[kind].drafting for kind in PromptType}
    assert in_force[PromptType.CHAT].n_max == 2
    assert in_force[PromptType.CODING].n_max == 6
    assert in_force[PromptType.MATH] == in_force[PromptType.WRITING] == in_force[PromptType.QA] == OFF


def test_per_request_another_number_is_no_launch():
    """MLX: what runs with the same draft model is kept whatever number it was started with."""
    old = Drafting(Mode.DRAFT_MODEL, draft="small", n_max=5)
    part = make_plan([mlx_needs(running=(old,))], AMPLE).models[0]
    assert (part.launches, part.starts, part.stops) == ((old,), (), ())


def test_per_request_another_draft_has_to_pay():
    """MLX: a change of the draft model reloads both, and a little more writing does not pay for that."""
    small = Drafting(Mode.DRAFT_MODEL, draft="small", n_max=6)
    little = {PromptType.WRITING: 0.05}
    part = make_plan([mlx_needs(running=(small,), tokens_per_s=little)], AMPLE).models[0]
    assert part.launches == (small,)
    much = {PromptType.WRITING: 5.0}
    part = make_plan([mlx_needs(running=(small,), tokens_per_s=much)], AMPLE).models[0]
    assert [launch.draft for launch in part.launches] == ["large"]


def test_the_document_says_what_and_why():
    """`GET /autospec/v1/plan`: launches, routes, expected gain, a sentence; plain JSON."""
    document = json.loads(json.dumps(make_plan([needs(running=(OFF,))], AMPLE).to_json()))
    (model,) = document["models"]
    assert document["memory_limit_bytes"] == 10_000
    assert {launch["mode"] for launch in model["launches"]} == {"off", "draft-model"}
    assert model["starts"] == [CODER.to_json()]
    assert model["routes"]["coding"] == {"launch": CODER.to_json(), "drafting": CODER.to_json(), "ratio": 1.8}
    assert model["saved_s"] > 0
    assert model["reason"].endswith(".")
    assert "coding (50%)" in model["reason"]


# Drawing several models takes longer than planning for them.
SEARCH = settings(max_examples=40)
ratios = st.floats(0.4, 3.0)
advices = st.one_of(
    st.builds(
        lambda known: Advice(OFF, 1.0, 15.0, known), st.dictionaries(st.sampled_from(DRAFTINGS[1:]), ratios)
    ),
    st.builds(
        Advice,
        st.sampled_from(DRAFTINGS[1:]),
        st.floats(1.02, 3.0),
        st.one_of(st.none(), st.floats(1.0, 100.0)),
        st.dictionaries(st.sampled_from(DRAFTINGS[1:]), ratios),
    ),
)


@st.composite
def models(draw: st.DrawFn) -> list[ModelDemand]:
    """One to three models with any traffic, advice and running launches."""
    return [
        ModelDemand(
            name,
            tuple(
                possible(drafting, name, draw(st.floats(0.1, 60.0)))
                for drafting in (OFF, *draw(st.lists(st.sampled_from(DRAFTINGS[1:]), unique=True)))
            ),
            draw(st.dictionaries(st.sampled_from(PromptType), advices, max_size=5)),
            draw(st.dictionaries(st.sampled_from(PromptType), st.floats(0.0, 20.0), max_size=5)),
            running=tuple(draw(st.lists(st.sampled_from(DRAFTINGS), unique=True, max_size=2))),
            in_use=draw(st.booleans()),
            waiting_s=draw(st.sampled_from((0.0, 1.0, 30.0))),
            per_request=draw(st.booleans()),
        )
        for name in ("a", "b", "c")[: draw(st.integers(1, 3))]
    ]


rooms = st.builds(
    Capacity,
    memory_bytes=st.one_of(st.none(), st.integers(0, 5000)),
    horizon_s=st.floats(60.0, 7200.0),
    twins=st.integers(1, 3),
)


@given(models(), rooms)
@SEARCH
def test_memory_is_never_exceeded(asked: list[ModelDemand], room: Capacity):
    """Whatever is asked, the launches kept fit together, and are at most as many as allowed."""
    plan = make_plan(asked, room)
    if room.memory_bytes is not None:
        assert plan.memory_bytes <= room.memory_bytes
    for part, found in ((part, next(m for m in asked if m.model == part.model)) for part in plan.models):
        assert len(part.launches) <= (1 if found.per_request else room.twins)


@given(models(), rooms)
@SEARCH
def test_planning_again_changes_nothing(asked: list[ModelDemand], room: Capacity):
    """With the plan carried out, the same question has the answer that is there already."""
    first = make_plan(asked, room)
    second = make_plan(carried_out(asked, first), room)
    for part in second.models:
        assert (part.starts, part.stops) == ((), ())


@given(models(), rooms)
@SEARCH
def test_drafting_is_never_counted_on_where_it_is_not_recommended(asked: list[ModelDemand], room: Capacity):
    """A ratio above 1 is promised only to types whose verdict is enable."""
    for part in make_plan(asked, room).models:
        found = next(m for m in asked if m.model == part.model)
        for kind, route in part.routes.items():
            enabled = kind in found.advice and not found.advice[kind].drafting.is_off
            assert enabled or route.ratio <= 1.0
            assert enabled or OFF not in part.launches or route.drafting == OFF


@given(models(), rooms)
@SEARCH
def test_a_started_launch_is_worth_more_than_it_costs(asked: list[ModelDemand], room: Capacity):
    """Beside something that runs and may stay, only what pays for its start is started."""
    by_name = {m.model: m for m in asked}
    for part in make_plan(asked, room).models:
        known = {entry.drafting for entry in by_name[part.model].possible}
        stays = [drafting for drafting in by_name[part.model].running if drafting in known]
        if not stays or not part.starts or by_name[part.model].per_request:
            continue
        alone = make_plan(
            [
                replace(
                    by_name[part.model],
                    possible=tuple(
                        entry for entry in by_name[part.model].possible if entry.drafting in stays
                    ),
                )
            ],
            replace(room, memory_bytes=None),
        ).models[0]
        if room.memory_bytes is None:
            assert part.saved_s >= alone.saved_s + MARGIN * part.busy_s * 0.999


@given(models(), rooms)
@SEARCH
def test_every_route_leads_to_a_launch_that_is_kept(asked: list[ModelDemand], room: Capacity):
    """Every prompt type has a way while anything is kept, and none when nothing is."""
    for part in make_plan(asked, room).models:
        assert set(part.routes) == (set(PromptType) if part.launches else set())
        assert all(route.launch in part.launches for route in part.routes.values())
        assert part.reason.endswith(".")

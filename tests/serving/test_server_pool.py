"""What to start and what to drain next: with room, without room, and never above the limit."""

from __future__ import annotations

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from autospec.drafting import OFF, Drafting
from autospec.serving.instance import InstanceState
from autospec.serving.plan_inputs import LaunchEstimate, MemoryEstimate
from autospec.serving.server_pool import PoolActions, Waiting, next_actions
from tests.serving.scene import LOOKUP, LOOKUP_2

WEIGHTS, CACHE = 100, 10


def possible(model: str, drafting: Drafting) -> LaunchEstimate:
    """A launch of a model: weights that all its launches share, and a cache of its own."""
    return LaunchEstimate(drafting, MemoryEstimate(CACHE, {model: WEIGHTS}), 1.0)


@dataclasses.dataclass(frozen=True)
class Held:
    """A `ServerInstance` as far as the actions depend on it."""

    number: int
    model: str
    drafting: Drafting
    state: InstanceState
    leases: int
    used_at_s: float
    footprint: MemoryEstimate
    outdated: bool = False
    busy_since_s: float = 0.0


def held(number: int, model: str, drafting: Drafting = OFF, **changes) -> Held:
    """A ready launch that nobody uses, older ones used longer ago."""
    usual = Held(
        number, model, drafting, InstanceState.READY, 0, float(number), possible(model, drafting).footprint
    )
    return dataclasses.replace(usual, **changes)


def kept(**models: tuple[Drafting, ...]) -> dict[str, tuple[LaunchEstimate, ...]]:
    """What should be."""
    return {model: tuple(possible(model, d) for d in draftings) for model, draftings in models.items()}


def started(actions: PoolActions) -> list[tuple[str, Drafting]]:
    """What is started, without its footprint."""
    return [(model, entry.drafting) for model, entry in actions.start]


def test_what_is_missing_is_started():
    """And what runs or starts already is not started again."""
    actions = next_actions(
        [held(1, "a", state=InstanceState.STARTING)], kept(a=(OFF, LOOKUP), b=(OFF,)), 10_000
    )
    assert started(actions) == [("b", OFF), ("a", LOOKUP)]
    assert actions.drain == ()


def test_the_new_one_is_ready_before_the_old_one_drains():
    """Beside each other while the new one loads."""
    wanted = kept(a=(LOOKUP,))
    assert next_actions([held(1, "a")], wanted, 10_000) == PoolActions(start=(("a", wanted["a"][0]),))
    loading = [held(1, "a"), held(2, "a", LOOKUP, state=InstanceState.STARTING)]
    assert next_actions(loading, wanted, 10_000) == PoolActions()
    ready = [held(1, "a"), held(2, "a", LOOKUP)]
    assert next_actions(ready, wanted, 10_000) == PoolActions(drain=(1,))


def test_without_room_the_old_one_goes_first():
    """And nothing is started until it is gone, however long it drains."""
    wanted = kept(a=(LOOKUP,))
    assert next_actions([held(1, "a")], wanted, 115) == PoolActions(drain=(1,))
    assert next_actions([held(1, "a", state=InstanceState.DRAINING, leases=3)], wanted, 115) == PoolActions()
    assert next_actions([held(1, "a", state=InstanceState.STOPPING)], wanted, 115) == PoolActions()
    assert started(next_actions([], wanted, 115)) == [("a", LOOKUP)]


def busy(number: int, model: str, drafting: Drafting = OFF, *, since_s: float = 1000.0, **changes) -> Held:
    """A launch on which there has been a request since then."""
    return held(number, model, drafting, **{"leases": 1, "busy_since_s": since_s, **changes})


def asked(*able: int, waited_s: float = 1.0) -> list[Waiting]:
    """Requests that have waited for so long, and the servers that can answer them."""
    return [Waiting(waited_s, frozenset(able))]


def test_a_better_server_waits_for_a_moment_without_requests():
    """Its last answer may take ten minutes; new requests would be refused after five. After ten minutes it is tried."""
    wanted = kept(a=(LOOKUP,))
    assert next_actions([busy(1, "a")], wanted, 115, now_s=1599.0) == PoolActions()
    assert next_actions([busy(1, "a")], wanted, 115, now_s=1600.0) == PoolActions(drain=(1,))
    assert next_actions([busy(1, "a", outdated=True)], kept(a=(OFF,)), 115, now_s=1001.0) == PoolActions()


def test_a_better_server_does_not_wait_where_drafting_was_switched_off():
    """Requests go on being drafted until the server without drafting runs."""
    drafts, wanted = busy(1, "a", LOOKUP), kept(a=(OFF,))
    assert next_actions([drafts], wanted, 115, now_s=1001.0, at_once={"a"}) == PoolActions(drain=(1,))
    draining = dataclasses.replace(drafts, state=InstanceState.DRAINING)
    waiting = {"a": asked(1, waited_s=90.0)}
    assert next_actions([draining], wanted, 115, waiting).lend_again == (1,)
    assert next_actions([draining], wanted, 115, waiting, at_once={"a"}) == PoolActions()


def test_a_better_server_that_waits_holds_up_no_other_model():
    """What fits beside the old one starts; and what somebody waits for does not wait for that moment."""
    running, wanted = [busy(1, "a", outdated=True)], kept(a=(OFF,), b=(OFF,))
    large = LaunchEstimate(OFF, MemoryEstimate(CACHE, {"new a": 2 * WEIGHTS}), 1.0)
    larger = {**wanted, "a": (large,)}
    assert started(next_actions(running, larger, 315, now_s=1001.0)) == [("b", OFF)]
    assert next_actions([held(1, "a", outdated=True)], larger, 315).drain == (1,)
    assert next_actions(running, wanted, 115, {"b": asked()}, now_s=1001.0) == PoolActions(drain=(1,))
    assert next_actions(running, wanted, 115, now_s=1001.0) == PoolActions()  # nobody waits for it


def test_a_better_server_takes_no_other_models_only_server():
    """That one may be idle: its next request would wait for the long answers of the first model."""
    old_a = busy(1, "a", outdated=True, footprint=MemoryEstimate(CACHE, {"old a": WEIGHTS}))
    wanted = kept(a=(OFF,), b=(OFF,))
    actions = next_actions([old_a, held(2, "b", outdated=True)], wanted, 220, now_s=1001.0)
    assert actions == PoolActions(drain=(2,))
    assert started(next_actions([old_a], wanted, 220, now_s=1001.0)) == [("b", OFF)]


def test_a_server_that_is_needed_does_not_wait():
    """A client asks for no drafting, and where two do not fit only the server without it can answer."""
    running, wanted = [busy(1, "a", LOOKUP)], kept(a=(OFF,))
    assert next_actions(running, wanted, 115, {"a": asked()}, now_s=1001.0) == PoolActions(drain=(1,))


def test_one_that_still_drains_is_lent_again():
    """Once a request has waited for long, unless that one cannot use it, or another model waits for the memory."""
    running, wanted = [busy(1, "a", state=InstanceState.DRAINING)], kept(a=(LOOKUP,))
    waiting = {"a": asked(1, waited_s=60.0)}
    assert next_actions(running, wanted, 115, waiting) == PoolActions(lend_again=(1,))
    assert next_actions(running, wanted, 115, waiting, deadline_s=10.0) == PoolActions(lend_again=(1,))
    assert next_actions(running, wanted, 115, {"a": asked(1, waited_s=59.0)}) == PoolActions()
    assert next_actions(running, wanted, 115, {"a": asked(waited_s=90.0)}) == PoolActions()
    both = kept(b=(OFF,), a=(LOOKUP,))
    assert next_actions(running, both, 215, {**waiting, "b": asked()}).lend_again == ()
    assert next_actions(running, both, 225, {**waiting, "b": asked()}).lend_again == (1,)  # room for both
    assert next_actions(running, kept(b=(OFF,)), 115, waiting) == PoolActions()


def test_one_that_another_request_needs_gone_is_lent_again_later():
    """Both kinds of request wait; neither is refused because of the other as long as answers end within half of the deadline."""
    running, wanted = [busy(1, "a", LOOKUP, state=InstanceState.DRAINING)], kept(a=(OFF,))
    both = [*asked(1, waited_s=149.0), *asked(waited_s=200.0)]
    assert next_actions(running, wanted, 115, {"a": both}, deadline_s=300.0) == PoolActions()
    both = [*asked(1, waited_s=150.0), *asked(waited_s=201.0)]
    assert next_actions(running, wanted, 115, {"a": both}, deadline_s=300.0).lend_again == (1,)


def test_nothing_makes_room_for_what_does_not_start_yet():
    """A model that failed waits minutes for its next start: no other one is stopped for it, or kept from its requests."""
    wanted, later = kept(a=(LOOKUP,), b=(OFF,)), {("b", OFF)}
    answering = busy(1, "a", since_s=0.0)
    assert next_actions([answering], wanted, 115, {"b": asked()}).drain == (1,)
    assert next_actions([answering], wanted, 115, {"b": asked()}, later=later) == PoolActions()
    draining = dataclasses.replace(answering, state=InstanceState.DRAINING)
    waiting = {"a": asked(1, waited_s=90.0), "b": asked()}
    assert next_actions([draining], wanted, 115, waiting).lend_again == ()
    assert next_actions([draining], wanted, 115, waiting, later=later).lend_again == (1,)
    assert started(next_actions([], wanted, 10_000, waiting, later=later)) == [("a", LOOKUP)]


def test_two_that_drain_for_a_third_are_lent_again():
    """The third model's client has given up: neither of the two needs the other's memory."""
    running = [
        busy(1, "a", state=InstanceState.DRAINING, outdated=True),
        busy(2, "b", state=InstanceState.DRAINING, outdated=True),
    ]
    waiting = {"a": asked(1, waited_s=60.0), "b": asked(2, waited_s=70.0)}
    assert next_actions(running, kept(a=(OFF,), b=(OFF,)), 220, waiting).lend_again == (1, 2)


def test_one_that_is_kept_after_all_is_lent_again():
    """At once: a new one would load the same model once more. Not if its build was replaced, nor twice."""
    drains = busy(1, "a", state=InstanceState.DRAINING)
    assert next_actions([drains], kept(a=(OFF,)), 10_000) == PoolActions(lend_again=(1,))
    old = dataclasses.replace(drains, outdated=True)
    assert started(next_actions([old], kept(a=(OFF,)), 10_000)) == [("a", OFF)]
    twin = dataclasses.replace(drains, number=2)
    assert next_actions([drains, twin], kept(a=(OFF,)), 10_000) == PoolActions(lend_again=(1,))
    assert next_actions([drains, held(2, "a")], kept(a=(OFF,)), 10_000) == PoolActions()


def test_one_that_is_kept_after_all_is_not_lent_again_while_another_model_waits():
    """The plan changes its choice with each server that drains: both models would be lent again in turn, and the third starve."""
    running = [busy(1, "a"), busy(2, "c", state=InstanceState.DRAINING)]
    waiting = {"b": asked(), "c": asked(2, waited_s=5.0)}
    assert next_actions(running, kept(b=(OFF,), c=(OFF,)), 220, waiting) == PoolActions()


def test_a_server_that_loads_for_somebody_is_not_ended_for_a_better_one():
    """Whoever waits for it would wait for two loads, also in the moment when it has loaded. If nobody waits, it is."""
    running, wanted = [held(1, "a", state=InstanceState.STARTING)], kept(a=(LOOKUP,))
    assert next_actions(running, wanted, 115, {"a": asked(1)}) == PoolActions()
    assert next_actions([held(1, "a")], wanted, 115, {"a": asked(1)}) == PoolActions()
    assert next_actions(running, wanted, 115) == PoolActions(drain=(1,))


def test_a_server_that_loads_for_somebody_makes_no_room():
    """Not even for a request that has waited longer: each of two models would end the other's load. An idle server goes."""
    running = [held(1, "a", LOOKUP, state=InstanceState.STARTING), held(2, "b", LOOKUP)]
    waiting = {"a": asked(1), "d": asked(waited_s=100.0)}
    wanted = kept(d=(OFF,), a=(OFF,), b=(OFF,))
    assert next_actions(running, wanted, 225, waiting) == PoolActions(drain=(2,))
    assert next_actions(running[:1], kept(d=(OFF,)), 115, waiting) == PoolActions()


def test_an_idle_server_makes_room_before_a_long_answer_is_waited_for():
    """The memory of a server that drains comes when its answer ends."""
    running = [busy(1, "a", state=InstanceState.DRAINING), held(2, "c")]
    waiting = {"b": asked()}
    assert next_actions(running, kept(b=(OFF,), a=(OFF,)), 225, waiting).drain == (2,)
    assert next_actions(running, kept(b=(OFF,), a=(OFF,), c=(LOOKUP,)), 225, waiting).drain == (2,)


def test_no_model_is_loaded_beside_its_own_server_that_drains():
    """That one is lent again when the memory of the model that waits is there, or is needed."""
    running = [busy(1, "a", state=InstanceState.DRAINING), busy(2, "c")]
    wanted = kept(b=(OFF,), a=(OFF,))
    waiting = {"b": asked(), "a": asked(1)}
    assert (
        next_actions(running, wanted, 235, waiting) == PoolActions()
    )  # b waits for the memory of one of them
    assert next_actions([running[0]], wanted, 235, waiting).lend_again == (1,)


def test_drafting_switched_off_takes_no_other_models_server():
    """Its own server goes, although another model's outdated one was used longer ago."""
    running = [
        busy(1, "b", outdated=True, used_at_s=1.0),
        busy(2, "a", LOOKUP, outdated=True, used_at_s=2.0),
    ]
    wanted = {**kept(b=(OFF,)), "a": (LaunchEstimate(OFF, MemoryEstimate(CACHE, {"new a": WEIGHTS}), 1.0),)}
    assert next_actions(running, wanted, 225, now_s=1001.0, at_once={"a"}) == PoolActions(drain=(2,))


def test_a_launch_larger_than_the_limit_runs_alone():
    """The estimate may be wrong; nothing at all would be worse."""
    assert started(next_actions([], kept(a=(OFF,)), 50)) == [("a", OFF)]
    assert next_actions([held(1, "b")], kept(a=(OFF,)), 50) == PoolActions(drain=(1,))


def test_the_least_useful_makes_room():
    """What nobody uses goes before what is in use, and what was used longest ago before the rest."""
    running = [held(1, "a", LOOKUP, leases=1), held(2, "b", LOOKUP), held(3, "c", LOOKUP)]
    wanted = kept(d=(OFF,), a=(OFF,), b=(OFF,), c=(OFF,))
    waiting = {"d": asked()}
    assert next_actions(running, wanted, 340, waiting) == PoolActions(drain=(2,))
    gone = [running[0], held(2, "b", LOOKUP, state=InstanceState.STOPPING), running[2]]
    assert (
        next_actions(gone, wanted, 340, waiting) == PoolActions()
    )  # that is enough; it has to be waited for


def test_room_that_is_being_made_is_not_taken_by_the_next_model():
    """The more important one waits for it, and the other one behind it."""
    running = [held(1, "x", state=InstanceState.DRAINING, leases=1)]
    assert next_actions(running, kept(a=(OFF,), b=(OFF,)), 115) == PoolActions()


def test_what_nobody_wants_any_more_drains():
    """Also where there is room for it."""
    assert next_actions([held(1, "a"), held(2, "b")], kept(b=(OFF,)), 10_000) == PoolActions(drain=(1,))


draftings = st.lists(st.sampled_from((OFF, LOOKUP, LOOKUP_2)), unique=True, min_size=1, max_size=3)
fleets = st.dictionaries(st.sampled_from("abc"), draftings, max_size=3)


@given(fleets, fleets, st.integers(110, 400))
def test_step_by_step_everything_comes_to_what_should_be(before, after, limit):
    """Within the limit at every step, and at rest exactly with what is kept, if that fits at all."""
    wanted = kept(**{model: tuple(chosen) for model, chosen in after.items()})
    total = MemoryEstimate.total_bytes(e.footprint for entries in wanted.values() for e in entries)
    if total > limit:
        return  # a plan keeps nothing that does not fit
    numbers = iter(range(1000))
    running = [held(next(numbers), model, d) for model, chosen in before.items() for d in chosen]
    for _ in range(30):
        actions = next_actions(running, wanted, limit)
        if actions == PoolActions():
            break
        running = [h for h in running if h.number not in actions.drain]
        size_before = MemoryEstimate.total_bytes(h.footprint for h in running)
        running += [held(next(numbers), model, entry.drafting) for model, entry in actions.start]
        size = MemoryEstimate.total_bytes(h.footprint for h in running)
        assert size <= max(limit, size_before)
    assert sorted((h.model, h.drafting.key) for h in running) == sorted(
        (model, entry.drafting.key) for model, entries in wanted.items() for entry in entries
    )

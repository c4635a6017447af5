"""Where a proven drafting is checked besides: what is planned, what the checks measure, and which limits follow."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest

from autospec.backends.placement import Weights, Where
from autospec.hardware.gpu import Device
from autospec.measure.launch_scatter import LaunchScatter
from autospec.measure.measurements import Pair, Sample, Shapes
from autospec.measure.verdict import DEFAULT_RULE
from autospec.recommendations import LimitCheck, Limits, LimitVerdict
from autospec.tuning.definition import LimitsDefinition
from autospec.tuning.launches import Memory
from autospec.tuning.limit_checks import Subject, _DraftingChecks, _Item
from autospec.tuning.limits import (
    Condition,
    Kind,
    Plan,
    check_of,
    holds,
    limits_of,
    plan,
    served_temperature,
    unknown_conditions,
)
from tests.catalog.making import make_model
from tests.report.samples import DRAFTING, measurement

GIB = 1024**3
PLENTY = Memory(1024 * GIB)
MODEL = replace(make_model(name="main"), context_length=65536)


def planned(wanted: LimitsDefinition = LimitsDefinition(check=True), **changes) -> Plan:  # noqa: B008
    """A plan for a model with plenty of memory."""
    given = {
        "memory": PLENTY,
        "args": (),
        "temperature": 0.0,
        "context_tokens": 500,
        "model": MODEL,
        **changes,
    }
    model, memory = given.pop("model"), given.pop("memory")
    return plan(wanted, model, None, memory, **given)


def places(result: Plan) -> list[tuple[Kind, float]]:
    """What is checked, in order."""
    return [(c.kind, c.at) for c in result.conditions]


def test_one_of_each_kind_comes_first():
    """A short budget shows something of each kind."""
    assert places(planned()) == [
        (Kind.CONCURRENT, 2),
        (Kind.CONTEXT, 8192),
        (Kind.TEMPERATURE, 0.8),
        (Kind.SECOND_TURN, 2),
        (Kind.CONCURRENT, 4),
        (Kind.CONTEXT, 32768),
    ]


def test_slots_and_depth_end_the_checks():
    """The number that the user names is checked, and nothing beyond it."""
    asked = places(planned(LimitsDefinition(check=True, slots=3, depth=10000)))
    assert [at for kind, at in asked if kind is Kind.CONCURRENT] == [2, 3]
    assert [at for kind, at in asked if kind is Kind.CONTEXT] == [8192, 10000]


def test_a_sampled_proof_needs_no_check_of_the_temperature():
    """The proof itself shows it."""
    result = planned(temperature=0.7, served=served_temperature((), (), MODEL, proven=0.7))
    assert Kind.TEMPERATURE not in {kind for kind, _ in places(result)}


@pytest.mark.parametrize(
    ("changes", "depths", "why"),
    [
        ({"model": replace(MODEL, context_length=8192)}, [], "trained with 8192 tokens"),
        ({"model": replace(MODEL, context_length=16384)}, [8192], "trained with 16384 tokens"),
        ({"memory": Memory(MODEL.size_bytes // 2)}, [], "not enough memory"),
    ],
)
def test_depths_that_cannot_be_say_why(changes, depths, why):
    """The trained context and the memory bound the depth."""
    result = planned(**changes)
    assert [at for kind, at in places(result) if kind is Kind.CONTEXT] == depths
    assert all(why in sentence for sentence in result.refused.values())
    assert len(result.refused) == 2 - len(depths)


@pytest.mark.parametrize(
    ("args", "slots", "expected"),
    [
        # The server's own slots share one context.
        ((), None, ("-c", "33780")),
        # A number that is named divides it.
        (("--parallel", "2"), None, ("--parallel", "2", "-c", "67560")),
        (("-np", "8"), 2, ("--parallel", "2", "-c", "67560")),
        # The user's own context stays.
        (("-c", "4096"), None, ("-c", "4096")),
    ],
)
def test_a_launch_has_the_context_that_its_checks_need(args, slots, expected):
    """A launch for the checks has the user's arguments and enough context."""
    assert planned(LimitsDefinition(check=True, slots=slots), args=args).args == expected


def test_an_mlx_server_is_told_neither_slots_nor_context():
    """It knows no such argument, and would refuse the launch; several requests at once stay planned, and the launch says why not."""
    asked = LimitsDefinition(check=True, slots=2, depth=1024)
    result = planned(asked, model=replace(MODEL, format="mlx"), args=("--temp", "0"))
    assert result.args == ("--temp", "0")
    assert (Kind.CONCURRENT, 2) in places(result)


def test_two_launches_run_side_by_side_only_on_the_processor():
    """On a GPU a launch that serves users does not say where it is, so a neighbour might displace it unseen."""
    gpu = (Device("CUDA0", "GPU", 64 * GIB, 64 * GIB),)
    assert Memory(64 * GIB).launches(10 * GIB, 11 * GIB) == 2
    assert Memory(64 * GIB, gpu).launches(10 * GIB, 11 * GIB) == 1
    assert Memory(64 * GIB, gpu, Weights(Where.MEMORY)).launches(10 * GIB, 11 * GIB) == 2
    assert Memory(64 * GIB, None).launches(10 * GIB, 11 * GIB) == 1
    assert Memory(16 * GIB).launches(10 * GIB, 11 * GIB) == 1
    assert Memory(8 * GIB).launches(10 * GIB, 11 * GIB) == 0


def checked(*verdicts: LimitVerdict, pairs: int = 8) -> dict[Condition, LimitCheck]:
    """Checks of 2, 4, 8 … requests at once with these verdicts."""
    return {
        Condition(Kind.CONCURRENT, 2 ** (k + 1)): LimitCheck(2 ** (k + 1), 1.0, (0.9, 1.1), pairs, verdict)
        for k, verdict in enumerate(verdicts)
    }


@pytest.mark.parametrize(
    ("verdicts", "most"),
    [
        ((LimitVerdict.FASTER, LimitVerdict.SLOWER), 2),
        ((LimitVerdict.FASTER, LimitVerdict.OPEN), 2),
        ((LimitVerdict.SLOWER, LimitVerdict.FASTER), 1),
        ((LimitVerdict.FASTER, LimitVerdict.FASTER), 4),
        ((), None),
    ],
)
def test_a_limit_is_the_greatest_value_up_to_which_all_are_faster(verdicts, most):
    """What the proof shows always counts; without a measurement nothing is known."""
    limits = limits_of(checked(*verdicts), context_tokens=300, temperature=0.0)
    assert limits.most_concurrent == most
    assert limits.deepest_context is None
    assert limits.highest_temperature is None


def test_the_proofs_own_condition_counts_in_every_direction():
    """A loss at the first depth leaves the proof's own length, at the temperature the proof's own."""
    slower = {
        Condition(Kind.CONTEXT, 8192): LimitCheck(8192, 0.8, (0.7, 0.9), 8, LimitVerdict.SLOWER),
        Condition(Kind.TEMPERATURE, 0.8): LimitCheck(0.8, 0.8, (0.7, 0.9), 8, LimitVerdict.SLOWER),
    }
    limits = limits_of(slower, context_tokens=300, temperature=0.0)
    assert (limits.deepest_context, limits.highest_temperature) == (300, 0.0)


def test_a_check_that_was_not_measured_is_no_limit():
    """Memory that does not suffice shows nothing about the drafting; requests that fail with it do."""
    unmeasured = checked(LimitVerdict.OPEN, pairs=0)
    assert limits_of(unmeasured, context_tokens=1, temperature=0.0).most_concurrent is None
    failing = checked(LimitVerdict.SLOWER, pairs=0)
    assert limits_of(failing, context_tokens=1, temperature=0.0).most_concurrent == 1


def test_a_slot_that_does_not_draft_is_a_limit():
    """One request at a time, whatever was measured: a request is put into any free slot."""
    all_faster = checked(LimitVerdict.FASTER, LimitVerdict.FASTER)
    for checks in (all_faster, {}):
        limits = limits_of(checks, context_tokens=1, temperature=0.0, one_at_a_time=True)
        assert limits.most_concurrent == 1


@pytest.mark.parametrize(
    ("ratio", "low", "verdict", "may_be_used"),
    [
        (1.2, 1.1, LimitVerdict.FASTER, True),
        (1.10, 0.99, LimitVerdict.OPEN, True),  # faster as far as is known, and it loses at most 1 %
        (1.10, 0.97, LimitVerdict.OPEN, False),  # it may lose 3 %
        (0.999, 0.985, LimitVerdict.OPEN, False),  # it seems slower
        (1.3, 0.0, LimitVerdict.OPEN, False),  # too few pairs for an interval
        (0.95, 0.9, LimitVerdict.SLOWER, False),
    ],
)
def test_an_open_check_holds_only_if_a_loss_is_ruled_out(ratio, low, verdict, may_be_used):
    """A wrong enable is worse than a missed gain: the interval's low end must be above 1 less the threshold of 2 %."""
    assert holds(LimitCheck(8192, ratio, (low, 2.0), 8, verdict)) is may_be_used


def depths(*checks: tuple[float, float, float]) -> Limits:
    """The limits of checks behind so many tokens, with these ratios and low ends."""
    found = {}
    for at, ratio, low in checks:
        verdict = LimitVerdict.FASTER if low > 1.0 else LimitVerdict.OPEN
        found[Condition(Kind.CONTEXT, at)] = LimitCheck(at, ratio, (low, 2.0), 8, verdict)
    return limits_of(found, context_tokens=300, temperature=0.0)


def test_the_deepest_check_that_holds_is_the_limit():
    """Open at 8k with a loss ruled out, faster at 32k: all of it. Open with a possible loss: what is deeper does not count."""
    assert depths((8192, 1.1, 0.99), (32768, 1.2, 1.1)).deepest_context == 32768
    assert depths((8192, 1.2, 1.1), (32768, 1.1, 0.9)).deepest_context == 8192
    assert depths((8192, 1.1, 0.9), (32768, 1.2, 1.1)).deepest_context == 300


def test_the_next_deeper_check_that_was_measured_decides():
    """A depth that could not be measured says nothing: one below it is decided by the next one, as any depth in between."""
    unmeasured = {Condition(Kind.CONTEXT, 8192): LimitCheck(8192, note="A request failed: too long")}
    deeper = {Condition(Kind.CONTEXT, 32768): LimitCheck(32768, 1.2, (1.1, 1.3), 8, LimitVerdict.FASTER)}
    limits = limits_of(unmeasured | deeper, context_tokens=300, temperature=0.0)
    assert limits.deepest_context == 32768


def requests_at(*temperatures: float | None) -> list[Sample]:
    """Live requests at these temperatures."""
    return [
        Sample(0.0, "m", "b", "1", None, 10, 10, 1.0, 1.0, temperature=temperature)
        for temperature in temperatures
    ]


@pytest.mark.parametrize(
    ("samples", "args", "own", "proven", "expected"),
    [
        ((), (), None, 0.0, 0.8),
        ((), (), 0.6, 0.0, 0.6),  # the model's file
        ((), ("--temp", "0.3"), 0.6, 0.0, 0.3),  # the user's arguments before it
        ((), ("--temp", "warm"), 0.6, 0.0, 0.6),
        ((), (), 0.0, 0.0, 0.8),  # greedy: the proof has shown that; clients have a temperature of their own
        ([0.7] * 28 + [1.0] * 2, (), 0.6, 0.0, 0.7),  # one request in fifteen is hotter
        ([0.7] * 20 + [0.95] * 10, (), None, 0.0, 1.0),  # one in three is; in tenths
        ([0.7] * 29 + [None], ("--temp", "0.3"), None, 0.0, 0.3),  # too few
        ([0.0] * 40, (), None, 0.0, 0.8),
        ([0.4] * 40, (), None, 0.5, 0.5),
        ([5.0] * 40, (), None, 0.0, 2.0),
    ],
)
def test_the_temperature_that_users_sample_with(samples, args, own, proven, expected):
    """Of the traffic, else as their servers are started, else as the model's file says, else the servers' default."""
    model = replace(MODEL, temperature=own)
    assert served_temperature(requests_at(*samples), args, model, proven=proven) == expected


def test_the_served_temperature_is_checked():
    """If it is above the proof's."""
    assert (Kind.TEMPERATURE, 1.0) in places(planned(served=1.0))
    assert (Kind.TEMPERATURE, 1.0) in places(planned(temperature=0.7, served=1.0))
    assert Kind.TEMPERATURE not in {kind for kind, _ in places(planned(temperature=1.0, served=1.0))}


def unknown(wanted: LimitsDefinition, known: Limits, served: float = 0.8) -> list[tuple[Kind, float]]:
    """What is still to be checked."""
    found = unknown_conditions(wanted, known, temperature=0.0, served=served)
    return [(c.kind, c.at) for c in found]


FASTER = {"ratio": 1.2, "interval": (1.1, 1.3), "pairs": 8, "verdict": LimitVerdict.FASTER}
CHECKED = Limits(
    concurrent=(LimitCheck(2, **FASTER), LimitCheck(4, note="The server answers 2 requests at once.")),
    context=(LimitCheck(8192, **FASTER), LimitCheck(32768, note="There is not enough memory.")),
    temperature=(LimitCheck(0.8, **FASTER),),
    second_turn=(LimitCheck(2, **FASTER),),
)


@pytest.mark.parametrize(
    ("wanted", "changes", "served", "expected"),
    [
        (LimitsDefinition(check=True), {}, 0.8, []),
        (LimitsDefinition(check=True), {}, 0.6, []),  # a check at 0.8 that holds answers for it
        (LimitsDefinition(check=True), {}, 1.0, [(Kind.TEMPERATURE, 1.0)]),
        (LimitsDefinition(check=True, slots=2), {}, 0.8, []),
        # What the user names is checked although the usual launch could not.
        (LimitsDefinition(check=True, slots=4), {}, 0.8, [(Kind.CONCURRENT, 4)]),
        (LimitsDefinition(check=True, slots=3), {}, 0.8, [(Kind.CONCURRENT, 3)]),
        (LimitsDefinition(check=True, depth=16384), {}, 0.8, [(Kind.CONTEXT, 16384)]),
        (LimitsDefinition(check=True), {"second_turn": ()}, 0.8, [(Kind.SECOND_TURN, 2)]),
        (
            LimitsDefinition(check=True),
            {"second_turn": (LimitCheck(2, pairs=4, out_of_time=True),)},
            0.8,
            [(Kind.SECOND_TURN, 2)],
        ),
        # Requests failed with drafting only, and an earlier version enabled it all the same.
        (
            LimitsDefinition(check=True),
            {
                "second_turn": (
                    LimitCheck(2, verdict=LimitVerdict.SLOWER, note="A request failed: status 500"),
                )
            },
            0.8,
            [(Kind.SECOND_TURN, 2)],
        ),
        (
            LimitsDefinition(check=True),
            {"second_turn": (LimitCheck(2, **FASTER | {"verdict": LimitVerdict.SLOWER}),)},
            0.8,
            [],
        ),
        # What a note says is for people.
        (
            LimitsDefinition(check=True),
            {"second_turn": (LimitCheck(2, pairs=4, note="The budget ended before the second launch."),)},
            0.8,
            [],
        ),
    ],
)
def test_only_what_is_not_known_is_checked(wanted, changes, served, expected):
    """Neither what was measured nor what cannot be measured is tried again, but what there was no time for."""
    assert unknown(wanted, replace(CHECKED, **changes), served) == expected


def pairs_of(ratio: float, count: int = 8) -> list[Pair]:
    """Pairs on two launches of each side, nearly all with this ratio."""
    found = []
    for k in range(count):
        launch = k // 4
        wall_ms = 1000.0 / ratio * (1.0 + 0.01 * (k % 3))
        off, drafted = (
            measurement(with_drafting=drafts, prompt=f"p{k}", predicted_tokens=64, wall_ms=ms,
                        launch_id=f"{drafts} {launch}", position=(k + drafts) % 2)
            for drafts, ms in ((False, 1000.0), (True, wall_ms))
        )  # fmt: skip
        found.append(Pair(off, drafted))
    return found


DEEP = Condition(Kind.CONTEXT, 8192)
KNOWN = LaunchScatter(sd=0.005, freedom=20.0, resolution=0.003, comparisons=20)


@pytest.mark.parametrize(
    ("ratio", "verdict"),
    [(1.3, LimitVerdict.FASTER), (0.7, LimitVerdict.SLOWER), (1.0, LimitVerdict.OPEN)],
)
def test_the_interval_decides(ratio, verdict):
    """Above 1, below 1, or with 1 in it."""
    check = check_of(DEEP, pairs_of(ratio), DEFAULT_RULE, KNOWN)
    low, high = check.interval
    assert check.verdict is verdict
    assert low < check.ratio < high
    assert check.pairs == 8
    assert check.answer_tokens == 64


def test_the_interval_has_the_scatter_of_launches_in_it():
    """Launches may differ by 3 %, those of off if nothing is known of them, which an interval of the requests alone would not show."""
    known = check_of(DEEP, pairs_of(1.3), DEFAULT_RULE, KNOWN).interval
    assumed = check_of(DEEP, pairs_of(1.3), DEFAULT_RULE, LaunchScatter()).interval
    # Two launches a side instead of the two with drafting alone.
    assert assumed[1] - assumed[0] > 1.3 * (known[1] - known[0])


def test_four_pairs_leave_a_check_open():
    """A signed-rank interval of 99 % has no ends then."""
    check = check_of(DEEP, pairs_of(1.3, count=4), DEFAULT_RULE, KNOWN)
    assert check.verdict is LimitVerdict.OPEN
    assert check.interval == (0.0, math.inf)


def test_nothing_measured_has_a_note():
    """The sentence says why."""
    assert check_of(DEEP, [], DEFAULT_RULE, KNOWN, "No.") == LimitCheck(8192, note="No.")


@pytest.mark.parametrize(("computed", "composed"), [(50, True), (30, True), (20, False)])
def test_a_prompt_that_is_mostly_in_the_cache_stays_as_measured(computed, composed):
    """Without drafting a server that keeps its cache computes what it lacks of 50 tokens; the request has half of them cached."""
    halves = {
        (0, True): measurement(with_drafting=False, prompt_tokens=computed),
        (0, False): measurement(with_drafting=True, prompt_tokens=50),
    }
    subject = Subject("coding", "aaaabbbbcccc", DRAFTING, (), 150, shapes=Shapes(0.5, drafts_uncached=True))
    checks, item = SimpleNamespace(_per_request=True), _Item(0, ())
    pair = _DraftingChecks._pair(checks, Condition(Kind.TEMPERATURE, 0.8), subject, item, halves)
    assert (pair.shape is not None) is composed
    if pair.shape is not None:
        assert (pair.shape.prompt_tokens, pair.shape.drafted_prompt_tokens) == (25.0, 50.0)

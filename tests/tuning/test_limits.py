"""Where a proven drafting is checked besides: what is planned, what the checks measure, and which limits follow."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from autospec.backends.placement import Weights, Where
from autospec.hardware.gpu import Device
from autospec.measure.launch_scatter import LaunchScatter
from autospec.measure.measurements import Pair
from autospec.measure.verdict import DEFAULT_RULE
from autospec.recommendations import LimitCheck, LimitVerdict
from autospec.tuning.definition import LimitsDefinition
from autospec.tuning.launches import Memory
from autospec.tuning.limits import Condition, Kind, Plan, check_of, limits_of, plan
from tests.catalog.making import make_model
from tests.report.samples import measurement

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
    assert Kind.TEMPERATURE not in {kind for kind, _ in places(planned(temperature=0.7))}


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
    """The limit is below it, whatever was measured."""
    all_faster = checked(LimitVerdict.FASTER, LimitVerdict.FASTER)
    assert limits_of(all_faster, context_tokens=1, temperature=0.0, silent_slot=3).most_concurrent == 3
    assert limits_of({}, context_tokens=1, temperature=0.0, silent_slot=1).most_concurrent == 1


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


def test_the_interval_has_the_scatter_of_launches_in_it():
    """Unknown launches may differ by 3 %, which an interval of the requests alone would not show."""
    known = check_of(DEEP, pairs_of(1.3), DEFAULT_RULE, KNOWN).interval
    assumed = check_of(DEEP, pairs_of(1.3), DEFAULT_RULE, LaunchScatter()).interval
    assert assumed[1] - assumed[0] > 2 * (known[1] - known[0])


def test_four_pairs_leave_a_check_open():
    """A signed-rank interval of 99 % has no ends then."""
    check = check_of(DEEP, pairs_of(1.3, count=4), DEFAULT_RULE, KNOWN)
    assert check.verdict is LimitVerdict.OPEN
    assert check.interval == (0.0, math.inf)


def test_nothing_measured_has_a_note():
    """The sentence says why."""
    assert check_of(DEEP, [], DEFAULT_RULE, KNOWN, "No.") == LimitCheck(8192, note="No.")

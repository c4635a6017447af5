"""What context adds to passes, and how it moves the times of a request."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from autospec.drafting import OFF, Drafting, Mode
from autospec.measure.measurements import (
    DepthCosts,
    DepthRise,
    Measurement,
    Pair,
    RequestShape,
    Shapes,
    rise_of,
)
from tests.report.samples import measurement

DRAFTED = Drafting(Mode.DRAFT_MODEL, draft="/m/draft.gguf", n_max=8, n_min=0, p_min=0.0)
# A token takes 50 ms, and 0.05 ms more for each token before it: what a lab model of 90 layers takes on two cores.
MAIN, DRAFT = DepthRise(0.05, 0.02), DepthRise(0.01, 0.004)


def costs(*, reach: int = 10_000) -> DepthCosts:
    """Of a main model with a draft."""
    return DepthCosts(50.0, reach, {"": MAIN, "/m/draft.gguf": MAIN.with_draft(DRAFT, verifies=True)})


def timed(rise: DepthRise, before: int, sizes=(1, 2, 5, 9, 17)) -> dict[int, float]:
    """Batches behind so many tokens."""
    return {m: 50.0 + 4.0 * m + before * (rise.pass_ms + rise.token_ms * (m - 1)) for m in sizes}


@pytest.mark.parametrize(
    "rise", [MAIN, DRAFT, DepthRise(0.05, 0.0), DepthRise(0.0, 0.02), DepthRise(0.0, 0.0)]
)
def test_a_rise_is_read_off_two_contexts(rise):
    """512 more tokens before batches of 1 to 17."""
    found = rise_of(timed(rise, 200), timed(rise, 712), 512)
    assert (found.pass_ms, found.token_ms) == pytest.approx((rise.pass_ms, rise.token_ms), abs=1e-9)


@pytest.mark.parametrize(
    ("pass_ms", "token_ms", "expected"),
    [
        (-0.01, 0.02, (0.0, None)),  # noise: the line begins below 0
        (0.05, -0.001, (None, 0.0)),  # larger batches rise less
        (-0.02, -0.002, (0.0, 0.0)),  # everything became faster
    ],
)
def test_no_part_of_a_rise_is_below_zero(pass_ms, token_ms, expected):
    """A longer context makes no pass faster."""
    found = rise_of(timed(DRAFT, 0), timed(DepthRise(DRAFT.pass_ms * 0 + pass_ms, token_ms), 512), 512)
    assert min(found.pass_ms, found.token_ms) >= 0.0
    for got, wanted in zip((found.pass_ms, found.token_ms), expected, strict=True):
        assert wanted is None or got == wanted


def test_one_size_tells_a_pass_alone():
    """Nothing is known of further tokens."""
    assert rise_of({1: 50.0}, {1: 55.12, 9: 70.0}, 512) == DepthRise(pytest.approx(0.01), 0.0)


def test_a_cycle_pays_for_the_draft_too():
    """Each proposal is a token of the main model's batch, one of the draft's batch, and a step of the draft."""
    cycle = MAIN.with_draft(DRAFT, verifies=True)
    assert (cycle.pass_ms, cycle.token_ms) == pytest.approx((0.06, 0.034))
    assert MAIN.with_draft(DRAFT, verifies=False).pass_ms == pytest.approx(0.05)
    assert MAIN.with_draft(DRAFT, verifies=False).token_ms == pytest.approx(0.03)


def test_passes_move_no_further_than_was_timed():
    """30,000 tokens of context are not what 700 have shown."""
    here = costs(reach=700)
    near = here.moved(None, from_tokens=260.0, to_tokens=700.0, plain_ms=50.0)
    far = here.moved(None, from_tokens=260.0, to_tokens=30_000.0, plain_ms=50.0)
    assert near == far
    assert near.pass_ms == pytest.approx(440 * 0.05)
    # Measured beyond it already: nothing is added, and nothing taken off.
    assert here.moved(None, from_tokens=900.0, to_tokens=1000.0, plain_ms=50.0).pass_ms == 0.0
    # Answers in use may be shorter than measured ones.
    assert here.moved(None, from_tokens=260.0, to_tokens=240.0, plain_ms=50.0).pass_ms == pytest.approx(-1.0)


def test_a_slow_moment_slows_the_rise_too():
    """A token that takes twice as long rises twice as much."""
    slow = costs().moved(None, from_tokens=0.0, to_tokens=100.0, plain_ms=100.0)
    assert slow.pass_ms == pytest.approx(10.0)


def half(drafting: Drafting, tokens: int, *, proposals: int = 0, accepted: int = 0) -> Measurement:
    """An answer behind 227 tokens on a machine with these costs, each pass at its own depth."""
    rise = costs().rises[drafting.draft or ""]
    passes = tokens - 1 - accepted
    middle = 227 + tokens / 2.0
    own_ms = 50.0 if drafting.is_off else 50.0 + 8 * 9.0
    # The rise at a context of 0 is part of the 50 ms: `plain_ms` is what a token takes where it was measured.
    ms = passes * own_ms + middle * (rise.pass_ms * passes + rise.token_ms * proposals)
    return replace(
        measurement(with_drafting=not drafting.is_off, prompt="p", round=1),
        drafting=drafting,
        prompt_tokens=227,
        predicted_tokens=tokens,
        prompt_ms=1000.0,
        predicted_ms=ms,
        wall_ms=1000.0 + ms,
        drafted=proposals,
        accepted=accepted,
        finish_reason="length",
    )


def pair_of(tokens: int, shapes: Shapes | None) -> Pair:
    """Cycles of eight proposals, seven of them accepted."""
    off = half(OFF, tokens)
    cycles = (tokens - 1) // 8
    drafted = half(DRAFTED, tokens, proposals=8 * cycles, accepted=tokens - 1 - cycles)
    return Pair(off, drafted, None if shapes is None else shapes.of_half(off))


def test_a_short_answer_is_put_together_for_a_long_one():
    """65 tokens stand for 401: without the depth the gain is told 9 % too high, with it within 1 %."""
    plain_ms = half(OFF, 65).predicted_ms / 64
    depth = replace(costs(), plain_ms=plain_ms)
    asked = {"p": 401}
    truth = pair_of(401, Shapes(0.0, asked)).log_ratio
    flat = pair_of(65, Shapes(0.0, asked)).log_ratio
    deep = pair_of(65, Shapes(0.0, asked, depth=depth)).log_ratio
    assert math.exp(flat - truth) > 1.05
    assert math.exp(deep - truth) == pytest.approx(1.0, abs=0.01)


def test_what_was_measured_in_full_stays():
    """The same length behind the same prompt: nothing moves."""
    measured = pair_of(65, Shapes(0.0, {"p": 65}))
    assert pair_of(65, Shapes(0.0, {"p": 65}, depth=costs())).log_ratio == pytest.approx(measured.log_ratio)


def test_without_counts_drafting_is_not_told_faster():
    """A server that reports none may have made a pass for every token."""
    told = pair_of(65, Shapes(0.0, {"p": 401}, depth=costs()))
    silent = Pair(told.off, replace(told.drafted, drafted=None, accepted=None), told.shape)
    assert silent.log_ratio < pair_of(65, Shapes(0.0, {"p": 401})).log_ratio


def test_traffic_says_how_deep_requests_are():
    """Cached tokens are context; 1000 of them cost both sides, the drafting more."""
    live = RequestShape(20.0, 65.0, source="traffic", context_tokens=1227.0)
    deep = pair_of(65, Shapes(traffic=live, depth=costs())).log_ratio
    flat = pair_of(65, Shapes(traffic=live)).log_ratio
    assert deep < flat - 0.05


@pytest.mark.parametrize("depth", [None, costs()])
def test_shapes_come_back_from_their_json(depth):
    """As a proof's evidence and the notes of a study hold them."""
    live = RequestShape(20.0, 65.0, source="traffic", context_tokens=1227.0)
    for shapes in (Shapes(0.5, {"p": 384}, depth=depth), Shapes(traffic=live, depth=depth)):
        assert Shapes.from_json(shapes.to_json()) == shapes


def test_shapes_of_older_versions_have_no_depth():
    """They did not time it."""
    old = Shapes(0.5, {"p": 384}).to_json()
    del old["depth"]
    assert Shapes.from_json(old).depth is None


def test_a_draft_that_was_replaced_has_no_rise():
    """Another file stands at its path: what it costs is timed again. Two files that were exchanged keep their own."""
    rise = DepthRise(0.3, 0.3)
    depth = replace(costs(), identities={"/m/draft.gguf": "the draft"})
    depth = replace(
        depth, rises={**depth.rises, "/m/b.gguf": rise}, identities={**depth.identities, "/m/b.gguf": "b"}
    )
    there = depth.followed({"/m/draft.gguf": "another"})
    assert set(there.rises) == {"", "/m/b.gguf"}
    assert dict(there.identities) == {"/m/b.gguf": "b"}
    exchanged = depth.followed({"/m/draft.gguf": "b", "/m/b.gguf": "the draft"})
    assert exchanged.rises["/m/draft.gguf"] == rise
    assert exchanged.rises["/m/b.gguf"] == depth.rises["/m/draft.gguf"]
    assert exchanged.identities == {"/m/draft.gguf": "b", "/m/b.gguf": "the draft"}


def test_a_draft_that_has_moved_keeps_its_rise():
    """It is known by its identity; one that stayed, or that is another file, is as before."""
    depth = replace(costs(), identities={"/m/draft.gguf": "the draft"})
    assert DepthCosts.from_json(depth.to_json()) == depth
    there = depth.followed({"/new/draft.gguf": "the draft", "/new/other.gguf": "another"})
    assert there.rises["/new/draft.gguf"] == depth.rises["/m/draft.gguf"]
    assert "/new/other.gguf" not in there.rises
    assert there.followed({"/third.gguf": "the draft"}).rises["/third.gguf"] == depth.rises["/m/draft.gguf"]
    assert depth.followed({"/m/draft.gguf": "the draft"}) == depth
    assert Shapes(depth=depth).followed({"/new/draft.gguf": "the draft"}).depth == depth.followed(
        {"/new/draft.gguf": "the draft"}
    )
    assert Shapes().followed({"/new/draft.gguf": "the draft"}) == Shapes()
    before = depth.to_json()
    del before["identities"]
    assert DepthCosts.from_json(before) == costs(), "an earlier version noted no identities"


def test_a_rise_that_would_take_more_than_the_whole_time_does_not_count():
    """Live requests are far shorter than the measured ones, and a load made the rise too large: it was the logarithm of a negative time."""
    rises = {"": DepthRise(0.5, 0.0), "/m/draft.gguf": DepthRise(0.5, 0.2)}
    shape = RequestShape(20.0, 50.0, source="traffic", context_tokens=20.0)
    halves = {
        drafts: measurement(
            with_drafting=drafts, drafting=DRAFTED if drafts else OFF, compared=DRAFTED, prompt_tokens=2000
        )
        for drafts in (False, True)
    }
    pair = Pair(halves[False], halves[True], replace(shape, depth=DepthCosts(50.0, 700, rises)))
    assert pair.speeds_tps == Pair(halves[False], halves[True], shape).speeds_tps

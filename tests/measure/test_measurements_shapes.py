"""The speed ratio of a request with another shape, from the times of its parts."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from autospec.cells import PromptType
from autospec.measure.measurements import (
    AS_MEASURED,
    CACHED_SHARE,
    DepthCosts,
    DepthRise,
    Measurement,
    Pair,
    RequestShape,
    Sample,
    Shapes,
    enough_tokens,
    of_traffic,
    pair_up,
    paired,
)
from tests.report.samples import measurement


def half(
    *, drafted: bool, prompt_ms: float, token_ms: float, tokens: int, prompt_tokens: int = 227
) -> Measurement:
    """One answer of so many tokens, each of which takes so long."""
    generation_ms = token_ms * (tokens - 1)
    return replace(
        measurement(with_drafting=drafted, prompt="p", round=1),
        prompt_tokens=prompt_tokens,
        predicted_tokens=tokens,
        prompt_ms=prompt_ms,
        predicted_ms=generation_ms,
        wall_ms=prompt_ms + generation_ms + 5.0,
        finish_reason="length",
    )


def prompt_heavy() -> tuple[Measurement, Measurement]:
    """A coding request as a lab model measured it: prompt 1.46 times slower, generation 1.81 times faster, in all 1.30."""
    off = half(drafted=False, prompt_ms=1000.0, token_ms=50.5, tokens=64)
    return off, half(drafted=True, prompt_ms=1460.0, token_ms=50.5 / 1.81, tokens=64)


@pytest.mark.parametrize(
    ("prompt_tokens", "answer_tokens", "ratio"), [(227, 64, 1.30), (227, 300, 1.64), (22.7, 300, 1.79)]
)
def test_longer_answers_and_cached_prompts_gain_more(prompt_tokens, answer_tokens, ratio):
    """The same pair: +30 % as measured, +64 % for an answer of 300 tokens, +79 % with nine tenths of its prompt cached."""
    off, drafted = prompt_heavy()
    pair = Pair(off, drafted, RequestShape(prompt_tokens, answer_tokens))
    assert math.exp(pair.log_ratio) == pytest.approx(ratio, abs=0.01)
    assert math.exp(pair.measured_log_ratio) == pytest.approx(1.30, abs=0.01)
    off_tps, drafted_tps = pair.speeds_tps
    assert drafted_tps / off_tps == pytest.approx(math.exp(pair.log_ratio))


def test_answers_of_unequal_length_at_equal_speed_are_no_gain():
    """With drafting the text ends after 40 tokens instead of 128: the request as measured is far off, the same one is not."""
    off = half(drafted=False, prompt_ms=1000.0, token_ms=10.0, tokens=128)
    drafted = half(drafted=True, prompt_ms=1000.0, token_ms=10.0, tokens=40)
    pair = Pair(off, drafted, AS_MEASURED.of_half(off))
    assert pair.log_ratio == pytest.approx(0.0, abs=1e-9)
    assert math.exp(pair.measured_log_ratio) < 0.6


def test_a_cached_prompt_still_takes_one_pass():
    """One new token behind a cached prompt takes as long as a generated one, not a 227th of the prompt's time."""
    shape = RequestShape(prompt_tokens=1.0, answer_tokens=64)
    assert shape.prompt_ms(1000.0, 227, 50.0) == pytest.approx(50.0)
    assert shape.prompt_ms(30.0, 227, 50.0) == 30.0
    assert shape.prompt_ms(80.0, 1, 50.0) == 80.0


def test_a_cached_prompt_costs_both_sides_a_pass_of_the_main_model():
    """Drafting generates three times as fast, and processes the cached rest of a prompt no faster than off."""
    off = half(drafted=False, prompt_ms=60.0, token_ms=40.0, tokens=64, prompt_tokens=60)
    drafted = half(drafted=True, prompt_ms=66.0, token_ms=13.0, tokens=64, prompt_tokens=60)
    pair = Pair(off, drafted, RequestShape(prompt_tokens=1.0, answer_tokens=1.0))
    # Both take one pass and the same way there and back; nothing is generated after the first token.
    assert pair.log_ratio == pytest.approx(0.0, abs=1e-9)


def test_a_first_cycle_in_the_prompts_time_is_no_gain():
    """Cycles of three tokens in 30 ms are as fast as a token in 10 ms, also where the first cycle's time is the prompt's."""
    off = half(drafted=False, prompt_ms=110.0, token_ms=10.0, tokens=64, prompt_tokens=60)
    drafted = replace(off, prompt_ms=130.0, predicted_ms=610.0, wall_ms=745.0)
    for cached in (0.0, 0.5, 0.9):
        shape = Shapes(cached, {"p": 512}, first_cycle_in_prompt=True).of_half(off)
        assert Pair(off, drafted, shape).log_ratio == pytest.approx(0.0, abs=0.002)


def test_an_answer_of_one_token_stays_as_it_was_measured():
    """It has no generation that could be put together."""
    off = half(drafted=False, prompt_ms=1000.0, token_ms=10.0, tokens=1)
    drafted = half(drafted=True, prompt_ms=500.0, token_ms=10.0, tokens=1)
    pair = Pair(off, drafted, RequestShape(227, 300))
    assert pair.log_ratio == pair.measured_log_ratio


def test_the_suite_states_how_long_answers_are():
    """An answer that was cut is as long as its prompt allows; one that ended by itself is as long as it is."""
    shapes = Shapes(cached_share=0.5, max_tokens={"p": 384})
    off, _ = prompt_heavy()
    assert shapes.of_half(off) == RequestShape(113.5, 384.0, 0.5, "suite")
    assert shapes.of_half(replace(off, finish_reason="stop")).answer_tokens == 64
    assert shapes.of_half(replace(off, finish_reason="tool_calls")).answer_tokens == 64


def sample(prompt_tokens: int, predicted_tokens: int) -> Sample:
    """One live request."""
    return Sample(
        at=0.0,
        model="m",
        backend="b",
        build="1",
        prompt_type=PromptType.CHAT,
        prompt_tokens=prompt_tokens,
        predicted_tokens=predicted_tokens,
        prompt_ms=1.0,
        predicted_ms=1.0,
    )


def test_traffic_tells_more_than_the_suite():
    """From thirty live requests on, their median lengths count for every prompt."""
    traffic = of_traffic([sample(40, 500)] * 30)
    assert traffic == RequestShape(40.0, 500.0, source="traffic")
    assert of_traffic([sample(40, 500)] * 29) is None
    assert of_traffic([sample(40, 1)] * 60) is None
    off, _ = prompt_heavy()
    assert Shapes(0.5, {"p": 384}, traffic).of_half(off) == traffic


def test_shapes_are_read_as_they_were_written():
    """With the recommendation's evidence `explain` tells the ratios that decided."""
    for traffic in (None, RequestShape(40.0, 500.0, source="traffic")):
        shapes = Shapes(0.5, {"p": 384}, traffic)
        assert Shapes.from_json(shapes.to_json()) == shapes


def test_stored_pairs_get_the_shape_of_their_cell():
    """Rows of before this rule are put together as well."""
    off, drafted = prompt_heavy()
    (pair,) = pair_up([off, drafted], {off.cell_key: Shapes(0.9, {"p": 300})})
    assert math.exp(pair.log_ratio) == pytest.approx(1.79, abs=0.01)
    (plain,) = pair_up([off, drafted])
    assert plain.shape is None
    assert math.exp(plain.log_ratio) == pytest.approx(1.30, abs=0.01)


def test_every_prompt_type_has_a_stated_share():
    """None is forgotten, none is all of the prompt."""
    assert set(CACHED_SHARE) == set(PromptType)
    assert all(0.0 <= share < 1.0 for share in CACHED_SHARE.values())


def test_a_half_that_was_cut_shorter_is_continued_at_its_own_speed():
    """22 tokens without drafting stand for 64: the pair is the same as with a whole answer."""
    whole, drafted = prompt_heavy()
    cut = half(drafted=False, prompt_ms=1000.0, token_ms=50.5, tokens=22)
    shapes = Shapes(cached_share=0.5, max_tokens={"p": 384})
    for own in (None, shapes):
        pair, expected = paired(cut, drafted, own), paired(whole, drafted, own)
        assert pair.off.predicted_tokens == 64
        assert pair.log_ratio == pytest.approx(expected.log_ratio)
        assert pair.measured_log_ratio == pytest.approx(expected.measured_log_ratio)
        assert pair.decode_log_ratio == pytest.approx(expected.decode_log_ratio)
        assert pair.shape == expected.shape
    assert pair_up([cut, drafted], {cut.cell_key: shapes}) == [paired(cut, drafted, shapes)]


def test_a_continued_half_ends_as_the_other_one_and_tells_no_energy():
    """The drafted answer ended by itself after 40 tokens: so does the request that the pair stands for."""
    cut = half(drafted=False, prompt_ms=1000.0, token_ms=50.5, tokens=22)
    cut = replace(cut, machine={**cut.machine, "cpu_energy_j": 3.0})
    drafted = half(drafted=True, prompt_ms=1000.0, token_ms=20.0, tokens=40)
    pair = paired(cut, replace(drafted, finish_reason="stop"), Shapes(max_tokens={"p": 384}))
    assert pair.shape is not None
    assert pair.shape.answer_tokens == 40
    assert pair.off.machine["cpu_energy_j"] is None


def test_what_context_adds_is_added_to_the_tokens_that_were_not_generated():
    """Each token behind 100 more tokens of context takes 10 ms longer: the middle of the answer moves by 21 tokens."""
    cut = half(drafted=False, prompt_ms=1000.0, token_ms=50.0, tokens=22)
    drafted = half(drafted=True, prompt_ms=1000.0, token_ms=20.0, tokens=64)
    depth = DepthCosts(plain_ms=50.0, reach_tokens=4000, rises={"": DepthRise(0.1, 0.0)})
    off = paired(cut, drafted, Shapes(depth=depth)).off
    assert off.predicted_ms == pytest.approx(63 * (50.0 + 0.1 * 21))


@pytest.mark.parametrize(("reason", "tokens"), [("stop", 22), ("length", 64), ("length", 1)])
def test_a_half_that_ended_by_itself_or_tells_no_speed_stays(reason, tokens):
    """Only a cut answer is continued."""
    off = replace(half(drafted=False, prompt_ms=1000.0, token_ms=50.0, tokens=tokens), finish_reason=reason)
    drafted = half(drafted=True, prompt_ms=1000.0, token_ms=20.0, tokens=64)
    assert paired(off, drafted).off == off


def test_a_slow_model_needs_fewer_tokens():
    """2.5 seconds tell the time of a token; at least 16 tokens."""
    assert enough_tokens(115.0) == 23
    assert enough_tokens(20.0) == 126
    assert enough_tokens(2000.0) == 16


def mac_chat() -> tuple[Measurement, Measurement]:
    """2000 prompt tokens at 300 a second, tokens at 20 a second, and drafting generates 1.3 times as fast."""
    off = half(drafted=False, prompt_ms=6667.0, token_ms=50.0, tokens=64, prompt_tokens=2000)
    return off, half(drafted=True, prompt_ms=6667.0, token_ms=50.0 / 1.3, tokens=64, prompt_tokens=2000)


@pytest.mark.parametrize("first_cycle", [False, True])
def test_a_server_without_a_cache_while_it_drafts_computes_the_whole_prompt(first_cycle):
    """A chat as MLX serves it: a gain where both sides had the cache, a loss where off alone has it."""
    off, drafted = mac_chat()
    shapes = Shapes(0.8, {"p": 300}, first_cycle_in_prompt=first_cycle)
    alike = Pair(off, drafted, shapes.of_half(off))
    assert math.exp(alike.log_ratio) == pytest.approx(1.27, abs=0.01)
    apart = paired(off, drafted, replace(shapes, drafts_uncached=True))
    assert math.exp(apart.log_ratio) == pytest.approx(0.90, abs=0.01)
    assert apart.shape is not None
    assert (apart.shape.prompt_tokens, apart.shape.drafted_prompt_tokens) == (pytest.approx(400.0), 2000.0)
    assert Shapes.from_json(replace(shapes, drafts_uncached=True).to_json()).drafts_uncached
    assert not Shapes.from_json(shapes.to_json()).drafts_uncached


def test_the_whole_prompt_is_what_drafting_computed():
    """A fifth of it, which other prompts share, was in the cache of the server without drafting."""
    off, drafted = mac_chat()
    part = replace(
        off, prompt_tokens=1600, prompt_ms=0.8 * off.prompt_ms, wall_ms=off.wall_ms - 0.2 * off.prompt_ms
    )
    shapes = Shapes(0.8, {"p": 300}, drafts_uncached=True)
    whole, beside = (paired(half_, drafted, shapes) for half_ in (off, part))
    assert beside.shape == whole.shape
    assert beside.log_ratio == pytest.approx(whole.log_ratio, abs=0.01)


def test_where_nothing_is_cached_both_sides_compute_the_same():
    """Translations: no part of the prompt is assumed to be cached, on either side."""
    off, _ = mac_chat()
    assert Shapes(0.0, drafts_uncached=True).of_half(off) == Shapes(0.0).of_half(off)


@pytest.mark.parametrize(("alone", "computed"), [(30, 100.0), (29, 1000.0 * (1.0 - 0.8))])
def test_the_traffic_of_each_side_tells_its_own_prompts(alone, computed):
    """With drafting all 1000 tokens; without, what such requests computed, or the stated share if they are too few."""
    off = replace(sample(100, 500), cached_tokens=900)
    drafted = replace(sample(1000, 500), cached_tokens=0, drafting=measurement(with_drafting=True).drafting)
    traffic = of_traffic([off] * alone + [drafted] * 60, 0.8)
    assert traffic is not None
    assert traffic.prompt_tokens == pytest.approx(computed)
    assert (traffic.drafted_prompt_tokens, traffic.context_tokens) == (1000.0, 1000.0)
    read = Shapes.from_json(Shapes(0.8, {}, traffic, drafts_uncached=True).to_json()).traffic
    assert read is not None
    assert read.drafted_prompt_tokens == 1000.0


@pytest.mark.parametrize("cached", [None, 0])
def test_requests_without_drafting_on_a_server_with_a_draft_do_not_tell_what_off_computes(cached):
    """Its draft keeps the cache away; rows of earlier versions say 0 there. The stated share stands for a server without it."""
    shape = of_traffic([replace(sample(1500, 300), cached_tokens=cached)] * 30, 0.8)
    assert shape is not None
    assert (shape.prompt_tokens, shape.drafted_prompt_tokens) == (pytest.approx(300.0), 1500.0)
    assert shape.context_tokens == 1500.0


def test_off_computes_its_own_share_of_the_prompts_of_both_sides():
    """Longer requests without drafting tell a share, not a number of tokens."""
    off = replace(sample(1200, 300), cached_tokens=10800)
    drafted = replace(sample(1500, 300), cached_tokens=0, drafting=measurement(with_drafting=True).drafting)
    shape = of_traffic([drafted] * 70 + [off] * 40, 0.8)
    assert shape is not None
    assert (shape.prompt_tokens, shape.drafted_prompt_tokens) == (pytest.approx(150.0), 1500.0)

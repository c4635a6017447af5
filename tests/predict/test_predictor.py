"""A main model's predictions, corrected by measured launches, on a simulated machine."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from autospec.backends.protocol import Cycle, LaunchSettings, Request
from autospec.drafting import OFF, Drafting, Engine, Mode
from autospec.measure.measurements import AS_MEASURED, DepthCosts, Measurement, Pair, Phase, Shapes
from autospec.predict.predictor import Predictor, predictable
from autospec.predict.profile import AnswerProfile, Recording
from autospec.predict.recording import DraftPass, pass_of, record, time_batches, time_depth, typical_of
from autospec.tuning.definition import load_definition
from autospec.tuning.forecast import Forecast
from autospec.tuning.space import Arm, Space
from tests.predict.machine import Costs, Machine

CELL = "cell"
WORDS = [f"question {n}" for n in range(4)]
TOKENS = 80


def request(words: str) -> Request:
    """One prompt."""
    return Request(messages=({"role": "user", "content": words},), max_tokens=TOKENS)


def drafting(n_max=8, p_min=0.0) -> Drafting:
    """One of the machine's draft."""
    return Drafting(Mode.DRAFT_MODEL, draft="draft", n_max=n_max, n_min=0, p_min=p_min)


def surveyed(
    machine: Machine,
    read: int = len(WORDS),
    slow_prompt_ms: float = 0.0,
    draft_prompt_ms: float | None = None,
    shapes: Shapes = AS_MEASURED,
) -> Predictor:
    """What a tune gathers before its search: so many answers read by the draft, the first one's prompt disturbed."""
    off = machine.launch("main", OFF, LaunchSettings()).tokens
    draft = machine.launch("draft", OFF, LaunchSettings()).tokens
    recordings = [record(off, words, request(words)) for words in WORDS]
    first = recordings[0]
    recordings[0] = replace(
        first, prompt_ms=first.prompt_ms + slow_prompt_ms, wall_ms=first.wall_ms + slow_prompt_ms
    )
    batches = time_batches(off, first, 25)
    passed = pass_of(draft, recordings, longest=24, enough=lambda n: n >= read)
    if draft_prompt_ms is not None:
        profiles = {k: replace(v, draft_prompt_ms=draft_prompt_ms) for k, v in passed.profiles.items()}
        passed = replace(passed, profiles=profiles)
    stream = [(CELL, words) for words in WORDS]
    passes, requests = {"draft": passed}, {CELL: shapes}
    return Predictor({CELL: recordings}, stream, batches, passes, 24, uncut=machine.uncut, shapes=requests)


def measured(machine: Machine, chosen: Drafting) -> list[Pair]:
    """One launch with this drafting and one without, asked every prompt."""
    servers = [machine.launch("main", d, LaunchSettings()) for d in (OFF, chosen)]
    return [Pair(*(_measurement(s, words, chosen) for s in servers)) for words in WORDS]


def _measurement(server, words, chosen) -> Measurement:
    c = server.complete(request(words))
    return Measurement(
        cell_key=CELL, protocol="p", phase=Phase.SEARCH, round=0, drafting=server.drafting, compared=chosen,
        prompt_id=words, launch_id=server.launch_id, position=0, started_at=0.0, prompt_tokens=c.prompt_tokens,
        predicted_tokens=c.predicted_tokens, prompt_ms=c.prompt_ms, predicted_ms=c.predicted_ms, wall_ms=c.wall_ms,
        drafted=c.drafted, accepted=c.accepted, text_digest=c.text,
    )  # fmt: skip


def truth(machine: Machine, chosen: Drafting) -> float:
    """The measured ratio over all prompts."""
    return math.exp(statistics.fmean(p.log_ratio for p in measured(machine, chosen)))


@pytest.mark.parametrize("chosen", [drafting(1), drafting(4), drafting(16), drafting(16, 0.6)])
def test_predictions_hit_what_is_measured(chosen):
    """On a machine whose batches cost alone what they cost within a launch: within two per cent."""
    machine = Machine(main_path="main", costs=Costs(noise=0.001))
    predicted = surveyed(machine).predict(CELL, [chosen])[chosen]
    assert predicted.ratio == pytest.approx(truth(machine, chosen), rel=0.02)
    assert predicted.low < predicted.ratio < predicted.high


@pytest.mark.parametrize("chosen", [drafting(1), drafting(4), drafting(8)])
def test_what_is_computed_again_is_part_of_the_cost(chosen):
    """Where the cache cannot be cut: counts to the token, speeds within two per cent, and other ones than elsewhere."""
    machine = Machine(main_path="main", uncut=True, acceptance=lambda _: 0.6, costs=Costs(noise=0.001))
    predictor = surveyed(machine)
    pairs = measured(machine, chosen)
    for pair in pairs:
        counts = predictor.counts(CELL, pair.off.prompt_id, chosen)
        assert counts is not None
        assert (counts.drafted[0], counts.accepted[0]) == (pair.drafted.drafted, pair.drafted.accepted)
    predicted = predictor.predict(CELL, [chosen])[chosen].ratio
    assert predicted == pytest.approx(truth(machine, chosen), rel=0.02)
    machine.uncut = False
    hopeful = surveyed(machine).predict(CELL, [chosen])[chosen].ratio
    assert hopeful > 1.03 * predicted


SIMPLE = Drafting(Mode.NGRAM_SIMPLE, ngram_n=4, ngram_m=16, min_hits=1)
MOD = Drafting(Mode.NGRAM_MOD, ngram_n=3, n_max=12, n_min=0)


@pytest.mark.parametrize(
    "beside", [(SIMPLE,), (MOD,), (MOD, SIMPLE)], ids=lambda own: "+".join(d.mode for d in own)
)
@pytest.mark.parametrize("model", [drafting(2), drafting(10)], ids=lambda d: d.label)
def test_a_draft_is_paid_for_where_it_was_asked_only(model, beside):
    """With modes beside it: the counts of the machine's own cycles, and the speed within two per cent."""
    machine = Machine(main_path="main", acceptance=lambda _: 0.7, repeats=0.4, costs=Costs(noise=0.001))
    predictor, together = surveyed(machine), replace(model, beside=beside)
    pairs = measured(machine, together)
    steps = []
    for pair in pairs:
        counts, alone = (predictor.counts(CELL, pair.off.prompt_id, d) for d in (together, model))
        assert counts is not None
        assert alone is not None
        assert (counts.drafted[0], counts.accepted[0]) == (pair.drafted.drafted, pair.drafted.accepted)
        steps.append((counts.steps[0], alone.steps[0]))
    ours, alone = np.sum(steps, axis=0)
    assert 0 < ours < alone
    predicted = predictor.predict(CELL, [model, together])[together].ratio
    measured_ratio = math.exp(statistics.fmean(p.log_ratio for p in pairs))
    assert predicted == pytest.approx(measured_ratio, rel=0.02)


@pytest.mark.parametrize(
    ("drafting", "expected"),
    [
        (Drafting(Mode.DRAFT_MODEL, draft="/d", n_max=4, p_min=0.0), True),
        (Drafting(Mode.DRAFT_MODEL, draft="/d", n_max=4, p_min=0.0, engine=Engine.ADAPTIVE), False),
        (Drafting(Mode.NGRAM_SIMPLE, ngram_n=4, ngram_m=8, min_hits=1), True),
        (Drafting(Mode.MTP, n_max=3), False),
        (Drafting(Mode.EAGLE3, draft="/e", n_max=3), False),
        (Drafting(Mode.NGRAM_CACHE, n_max=8), False),
    ],
)
def test_what_can_be_predicted(drafting, expected):
    """Heads propose from the main model's own layers, which nobody can read; an engine changes its numbers."""
    assert predictable(drafting) is expected


def test_modes_beside_a_draft_that_was_not_read_are_not_predicted():
    """Nor one whose own mode is not simulated."""
    machine = Machine(main_path="main", repeats=0.4)
    predictor = surveyed(machine)
    assert predictor.trusts(replace(drafting(), beside=(MOD,)))
    for unknown in (
        replace(drafting(), draft="other", beside=(MOD,)),
        Drafting(Mode.MTP, n_max=2, beside=(MOD,)),
    ):
        assert not predictor.covers(unknown)
        assert predictor.predict(CELL, [unknown]) == {}


def test_one_launch_corrects_the_others():
    """A launch takes 15 % longer than its batches: after one launch, the others are predicted better."""
    machine = Machine(main_path="main", costs=Costs(noise=0.001))
    predictor = surveyed(machine)
    machine.costs = Costs(lambda k: 40.0 if k == 1 else 1.15 * (40.0 + 1.5 * (k - 1)), noise=0.001)
    near, far = drafting(8), drafting(5)
    before = predictor.predict(CELL, [far])[far]
    check = predictor.observe(near, measured(machine, near))
    after = predictor.predict(CELL, [far])[far]
    true = truth(machine, far)
    assert check is not None
    assert check.agrees
    assert abs(math.log(after.ratio / true)) < 0.5 * abs(math.log(before.ratio / true))
    assert after.high / after.low < before.high / before.low


def test_what_contradicts_is_not_trusted():
    """A draft that does nothing it did alone: prediction is not asked about it again."""
    machine = Machine(main_path="main", acceptance=lambda _: 0.9, served_worse=0.85)
    predictor = surveyed(machine)
    check = predictor.observe(drafting(8), measured(machine, drafting(8)))
    assert check is not None
    assert not check.agrees
    assert not check.costs_alone
    assert check.measured < check.predicted
    assert not predictor.trusts(drafting(3))


def test_wrong_costs_are_corrected_and_the_replay_is_still_trusted():
    """A draft takes twice as long as alone, and batches four times as long: its cycles are as replayed."""
    machine = Machine(main_path="main", costs=Costs(noise=0.003))
    predictor = surveyed(machine)
    machine.costs = Costs(lambda k: 40.0 + 6.0 * (k - 1), lambda k: 8.0 + 0.2 * (k - 1), noise=0.003)
    settings = [drafting(n) for n in (1, 2, 4, 8, 16)]
    true = {d: truth(machine, d) for d in settings}

    def worst() -> float:
        predicted = predictor.predict(CELL, settings)
        return max(abs(math.log(predicted[d].ratio / true[d])) for d in settings)

    before = worst()
    first = predictor.observe(drafting(16), measured(machine, drafting(16)))
    assert first is not None
    assert (first.agrees, first.costs_alone) == (False, True)
    assert predictor.trusts(drafting(3))
    predictor.observe(drafting(2), measured(machine, drafting(2)))
    assert before > 0.3
    assert worst() < 0.4 * before


def test_one_disturbed_answer_neither_condemns_nor_flatters_a_draft():
    """One of four answers took three times as long, with drafting or without: the launch agrees, and deviates little."""
    machine = Machine(main_path="main", costs=Costs(noise=0.001))
    chosen = drafting(8)
    for slow_off in (False, True):
        predictor = surveyed(machine)
        first, *rest = measured(machine, chosen)
        half = first.off if slow_off else first.drafted
        slow = replace(half, wall_ms=3 * half.wall_ms, predicted_ms=3 * half.predicted_ms)
        pairs = [replace(first, off=slow) if slow_off else replace(first, drafted=slow), *rest]
        check = predictor.observe(chosen, pairs)
        assert check is not None
        assert check.agrees
        found = predictor.deviations(chosen, {CELL: pairs})
        assert found[CELL] == pytest.approx(0.0, abs=0.05)


@pytest.mark.parametrize("told", [True, False])
def test_costs_are_not_learnt_from_cycles_of_another_text(told):
    """With drafting the text is another one, as long as the recorded one and twice as fast: its cycles are not known."""
    machine = Machine(main_path="main", costs=Costs(noise=0.0))
    chosen, predictor = drafting(8), surveyed(machine)
    before = predictor.costs(chosen)
    pairs = measured(machine, chosen)
    other = [
        replace(
            p,
            drafted=replace(
                p.drafted,
                text_digest="another",
                predicted_ms=p.drafted.predicted_ms / 2,
                drafted=p.drafted.drafted // 2 if told else None,
                accepted=p.drafted.accepted // 2 if told else None,
            ),
        )
        for p in pairs
    ]
    # Another text with the same cycles tells the costs as well.
    alike = [replace(p, drafted=replace(p.drafted, text_digest="another")) for p in pairs]
    assert predictor.observe(chosen, other) is not None
    assert predictor.costs(chosen) == before
    predictor.observe(chosen, [*other, *alike] if told else pairs)
    assert predictor.costs(chosen).observations == len(pairs)


@pytest.mark.parametrize("told", [True, False])
def test_a_launch_with_other_texts_throughout_is_compared(told):
    """At a temperature every text is another one: a launch that is much slower than predicted is believed all the same."""
    machine = Machine(main_path="main", costs=Costs(noise=0.0))
    chosen, pairs = drafting(8), measured(machine, drafting(8))
    slow = [
        replace(
            p,
            drafted=replace(
                p.drafted,
                text_digest="another",
                wall_ms=8 * p.drafted.wall_ms,
                predicted_ms=8 * p.drafted.predicted_ms,
                drafted=3 * p.drafted.drafted if told else None,
                accepted=0 if told else None,
            ),
        )
        for p in pairs
    ]
    mixed, other = surveyed(machine), surveyed(machine)
    check = mixed.observe(chosen, [*slow, *pairs])
    assert check is not None
    assert check.agrees, "where some have the replayed cycles, those are compared"
    check = other.observe(chosen, slow)
    assert check is not None
    assert check.measured < 0.7 < check.predicted
    assert not other.trusts(chosen)


def test_a_stalled_baseline_is_corrected_for_the_request_that_is_predicted():
    """It generated three times as slowly, which the long answer of the request shows more than the measured one."""
    machine = Machine(main_path="main", costs=Costs(noise=0.0))
    chosen, long = drafting(8), Shapes(cached_share=0.9, max_tokens=dict.fromkeys(WORDS, 20 * TOKENS))
    predictor = surveyed(machine, shapes=long)
    pairs = [replace(p, shape=long.of_half(p.off)) for p in measured(machine, chosen)]
    slow = [
        replace(
            p.off,
            predicted_ms=3 * p.off.predicted_ms,
            wall_ms=p.off.wall_ms + 2 * p.off.predicted_ms,
        )
        for p in pairs
    ]
    stalled = [replace(p, off=off) for p, off in zip(pairs, slow, strict=True)]
    calm = predictor.deviations(chosen, {CELL: pairs})[CELL]
    assert predictor.deviations(chosen, {CELL: stalled})[CELL] == pytest.approx(calm, abs=0.005)


def test_the_whole_prompt_is_predicted_where_drafting_has_no_cache():
    """As the pairs of the same requests have it, and slower than with a cache on both sides."""
    machine = Machine(main_path="main", costs=Costs(noise=0.0, prompt_ms=10.0))
    chosen, shapes = drafting(8), Shapes(cached_share=0.9, drafts_uncached=True)
    pairs = [replace(p, shape=shapes.of_half(p.off)) for p in measured(machine, chosen)]
    composed = math.exp(statistics.fmean(p.log_ratio for p in pairs))
    predicted = surveyed(machine, shapes=shapes).predict(CELL, [chosen])[chosen].ratio
    assert predicted == pytest.approx(composed, rel=0.02)
    alike = replace(shapes, drafts_uncached=False)
    assert surveyed(machine, shapes=alike).predict(CELL, [chosen])[chosen].ratio > 1.03 * predicted


@pytest.mark.parametrize("timed", [True, False])
def test_a_long_answer_costs_what_its_depth_costs(timed):
    """Attention takes 0.02 ms for each token before: parts without it promise too much for answers twenty times as long."""
    machine = Machine(
        main_path="main",
        acceptance=lambda _: 1.0,
        spread=0.0,
        costs=Costs(noise=0.0, deep_ms=0.02, draft_deep_ms=0.004),
    )
    chosen, length = drafting(8), 20 * TOKENS
    off, draft = (machine.launch(name, OFF, LaunchSettings()).tokens for name in ("main", "draft"))
    recordings = [record(off, words, request(words)) for words in WORDS]
    typical = typical_of(recordings)
    main, own = (
        time_depth(tokens, recordings, time_batches(tokens, typical, 25), 20 * TOKENS)
        for tokens in (off, draft)
    )
    rises = {"": main, "draft": main.with_draft(own, verifies=True)}
    plain_ms = statistics.median(r.token_ms for r in recordings)
    depth = DepthCosts(plain_ms, 10_000, rises) if timed else None
    long = Shapes(max_tokens=dict.fromkeys(WORDS, length), depth=depth)

    def whole(server) -> list[float]:
        texts = [
            machine.text(json.dumps(list(request(words).messages)), length, chosen.draft) for words in WORDS
        ]
        return [sum(server.exact(text, length)[:2]) for text in texts]

    times = [whole(machine.launch("main", d, LaunchSettings())) for d in (OFF, chosen)]
    exact = statistics.fmean(math.log(a / b) for a, b in zip(*times, strict=True))
    composed = statistics.fmean(
        replace(p, shape=long.of_half(p.off)).log_ratio for p in measured(machine, chosen)
    )
    found = surveyed(machine, shapes=long).predict(CELL, [chosen])[chosen].ratio
    if timed:
        assert composed == pytest.approx(exact, abs=0.005)
        # Batches were timed at the beginning of an answer, which leaves out a little of its depth until a launch corrects it.
        assert math.log(found) == pytest.approx(exact, abs=0.03)
    else:
        assert min(composed, math.log(found)) > exact + 0.1


def test_an_answer_of_another_length_corrects_nothing():
    """Its cycles are not the replayed ones: a quarter of the text would make every token look four times as cheap."""
    machine = Machine(main_path="main", costs=Costs(noise=0.001))
    predictor = surveyed(machine)
    before = predictor.costs(drafting()).verify_ms.copy()
    short = [
        Pair(p.off, replace(p.drafted, predicted_tokens=TOKENS // 4, predicted_ms=p.drafted.predicted_ms / 4))
        for p in measured(machine, drafting(8))
    ]
    assert predictor.observe(drafting(8), short) is None
    assert predictor.costs(drafting()).verify_ms == pytest.approx(before)


def test_a_draft_that_read_some_answers_is_predicted_from_those():
    """Time may end a pass: the rest of the answers still serve the draft-free modes, and launches are compared."""
    machine = Machine(main_path="main", costs=Costs(noise=0.001))
    predictor = surveyed(machine, read=2)
    chosen = drafting(4)
    assert predictor.predict(CELL, [chosen])[chosen].ratio == pytest.approx(truth(machine, chosen), rel=0.05)
    assert [predictor.counts(CELL, words, chosen) is not None for words in WORDS] == [
        True,
        True,
        False,
        False,
    ]
    check = predictor.observe(chosen, measured(machine, chosen))
    assert check is not None
    assert check.agrees


def test_a_disturbed_recording_does_not_stay_the_truth():
    """A prompt that took three seconds from a cold disk: every pair of a launch times it once more."""
    machine = Machine(main_path="main", costs=Costs(noise=0.001))
    true = truth(machine, drafting(8))
    predictor = surveyed(machine, slow_prompt_ms=20_000.0)
    errors = []
    for _ in range(2):
        errors.append(abs(math.log(predictor.predict(CELL, [drafting(8)])[drafting(8)].ratio / true)))
        for _ in range(2):
            predictor.observe(drafting(4), measured(machine, drafting(4)))
    assert errors[1] < 0.3 * errors[0]


def test_a_stalled_pair_does_not_replace_a_good_recording():
    """What disturbs only ever adds time: of two times of off the quicker one counts."""
    machine = Machine(main_path="main", costs=Costs(noise=0.001))
    predictor = surveyed(machine)
    before = predictor.predict(CELL, [drafting(8)])[drafting(8)].ratio
    pairs = measured(machine, drafting(4))
    stalled = [replace(p, off=replace(p.off, wall_ms=3 * p.off.wall_ms)) for p in pairs[:1]]
    predictor.observe(drafting(4), [*stalled, *pairs[1:]])
    assert predictor.predict(CELL, [drafting(8)])[drafting(8)].ratio == pytest.approx(before, rel=0.03)


def test_prompts_too_short_to_time_a_draft_on_give_no_wild_factor():
    """A guess of next to nothing, and a few milliseconds of noise: predictions stay numbers."""
    machine = Machine(main_path="main", costs=Costs(noise=0.001))
    predictor = surveyed(machine, draft_prompt_ms=0.01)
    quicker = [
        replace(p, drafted=replace(p.drafted, prompt_ms=p.off.prompt_ms - 5.0))
        for p in measured(machine, drafting(4))
    ]
    before = predictor.predict(CELL, [drafting(8)])[drafting(8)]
    predictor.observe(drafting(4), quicker)
    after = predictor.predict(CELL, [drafting(8)])[drafting(8)]
    assert after.ratio == pytest.approx(before.ratio, rel=0.05)
    assert after.low < after.ratio < after.high


def test_an_answer_without_a_time_of_generation_corrects_nothing():
    """One token told, or none timed: no division by nothing."""
    machine = Machine(main_path="main", costs=Costs(noise=0.001))
    predictor = surveyed(machine)
    before = predictor.costs(drafting()).verify_ms.copy()
    pairs = [replace(p, off=replace(p.off, predicted_ms=0.0)) for p in measured(machine, drafting(8))]
    predictor.observe(drafting(8), pairs)
    assert predictor.costs(drafting()).verify_ms == pytest.approx(before)


def test_nothing_is_said_of_what_was_not_passed():
    """Another draft, a cell without recordings, a mode that is no function of tokens."""
    predictor = surveyed(Machine(main_path="main"))
    other = Drafting(Mode.DRAFT_MODEL, draft="other", n_max=4, n_min=0, p_min=0.0)
    assert not predictor.covers(other)
    assert predictor.predict(CELL, [other]) == {}
    assert predictor.predict("another", [drafting()]) == {}
    assert not predictor.covers(Drafting(Mode.MTP, n_max=2))


def test_acceptance_by_position_falls():
    """A token is accepted only where all before it were."""
    machine = Machine(main_path="main", acceptance=lambda _: 0.7)
    places = surveyed(machine).acceptance_by_position(CELL, drafting(8))
    assert len(places) == 8
    assert places == sorted(places, reverse=True)
    assert places[0] == pytest.approx(0.7, abs=0.12)


def test_counts_are_the_cycles_of_the_machine():
    """Drafted and accepted, prompt by prompt, as the launch says."""
    machine = Machine(main_path="main")
    predictor = surveyed(machine)
    for pair in measured(machine, drafting(6)):
        counts = predictor.counts(CELL, pair.off.prompt_id, drafting(6))
        assert counts is not None
        assert (counts.drafted[0], counts.accepted[0]) == (pair.drafted.drafted, pair.drafted.accepted)


def test_machine_keeps_its_word():
    """The simulated machine answers the same question with the same text on every launch."""
    machine = Machine(main_path="main")
    words = json.dumps([{"role": "user", "content": "x"}])
    assert machine.text(words, 10).answer == machine.text(words, 10, "draft").answer


def mlx_predictor() -> Predictor:
    """Eight tokens of 10 ms, the first at the end of a prompt of 100 ms; a draft of 1 ms that is always right."""
    recording = Recording("p", (1, 2), tuple(range(8)), 8, False, 110.0, 70.0, 180.0)
    draft = AnswerProfile("p", np.ones(8, dtype=bool), np.ones(8), draft_prompt_ms=5.0)
    known = DraftPass({"p": draft}, 1.0, {1: 1.0, 4: 500.0})
    return Predictor(
        {CELL: [recording]}, [(CELL, "p")], {1: 10.0, 4: 10.0}, {"draft": known}, 3, cycle=Cycle.MLX_LM
    )


def test_mlx_drafts_the_first_token_too_and_its_draft_verifies_nothing():
    """Two cycles of three steps and one batch, the draft's prompt, and no step of the main model's before them."""
    chosen = Drafting(Mode.DRAFT_MODEL, draft="draft", n_max=3)
    predicted = mlx_predictor().predict(CELL, [chosen])[chosen]
    # 100 ms of prompt, 4 of the draft's (its last token is the first step), 2 cycles of 10 + 3.
    assert predicted.ratio == pytest.approx(180.0 / (100.0 + 4.0 + 26.0))
    assert predicted.tokens_per_cycle == pytest.approx(4.0)


def test_of_mlx_the_first_cycle_counts_as_prompt():
    """A launch that takes what was predicted corrects nothing."""
    predictor = mlx_predictor()
    chosen = Drafting(Mode.DRAFT_MODEL, draft="draft", n_max=3)
    off = Measurement(
        cell_key=CELL, protocol="p", phase=Phase.SEARCH, round=0, drafting=OFF, compared=chosen, prompt_id="p",
        launch_id="a", position=0, started_at=0.0, prompt_tokens=2, predicted_tokens=8, prompt_ms=110.0,
        predicted_ms=70.0, wall_ms=180.0, drafted=0, accepted=0, text_digest="",
    )  # fmt: skip
    drafted = replace(
        off, drafting=chosen, prompt_ms=117.0, predicted_ms=13.0, wall_ms=130.0, drafted=6, accepted=6
    )
    check = predictor.observe(chosen, [Pair(off, drafted)])
    assert check.agrees
    assert check.measured == pytest.approx(check.predicted, rel=1e-6)
    assert predictor.costs(chosen).step_ms == pytest.approx(1.0, rel=0.01)
    assert predictor.predict(CELL, [chosen])[chosen].ratio == pytest.approx(180.0 / 130.0, rel=0.01)


def test_an_answer_that_came_with_its_first_cycle_tells_no_costs():
    """Nothing was generated after the first token: no time to learn from, and none to divide by."""
    predictor = mlx_predictor()
    chosen = Drafting(Mode.DRAFT_MODEL, draft="draft", n_max=3)
    before = predictor.costs(chosen)
    recording = predictor._by_prompt[CELL, "p"]
    assert recording.answer_ids
    off = Measurement(
        cell_key=CELL, protocol="p", phase=Phase.SEARCH, round=0, drafting=OFF, compared=chosen, prompt_id="p",
        launch_id="a", position=0, started_at=0.0, prompt_tokens=2, predicted_tokens=8, prompt_ms=110.0,
        predicted_ms=70.0, wall_ms=180.0, drafted=0, accepted=0, text_digest="",
    )  # fmt: skip
    predictor.observe(chosen, [Pair(off, replace(off, drafting=chosen, predicted_ms=0.0, wall_ms=110.0))])
    after = predictor.costs(chosen)
    assert np.isfinite(after.verify_ms).all()
    assert after.observations == before.observations == 0


def test_cells_are_compared_with_each_other():
    """What few answers of one cell say of a size is drawn towards the other cell's; its best is not."""
    machine = Machine(main_path="main", costs=Costs(noise=0.001))
    off = machine.launch("main", OFF, LaunchSettings()).tokens
    recordings = [record(off, words, request(words)) for words in WORDS]
    passed = pass_of(machine.launch("draft", OFF, LaunchSettings()).tokens, recordings, longest=24)
    halves = {"one": recordings[:2], "other": recordings[2:]}
    stream = [(key, r.prompt_id) for key, own in halves.items() for r in own]
    predictor = Predictor(halves, stream, time_batches(off, recordings[0], 25), {"draft": passed}, 24)
    sizes = [drafting(n) for n in (1, 2, 4, 8, 16)]
    drawn = predictor.compare(sizes)
    assert set(drawn) == set(halves)
    for key in halves:
        raw = predictor.predict(key, sizes)
        logs = [[math.log(p[d].ratio) for d in sizes] for p in (raw, drawn[key])]
        assert max(logs[0]) == pytest.approx(max(logs[1]))
        assert logs[0] != pytest.approx(logs[1], abs=1e-6)
        assert {p.answers for p in raw.values()} == {2}
        assert predictor.compare(sizes[:1])[key] == predictor.predict(key, sizes[:1])


def test_a_draft_that_is_far_slower_beside_its_main_model_does_not_move_the_costs():
    """Four times as slow as alone is no cost but something else: said, and the first guess stays."""
    machine = Machine(main_path="main", costs=Costs(noise=0.001))
    predictor = surveyed(machine)
    alone = predictor.costs(drafting())
    machine.costs = Costs(draft=lambda k: 4 * (4.0 + 0.1 * (k - 1)), noise=0.001)
    told: list[str] = []
    space = Space((Arm(Mode.DRAFT_MODEL, "draft"),), load_definition("quick").space)
    forecast = Forecast(predictor, space, 0.02, told.append)
    for n_max in (2, 8, 16):
        forecast.observe(drafting(n_max), {CELL: measured(machine, drafting(n_max))})
    refused = predictor.costs(drafting()).refused
    assert "the draft would take" in refused
    assert predictor.costs(drafting()).step_ms == alone.step_ms
    assert predictor.costs(drafting()).verify_ms == pytest.approx(alone.verify_ms)
    assert [t for t in told if t.endswith(refused)]
    cell = SimpleNamespace(cell=SimpleNamespace(key=CELL))
    assert forecast.figures(cell, drafting())["not_corrected"] == refused


def test_one_launchs_luck_is_no_contradiction():
    """Twenty-four pairs of one launch that is 2 % slower or faster than others: their agreement proves nothing."""
    distrusted = 0
    for seed in range(40):
        machine = Machine(main_path="main", seed=seed, costs=Costs(noise=0.005))
        predictor = surveyed(machine)
        # The costs are known well by now: two launches without luck.
        for n_max in (4, 12):
            predictor.observe(drafting(n_max), measured(machine, drafting(n_max)))
        machine.costs = Costs(noise=0.03, luck=0.02)
        servers = [machine.launch("main", d, LaunchSettings()) for d in (OFF, drafting(8))]
        pairs = [
            Pair(*(_measurement(s, words, drafting(8)) for s in servers)) for _ in range(6) for words in WORDS
        ]
        check = predictor.observe(drafting(8), pairs)
        assert check is not None
        distrusted += not check.agrees
    assert distrusted <= 1

"""The cost curve: from timed batches, corrected by launches."""

from __future__ import annotations

import math

import numpy as np
import pytest

from autospec.predict.costs import CostCurve, Observation, first_guess, refit
from autospec.predict.profile import AnswerProfile, replay

BATCHES = {1: 22.0, 2: 23.0, 5: 26.0, 9: 30.0, 17: 38.0}
DRAFT = {1: 3.0, 17: 6.0}


def guess():
    """A main model of 20 ms a token, a draft of 2 ms."""
    return first_guess(20.0, BATCHES, DRAFT, 2.0, 16)


def test_guess_agrees_with_generation_at_one_token():
    """Batches are timed with another overhead than tokens; what is known of both sets the level."""
    assert guess().verify_ms[0] == pytest.approx(20.0 + 2.0)
    assert guess().verify_ms[16] == pytest.approx((38.0 - 22.0 + 20.0) + (6.0 - 3.0 + 2.0))


def test_noise_makes_no_curve_fall():
    """Times that differ by a few per cent are taken as equal."""
    curve = first_guess(20.0, {1: 20.0, 2: 30.0, 5: 28.0, 9: 40.0}, {}, 0.0, 8)
    assert (np.diff(curve.verify_ms) >= 0).all()
    assert curve.main_ms[:5] == pytest.approx([20.0, 30.0, 30.0, 30.0, 30.0])


# Published for a 27B model in Q4_K on an RTX 3090: other kernels from 9 tokens on.
STEPPED = {1: 23.5, 2: 26.4, 4: 39.1, 8: 62.4, 9: 39.8, 12: 40.1, 16: 40.5, 17: 40.6}


def test_more_tokens_may_take_less_time():
    """The curve has the step that the timed batches show."""
    curve = first_guess(23.5, STEPPED, {}, 0.0, 16)
    assert curve.main_ms[[0, 1, 3, 7]] == pytest.approx([23.5, 26.4, 39.1, 62.4])
    assert curve.main_ms[[8, 11, 15]] == pytest.approx([39.8, 40.1, 40.5])


def test_launches_correct_a_curve_that_falls():
    """Within a launch, everything beyond one token takes 20 % more; the step stays."""
    curve = first_guess(23.5, STEPPED, {}, 0.0, 16)
    true = np.where(np.arange(17) > 0, 1.2, 1.0) * curve.main_ms
    seen = []
    for number in range(12):
        verified = np.zeros(17)
        verified[[0, 1, 3, 7, 8, 15]] = np.roll([4.0, 3.0, 3.0, 4.0, 6.0, 5.0], number)
        seen.append(Observation(verified, 0.0, 1.0, float(verified @ true), f"{number % 2}"))
    found = refit(curve, seen)
    assert not found.refused
    assert found.main_ms[[7, 8, 15]] == pytest.approx(true[[7, 8, 15]], rel=0.06)


def test_no_fit_alone_makes_a_curve_fall():
    """Where the batches rise, launches with cheap long proposals make no pass cheaper than a shorter one."""
    curve = guess()
    seen = []
    for number in range(12):
        verified = np.zeros(17)
        verified[[0, 8, 16]] = np.roll([10.0, 4.0, 4.0], number)
        ms = float(verified @ (curve.main_ms + np.where(np.arange(17) == 8, 8.0, 0.0)))
        seen.append(Observation(verified, 0.0, 1.0, ms, f"{number % 2}"))
    assert (np.diff(refit(curve, seen).main_ms) >= -1e-9).all()


def test_curve_goes_on_straight_beyond_the_largest_batch():
    """Twice the batch, twice the slope's share."""
    curve = first_guess(10.0, {1: 10.0, 3: 12.0, 5: 14.0}, {}, 0.0, 12)
    assert curve.verify_ms[12] == pytest.approx(22.0)


def test_features_add_up_to_the_time():
    """Whatever the knots, a request's features sum to Σ verified · V + steps · S."""
    verified = np.zeros((1, 17))
    verified[0, [0, 3, 7, 16]] = [5, 2, 1, 3]
    curve = guess()
    expected = verified[0] @ curve.verify_ms + 30 * curve.step_ms
    assert curve.features(verified, np.array([30.0])).sum() == pytest.approx(expected)


def test_refit_finds_costs_that_the_guess_had_wrong():
    """More tokens cost 60 % more than guessed, the draft takes half as long again: twenty answers of two launches show it."""
    random = np.random.default_rng(3)
    curve = guess()
    true_main = 20.0 + 1.6 * (curve.main_ms - 20.0)
    seen = []
    for number in range(20):
        verified = np.zeros(17)
        for k in random.choice([0, 2, 4, 8, 16], 12):
            verified[k] += 1
        steps = float(verified @ np.arange(17)) + random.integers(0, 40)
        ms = float(verified @ (true_main + 1.5 * curve.draft_ms) + steps * 1.5 * curve.step_ms)
        ms *= np.exp(random.normal(0, 0.01))
        seen.append(Observation(verified, steps, 1.0, ms, f"launch {number % 2}"))
    found = refit(curve, seen)
    assert not found.refused
    # Steps come with drafted tokens, so that their prices are told apart only roughly; what a draft of any length
    # costs in all is what counts.
    for k in (2, 4, 8, 16):
        true_ms = true_main[k] + 1.5 * (curve.draft_ms[k] + k * curve.step_ms)
        assert found.verify_ms[k] + k * found.step_ms == pytest.approx(true_ms, rel=0.06)
    assert np.diag(found.covariance).max() < np.diag(curve.covariance).max()
    assert found.observations == 20


# What SmolLM2-Slow-90L took on two cores, asked directly: tokens in a batch → ms; and what its tune had timed, in another regime
# of the machine. From there a refit went to 67.5 ms for a pass without proposals, of which a token takes 42, and a step of 1.3 ms.
SLOW_TRUE = {1: 51.6, 2: 65.0, 3: 72.0, 5: 83.0, 9: 106.0, 13: 127.0, 25: 190.0}
SLOW_TIMED = {1: 40.0, 2: 68.0, 3: 78.0, 5: 95.0, 9: 127.0, 13: 150.0, 25: 220.0}
SLOW_DRAFT = {1: 9.4, 5: 12.0, 9: 15.0, 13: 18.0, 25: 26.0}
WIDEST = 24


def spoilt(seed: int, draft_factor: float = 1.0) -> tuple[CostCurve, CostCurve, dict[int, float]]:
    """A guess, its refit by three launches on a machine with regimes, stalls and noise, and what n proposals truly cost.

    Each launch gives nine answers; a token of the main model takes 51.6 ms, and 42.4 ms when the answers were recorded.
    """
    random = np.random.default_rng(seed)
    wanted = np.arange(1, WIDEST + 2)
    main = np.interp(wanted, list(SLOW_TRUE), list(SLOW_TRUE.values()))
    draft = draft_factor * np.interp(wanted, list(SLOW_DRAFT), list(SLOW_DRAFT.values()))
    step = draft_factor * 9.4

    def noise() -> float:
        stall = random.uniform(1.3, 3.0) if random.random() < 0.05 else 1.0
        return stall * float(np.exp(random.normal(0.0, 0.04) + random.choice([-0.08, 0.0, 0.08])))

    curve = first_guess(42.4, SLOW_TIMED, SLOW_DRAFT, 9.4, WIDEST)
    seen = []
    for n_max, p_min in ((15, 0.15), (8, 0.5), (2, 0.0)):
        luck = float(np.exp(random.normal(0.0, 0.02)))
        for _ in range(9):
            hits = random.random(64) < random.uniform(0.4, 0.85)
            p = np.where(hits, random.beta(6, 1.2, 64), random.beta(2, 2.5, 64))
            after = {int(i): random.beta(3, 2, WIDEST) for i in np.flatnonzero(~hits)}
            counts = replay(AnswerProfile("p", hits, p, after), [n_max], [p_min], max_tokens=64)
            verified, steps = counts.verified[0].astype(float), float(counts.steps[0])
            ms = float(verified @ (main + draft)[: verified.size] + steps * step) * luck * noise()
            seen.append(Observation(verified, steps, 51.6 * noise() / 42.4, ms, f"n_max {n_max}"))
    slower = 42.4 / 51.6
    true = {n: slower * float(main[n] + draft[n] + n * step) for n in (2, 4, 8, 15)}
    return curve, refit(curve, seen), true


@pytest.mark.parametrize("draft_factor", [0.7, 1.0, 1.6])
def test_noise_does_not_spoil_the_costs(draft_factor):
    """Regimes of 8 %, one request in twenty stalled: sixty tunes keep what is known, and learn what is not."""
    errors = []
    covered = 0
    for seed in range(60):
        _, found, true = spoilt(seed, draft_factor)
        tokens = np.arange(1, WIDEST + 2)
        assert not found.refused
        assert found.main_ms[0] == pytest.approx(42.4, rel=0.05)
        assert (found.main_ms >= 42.4 * (1 - 1e-9)).all()
        assert (found.main_ms <= 42.4 * tokens * (1 + 1e-9)).all()
        assert 9.4 / 2.5 <= found.step_ms <= 9.4 * 2.5
        for n, true_ms in true.items():
            one = np.zeros((1, WIDEST + 1))
            one[0, n] = 1
            parts = found.features(one, np.array([float(n)]))[0]
            error = math.log(parts.sum() / true_ms)
            share = parts / parts.sum()
            covered += abs(error) <= 1.645 * math.sqrt(share @ found.covariance @ share)
            errors.append(error)
    assert float(np.sqrt(np.mean(np.square(errors)))) < 0.08
    # Of a 90 % interval; four figures of one tune rest on the same answers, so that misses come together.
    assert covered >= 0.7 * len(errors)


def test_a_pass_without_a_draft_takes_a_generated_token():
    """However noisy the launches: the recordings have timed that."""
    curve = first_guess(20.0, BATCHES, {}, 0.0, 16)
    verified = np.zeros(17)
    verified[[0, 4]] = [5, 8]
    ms = float(verified @ curve.main_ms)
    found = refit(curve, [Observation(verified, 0.0, 1.0, ms * f, "a") for f in (1.2, 1.25, 1.3) * 3])
    assert found.main_ms[0] == pytest.approx(20.0, rel=0.02)
    assert found.main_ms[4] > curve.main_ms[4]


def pulled(curve: CostCurve, main_ms: float, draft_factor: float = 1.0) -> CostCurve:
    """A refit by many launches in which passes over three proposals took so long."""
    seen = []
    for steps in (0.0, 30.0, 60.0, 90.0):
        verified = np.zeros(17)
        verified[3] = 20
        ms = 20 * main_ms + draft_factor * (20 * curve.draft_ms[3] + steps * curve.step_ms)
        seen += [Observation(verified, steps, 1.0, ms, f"{n}") for n in range(30)]
    return refit(curve, seen)


# Nearly as expensive as single tokens: 74 ms for four.
STEEP = first_guess(20.0, {1: 20.0, 2: 38.0, 5: 92.0, 17: 310.0}, DRAFT, 2.0, 16)


@pytest.mark.parametrize(
    ("curve", "main_ms", "draft_factor", "says"),
    [
        (guess(), 17.6, 1.0, "the main model would take"),
        (STEEP, 95.0, 1.0, "the main model would take"),
        (guess(), 23.0, 4.0, "the draft would take"),
    ],
)
def test_what_costs_cannot_be_is_refused_and_said(curve, main_ms, draft_factor, says):
    """If four tokens cost less than one or more than four alone, or a draft is four times slower, the first guess stays."""
    found = pulled(curve, main_ms, draft_factor)
    assert says in found.refused
    assert found.refused.endswith("the directly timed costs are kept.")
    assert found.main_ms == pytest.approx(curve.main_ms)
    assert found.step_ms == curve.step_ms
    assert found.observations == 0


def test_what_costs_can_be_is_taken():
    """The same launches with times that are possible."""
    found = pulled(STEEP, 66.0, 1.3)
    assert not found.refused
    assert found.main_ms[3] == pytest.approx(66.0, rel=0.03)
    assert found.step_ms == pytest.approx(2.6, rel=0.05)


def test_answers_of_one_launch_share_its_luck():
    """Ten answers of one launch leave more uncertain than one of each of ten."""
    curve = first_guess(20.0, BATCHES, {}, 0.0, 16)
    verified = np.zeros(17)
    verified[8] = 10
    ms = 1.03 * float(verified @ curve.main_ms)
    one, ten = (
        refit(curve, [Observation(verified, 0.0, 1.0, ms, name(n)) for n in range(10)])
        for name in (lambda _: "one", str)
    )
    assert curve.main_ms[8] < one.main_ms[8] < ten.main_ms[8]
    at = list(curve.knots).index(8)
    assert one.covariance[at, at] > 1.5 * ten.covariance[at, at]


def test_without_timed_batches_the_spread_is_wide():
    """Anything between a batch for the price of one token and one for that of all: the first launch decides."""
    curve = first_guess(20.0, {}, {}, 0.0, 16)
    assert 20.0 < curve.main_ms[8] < 9 * 20.0
    timed = guess()
    assert curve.covariance[4, 4] > 5 * timed.covariance[4, 4]
    verified = np.zeros(17)
    verified[8] = 10
    found = refit(curve, [Observation(verified, 0.0, 1.0, 10 * 24.0, f"{n % 2}") for n in range(8)])
    assert not found.refused
    assert found.main_ms[8] == pytest.approx(24.0, rel=0.05)


def test_every_verified_token_is_multiplied_with_the_output_matrix():
    """A timed batch only with its last one: where that matrix is as large as the layers, a further token takes twice as long."""
    small, large = (first_guess(20.0, {1: 20.0, 9: 40.0}, {}, 0.0, 8, rows=rows) for rows in (0.0, 1.0))
    assert small.main_ms[[0, 4, 8]] == pytest.approx([20.0, 30.0, 40.0])
    assert large.main_ms[[0, 4, 8]] == pytest.approx([20.0, 40.0, 60.0])


def test_no_batch_costs_a_little_more_than_its_tokens_alone():
    """That is noise."""
    curve = first_guess(10.0, {1: 10.0, 2: 23.0, 9: 95.0}, {}, 0.0, 8)
    assert curve.main_ms[1] == pytest.approx(20.0)
    assert curve.main_ms[0] == pytest.approx(10.0)


def test_some_kernels_are_slower_with_a_few_tokens_than_with_single_ones():
    """A 7B model in Q4_0 on an M3 Max of 2023 (llama.cpp issue 4624): 2 to 8 tokens take as long as five single ones, and launches agree."""
    curve = first_guess(15.7, {1: 15.7, 2: 77.0, 4: 77.0, 8: 77.0, 9: 78.0}, {}, 0.0, 8)
    assert curve.main_ms[[0, 1, 3, 7]] == pytest.approx([15.7, 77.0, 77.0, 77.0])
    verified = np.array([5.0, 4.0, 3.0, 2.0, 2.0, 1.0, 1.0, 3.0, 1.0])
    seen = [Observation(verified, 0.0, 1.0, 1.05 * float(verified @ curve.main_ms), f"{n}") for n in range(8)]
    found = refit(curve, seen)
    assert not found.refused
    assert float(verified @ found.main_ms) == pytest.approx(1.05 * float(verified @ curve.main_ms), rel=0.03)


def test_refit_knows_what_it_has_not_seen():
    """Answers with short drafts say little of long ones: the spread there stays wide."""
    curve = guess()
    verified = np.zeros(17)
    verified[2] = 20
    ms = float(verified @ curve.verify_ms) * 1.1
    found = refit(curve, [Observation(verified, 0.0, 1.0, ms)] * 10)
    spread = np.sqrt(np.diag(found.covariance))
    at = list(found.knots)
    assert spread[at.index(2)] < 0.3 * spread[at.index(16)]


def test_refit_without_observations_is_the_guess():
    """Nothing seen, nothing changed."""
    curve = guess()
    assert refit(curve, []) is curve


def test_noisy_observations_widen_the_spread():
    """What does not fit is noise, and noise is uncertainty."""
    curve = guess()
    verified = np.zeros(17)
    verified[4] = 10
    exact = float(verified @ curve.verify_ms)
    calm = refit(curve, [Observation(verified, 0.0, 1.0, exact * f) for f in (0.99, 1.01)] * 5)
    rough = refit(curve, [Observation(verified, 0.0, 1.0, exact * f) for f in (0.7, 1.3)] * 5)
    assert rough.covariance[0, 0] > calm.covariance[0, 0]


def test_break_even_of_free_verifying_is_the_drafts_price():
    """One proposal at a tenth of a token's price breaks even at a tenth."""
    curve = first_guess(20.0, {1: 20.0, 2: 20.0}, {}, 2.0, 1)
    assert curve.break_even(1) == pytest.approx(0.1, abs=0.002)


def test_break_even_above_one_means_it_never_pays():
    """A cycle of two tokens that costs three: two of the main model's and a draft as slow as it."""
    curve = first_guess(10.0, {1: 10.0, 2: 20.0}, {}, 10.0, 1)
    assert curve.break_even(1) == pytest.approx(1.5)


def test_a_state_that_is_saved_may_cost_more_than_a_token():
    """On a GPU: 26 ms for each pass over drafted tokens beside 20 ms for one token. Elsewhere no batch can take that."""
    verified = np.zeros(17)
    verified[[0, 1, 2]] = [4, 10, 10]
    curves = [first_guess(20.0, BATCHES, {}, 0.0, 16, saves_state=saves) for saves in (False, True)]
    true_ms = curves[1].main_ms + 26.0 * (np.arange(17) > 0)
    seen = [
        Observation(verified, 0.0, 1.0, float(verified @ true_ms) * f, f"{n}")
        for n in range(3)
        for f in (0.99, 1.0, 1.01)
    ]
    plain, state = (refit(curve, seen) for curve in curves)
    assert float(verified @ plain.main_ms) < 0.6 * float(verified @ true_ms), "it is taken for a disturbance"
    assert not state.refused
    assert state.saves_state
    assert float(verified @ state.main_ms) == pytest.approx(float(verified @ true_ms), rel=0.05)
    assert state.main_ms[1] > 2.0 * 20.0
    cheaper = [Observation(verified, 0.0, 1.0, 0.5 * float(verified.sum() * 20.0), "a")] * 9
    assert "impossible" in refit(curves[1], cheaper).refused, "no pass is quicker than one token"

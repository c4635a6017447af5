"""The cost curve: milliseconds to verify k drafted tokens and to draft each token, with their uncertainty.

A request's generation time is a sum over its passes,

    predicted_ms = Σ_k verified[k] · (M(k) + D(k)) + steps · S

where M(k) is the main model's time for k + 1 tokens, D(k) the draft model's time for the same tokens (llama.cpp computes
them with both), and S the time of one draft step. Timed batches give a first guess of all three. Every measured launch
corrects it, by Bayesian linear regression on the factors between truth and guess (Bishop, *Pattern Recognition and Machine
Learning*, §3.3): where nothing was measured, the curve keeps its shape and a large spread.

Draft steps and verified tokens come together, so launches hardly separate their costs. The prior does: a pass without a
draft takes the time of one generated token; the uncertain part of M is its rise; D and S are times of one model and have a
common error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt

__all__ = ["LAUNCH_NOISE", "CostCurve", "Observation", "break_even_of", "first_guess", "refit"]

Floats = npt.NDArray[np.float64]

LAUNCH_NOISE = 0.02
"""How much launches of one server differ: the common factor of one launch's answers. Standard deviation, relative."""

# The curve's factors are free at these numbers of drafted tokens, and linear in between.
_KNOTS = (0, 1, 2, 4, 8, 16, 32, 64)
# How far directly timed values may be from those within a launch, as relative standard deviations. One token is known from
# the recordings. More tokens are less sure: the processes share caches and threads differently.
_TOKEN_SPREAD = 0.01
_RISE_SPREAD = 0.4
# Also, a pass with a draft samples every token. Where the cache keeps a state, it saves that before, and brings it back after a
# proposal that was not accepted as a whole: on a GPU that may take as long as some tokens, and no timed batch shows it.
_PASS_SPREAD = 0.05
_STATE_SPREAD = 0.25
# Neighbouring knots differ less: an error of the guess is mostly common to the whole curve.
_BEND_SPREAD = 0.2
_DRAFT_SPREAD = 0.25
# If no batch could be timed, each further token is assumed to cost a fifth of the first one, which may be far off.
_UNTIMED_RISE = 0.2
_UNTIMED_SPREAD = 1.0
# Assumed noise of an answer's relative time, and the number of measured answers that this assumption counts for.
_REQUEST_NOISE = 0.04
_NOISE_WEIGHT = 8.0
# The noise has Student's distribution with so many degrees of freedom: a stalled answer hardly counts (Bishop, §2.3.7).
_FREEDOM = 4.0
_ROUNDS = 8
# Lower limit of a factor during the iterations.
_LEAST_FACTOR = 0.1
# A draft beside its main model takes at most this many times as long as alone, and at least the inverse.
_DRAFT_FACTOR = 2.5
# A smaller violation of the bounds is noise, and is set to the bound.
_SLACK = 0.05
# A timed batch takes longer than its tokens one by one if it takes this many times as long; less is noise.
_LONGER = 1.2
# Where more tokens take less time by less than this part, it is noise.
_LEVEL = 0.1


@dataclass(frozen=True, slots=True)
class Observation:
    """Token generation of one answer in a launch with drafting.

    Attributes:
        verified: Shape (K + 1,): passes over k tokens besides the last one.
        steps: Tokens that the draft computed one by one.
        scale: Milliseconds per token of the main model alone on this prompt ÷ the curve's M(0): a longer context makes every
            pass longer.
        predicted_ms: By the server's clock.
        launch: The launch that answered; its answers have a common factor.
    """

    verified: Floats
    steps: float
    scale: float
    predicted_ms: float
    launch: str = ""


@dataclass(frozen=True, slots=True)
class CostCurve:
    """Costs with their uncertainty. K is the largest number of drafted tokens that it covers.

    Attributes:
        plain_ms: Milliseconds for one token of the main model without drafting: M(0).
        main_ms: Shape (K + 1,): M(k). It falls where the timed batches do.
        draft_ms: Shape (K + 1,): D(k); zeros if no draft computes the verified tokens.
        step_ms: S; 0 for draft-free modes.
        knots: Shape (J,): numbers of drafted tokens at which the factors of M are free.
        covariance: Shape (J + 1, J + 1): of the relative errors of M at the knots and, last, of the draft's times.
        observations: Number of answers that corrected it.
        refused: Why launches did not correct it, a sentence; else empty.
        saves_state: True if passes over drafted tokens also save and restore a state: they may take longer than their tokens one by
            one.
    """

    plain_ms: float
    main_ms: Floats
    draft_ms: Floats
    step_ms: float
    knots: Floats
    covariance: Floats
    observations: int = 0
    refused: str = ""
    saves_state: bool = False

    @property
    def verify_ms(self) -> Floats:
        """Shape (K + 1,): time of a pass in both models, without draft steps."""
        return self.main_ms + self.draft_ms

    def features(self, verified: Floats, steps: Floats) -> Floats:
        """Milliseconds that M at each knot, and the draft, contribute to requests with these passes.

        Args:
            verified: Shape (D, k + 1) with k ≤ K.
            steps: Shape (D,).

        Returns:
            Shape (D, J + 1); a row's sum is the expected generation time in milliseconds.
        """
        width = verified.shape[-1]
        main = (verified * self.main_ms[:width]) @ _hats(self.knots, width)
        draft = verified @ self.draft_ms[:width] + steps * self.step_ms
        return np.concatenate([main, draft[..., None]], axis=-1)

    def break_even(self, n_max: int) -> float:
        """The acceptance rate at which drafting n_max tokens costs as much as it gains, see `break_even_of`."""
        return break_even_of(float(self.verify_ms[n_max] + n_max * self.step_ms) / self.plain_ms, n_max)


def break_even_of(cost: float, n_max: int) -> float:
    """The acceptance rate at which cycles of n_max proposals that cost as much as `cost` tokens gain nothing.

    If each token is accepted independently with the chance a, a cycle yields (1 - a^(n+1)) / (1 - a) tokens
    (Leviathan, Kalman and Matias, *Fast Inference from Transformers via Speculative Decoding*, 2023, eq. 1).

    Returns:
        0 … 1, or above 1 if no acceptance rate pays: even a fully accepted cycle costs more.
    """
    if cost >= n_max + 1:
        return cost / (n_max + 1)
    chances = np.linspace(0.0, 1.0, 1001)
    tokens = np.polynomial.polynomial.polyval(chances, np.ones(n_max + 1))
    return float(chances[np.searchsorted(tokens, cost)])


def first_guess(
    plain_ms: float,
    batch_ms: Mapping[int, float],
    draft_batch_ms: Mapping[int, float],
    step_ms: float,
    k: int,
    *,
    rows: float = 0.0,
    saves_state: bool = False,
) -> CostCurve:
    """The curve from directly timed batches.

    Args:
        plain_ms: Time of one generated token of the main model.
        batch_ms: Tokens in a batch → milliseconds of the main model; empty if none could be timed.
        draft_batch_ms: The same for the draft; empty for draft-free modes.
        step_ms: Time of one generated token of the draft; 0 for draft-free modes.
        k: Most drafted tokens in a cycle.
        rows: Weights of the output matrix ÷ weights of the layers. A timed batch multiplies only its last token with the
            output matrix, a verified batch all of them, so each further token costs this much more.
        saves_state: See `CostCurve`.
    """
    main = _curve(plain_ms, batch_ms, k)
    main = main[0] + (1.0 + rows) * (main - main[0])
    main = _within(main, plain_ms, timed=main)
    draft = _curve(step_ms, draft_batch_ms, k) if draft_batch_ms else np.zeros(k + 1)
    knots = np.array([x for x in _KNOTS if x < k] + [k], dtype=np.float64)
    spread = _spread(main, knots, timed=len(batch_ms) > 1, saves_state=saves_state)
    return CostCurve(plain_ms, main, draft, step_ms, knots, spread, saves_state=saves_state)


def _spread(main: Floats, knots: Floats, *, timed: bool, saves_state: bool) -> Floats:
    """The prior: the rise of M is uncertain, with a common error and one that wanders from knot to knot."""
    size = knots.size
    at = main[knots.astype(np.int64)]
    rise = (at - main[0]) / at
    common = _RISE_SPREAD if timed else _UNTIMED_SPREAD
    wander = _BEND_SPREAD**2 / max(1, size - 1) * np.minimum.outer(np.arange(size), np.arange(size))
    covariance = np.zeros((size + 1, size + 1))
    covariance[:size, :size] = np.outer(rise, rise) * (common**2 + wander) + _TOKEN_SPREAD**2
    covariance[1:size, 1:size] += (_STATE_SPREAD if saves_state else _PASS_SPREAD) ** 2
    covariance[size, size] = _DRAFT_SPREAD**2
    return covariance


def refit(guess: CostCurve, observations: Sequence[Observation]) -> CostCurve:
    """Correct a first guess by measured launches.

    Args:
        guess: From `first_guess`. A refitted curve would count its observations twice.
        observations: All observations of launches with this draft.

    Returns:
        The corrected curve; or the guess, with the reason in `refused`, if the corrected costs would be impossible.
    """
    if not observations:
        return guess
    width = guess.main_ms.size
    verified = np.zeros((len(observations), width))
    for row, o in zip(verified, observations, strict=True):
        row[: o.verified.size] = o.verified
    steps = np.array([o.steps for o in observations], dtype=np.float64)
    scale = np.array([o.scale for o in observations])
    measured = np.array([o.predicted_ms for o in observations])
    features = guess.features(verified * scale[:, None], steps * scale)
    factors, covariance = _regression(features, measured, [o.launch for o in observations], guess.covariance)
    main = guess.main_ms * (1.0 + _hats(guess.knots, width) @ factors[:-1])
    draft = 1.0 + float(factors[-1])
    seen = len(observations)
    bounded = partial(_within, plain_ms=guess.plain_ms, timed=guess.main_ms, saves_state=guess.saves_state)
    if why := _out_of_bounds(main, bounded(main), guess.plain_ms, draft, drafts=guess.step_ms > 0):
        return replace(guess, refused=why)
    return CostCurve(
        guess.plain_ms,
        bounded(_falling_as(guess.main_ms, main)),
        guess.draft_ms * draft,
        guess.step_ms * draft,
        guess.knots,
        covariance,
        seen,
        saves_state=guess.saves_state,
    )


def _regression(
    features: Floats, measured: Floats, launches: Sequence[str], prior: Floats
) -> tuple[Floats, Floats]:
    """Relative errors of the columns of `features`, whose sums should be `measured`, and their covariance.

    Gauss-Newton steps fit logarithms, in which noise is symmetric. Each launch also has a factor of its own with the prior
    `LAUNCH_NOISE`. The residuals give the noise of answers.
    """
    names = sorted(set(launches))
    of_launch = np.array([[own == name for name in names] for own in launches], dtype=np.float64)
    size = features.shape[1]
    precision = np.eye(size + len(names)) / LAUNCH_NOISE**2
    precision[:size, :size] = np.linalg.inv(prior + 1e-9 * np.eye(size))
    factors = np.zeros(size + len(names))
    variance, weights = _REQUEST_NOISE**2, np.ones(measured.size)
    for _ in range(_ROUNDS):
        parts = features * np.maximum(1.0 + factors[:size], _LEAST_FACTOR)
        total = parts.sum(axis=1)
        slopes = features / total[:, None]
        design = np.hstack([slopes, of_launch])
        y = np.log(measured / total) + slopes @ factors[:size]
        weighted = design * (weights / variance)[:, None]
        posterior = np.linalg.inv(precision + design.T @ weighted)
        factors = posterior @ (weighted.T @ y)
        residual = y - design @ factors
        # The part of the noise that the fit has absorbed counts as noise (expectation maximisation: Bishop, §9.3.4).
        taken_up = np.einsum("ij,jk,ik->i", design, posterior, design)
        squares = float(np.sum(weights * (residual**2 + taken_up)))
        variance = (_NOISE_WEIGHT * _REQUEST_NOISE**2 + squares) / (_NOISE_WEIGHT + measured.size)
        weights = (_FREEDOM + 1.0) / (_FREEDOM + residual**2 / variance)
    # Relative to the corrected costs: a cost that became smaller has a larger relative error.
    scale = 1.0 / np.maximum(1.0 + factors[:size], _LEAST_FACTOR)
    return np.asarray(factors[:size]), np.asarray(posterior[:size, :size] * np.outer(scale, scale))


def _within(main: Floats, plain_ms: float, *, timed: Floats, saves_state: bool = False) -> Floats:
    """M(k), limited to between the time of one token and that of k + 1 single tokens, which save no state.

    Some kernels are slower with a few tokens than with as many single ones: where the timed batch is clearly so, it is the limit.
    """
    single = plain_ms * np.arange(1, main.size + 1)
    most = np.where(timed > _LONGER * single, _LONGER * timed, single)
    return np.asarray(np.clip(main, plain_ms, np.full(main.size, np.inf) if saves_state else most))


def _falling_as(guess: Floats, main: Floats) -> Floats:
    """M(k) that falls no more than the guess does: the factors at the knots alone are no sign that more tokens take less time."""
    least = np.array(main)
    for k in range(1, main.size):
        least[k] = max(main[k], least[k - 1] * min(1.0, guess[k] / guess[k - 1]))
    return least


def _out_of_bounds(main: Floats, bounded: Floats, plain_ms: float, draft: float, *, drafts: bool) -> str:
    """Why these costs are impossible, a sentence; else empty. `bounded` are those of the main model within their bounds."""
    worst = int(np.argmax(np.abs(main / bounded - 1.0)))
    if abs(main[worst] / bounded[worst] - 1.0) > _SLACK:
        return (
            f"According to the launches, the main model would take {main[worst]:.1f} ms for {worst + 1} tokens, and {plain_ms:.1f} ms"
            f" for one. That is impossible, so the directly timed costs are kept."
        )
    if drafts and not 1.0 / _DRAFT_FACTOR <= draft <= _DRAFT_FACTOR:
        return (
            f"According to the launches, the draft would take {draft:.2f} times as long as alone. That is impossible, so the directly"
            " timed costs are kept."
        )
    return ""


def _curve(one_ms: float, batch_ms: Mapping[int, float], k: int) -> Floats:
    """Milliseconds for 1 … k + 1 tokens from the timed batches, correct for one token.

    Timed batches start cold, so they are shifted to agree with the known time of one token. It falls only where they clearly do.
    """
    wanted = np.arange(1, k + 2)
    if len(batch_ms) < 2:
        return np.asarray(one_ms * (1.0 + _UNTIMED_RISE * (wanted - 1.0)))
    sizes = np.array(sorted(batch_ms), dtype=np.float64)
    times = _levelled(np.array([batch_ms[int(s)] for s in sizes]))
    curve = np.interp(wanted, sizes, times)
    if wanted[-1] > sizes[-1]:
        slope = max(0.0, times[-1] - times[-2]) / (sizes[-1] - sizes[-2])
        beyond = wanted > sizes[-1]
        curve[beyond] = times[-1] + slope * (wanted[beyond] - sizes[-1])
    shifted = curve - curve[0] + one_ms
    return _within(shifted, one_ms, timed=shifted)


def _levelled(times: Floats) -> Floats:
    """Times without falls that are within the noise: such a time is set to the one before it."""
    level = np.array(times)
    for i in range(1, times.size):
        if (1.0 - _LEVEL) * level[i - 1] < times[i] < level[i - 1]:
            level[i] = level[i - 1]
    return level


def _hats(knots: Floats, width: int) -> Floats:
    """Shape (width, J): the weight of each knot at k = 0 … width - 1; rows sum to 1."""
    places = np.minimum(np.arange(width, dtype=np.float64), knots[-1])
    return np.stack([np.interp(places, knots, row) for row in np.eye(knots.size)], axis=1)

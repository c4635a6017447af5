"""The cost curve: milliseconds to verify k drafted tokens, milliseconds for each drafted token, with their spread.

A request's generation time is a sum over its cycles,

    predicted_ms = Σ_k verified[k] · V(k) + steps · S

with V(k) the time in which the main model computes k + 1 tokens (and the draft model, which computes them too, in
llama.cpp) and S the time of one step of the draft. A first guess of both comes from timing batches directly; every
launch that measures anything corrects it, by Bayesian linear regression on the factors between truth and guess
(Bishop, *Pattern Recognition and Machine Learning*, §3.3): the curve keeps its shape where nothing was measured, and
its spread says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["CostCurve", "Observation", "first_guess", "refit"]

Floats = npt.NDArray[np.float64]

# The curve's factors are free at these numbers of drafted tokens, straight in between.
_KNOTS = (0, 1, 2, 4, 8, 16, 32, 64)
# How far the directly timed costs may be from those within a launch: the processes share caches and threads
# differently, and a verified batch computes logits for all its tokens. One standard deviation, relative.
_GUESS_SPREAD = 0.12
# Neighbouring factors differ less: an error of the guess is mostly common to the whole curve.
_BEND_SPREAD = 0.08
# A request's time beyond what its cycles explain: noise of the machine, of one measurement on a quiet one.
_REQUEST_NOISE = 0.03


@dataclass(frozen=True, slots=True)
class Observation:
    """The generation of one answer within a launch that drafted.

    Attributes:
        verified: Shape (K + 1,): cycles that verified k drafted tokens.
        steps: Tokens that the draft computed one by one.
        scale: Milliseconds per token of the main model alone on this prompt ÷ the curve's V(0) without draft:
            the longer the context, the dearer every cycle.
        predicted_ms: What the server said.
    """

    verified: Floats
    steps: float
    scale: float
    predicted_ms: float


@dataclass(frozen=True, slots=True)
class CostCurve:
    """Costs with their spread. K is the largest number of drafted tokens that it covers.

    Attributes:
        plain_ms: Milliseconds for one token of the main model with drafting off.
        verify_ms: Shape (K + 1,): V(k), never falling.
        step_ms: S; 0 for draft-free modes.
        knots: Shape (J,): numbers of drafted tokens at which the factors are free.
        covariance: Shape (J + 1, J + 1): of the relative errors at the knots, and of S last.
        observations: How many answers it was corrected by.
    """

    plain_ms: float
    verify_ms: Floats
    step_ms: float
    knots: Floats
    covariance: Floats
    observations: int = 0

    def features(self, verified: Floats, steps: Floats) -> Floats:
        """Milliseconds that each knot, and S, contributes to requests of these cycles.

        Args:
            verified: Shape (D, k + 1) with k ≤ K.
            steps: Shape (D,).

        Returns:
            Shape (D, J + 1); a row's sum is the expected generation time in milliseconds.
        """
        spent = verified * self.verify_ms[: verified.shape[-1]]
        hats = _hats(self.knots, verified.shape[-1])
        return np.concatenate([spent @ hats, (steps * self.step_ms)[..., None]], axis=-1)

    def break_even(self, n_max: int) -> float:
        """The chance of each drafted token to be right at which drafting n_max tokens costs as much as it gains.

        With a chance a for every token, independently, a cycle yields (1 - a^(n+1)) / (1 - a) tokens (Leviathan,
        Kalman and Matias, *Fast Inference from Transformers via Speculative Decoding*, 2023, eq. 1).

        Returns:
            0 … 1, or above 1 where no acceptance pays: even a cycle whose tokens are all right costs more.
        """
        cost = (self.verify_ms[n_max] + n_max * self.step_ms) / self.plain_ms
        if cost >= n_max + 1:
            return float(cost / (n_max + 1))
        chances = np.linspace(0.0, 1.0, 1001)
        tokens = np.polynomial.polynomial.polyval(chances, np.ones(n_max + 1))
        return float(chances[np.searchsorted(tokens, cost)])


def first_guess(
    plain_ms: float,
    batch_ms: Mapping[int, float],
    draft_batch_ms: Mapping[int, float],
    step_ms: float,
    k: int,
) -> CostCurve:
    """The curve from directly timed batches.

    Args:
        plain_ms: One token of the main model, generated.
        batch_ms: Tokens in a batch → milliseconds of the main model for it.
        draft_batch_ms: The same for the draft; empty for draft-free modes.
        step_ms: One token of the draft, generated; 0 for draft-free modes.
        k: Most drafted tokens in a cycle.
    """
    main = _curve(plain_ms, batch_ms, k)
    verify = main + (_curve(step_ms, draft_batch_ms, k) if draft_batch_ms else 0.0)
    knots = np.array([x for x in _KNOTS if x < k] + [k], dtype=np.float64)
    size = knots.size
    covariance = np.zeros((size + 1, size + 1))
    # A common error, and one of its own for each knot that grows slowly with the distance from the first.
    covariance[:size, :size] = _GUESS_SPREAD**2
    walk = _BEND_SPREAD**2 * np.minimum.outer(np.arange(size), np.arange(size))
    covariance[:size, :size] += walk / max(1, size - 1)
    covariance[size, size] = (2 * _GUESS_SPREAD) ** 2
    return CostCurve(plain_ms, verify, step_ms, knots, covariance)


def refit(guess: CostCurve, observations: Sequence[Observation]) -> CostCurve:
    """Correct a first guess by what launches showed.

    Args:
        guess: As `first_guess` made it; not one that was refitted, or its observations would count twice.
        observations: All there are, of launches with this draft.
    """
    if not observations:
        return guess
    width = guess.verify_ms.size
    verified = np.zeros((len(observations), width))
    for row, o in zip(verified, observations, strict=True):
        row[: o.verified.size] = o.verified
    steps = np.array([o.steps for o in observations], dtype=np.float64)
    scale = np.array([o.scale for o in observations])
    measured = np.array([o.predicted_ms for o in observations])
    features = guess.features(verified * scale[:, None], steps * scale)
    # Relative errors, so that long answers do not outweigh short ones.
    x = features / measured[:, None]
    y = 1.0 - x.sum(axis=1)
    precision = np.linalg.inv(guess.covariance + 1e-9 * np.eye(guess.covariance.shape[0]))
    noise = _REQUEST_NOISE
    posterior = np.linalg.inv(precision + x.T @ x / noise**2)
    factors = posterior @ (x.T @ y) / noise**2
    # More noise than a quiet machine has widens everything that follows from it.
    residual = y - x @ factors
    inflation = max(1.0, float(np.mean(residual**2)) / noise**2)
    hats = _hats(guess.knots, width)
    verify = np.maximum.accumulate(guess.verify_ms * (1.0 + hats @ factors[:-1]))
    return CostCurve(
        guess.plain_ms,
        verify,
        guess.step_ms * max(0.0, 1.0 + float(factors[-1])),
        guess.knots,
        posterior * inflation,
        len(observations),
    )


def _curve(one_ms: float, batch_ms: Mapping[int, float], k: int) -> Floats:
    """Milliseconds for 1 … k + 1 tokens: the timed batches, never falling, set right at one token.

    Timed batches compute one row of logits and start cold; generation computes them all. What is known of both is one
    token, so the batches are shifted to agree there.
    """
    sizes = np.array(sorted(batch_ms), dtype=np.float64)
    times = np.maximum.accumulate(np.array([batch_ms[int(s)] for s in sizes]))
    wanted = np.arange(1, k + 2)
    curve = np.interp(wanted, sizes, times)
    if wanted[-1] > sizes[-1] and sizes.size > 1:
        slope = (times[-1] - times[-2]) / (sizes[-1] - sizes[-2])
        beyond = wanted > sizes[-1]
        curve[beyond] = times[-1] + slope * (wanted[beyond] - sizes[-1])
    return np.asarray(np.maximum.accumulate(np.maximum(one_ms, curve - curve[0] + one_ms)))


def _hats(knots: Floats, width: int) -> Floats:
    """Shape (width, J): weight of each knot at k = 0 … width - 1; rows sum to 1."""
    places = np.minimum(np.arange(width, dtype=np.float64), knots[-1])
    return np.stack([np.interp(places, knots, row) for row in np.eye(knots.size)], axis=1)

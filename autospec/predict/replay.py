"""Simulate drafting cycles: drafted and accepted counts of every (n_max, n_min, p_min) from one profile.

The cycle is llama-server's (tools/server/server-context.cpp and common/speculative.cpp, b11434). With g tokens generated
and at most N requested, a cycle may draft min(n_max, N - g - 1) tokens. The draft stops before its first token whose
probability is below p_min. A draft shorter than n_min is dropped. The main model accepts the draft's tokens up to the first
one that differs from its own, and adds one of its own.

Builds before May 2026 propose the token below p_min, too, and stop after it (`Cycle.LLAMA_CPP_KEEPS_LAST`).

If the main model's cache cannot be cut (a recurrent state, alone or beside attention), the server restores the cache from
before a partly accepted draft, and computes the accepted tokens again, followed by the main model's own one
(`spec_is_replay`). That second pass gives one more token, without a draft.

mlx_lm's cycle (`speculative_generate_step` of mlx_lm/generate.py, 0.32.2) begins with g = 0, since it computes the prompt's
last token with the first verified batch. It drafts min(n_max, N - g) tokens in every cycle and has no p_min and no n_min.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autospec.backends.protocol import Cycle
from autospec.predict.profile import AnswerProfile

__all__ = ["Counts", "Proposals", "proposals", "replay", "stacked"]

Ints = npt.NDArray[np.int64]
# Longer than any n_max.
_ENDLESS = 1 << 30


@dataclass(frozen=True, slots=True)
class Counts:
    """The cycles of one answer under each of D draftings.

    Attributes:
        verified: Shape (D, K + 1): passes of the main model over k tokens besides the last one, k = 0 … K. The k tokens are
            drafted ones, or accepted ones that are computed again.
        steps: Shape (D,): tokens that the draft model computed one by one, with the one that p_min refused.
        drafted: Shape (D,): tokens proposed.
        accepted: Shape (D,): of those, accepted.
        by_position: Shape (D, K): cycles that accepted the token at each place of the draft.
        opening: Shape (D,): tokens drafted in the first cycle, if that cycle gives the answer's first token and its time
            counts as prompt processing; ``None`` if the prompt's own batch gives it.
        again: Shape (D,): of the passes, those that computed accepted tokens again; ``None`` for none.
    """

    verified: Ints
    steps: Ints
    drafted: Ints
    accepted: Ints
    by_position: Ints
    opening: Ints | None = None
    again: Ints | None = None

    @property
    def drafts(self) -> Ints:
        """Shape (D,): cycles that verified a draft."""
        passes = np.asarray(self.verified[:, 1:].sum(axis=1))
        return passes if self.again is None else passes - self.again

    @property
    def cycles(self) -> Ints:
        """Shape (D,): times that the main model ran, after the prompt."""
        return np.asarray(self.verified.sum(axis=1))

    @property
    def after_first_token(self) -> tuple[Ints, Ints]:
        """`verified` and `steps` of the cycles after the first token, whose time is token generation."""
        if self.opening is None:
            return self.verified, self.steps
        verified = self.verified.copy()
        verified[np.arange(self.opening.size), self.opening] -= 1
        return verified, self.steps - self.opening


def replay(
    profile: AnswerProfile,
    n_max: Sequence[int],
    p_min: Sequence[float],
    n_min: Sequence[int] | None = None,
    *,
    max_tokens: int,
    cycle: Cycle = Cycle.LLAMA_CPP,
    uncut: bool = False,
) -> Counts:
    """Replay one answer under D draftings at once.

    Args:
        profile: The draft over the answer.
        n_max: Length D.
        p_min: Length D.
        n_min: Length D; all 0 if left out.
        max_tokens: The request's limit, N above.
        cycle: The backend's cycle.
        uncut: True if the main model's cache cannot be cut.

    Returns:
        The counts, in the order of the draftings.
    """
    limits = np.asarray(n_max, dtype=np.int64)
    least = np.zeros_like(limits) if n_min is None else np.asarray(n_min, dtype=np.int64)
    levels, level = np.unique(np.asarray(p_min, dtype=np.float64), return_inverse=True)
    n = profile.hits.size
    runs = _runs(profile)
    lengths = _lengths(profile, levels)
    count, widest = limits.size, int(limits.max(initial=1))
    verified = np.zeros((count, widest + 1), dtype=np.int64)
    accepted_at = np.zeros((count, widest + 1), dtype=np.int64)
    steps = np.zeros(count, dtype=np.int64)
    again = np.zeros(count, dtype=np.int64)
    drafted = np.zeros(count, dtype=np.int64)
    everyone = np.arange(count)
    # llama.cpp's first token comes with the prompt.
    given = 0 if cycle is Cycle.MLX_LM else 1
    kept = 1 if cycle is Cycle.LLAMA_CPP_KEEPS_LAST else 0
    position = np.full(count, given, dtype=np.int64)
    opening = None
    while (running := position < n).any():
        who = everyone[running]
        at = position[who]
        limit = np.minimum(limits[who], max_tokens - at - given)
        length = np.minimum(limit, lengths[level[who], at] + kept)
        # If p_min ended the draft, the token that it refused was computed too.
        refused = (length < limit) & (kept == 0)
        steps[who] += np.where(limit > 0, length + refused, 0)
        length = np.where((limit > 0) & (length >= least[who]), length, 0)
        accepted = np.minimum(length, runs[at])
        if opening is None and not given:
            opening = length
        np.add.at(verified, (who, length), 1)
        np.add.at(accepted_at, (who, accepted), 1)
        drafted[who] += length
        position[who] = at + accepted + 1
        if uncut:
            partly = accepted < length
            np.add.at(verified, (who[partly], accepted[partly] + 1), 1)
            again[who] += partly
            position[who] += partly
    places = np.arange(widest + 1)
    # A cycle that accepted a tokens accepted the ones at places 1 … a.
    by_position = accepted_at[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:]
    return Counts(
        verified, steps, drafted, accepted_at @ places, by_position, opening, again if uncut else None
    )


@dataclass(frozen=True, slots=True)
class Proposals:
    """What one drafting of a draft model proposes at every position of an answer, in llama.cpp's cycle."""

    n_max: int
    n_min: int
    lengths: Ints  # tokens before p_min ends the draft
    runs: Ints  # correct tokens in a row

    def at(self, position: int, limit: int) -> tuple[int, int, int]:
        """Proposed tokens, accepted ones, and the draft's steps, after so many tokens and with room for `limit`."""
        limit = min(limit, self.n_max)
        if limit <= 0:
            return 0, 0, 0
        length = min(limit, int(self.lengths[position]))
        # If p_min ended the draft, the token that it refused was computed too.
        steps = length + (length < limit)
        length = length if length >= self.n_min else 0
        return length, min(length, int(self.runs[position])), steps


def proposals(profile: AnswerProfile, n_max: int, p_min: float, n_min: int) -> Proposals:
    """See `Proposals`; the same as `replay` simulates, for cycles that are not all this draft's own."""
    return Proposals(n_max, n_min, _lengths(profile, np.array([p_min]))[0], _runs(profile))


def stacked(counts: Sequence[Counts]) -> Counts:
    """Join the counts of single draftings, or answers, along D; `opening` is dropped."""
    widest = max(c.verified.shape[1] for c in counts)
    verified = np.zeros((len(counts), widest), dtype=np.int64)
    by_position = np.zeros((len(counts), widest - 1), dtype=np.int64)
    for d, c in enumerate(counts):
        verified[d, : c.verified.shape[1]] = c.verified[0]
        by_position[d, : c.by_position.shape[1]] = c.by_position[0]
    return Counts(
        verified,
        np.concatenate([c.steps for c in counts]),
        np.concatenate([c.drafted for c in counts]),
        np.concatenate([c.accepted for c in counts]),
        by_position,
        again=None
        if counts[0].again is None
        else np.concatenate([c.again for c in counts if c.again is not None]),
    )


def _runs(profile: AnswerProfile) -> Ints:
    """At each position, the number of correct draft tokens in a row; shape (answer tokens,)."""
    n = profile.hits.size
    misses = np.append(np.flatnonzero(~profile.hits), n)
    positions = np.arange(n)
    return np.asarray(misses[np.searchsorted(misses, positions)] - positions)


def _lengths(profile: AnswerProfile, levels: npt.NDArray[np.float64]) -> Ints:
    """At each position, the tokens proposed before the probability falls below a level; shape (levels, answer tokens).

    `_ENDLESS` if no sampled probability ends the draft.
    """
    n = profile.hits.size
    lengths = np.zeros((levels.size, n), dtype=np.int64)
    following = np.full(levels.size, _ENDLESS)
    samples = sorted(profile.after_miss)
    for i in range(n - 1, -1, -1):
        if not profile.hits[i]:
            following = _after(profile, samples, i, levels)
        following = np.where(profile.p[i] < levels, 0, np.minimum(1 + following, _ENDLESS))
        lengths[:, i] = following
    return lengths


def _after(profile: AnswerProfile, samples: list[int], miss: int, levels: npt.NDArray[np.float64]) -> Ints:
    """For each level, the number of tokens proposed after a miss, from the nearest sampled miss."""
    if not samples:
        return np.where(levels > 0, 0, _ENDLESS)
    place = int(np.searchsorted(samples, miss))
    near = min(samples[max(0, place - 1) : place + 1], key=lambda s: abs(s - miss))
    p = profile.after_miss[near]
    below = p[None, :] < levels[:, None]
    if p.size == 0:
        return np.where(levels > 0, 0, _ENDLESS)
    return np.asarray(np.where(below.any(axis=1), below.argmax(axis=1), _ENDLESS))

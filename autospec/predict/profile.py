"""The data behind predictions: a recorded answer, a draft model's profile over it, and the counts of drafting cycles replayed on it.

The accepted text is the main model's own, whatever drafts, so one recording of it gives the cycles of every drafting. A
profile is the draft's most likely token and its probability at each position, given the recorded text before it (*teacher
forcing*). After a miss a server drafts on from the draft's wrong token until n-max or p-min ends the cycle. That continuation
depends only on the position of the miss, so the profile holds it for a sample of the misses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
import numpy.typing as npt

from autospec.backends.protocol import Cycle, Proposal
from autospec.errors import RequestError

__all__ = [
    "AnswerProfile",
    "Counts",
    "Ids",
    "Proposals",
    "Recording",
    "Scorer",
    "profile_answer",
    "profile_scored",
    "proposals",
    "replay",
    "stacked",
]

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Recording:
    """One answer of the main model without drafting.

    Attributes:
        prompt_id: The suite's id.
        prompt_ids: Token ids of the whole prompt, with chat template and first token.
        answer_ids: Token ids generated, in order; if the answer ended by itself, the last one ends it.
        max_tokens: The request's limit.
        ended: True if the answer ended by itself.
        prompt_ms: Prompt processing, by the server's clock.
        predicted_ms: Generation of all but the first token, by the server's clock.
        wall_ms: The whole request, by our clock.
    """

    prompt_id: str
    prompt_ids: Ids
    answer_ids: Ids
    max_tokens: int
    ended: bool
    prompt_ms: float
    predicted_ms: float
    wall_ms: float

    @property
    def token_ms(self) -> float:
        """Milliseconds for each generated token after the first, which comes with the prompt.

        Raises:
            ValueError: The answer has fewer than two tokens.
        """
        if len(self.answer_ids) < 2:
            raise ValueError(f"{self.prompt_id} has an answer of {len(self.answer_ids)} tokens")
        return self.predicted_ms / (len(self.answer_ids) - 1)

    def to_json(self) -> dict[str, Any]:
        """For the store."""
        return {
            "prompt_id": self.prompt_id,
            "prompt_ids": list(self.prompt_ids),
            "answer_ids": list(self.answer_ids),
            "max_tokens": self.max_tokens,
            "ended": self.ended,
            "prompt_ms": self.prompt_ms,
            "predicted_ms": self.predicted_ms,
            "wall_ms": self.wall_ms,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote; fields that a later version added are ignored.

        Raises:
            KeyError: A field is missing.
        """
        known = {f.name: data[f.name] for f in fields(cls)}
        return cls(**{**known, **{k: tuple(data[k]) for k in ("prompt_ids", "answer_ids")}})


Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


class Proposer(Protocol):
    """Continues a text greedily with a draft model."""

    def propose(self, ids: Sequence[int], count: int) -> Sequence[Proposal]:
        """The draft's next `count` tokens after `ids`; fewer if it ends its answer."""


@dataclass(frozen=True, slots=True)
class AnswerProfile:
    """One draft model over one recorded answer.

    Attributes:
        prompt_id: The suite's id.
        hits: Shape (answer tokens,): true where the draft's most likely token is the recorded one.
        p: Shape (answer tokens,): probability of the draft's most likely token, among its ten.
        after_miss: Position of a sampled miss → probabilities of the tokens that the draft proposes after its own wrong
            token, in order.
        draft_prompt_ms: The draft's prompt processing.
    """

    prompt_id: str
    hits: Bools
    p: Floats
    after_miss: Mapping[int, Floats] = field(default_factory=dict)
    draft_prompt_ms: float = math.nan

    @property
    def acceptance(self) -> float:
        """The part of the positions with a hit."""
        return float(self.hits[1:].mean()) if self.hits.size > 1 else math.nan

    def to_json(self) -> dict[str, Any]:
        """For the store."""
        return {
            "prompt_id": self.prompt_id,
            "hits": "".join("1" if h else "0" for h in self.hits),
            "p": [round(float(v), 5) for v in self.p],
            "after_miss": {str(k): [round(float(x), 5) for x in v] for k, v in self.after_miss.items()},
            "draft_prompt_ms": self.draft_prompt_ms,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote."""
        return cls(
            prompt_id=data["prompt_id"],
            hits=np.array([c == "1" for c in data["hits"]], dtype=np.bool_),
            p=np.array(data["p"], dtype=np.float64),
            after_miss={int(k): np.array(v, dtype=np.float64) for k, v in data["after_miss"].items()},
            draft_prompt_ms=float(data["draft_prompt_ms"]),
        )


@runtime_checkable
class Scorer(Proposer, Protocol):
    """A draft that can be read at every token of an answer in one evaluation."""

    def score(self, prompt_ids: Sequence[int], answer_ids: Sequence[int]) -> Sequence[Proposal]:
        """One proposal for each token of the answer, given the recorded text before it."""


def profile_scored(
    scorer: Scorer, recording: Recording, *, longest: int, sampled_misses: int
) -> AnswerProfile:
    """As `profile_answer`, from one evaluation of the answer and a continuation for each sampled miss."""
    answer = recording.answer_ids
    told = scorer.score(recording.prompt_ids, answer)
    hits = np.array([q.token == token for q, token in zip(told, answer, strict=True)], dtype=np.bool_)
    misses = np.flatnonzero(~hits)
    chosen = misses[:: max(1, math.ceil(misses.size / sampled_misses))] if sampled_misses else misses[:0]
    after_miss = {
        int(i): np.array([q.p for q in scorer.propose((*recording.prompt_ids, *answer[:i]), longest)[1:]])
        for i in chosen
    }
    return AnswerProfile(recording.prompt_id, hits, np.array([q.p for q in told]), after_miss)


def profile_answer(
    proposer: Proposer,
    recording: Recording,
    *,
    longest: int,
    sampled_misses: int,
) -> AnswerProfile:
    """Read a draft over one recorded answer.

    The draft continues the recorded text greedily in stretches. While it agrees, one stretch gives many positions. At a miss
    the rest of the stretch is what the draft would propose next. So this takes about one request for each miss and one for
    each `longest` tokens.

    Args:
        proposer: The draft.
        recording: The answer.
        longest: Most tokens that any drafting of the space proposes in a cycle.
        sampled_misses: Number of misses, spread evenly over the answer, whose whole continuation is kept.
    """
    answer = recording.answer_ids
    n = len(answer)
    hits = np.zeros(n, dtype=np.bool_)
    p = np.zeros(n)
    after_miss: dict[int, Floats] = {}
    position = 0

    def propose(place: int, count: int) -> Sequence[Proposal]:
        found = proposer.propose((*recording.prompt_ids, *answer[:place]), count)
        if not found:
            raise RequestError(f"The draft proposed nothing at token {place} of {recording.prompt_id}.")
        return found

    # A stretch costs its length, used or not. So it is long only to sample a miss, or while there are no misses.
    stretch = longest
    every = max(1, n // sampled_misses) if sampled_misses else n + 1
    next_sample = 0
    while position < n:
        sampling = position >= next_sample
        proposals = propose(position, longest if sampling else max(1, min(stretch, n - position)))
        for k, proposal in enumerate(proposals):
            if position >= n:
                break
            p[position] = proposal.p
            hits[position] = proposal.token == answer[position]
            position += 1
            if not hits[position - 1]:
                if sampling:
                    # The rest of a stretch is shorter than the continuation in a cycle that begins at the miss.
                    rest = proposals[1:] if k == 0 else propose(position - 1, longest)[1:]
                    after_miss[position - 1] = np.array([q.p for q in rest])
                    next_sample = position - 1 + every
                # About as long as the last runs.
                stretch = max(1, min(longest, round((stretch + k + 1) / 2)))
                break
        else:
            stretch = min(longest, stretch * 2)
    if n and np.isnan(p).all():
        raise RequestError("The server reports no probabilities.", "Prediction needs another build.")
    known = {hit: np.flatnonzero((hits == hit) & ~np.isnan(p)) for hit in (False, True)}
    for i in np.flatnonzero(np.isnan(p)):
        p[i] = _nearest(p, known[bool(hits[i])], int(i))
    after = {k: np.where(np.isnan(v), _nearest(p, known[False], k), v) for k, v in after_miss.items()}
    return AnswerProfile(recording.prompt_id, hits, p, after)


def _nearest(p: Floats, known: npt.NDArray[np.int64], place: int) -> float:
    """In place of a probability that the server did not report: the nearest known one of the same outcome."""
    return float(p[known[np.argmin(np.abs(known - place))]]) if known.size else 0.5


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

    The cycle is llama-server's (tools/server/server-context.cpp and common/speculative.cpp, b11434). With g tokens generated and
    at most N requested, a cycle may draft min(n_max, N - g - 1) tokens. The draft stops before its first token whose
    probability is below p_min. A draft shorter than n_min is dropped. The main model accepts the draft's tokens up to the first
    one that differs from its own, and adds one of its own.

    Builds before May 2026 propose the token below p_min, too, and stop after it (`Cycle.LLAMA_CPP_KEEPS_LAST`).

    If the main model's cache cannot be cut (a recurrent state, alone or beside attention), the server restores the cache from
    before a partly accepted draft, and computes the accepted tokens again, followed by the main model's own one
    (`spec_is_replay`). That second pass gives one more token, without a draft.

    mlx_lm's cycle (`speculative_generate_step` of mlx_lm/generate.py, 0.32.2) begins with g = 0, since it computes the prompt's
    last token with the first verified batch. It drafts min(n_max, N - g) tokens in every cycle and has no p_min and no n_min.

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

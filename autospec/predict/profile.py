"""The data behind predictions: a recorded answer of the main model, and a draft model's profile over it.

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

from autospec.backends.protocol import Proposal
from autospec.errors import RequestError

__all__ = ["AnswerProfile", "Ids", "Recording", "Scorer", "profile_answer", "profile_scored"]

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

"""Measured answers, pairs of them, live samples, the request of a verdict, and what its context costs.

A measured answer is short: some 64 or 128 tokens after a prompt of which nothing is cached. Users ask for longer answers, and
most of their prompt is cached. So prompt time and generation time are measured apart and recombined for the request that users
make. Both halves of a pair are recombined for the same request, which compares answers of different length fairly. Where a
server keeps no prompt cache while it drafts, its half gets the whole prompt.

A token takes longer the more tokens stand before it: every pass of a model reads the keys and values of all
of them. A measured answer is short, and the answer that users ask for ends further from the prompt's
beginning, where each pass takes longer. A pass that verifies proposals reads them for each of its tokens, and
a draft reads its own. So a longer answer changes the ratio of drafting to off, and both are corrected.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Self

import numpy as np

from autospec.cells import PromptType
from autospec.drafting import OFF, Drafting
from autospec.recommendations import WITHIN_REASONING

__all__ = [
    "AS_MEASURED",
    "CACHED_SHARE",
    "CUT",
    "LEAST_REQUESTS",
    "MAX_PAIR_GAP_S",
    "TRAFFIC_S",
    "DepthCosts",
    "DepthRise",
    "Measurement",
    "Pair",
    "Phase",
    "RequestShape",
    "Sample",
    "Shapes",
    "enough_tokens",
    "of_traffic",
    "pair_up",
    "paired",
    "rise_of",
    "token_ms_of",
]


# llama-server counts the first token's time to the prompt: an answer of one token took 0.001 ms. With other servers, the first token of
# a short answer takes half of its time.
_TIMED_TOKENS = 8


@dataclass(frozen=True, slots=True)
class Sample:
    """One request that the proxy answered: numbers only, no text.

    `at` is the end of the answer in seconds since the epoch. Times are by the server's clock, or by ours if the server does not
    report them. `prompt_tokens` are without the `cached_tokens`. `concurrent` is the most requests that the model answered at once
    meanwhile, this one included; `temperature` includes the server's default. What is unknown is ``None``, as in rows of older
    versions; `cached_tokens` also where a request without drafting was answered by a server that has no cache because of its draft.
    """

    at: float
    model: str
    backend: str
    build: str
    prompt_type: PromptType | None
    prompt_tokens: int
    predicted_tokens: int
    prompt_ms: float
    predicted_ms: float
    drafting: Drafting = field(default=OFF)
    drafted: int | None = None
    accepted: int | None = None
    cached_tokens: int | None = None
    concurrent: int | None = None
    temperature: float | None = None

    @property
    def tps(self) -> float | None:
        """Generated tokens per second; ``None`` for an answer that is too short to tell it."""
        if self.predicted_tokens < _TIMED_TOKENS or self.predicted_ms <= 0.0:
            return None
        return 1000.0 * self.predicted_tokens / self.predicted_ms


CACHED_SHARE: Mapping[PromptType, float] = MappingProxyType(
    {
        # Each turn of a conversation, or step of an agent, repeats all earlier turns.
        PromptType.CHAT: 0.8,
        PromptType.AGENTIC: 0.9,
        # Editors and chat clients send files and earlier turns again; some requests are the first of their kind.
        PromptType.CODING: 0.5,
        PromptType.EDITING: 0.5,
        # The instructions repeat, the text is new.
        PromptType.EXTRACTION: 0.1,
        PromptType.RAG: 0.1,
        PromptType.SUMMARIZATION: 0.0,
        PromptType.TRANSLATION: 0.0,
        # Separate questions.
        PromptType.MATH: 0.0,
        PromptType.REASONING: 0.0,
        PromptType.QA: 0.0,
        PromptType.WRITING: 0.0,
    }
)
"""Cached part of a prompt, assumed until live traffic shows it."""

# Finish reasons of an answer that did not end by itself; servers that tell none count as such.
CUT = frozenset({"", "length"})
# The usual requests are those of live traffic: of this time at most, from so many on.
TRAFFIC_S = 30 * 86400.0
LEAST_REQUESTS = 30


@dataclass(frozen=True, slots=True)
class DepthRise:
    """Milliseconds that each token of context adds.

    Attributes:
        pass_ms: To a pass over one token.
        token_ms: To the same pass, for each further token in its batch.
    """

    pass_ms: float
    token_ms: float

    def with_draft(self, draft: DepthRise, *, verifies: bool) -> DepthRise:
        """Return what a drafting cycle adds: `token_ms` is for each proposed token, its draft step included.

        Args:
            draft: The draft model's own rise.
            verifies: True if the draft computes the verified tokens too, as in llama.cpp.
        """
        again = draft if verifies else DepthRise(0.0, 0.0)
        return DepthRise(self.pass_ms + again.pass_ms, self.token_ms + again.token_ms + draft.pass_ms)

    def to_json(self) -> dict[str, float]:
        """For the store."""
        return {"pass_ms": self.pass_ms, "token_ms": self.token_ms}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote."""
        return cls(float(data["pass_ms"]), float(data["token_ms"]))


@dataclass(frozen=True, slots=True)
class DepthCosts:
    """What context adds to the passes of one main model, alone and with each draft.

    Attributes:
        plain_ms: Milliseconds of one token without drafting at the time when this was timed. Times at other moments are
            in proportion.
        reach_tokens: The longest context that was timed. Beyond it nothing is added.
        rises: Path of a draft → rise of its cycles; the empty path for off and the draft-free modes.
        identities: Path of a draft → its identity, by which it is known where it has moved.
    """

    plain_ms: float
    reach_tokens: int
    rises: Mapping[str, DepthRise]
    identities: Mapping[str, str] = field(default_factory=dict)

    def moved(self, draft: str | None, *, from_tokens: float, to_tokens: float, plain_ms: float) -> DepthRise:
        """Return what moving passes to another context adds to each pass, and to each proposal in it.

        Args:
            draft: Path of the draft model, if one proposes.
            from_tokens: Mean context in which the passes were measured.
            to_tokens: Mean context in which they are wanted.
            plain_ms: Milliseconds of one token without drafting, measured beside them.
        """
        rise = self.rises.get(draft or "", self.rises[""])
        tokens = min(to_tokens, max(from_tokens, float(self.reach_tokens))) - from_tokens
        factor = tokens * (plain_ms / self.plain_ms if self.plain_ms > 0.0 else 1.0)
        return DepthRise(factor * rise.pass_ms, factor * rise.token_ms)

    def followed(self, identities: Mapping[str, str]) -> DepthCosts:
        """Return the same for the drafts of today: their paths, which `identities` has as keys, and their identities.

        A moved draft's rise is under its new path too. The times of a file that another one has replaced are left out.
        """
        known = {
            identity: self.rises[path] for path, identity in self.identities.items() if path in self.rises
        }
        replaced = {
            path for path, identity in self.identities.items() if identities.get(path, identity) != identity
        }
        rises = {path: rise for path, rise in self.rises.items() if path not in replaced}
        ids = {path: identity for path, identity in self.identities.items() if path not in replaced}
        moved = {
            path: identity for path, identity in identities.items() if identity in known and path not in rises
        }
        return replace(
            self,
            rises={**rises, **{path: known[identity] for path, identity in moved.items()}},
            identities={**ids, **moved},
        )

    def to_json(self) -> dict[str, Any]:
        """The form in the evidence."""
        return {
            "plain_ms": self.plain_ms,
            "reach_tokens": self.reach_tokens,
            "rises": {path: rise.to_json() for path, rise in self.rises.items()},
            "identities": dict(self.identities),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote."""
        rises = {str(path): DepthRise.from_json(rise) for path, rise in data["rises"].items()}
        identities = {str(path): str(identity) for path, identity in data.get("identities", {}).items()}
        return cls(float(data["plain_ms"]), int(data["reach_tokens"]), rises, identities)


def rise_of(near_ms: Mapping[int, float], far_ms: Mapping[int, float], more_tokens: int) -> DepthRise:
    """Return the rise between two contexts, a line through the batches by least squares of relative errors.

    Args:
        near_ms: Tokens in a batch → milliseconds behind the shorter context.
        far_ms: The same behind the longer one; at least one size in common.
        more_tokens: By how many tokens it is longer.

    Returns:
        The rise; no part of it is below 0, because a longer context cannot make a pass faster.
    """
    sizes = sorted(near_ms.keys() & far_ms.keys())
    added = np.array([(far_ms[s] - near_ms[s]) / more_tokens for s in sizes])
    weights = np.array([1.0 / near_ms[s] for s in sizes])
    further = np.array(sizes, dtype=np.float64) - 1.0
    flat = float(np.average(added, weights=weights**2))
    if len(sizes) < 2:
        return DepthRise(max(0.0, flat), 0.0)
    token_ms, pass_ms = np.polyfit(further, added, 1, w=weights)
    if token_ms < 0.0:
        return DepthRise(max(0.0, flat), 0.0)
    if pass_ms < 0.0:
        # A line through the origin.
        slope = float(np.sum(weights**2 * further * added) / np.sum(weights**2 * further**2))
        return DepthRise(0.0, max(0.0, slope))
    return DepthRise(float(pass_ms), float(token_ms))


@dataclass(frozen=True, slots=True)
class RequestShape:
    """How long a request is.

    Attributes:
        prompt_tokens: Computed prompt tokens, without the cached ones; where the sides differ, those without drafting.
        answer_tokens: Generated tokens.
        cached_share: Cached part of the whole prompt, 0 … 1; 0 if the traffic reported the computed tokens directly.
        source: ``traffic``, ``suite``, or ``measured`` for the measured lengths.
        first_cycle_in_prompt: True if the first token comes with a whole drafting cycle whose time counts as prompt time:
            mlx_lm, and servers whose tokens are timed by arrival.
        context_tokens: Tokens before the answer, cached ones included; ``None`` for those of the measured prompt.
        depth: What a longer context costs; ``None`` if unknown: then a token takes as long as measured.
        drafted_prompt_tokens: Computed prompt tokens with drafting; ``None`` if they are as many as without.
    """

    prompt_tokens: float
    answer_tokens: float
    cached_share: float = 0.0
    source: str = "suite"
    first_cycle_in_prompt: bool = False
    context_tokens: float | None = None
    depth: DepthCosts | None = None
    drafted_prompt_tokens: float | None = None

    def computed_tokens(self, *, drafts: bool) -> float:
        """Return the prompt tokens that a server computes, with drafting or without."""
        told = self.drafted_prompt_tokens
        return told if drafts and told is not None else self.prompt_tokens

    def prompt_ms(
        self, measured_ms: float, measured_tokens: float, pass_ms: float, *, drafts: bool = False
    ) -> float:
        """Return the milliseconds to process the prompt, by linear interpolation between one pass and the measured prompt.

        `pass_ms` is the time of one pass of the main model: one generated token without drafting.
        """
        if measured_tokens <= 1.0 or measured_ms <= pass_ms:
            return measured_ms
        part = (max(1.0, self.computed_tokens(drafts=drafts)) - 1.0) / (measured_tokens - 1.0)
        return pass_ms + (measured_ms - pass_ms) * part

    def request_ms(self, half: Measurement, off: Measurement) -> float:
        """Return the milliseconds of this request on the server that answered `half`; `off` is the pair's half without drafting.

        It is not a number if nothing was generated after the first token.
        """
        pass_ms, drafts = token_ms_of(off), not half.drafting.is_off
        overhead_ms = max(0.0, half.wall_ms - half.prompt_ms - half.predicted_ms)
        if self.first_cycle_in_prompt:
            # The prompt time beyond off's is the first cycle, and all tokens are generation. The draft model's own prompt time
            # counts as generation too, which can only make the drafting look slower.
            before_ms = max(0.0, off.prompt_ms - pass_ms)
            prompt_ms = self.prompt_ms(before_ms, off.prompt_tokens, pass_ms, drafts=drafts)
            cycles_ms = half.predicted_ms + max(0.0, half.prompt_ms - off.prompt_ms) + pass_ms
            timed = half.predicted_tokens > 1 and half.predicted_ms > 0.0
            cycles_ms += self._deeper_ms(half, pass_ms)
            token_ms = cycles_ms / half.predicted_tokens if timed else math.nan
            return prompt_ms + token_ms * self.answer_tokens + overhead_ms
        prompt_ms = self.prompt_ms(half.prompt_ms, half.prompt_tokens, pass_ms, drafts=drafts)
        token_ms = token_ms_of(half)
        if half.predicted_tokens > 1:
            token_ms += self._deeper_ms(half, pass_ms) / (half.predicted_tokens - 1)
        return prompt_ms + token_ms * max(0.0, self.answer_tokens - 1.0) + overhead_ms

    def _deeper_ms(self, half: Measurement, pass_ms: float) -> float:
        """Milliseconds that the passes of a measured answer would take longer in the middle of this request's answer."""
        rise = self.deeper(half.drafting.draft, half.prompt_tokens, half.predicted_tokens, pass_ms)
        # Where a server reports no counts, one pass for each token: drafting then looks slower, never faster.
        passes = max(0, half.predicted_tokens - 1 - (half.accepted or 0))
        return rise.pass_ms * passes + rise.token_ms * (half.drafted or 0)

    def deeper(
        self, draft: str | None, prompt_tokens: float, answer_tokens: float, pass_ms: float
    ) -> DepthRise:
        """Return what a pass, and each proposal in it, takes longer in the middle of this request's answer; zeros if unknown.

        Args:
            draft: Path of the draft model, if one proposes.
            prompt_tokens: Tokens of the measured prompt, and `answer_tokens` of its answer.
            answer_tokens: See above.
            pass_ms: Time of one pass of the main model: one generated token without drafting.
        """
        if self.depth is None or math.isnan(pass_ms):
            return DepthRise(0.0, 0.0)
        before = prompt_tokens if self.context_tokens is None else self.context_tokens
        return self.depth.moved(
            draft,
            from_tokens=prompt_tokens + answer_tokens / 2.0,
            to_tokens=before + self.answer_tokens / 2.0,
            plain_ms=pass_ms,
        )

    def to_json(self) -> dict[str, Any]:
        """The form in the evidence."""
        told = {
            "prompt_tokens": round(self.prompt_tokens, 1),
            "answer_tokens": round(self.answer_tokens, 1),
            "cached_share": round(self.cached_share, 3),
            "source": self.source,
        }
        known = {
            "context_tokens": self.context_tokens,
            "drafted_prompt_tokens": self.drafted_prompt_tokens,
        }
        return told | {name: tokens for name, tokens in known.items() if tokens is not None}


def token_ms_of(half: Measurement) -> float:
    """Return milliseconds per token after the first, which comes with the prompt; NaN for fewer than two tokens."""
    if half.predicted_tokens < 2 or half.predicted_ms <= 0.0:
        return math.nan
    return half.predicted_ms / (half.predicted_tokens - 1)


# Without drafting every token takes the same time, but for what context adds. So a slow model need not generate a whole answer
# without drafting: this time tells it, and this number of tokens at least. `studies/bench/short_answers.py` compares lengths.
_ENOUGH_S = 2.5
_ENOUGH_TOKENS = 16


def enough_tokens(token_ms: float) -> int:
    """Return the length of an answer that tells the time per token without drafting, which is about `token_ms`."""
    return max(_ENOUGH_TOKENS, math.ceil(1000.0 * _ENOUGH_S / token_ms) + 1)


@dataclass(frozen=True, slots=True)
class Shapes:
    """The requests that one cell's verdict is for.

    `max_tokens` maps prompt ids to the length of the answer in use; other prompts stay as measured. `traffic` is the shape of the
    cell's live requests; ``None`` if there are too few. `depth` is what a longer context costs; ``None`` until it is timed.
    `drafts_uncached` is True if only servers without drafting have a prompt cache (`Capabilities.drafts_uncached`).
    """

    cached_share: float = 0.0
    max_tokens: Mapping[str, int] = field(default_factory=dict)
    traffic: RequestShape | None = None
    first_cycle_in_prompt: bool = False
    depth: DepthCosts | None = None
    drafts_uncached: bool = False

    def of(self, prompt_id: str, *, prompt_tokens: int, answer_tokens: int, ended: bool) -> RequestShape:
        """Return the request that a measured answer stands for.

        `prompt_tokens` are those of the whole prompt. An answer that `ended` by itself keeps its length.
        """
        if self.traffic is not None:
            return replace(self.traffic, first_cycle_in_prompt=self.first_cycle_in_prompt, depth=self.depth)
        longest = self.max_tokens.get(prompt_id, answer_tokens)
        whole = float(prompt_tokens) if self.drafts_uncached and self.cached_share else None
        return RequestShape(
            prompt_tokens=max(1.0, prompt_tokens * (1.0 - self.cached_share)),
            answer_tokens=float(answer_tokens if ended else max(answer_tokens, longest)),
            cached_share=self.cached_share,
            source="suite" if self.max_tokens else "measured",
            first_cycle_in_prompt=self.first_cycle_in_prompt,
            depth=self.depth,
            drafted_prompt_tokens=whole,
        )

    def of_half(self, off: Measurement) -> RequestShape:
        """Return the request that a pair stands for, from its half without drafting."""
        return self.of(
            off.prompt_id,
            prompt_tokens=off.prompt_tokens,
            answer_tokens=off.predicted_tokens,
            ended=off.finish_reason not in CUT,
        )

    def followed(self, identities: Mapping[str, str]) -> Shapes:
        """Return the same for the drafts of today, see `DepthCosts.followed`."""
        return self if self.depth is None else replace(self, depth=self.depth.followed(identities))

    def to_json(self) -> dict[str, Any]:
        """The form in the evidence."""
        told = {
            "cached_share": self.cached_share,
            "max_tokens": dict(self.max_tokens),
            "traffic": None if self.traffic is None else self.traffic.to_json(),
            "first_cycle_in_prompt": self.first_cycle_in_prompt,
            "depth": None if self.depth is None else self.depth.to_json(),
        }
        return {**told, "drafts_uncached": True} if self.drafts_uncached else told

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote."""
        traffic, depth = data.get("traffic"), data.get("depth")
        return cls(
            cached_share=float(data["cached_share"]),
            max_tokens={str(k): int(v) for k, v in data["max_tokens"].items()},
            traffic=None
            if traffic is None
            else RequestShape(
                float(traffic["prompt_tokens"]),
                float(traffic["answer_tokens"]),
                source="traffic",
                context_tokens=traffic.get("context_tokens"),
                drafted_prompt_tokens=traffic.get("drafted_prompt_tokens"),
            ),
            first_cycle_in_prompt=bool(data.get("first_cycle_in_prompt", False)),
            depth=None if depth is None else DepthCosts.from_json(depth),
            drafts_uncached=bool(data.get("drafts_uncached", False)),
        )


AS_MEASURED = Shapes()
"""Requests with their measured lengths."""


def of_traffic(samples: Sequence[Sample], uncached_beside: float | None = None) -> RequestShape | None:
    """Return the median lengths of live requests; ``None`` if there are too few.

    Args:
        samples: The requests.
        uncached_beside: ``None`` if both sides have a prompt cache. Else only servers without drafting have one, and this is the
            stated part of their prompts that is cached. Requests to such servers can tell of more, not of less: rows of earlier
            versions do not say whether a draft was loaded, and so kept the cache away.
    """
    told = [s for s in samples if s.predicted_tokens > 1]
    if len(told) < LEAST_REQUESTS:
        return None
    whole = [s.prompt_tokens + s.cached_tokens for s in told if s.cached_tokens is not None]
    shape = RequestShape(
        prompt_tokens=max(1.0, statistics.median(s.prompt_tokens for s in told)),
        answer_tokens=float(statistics.median(s.predicted_tokens for s in told)),
        source="traffic",
        context_tokens=float(statistics.median(whole)) if len(whole) >= LEAST_REQUESTS else None,
    )
    if uncached_beside is None:
        return shape
    prompt = max(1.0, float(statistics.median(s.prompt_tokens + (s.cached_tokens or 0) for s in told)))
    # A share of each request's own prompt: those that are drafted may be of another length.
    shares = [
        s.prompt_tokens / max(1, s.prompt_tokens + s.cached_tokens)
        for s in told
        if s.drafting.is_off and s.cached_tokens is not None
    ]
    computed = 1.0 - uncached_beside
    if len(shares) >= LEAST_REQUESTS:
        computed = min(computed, statistics.median(shares))
    return replace(
        shape,
        prompt_tokens=max(1.0, prompt * computed),
        context_tokens=prompt,
        drafted_prompt_tokens=prompt,
    )


# The halves of a pair must be close in time. If two servers do not fit in memory, the launch of a very large model lies
# between them; after a longer gap (an interruption) the half is measured again.
MAX_PAIR_GAP_S = 1800.0


class Phase(StrEnum):
    """The purpose of a measurement. Search and proof share no prompts and no measurements."""

    SEARCH = "search"
    PROVE = "prove"
    BENCH = "bench"


@dataclass(frozen=True, slots=True)
class Measurement:
    """One timed answer of one launch.

    Attributes:
        cell_key: `Cell.key` of its cell.
        protocol: Digest of what pooled measurements must share: suite, lengths, temperature.
        round: Number of the exposure of this prompt to this drafting; each has a new launch.
        compared: The drafting of the pair's other half; its own for a half with drafting.
        position: 0 for the first half of its pair, 1 for the second.
        started_at: Seconds since the epoch.
        prompt_ms: By the server's clock, like `predicted_ms`; `wall_ms` is the whole request by ours.
        drafted: Proposed tokens, and `accepted` among them; ``None`` if the backend does not report them.
        text_digest: SHA-256 of the text. If one half of a pair was cut shorter and agrees as far as it goes, both have the digest of
            the half that was measured first.
        machine: The machine's state during the request (`hardware.state.MachineState` as JSON), and `WITHIN_REASONING`: here, because
            other versions ignore what they do not know, and could not use a table with another column.
    """

    cell_key: str
    protocol: str
    phase: Phase
    round: int
    drafting: Drafting
    compared: Drafting
    prompt_id: str
    launch_id: str
    position: int
    started_at: float
    prompt_tokens: int
    predicted_tokens: int
    prompt_ms: float
    predicted_ms: float
    wall_ms: float
    drafted: int | None
    accepted: int | None
    text_digest: str
    finish_reason: str = ""
    machine: dict[str, Any] = field(default_factory=dict)

    @property
    def within_reasoning(self) -> bool:
        """True if the answer was cut while the model was still reasoning, as far as that is known."""
        return self.machine.get(WITHIN_REASONING) is True

    @property
    def request_tps(self) -> float:
        """Tokens per second of the whole request."""
        return 1000.0 * self.predicted_tokens / self.wall_ms

    @property
    def decode_tps(self) -> float:
        """Tokens per second of generation alone."""
        return 1000.0 * self.predicted_tokens / self.predicted_ms if self.predicted_ms else math.nan

    def to_json(self) -> dict[str, Any]:
        """The fields, as in the database and in exports."""
        return {name: getattr(self, name) for name in _FIELDS} | {
            "phase": str(self.phase),
            "drafting": self.drafting.to_json(),
            "compared": self.compared.to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read `to_json`; plain errors (`ValueError`, `KeyError`, `TypeError`, `AttributeError`) for what makes no sense."""
        drafting, compared = data["drafting"], data["compared"]
        known = {name: data[name] for name in _FIELDS} | {
            "phase": Phase(data["phase"]),
            "drafting": (own := Drafting.from_json(drafting)),
            "compared": own if drafting == compared else Drafting.from_json(compared),
        }
        return cls(**known)


_FIELDS = tuple(f.name for f in fields(Measurement))


@dataclass(frozen=True, slots=True)
class Pair:
    """Off and drafting on the same prompt, close in time; `shape` is the request that the pair stands for, or ``None``.

    Made by `paired`, which brings both halves to one length.
    """

    off: Measurement
    drafted: Measurement
    shape: RequestShape | None = None

    @property
    def log_ratio(self) -> float:
        """ln(drafting ÷ off) of the speed of `shape`'s request; above 0 the drafting is faster."""
        off_tps, drafted_tps = self.speeds_tps
        return math.log(drafted_tps / off_tps)

    @property
    def speeds_tps(self) -> tuple[float, float]:
        """Tokens per second of `shape`'s request: off, drafting."""
        if self.shape is None:
            return self.off.request_tps, self.drafted.request_tps
        # What a longer context costs was timed on few tokens. Where the request has far fewer than the measured one, its noise may take
        # more than the whole time away.
        for shape in (self.shape, replace(self.shape, depth=None)):
            off_ms, drafted_ms = (shape.request_ms(half, self.off) for half in (self.off, self.drafted))
            if min(off_ms, drafted_ms) > 0.0 and not math.isnan(
                drafted_ms
            ):  # an answer of one token has no generation time
                tokens = 1000.0 * shape.answer_tokens
                return tokens / off_ms, tokens / drafted_ms
        return self.off.request_tps, self.drafted.request_tps

    @property
    def measured_log_ratio(self) -> float:
        """ln(drafting ÷ off) of whole-request speed, as measured."""
        return math.log(self.drafted.request_tps / self.off.request_tps)

    @property
    def decode_log_ratio(self) -> float:
        """ln(drafting ÷ off) of generation speed."""
        return math.log(self.drafted.decode_tps / self.off.decode_tps)

    @property
    def same_text(self) -> bool:
        """True if both halves gave the same text."""
        return self.off.text_digest == self.drafted.text_digest


def paired(off: Measurement, drafted: Measurement, shapes: Shapes | None = None) -> Pair:
    """Return the pair of two halves, at one length.

    The half without drafting may have been cut shorter, see `enough_tokens`. It is continued to the other's length, at its own
    speed and with what context adds; its energy is then unknown.

    Args:
        off: The half without drafting.
        drafted: The other one.
        shapes: The requests that the cell's pairs stand for; ``None`` if they count as measured.
    """
    off = _continued(off, drafted, None if shapes is None else shapes.depth)
    if shapes is None:
        return Pair(off, drafted)
    # Where only the side without drafting has a prompt cache, the other one tells the whole prompt.
    longer = shapes.drafts_uncached and drafted.prompt_tokens > off.prompt_tokens
    whole = replace(off, prompt_tokens=drafted.prompt_tokens) if longer else off
    return Pair(off, drafted, shapes.of_half(whole))


def _continued(off: Measurement, drafted: Measurement, depth: DepthCosts | None) -> Measurement:
    token_ms = token_ms_of(off)
    longer = drafted.predicted_tokens - off.predicted_tokens
    if off.finish_reason not in CUT or longer <= 0 or math.isnan(token_ms):
        return off
    if depth is not None:
        # The middle of the answer moves by half of what is added to it.
        middle = off.prompt_tokens + off.predicted_tokens / 2.0
        rise = depth.moved(None, from_tokens=middle, to_tokens=middle + longer / 2.0, plain_ms=token_ms)
        token_ms += rise.pass_ms
    predicted_ms = token_ms * (drafted.predicted_tokens - 1)
    return replace(
        off,
        predicted_tokens=drafted.predicted_tokens,
        predicted_ms=predicted_ms,
        wall_ms=off.wall_ms + predicted_ms - off.predicted_ms,
        finish_reason=drafted.finish_reason,
        machine={**off.machine, "cpu_energy_j": None, "gpu_energy_j": None},
    )


def pair_up(measurements: Iterable[Measurement], shapes: Mapping[str, Shapes] | None = None) -> list[Pair]:
    """Return the complete pairs among measurements of any cells, in the order of their second halves.

    Halves belong together if phase, round, prompt and compared drafting agree; of repeated halves the newest counts. Pairs
    whose halves are more than `MAX_PAIR_GAP_S` apart are left out. `shapes` maps cell keys to the requests that pairs stand for;
    other cells count as measured.
    """
    shapes = shapes or {}
    halves: dict[tuple[str, ...], dict[bool, Measurement]] = {}
    for m in sorted(measurements, key=lambda m: m.started_at):
        key = (m.cell_key, m.phase, str(m.round), m.prompt_id, m.compared.key)
        halves.setdefault(key, {})[m.drafting.is_off] = m
    pairs = [
        paired(sides[True], sides[False], shapes.get(sides[True].cell_key))
        for sides in halves.values()
        if len(sides) == 2 and abs(sides[True].started_at - sides[False].started_at) <= MAX_PAIR_GAP_S
    ]
    return sorted(pairs, key=lambda p: max(p.off.started_at, p.drafted.started_at))

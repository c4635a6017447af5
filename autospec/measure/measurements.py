"""One timed answer, and two of them as a pair. Pure values.

What the proxy sees of live traffic: numbers only, never a prompt. A pure value.

The request that a verdict is for: how long its prompt and its answer are, and what a measured answer says of it.

A measurement is short, so that it is cheap: some 64 or 128 tokens behind a prompt that nothing was cached of. People ask for
longer answers, and most of their prompt is in the cache already. So the time of a measured request is taken apart, into the
time of its prompt and that of its generated tokens, and put together again for the request that people make. Off
and drafting are always put together for the same request, so that an answer that ended elsewhere with drafting is
compared at equal length.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Self

from autospec.cells import PromptType
from autospec.drafting import OFF, Drafting

__all__ = [
    "AS_MEASURED",
    "CACHED_SHARE",
    "MAX_PAIR_GAP_S",
    "Measurement",
    "Pair",
    "Phase",
    "RequestShape",
    "Sample",
    "Shapes",
    "of_traffic",
    "pair_up",
    "token_ms_of",
]


@dataclass(frozen=True, slots=True)
class Sample:
    """One answered request, as the store keeps it: numbers only, no text.

    Attributes:
        at: Seconds since the epoch when the answer ended.
        model: Catalogue name.
        backend: Backend name.
        build: The build's own name.
        prompt_type: What the classifier or the header said.
        drafting: What was in force.
        prompt_tokens: Processed for this request.
        predicted_tokens: Generated.
        prompt_ms: By the server's clock, or by ours where it does not tell.
        predicted_ms: Likewise.
        drafted: ``None`` where the server does not tell.
        accepted: ``None`` where the server does not tell.
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


CACHED_SHARE: Mapping[PromptType, float] = MappingProxyType(
    {
        # Each turn of a conversation, or step of an agent, repeats all turns before it; only the newest one is new.
        PromptType.CHAT: 0.8,
        PromptType.AGENTIC: 0.9,
        # Editors and chat clients send files and earlier turns again; a part of the requests are first ones.
        PromptType.CODING: 0.5,
        PromptType.EDITING: 0.5,
        # Instructions are the same each time, what they are about is new.
        PromptType.EXTRACTION: 0.1,
        PromptType.RAG: 0.1,
        PromptType.SUMMARIZATION: 0.0,
        PromptType.TRANSLATION: 0.0,
        # Questions that stand alone.
        PromptType.MATH: 0.0,
        PromptType.REASONING: 0.0,
        PromptType.QA: 0.0,
        PromptType.WRITING: 0.0,
    }
)
"""Part of a prompt that is in the server's cache, where no traffic tells. Stated, not measured."""

# So many live requests of one type tell how long they are.
_LEAST_SAMPLES = 30


@dataclass(frozen=True, slots=True)
class RequestShape:
    """How long a request is.

    Attributes:
        prompt_tokens: Prompt tokens that are computed; cached ones are not counted.
        answer_tokens: Tokens generated.
        cached_share: Part of the whole prompt that is cached, 0 … 1; 0 where the traffic told the computed tokens directly.
        source: ``traffic``, ``suite``, or ``measured`` for the lengths that were measured.
        first_cycle_in_prompt: True where the first token comes with a whole drafting cycle, whose time stands in the prompt's:
            mlx_lm's cycle, and servers whose tokens are timed by their arrival.
    """

    prompt_tokens: float
    answer_tokens: float
    cached_share: float = 0.0
    source: str = "suite"
    first_cycle_in_prompt: bool = False

    def prompt_ms(self, measured_ms: float, measured_tokens: float, pass_ms: float) -> float:
        """Time to process the prompt.

        One token takes a pass of the main model; from there to the measured prompt it grows evenly.

        Args:
            measured_ms: Of the measured prompt.
            measured_tokens: Its tokens that were computed.
            pass_ms: Of one pass: a token that is generated with drafting off.
        """
        if measured_tokens <= 1.0 or measured_ms <= pass_ms:
            return measured_ms
        part = (max(1.0, self.prompt_tokens) - 1.0) / (measured_tokens - 1.0)
        return pass_ms + (measured_ms - pass_ms) * part

    def request_ms(self, half: Measurement, off: Measurement) -> float:
        """Time of this request on the server that answered a measured one.

        Args:
            half: The measured one.
            off: The half without drafting of the same pair, which tells what a pass takes.

        Returns:
            Milliseconds; not a number where nothing was generated after the first token.
        """
        pass_ms = token_ms_of(off)
        overhead_ms = max(0.0, half.wall_ms - half.prompt_ms - half.predicted_ms)
        if self.first_cycle_in_prompt:
            # What the prompt takes longer than off's is the first cycle, and all tokens are generation. A draft's own time for
            # the prompt is counted as generation, too: too dear for the drafting, never too cheap.
            prompt_ms = self.prompt_ms(max(0.0, off.prompt_ms - pass_ms), off.prompt_tokens, pass_ms)
            cycles_ms = half.predicted_ms + max(0.0, half.prompt_ms - off.prompt_ms) + pass_ms
            timed = half.predicted_tokens > 1 and half.predicted_ms > 0.0
            token_ms = cycles_ms / half.predicted_tokens if timed else math.nan
            return prompt_ms + token_ms * self.answer_tokens + overhead_ms
        prompt_ms = self.prompt_ms(half.prompt_ms, half.prompt_tokens, pass_ms)
        return prompt_ms + token_ms_of(half) * max(0.0, self.answer_tokens - 1.0) + overhead_ms

    def to_json(self) -> dict[str, Any]:
        """For the evidence."""
        return {
            "prompt_tokens": round(self.prompt_tokens, 1),
            "answer_tokens": round(self.answer_tokens, 1),
            "cached_share": round(self.cached_share, 3),
            "source": self.source,
        }


def token_ms_of(half: Measurement) -> float:
    """Milliseconds for each token after the first, which comes with the prompt; not a number for fewer than two tokens."""
    if half.predicted_tokens < 2 or half.predicted_ms <= 0.0:
        return math.nan
    return half.predicted_ms / (half.predicted_tokens - 1)


@dataclass(frozen=True, slots=True)
class Shapes:
    """The requests that one cell's verdict is for.

    Attributes:
        cached_share: Part of a prompt that is cached.
        max_tokens: Prompt id → how long its answer may be in use; a prompt that is not named stays as it was measured.
        traffic: What live requests of the cell look like; ``None`` where there are too few.
        first_cycle_in_prompt: See `RequestShape`.
    """

    cached_share: float = 0.0
    max_tokens: Mapping[str, int] = field(default_factory=dict)
    traffic: RequestShape | None = None
    first_cycle_in_prompt: bool = False

    def of(self, prompt_id: str, *, prompt_tokens: int, answer_tokens: int, ended: bool) -> RequestShape:
        """The request that a measured answer stands for.

        Args:
            prompt_id: The suite's id.
            prompt_tokens: Of the whole prompt.
            answer_tokens: That were generated without drafting.
            ended: True if the answer ended by itself: then it is as long as it is.
        """
        if self.traffic is not None:
            return replace(self.traffic, first_cycle_in_prompt=self.first_cycle_in_prompt)
        longest = self.max_tokens.get(prompt_id, answer_tokens)
        return RequestShape(
            prompt_tokens=max(1.0, prompt_tokens * (1.0 - self.cached_share)),
            answer_tokens=float(answer_tokens if ended else max(answer_tokens, longest)),
            cached_share=self.cached_share,
            source="suite" if self.max_tokens else "measured",
            first_cycle_in_prompt=self.first_cycle_in_prompt,
        )

    def of_half(self, off: Measurement) -> RequestShape:
        """The request that a pair stands for, whose half without drafting says how long its answer is."""
        return self.of(
            off.prompt_id,
            prompt_tokens=off.prompt_tokens,
            answer_tokens=off.predicted_tokens,
            ended=off.finish_reason not in {"", "length"},
        )

    def to_json(self) -> dict[str, Any]:
        """For the evidence."""
        return {
            "cached_share": self.cached_share,
            "max_tokens": dict(self.max_tokens),
            "traffic": None if self.traffic is None else self.traffic.to_json(),
            "first_cycle_in_prompt": self.first_cycle_in_prompt,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote."""
        traffic = data.get("traffic")
        return cls(
            cached_share=float(data["cached_share"]),
            max_tokens={str(k): int(v) for k, v in data["max_tokens"].items()},
            traffic=None
            if traffic is None
            else RequestShape(
                float(traffic["prompt_tokens"]), float(traffic["answer_tokens"]), source="traffic"
            ),
            first_cycle_in_prompt=bool(data.get("first_cycle_in_prompt", False)),
        )


AS_MEASURED = Shapes()
"""Requests as long as they were measured."""


def of_traffic(samples: Sequence[Sample]) -> RequestShape | None:
    """What live requests look like: their median lengths; ``None`` for too few of them."""
    told = [s for s in samples if s.predicted_tokens > 1]
    if len(told) < _LEAST_SAMPLES:
        return None
    return RequestShape(
        prompt_tokens=max(1.0, statistics.median(s.prompt_tokens for s in told)),
        answer_tokens=float(statistics.median(s.predicted_tokens for s in told)),
        source="traffic",
    )


# The two halves of a pair stand for the same moment. A launch of a very large model lies between them
# where two do not fit into memory; after a longer gap (an interruption) the half is measured again.
MAX_PAIR_GAP_S = 1800.0


class Phase(StrEnum):
    """What a measurement was made for. Search and proof never share prompts or measurements."""

    SEARCH = "search"
    PROVE = "prove"
    BENCH = "bench"


@dataclass(frozen=True, slots=True)
class Measurement:
    """One answer of one launch, timed.

    Attributes:
        cell_key: `Cell.key` of the cell that it belongs to.
        protocol: Digest of what must be equal for measurements to be pooled: suite, lengths, temperature.
        phase: What it was made for.
        round: Which exposure of this prompt to this drafting; a fresh launch each.
        drafting: What the launch was given.
        compared: The drafting of the pair's other half; for a half with drafting, its own.
        prompt_id: The suite's id.
        launch_id: Which server process answered.
        position: 0 if it was the first half of its pair, 1 if the second.
        started_at: Seconds since the epoch.
        prompt_tokens: Prompt tokens processed.
        predicted_tokens: Tokens generated.
        prompt_ms: By the server's clock.
        predicted_ms: By the server's clock.
        wall_ms: Whole request, by our clock.
        drafted: Proposed tokens, ``None`` where the backend does not tell.
        accepted: Of those, accepted.
        text_digest: SHA-256 of the text; equal digests are equal texts.
        finish_reason: Why the answer ended.
        machine: How the machine was meanwhile (`hardware.state.MachineState` as JSON).
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
    def request_tps(self) -> float:
        """Tokens per second of the whole request."""
        return 1000.0 * self.predicted_tokens / self.wall_ms

    @property
    def decode_tps(self) -> float:
        """Tokens per second of generation alone."""
        return 1000.0 * self.predicted_tokens / self.predicted_ms if self.predicted_ms else math.nan


@dataclass(frozen=True, slots=True)
class Pair:
    """Off and drafting on the same prompt, close in time.

    Attributes:
        off: The half without drafting.
        drafted: The half with it.
        shape: The request that the pair stands for; ``None`` for the one that was measured.
    """

    off: Measurement
    drafted: Measurement
    shape: RequestShape | None = None

    @property
    def log_ratio(self) -> float:
        """ln(drafting ÷ off) of the speed of the request that the pair stands for; above 0 the drafting is faster."""
        off_tps, drafted_tps = self.speeds_tps
        return math.log(drafted_tps / off_tps)

    @property
    def speeds_tps(self) -> tuple[float, float]:
        """Tokens per second of the request that the pair stands for: off, drafting."""
        if self.shape is not None:
            off_ms, drafted_ms = (self.shape.request_ms(half, self.off) for half in (self.off, self.drafted))
            # An answer of one token has no generation to put together.
            if not (math.isnan(off_ms) or math.isnan(drafted_ms)):
                tokens = 1000.0 * self.shape.answer_tokens
                return tokens / off_ms, tokens / drafted_ms
        return self.off.request_tps, self.drafted.request_tps

    @property
    def measured_log_ratio(self) -> float:
        """ln(drafting ÷ off) of whole-request speed, as it was measured."""
        return math.log(self.drafted.request_tps / self.off.request_tps)

    @property
    def decode_log_ratio(self) -> float:
        """The same for generation alone."""
        return math.log(self.drafted.decode_tps / self.off.decode_tps)

    @property
    def same_text(self) -> bool:
        """True if both halves gave the same text: the lossless check."""
        return self.off.text_digest == self.drafted.text_digest


def pair_up(measurements: Iterable[Measurement], shapes: Mapping[str, Shapes] | None = None) -> list[Pair]:
    """The complete pairs among stored measurements, in the order of their second halves.

    Halves belong together if phase, round, prompt and compared drafting agree; of repeated halves the
    newest counts. A pair whose halves lie more than `MAX_PAIR_GAP_S` apart is left out.

    Args:
        measurements: Of any cells.
        shapes: Cell key → the requests that its pairs stand for; as they were measured where left out.
    """
    shapes = shapes or {}
    halves: dict[tuple[str, ...], dict[bool, Measurement]] = {}
    for m in sorted(measurements, key=lambda m: m.started_at):
        key = (m.cell_key, m.phase, str(m.round), m.prompt_id, m.compared.key)
        halves.setdefault(key, {})[m.drafting.is_off] = m
    pairs = [
        Pair(
            off=sides[True],
            drafted=sides[False],
            shape=shapes[cell].of_half(sides[True]) if (cell := sides[True].cell_key) in shapes else None,
        )
        for sides in halves.values()
        if len(sides) == 2 and abs(sides[True].started_at - sides[False].started_at) <= MAX_PAIR_GAP_S
    ]
    return sorted(pairs, key=lambda p: max(p.off.started_at, p.drafted.started_at))

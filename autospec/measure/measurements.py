"""One timed answer, and two of them as a pair. Pure values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from autospec.drafting import Drafting
from autospec.measure.shape import RequestShape, Shapes

__all__ = ["MAX_PAIR_GAP_S", "Measurement", "Pair", "Phase", "pair_up"]

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

"""Energy per token without and with drafting, from the energy that each half of a pair took.

A counter belongs to a whole processor or GPU. Requests of off and of the drafting alternate, and only one server computes at a time,
so what a half's window contains is its own request, plus the idle power of the machine and of the other server's memory. Idle power
is in both halves and brings the ratio closer to 1 than that of a server which runs alone. Other programs count too: a half beside
which they worked has no valid reading, even where the same disturbance does not spoil a comparison of times because it lasts. The
figures are of the measured requests: short, with the whole prompt computed. Drafting changes the generation only, so its share of
the longer requests of users is larger.

With the aim `energy`, `energy_ratios` are what the verdict looks at, as it looks at ratios of times otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from autospec.formats import bounded
from autospec.hardware.state import MachineState
from autospec.measure.disturbances import busy
from autospec.measure.log_ratios import Estimate, LogRatio, of_pairs, prompt_medians, signed_rank_estimate
from autospec.measure.measurements import Measurement, Pair

__all__ = ["compare_energy", "energy_ratios"]

# Drivers of GPUs renew their counters some ten times a second. Shorter windows have no valid reading.
_LEAST_WINDOW_S = 0.5
# A counter that is renewed late lacks the last part of a request, which is a larger share of a shorter one.
_GPU_LATE_S = 0.1
_LEAST_PAIRS = 4
# One-sided error rate of each end of the interval.
_LEVEL = 0.05


@dataclass(frozen=True, slots=True)
class EnergyComparison:
    """Energy per generated token, off and drafting.

    Attributes:
        parts: What the joules are of: ``cpu`` (all packages), ``gpu`` (those that computed, all if unknown), or both.
        pairs: Number of pairs with both readings.
        off_j_per_token: Joules ÷ generated tokens without drafting, over all pairs; `drafting_j_per_token` with it.
        ratio: drafting ÷ off, from the pairs' ratios; below 1 the drafting takes less. With the aim `energy` it is the verdict's.
        interval: Of `ratio`; ``None`` if there are too few prompts for one. Likewise.
    """

    parts: tuple[str, ...]
    pairs: int
    off_j_per_token: float
    drafting_j_per_token: float
    ratio: float
    interval: tuple[float, float] | None

    def to_json(self) -> dict[str, Any]:
        """The form in the evidence."""
        return {
            "parts": list(self.parts),
            "pairs": self.pairs,
            "off_j_per_token": round(self.off_j_per_token, 4),
            "drafting_j_per_token": round(self.drafting_j_per_token, 4),
            "ratio": round(self.ratio, 4),
            "interval": None if self.interval is None else [round(end, 4) for end in self.interval],
        }


def compare_energy(pairs: Sequence[Pair], decided: Estimate | None = None) -> EnergyComparison | None:
    """Compare the energy of both halves; ``None`` if too few pairs have it.

    Args:
        pairs: The pairs of one drafting in one cell.
        decided: A verdict's own estimate of ln(off ÷ drafting) of energy, which is told instead of another one.
    """
    parts, known = _with_energy(pairs)
    if len(known) < _LEAST_PAIRS:
        return None
    if decided is None:
        ratios = of_pairs(known, lambda pair: -_log_ratio(pair, parts))
        decided = signed_rank_estimate(prompt_medians(ratios), _LEVEL)
    else:
        decided = Estimate(decided.n, -decided.center, -decided.high, -decided.low, decided.level)
    off_j, drafted_j = (
        sum(_sum(half, parts) for half in halves) / sum(half.predicted_tokens for half in halves)
        for halves in ([p.off for p in known], [p.drafted for p in known])
    )
    both_ends = math.isfinite(decided.low) and math.isfinite(decided.high)
    interval = bounded(decided.interval) if both_ends else None
    return EnergyComparison(parts, len(known), off_j, drafted_j, decided.ratio, interval)


def energy_ratios(pairs: Sequence[Pair], computing: Collection[str] = ()) -> list[LogRatio]:
    """Return ln(off ÷ drafting) of the joules per token, of the pairs with a valid reading in both halves.

    Above 0 the drafting takes less. A GPU's counter may be late and lack the end of each request; where that would favour the
    drafting, the missing part is added to both.

    Args:
        pairs: The pairs of one drafting in one cell.
        computing: The parts of the machine that compute, ``cpu`` or ``gpu``. A reading without them is not valid: the joules of a GPU
            that rests say nothing about a model on the processor.
    """
    parts, known = _with_energy(pairs, computing)

    def cautious(pair: Pair) -> float:
        value = _log_ratio(pair, parts)
        if "gpu" not in parts:
            return value
        off_s, drafted_s = (
            MachineState.from_json(half.machine).window_s for half in (pair.off, pair.drafted)
        )
        return value + min(0.0, math.log1p(-_GPU_LATE_S / drafted_s) - math.log1p(-_GPU_LATE_S / off_s))

    return of_pairs(known, cautious)


def _with_energy(
    pairs: Sequence[Pair], computing: Collection[str] = ()
) -> tuple[tuple[str, ...], list[Pair]]:
    """The pairs that can be compared, and the parts of the machine whose joules they know.

    The parts are those that most pairs know in both halves; the other pairs are left out, because a sum of processor and GPU says
    nothing about the GPU alone.
    """
    by_parts: dict[tuple[str, ...], list[Pair]] = {}
    for pair in pairs:
        both = tuple(part for part in _joules(pair.off) if part in _joules(pair.drafted))
        if both and set(both) >= set(computing):
            by_parts.setdefault(both, []).append(pair)
    return max(by_parts.items(), key=lambda item: len(item[1]), default=((), []))


def _log_ratio(pair: Pair, parts: tuple[str, ...]) -> float:
    """ln(off ÷ drafting) of the joules per token."""
    off, drafted = (_sum(half, parts) / half.predicted_tokens for half in (pair.off, pair.drafted))
    return math.log(off / drafted)


def _joules(half: Measurement) -> dict[str, float]:
    """The energy of one half of a pair, for each part of the machine that reports it."""
    state = MachineState.from_json(half.machine)
    if state.window_s < _LEAST_WINDOW_S or half.predicted_tokens < 1 or busy(state):
        return {}
    told = {"cpu": state.cpu_energy_j, "gpu": state.gpu_energy_j}
    return {part: joules for part, joules in told.items() if joules}


def _sum(half: Measurement, parts: tuple[str, ...]) -> float:
    joules = _joules(half)
    return math.fsum(joules[part] for part in parts)

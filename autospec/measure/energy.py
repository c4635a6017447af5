"""Energy per token without and with drafting, from the energy that each half of a pair took.

A counter belongs to a whole processor or GPU. Requests of off and of the drafting alternate, and only one server computes at a time,
so what a half's window contains is its own request, plus the idle power of the machine and of the other server's memory. Idle power
is in both halves and brings the ratio closer to 1 than that of a server which runs alone. Other programs count too; pairs that
they disturbed are left out by the caller. The figures are of the measured requests: short, with the whole prompt computed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from autospec.formats import bounded
from autospec.hardware.state import MachineState
from autospec.measure.log_ratios import of_pairs, prompt_medians
from autospec.measure.measurements import Measurement, Pair
from autospec.measure.statistics import signed_rank_estimate

__all__ = ["EnergyComparison", "compare_energy"]

# Drivers renew their counters some ten times a second.
_LEAST_WINDOW_S = 0.5
_LEAST_PAIRS = 4
# One-sided error rate of each end of the interval.
_LEVEL = 0.05


@dataclass(frozen=True, slots=True)
class EnergyComparison:
    """Energy per generated token, off and drafting.

    Attributes:
        parts: What the joules are of: ``cpu`` (all packages), ``gpu`` (all GPUs), or both.
        pairs: Number of pairs with both readings.
        off_j_per_token: Joules ÷ generated tokens without drafting, over all pairs; `drafting_j_per_token` with it.
        ratio: drafting ÷ off, from the pairs' ratios; below 1 the drafting takes less.
        interval: Of `ratio`; ``None`` if there are too few prompts for one.
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


def compare_energy(pairs: Sequence[Pair]) -> EnergyComparison | None:
    """Compare the energy of both halves; ``None`` if too few pairs have it.

    The parts are those that most pairs know in both halves; the other pairs are left out, because a sum of processor and GPU says
    nothing about the GPU alone.
    """
    by_parts: dict[tuple[str, ...], list[Pair]] = {}
    for pair in pairs:
        both = tuple(part for part in _joules(pair.off) if part in _joules(pair.drafted))
        if both:
            by_parts.setdefault(both, []).append(pair)
    if not by_parts:
        return None
    parts, known = max(by_parts.items(), key=lambda item: len(item[1]))
    if len(known) < _LEAST_PAIRS:
        return None

    def per_token(half: Measurement) -> float:
        return _sum(half, parts) / half.predicted_tokens

    ratios = of_pairs(known, lambda pair: math.log(per_token(pair.drafted) / per_token(pair.off)))
    estimate = signed_rank_estimate(prompt_medians(ratios), _LEVEL)
    off_j, drafted_j = (
        sum(_sum(half, parts) for half in halves) / sum(half.predicted_tokens for half in halves)
        for halves in ([p.off for p in known], [p.drafted for p in known])
    )
    return EnergyComparison(parts, len(known), off_j, drafted_j, estimate.ratio, bounded(estimate.interval))


def _joules(half: Measurement) -> dict[str, float]:
    """The energy of one half of a pair, for each part of the machine that tells it."""
    state = MachineState.from_json(half.machine)
    if state.window_s < _LEAST_WINDOW_S or half.predicted_tokens < 1:
        return {}
    told = {"cpu": state.cpu_energy_j, "gpu": state.gpu_energy_j}
    return {part: joules for part, joules in told.items() if joules}


def _sum(half: Measurement, parts: tuple[str, ...]) -> float:
    joules = _joules(half)
    return math.fsum(joules[part] for part in parts)

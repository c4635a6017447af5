"""A speed ratio with its interval as a bar of characters, beside a mark for the threshold.

A value below the threshold is always left of the mark and one above it right, however coarse the cells are. The bars of one
table share their scale, in equal steps of the ratio's logarithm. Each row is drawn around the threshold of its own study.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from autospec.formats import bounded
from autospec.recommendations import Recommendation

__all__ = ["RatioBars"]

# On either side of the mark.
_LEAST_CELLS = 2
# So that a difference of nothing does not look large.
_LEAST_STEP = 0.005
# What lies beyond a third or the threefold of the threshold is cut off, and marked so.
_FARTHEST = math.log(3.0)

_BLOCKS = {"empty": "·", "interval": "▒", "measured": "█", "mark": "│"}
_ASCII = {"empty": ".", "interval": "-", "measured": "#", "mark": "|"}


@dataclass(frozen=True, slots=True)
class RatioBars:
    """The bars of one table.

    Attributes:
        left: Cells for ratios below the threshold.
        right: Cells for the others.
        step: Width of a cell, as the logarithm of a ratio.
        ascii_only: Whether the output cannot have block characters.
        thresholds: Least gains of the rows, as fractions.
    """

    left: int
    right: int
    step: float
    ascii_only: bool
    thresholds: frozenset[float]

    @classmethod
    def of(
        cls, recommendations: Iterable[Recommendation], *, width: int, ascii_only: bool
    ) -> RatioBars | None:
        """The bars for these rows, `width` characters wide; ``None`` if none of them has a ratio and its study's threshold."""
        drawn = [(own, r) for r in recommendations if (own := _values(r)) is not None]
        if not drawn:
            return None
        values = [value for own, _ in drawn for value in own]
        thresholds = frozenset(t for _, r in drawn if (t := _threshold(r)) is not None)
        below, above = max(0.0, -min(values)), max(0.0, *values)
        cells = width - 1
        share = below / (below + above) if below + above > 0.0 else 0.5
        left = min(max(_LEAST_CELLS, round(cells * share)), cells - _LEAST_CELLS)
        right = cells - left
        step = max(below / left, above / right, _LEAST_STEP)
        return cls(left, right, step, ascii_only, thresholds)

    def bar(self, r: Recommendation) -> str:
        """The row's bar; empty if it has no ratio or no threshold."""
        values = _values(r)
        if values is None:
            return ""
        signs = self._signs
        cells = [signs["empty"]] * self.left + [signs["mark"]] + [signs["empty"]] * self.right
        low, middle, high = (self._place(value) for value in values)
        for place in range(low, high + 1):
            if place != self.left:
                cells[place] = signs["interval"]
        cells[middle] = signs["measured"]
        if _cut(r, 0):
            cells[0] = "<"
        if _cut(r, 1):
            cells[-1] = ">"
        return "".join(cells)

    @property
    def legend(self) -> str:
        """What the signs mean, as one line."""
        signs = self._signs
        least = " or ".join(f"+{100.0 * t:g} %" for t in sorted(self.thresholds))
        return f"gain: {signs['measured']} measured, {signs['interval']} interval, {signs['mark']} {least}, the least that enables"

    @property
    def _signs(self) -> dict[str, str]:
        return _ASCII if self.ascii_only else _BLOCKS

    def _place(self, value: float) -> int:
        """The cell of a value; the mark is at `left`."""
        cells = math.floor(abs(value) / self.step * (1.0 - 1e-9))
        if value < 0.0:
            return self.left - 1 - min(cells, self.left - 1)
        return self.left + 1 + min(cells, self.right - 1)


def _threshold(r: Recommendation) -> float | None:
    """The least gain that enables; ``None`` if the record does not say it."""
    found = r.evidence.get("threshold")
    return float(found) if isinstance(found, int | float) and found > -1.0 else None


def _ratios(r: Recommendation) -> tuple[float, float, float] | None:
    """Low end, ratio and high end, as logarithms above the threshold; the ends are the ratio's own if they are unknown."""
    threshold = _threshold(r)
    if threshold is None or not r.speedup or not math.isfinite(r.speedup) or r.speedup < 0.0:
        return None
    low, high = bounded(r.speedup_ci) or (r.speedup, r.speedup)
    # A recorded interval may leave out its own ratio.
    low, high = min(low, r.speedup), max(high, r.speedup)
    if low <= 0.0:
        low = math.exp(-2.0 * _FARTHEST)
    least = math.log1p(threshold)
    return math.log(low) - least, math.log(r.speedup) - least, math.log(high) - least


def _values(r: Recommendation) -> tuple[float, float, float] | None:
    """The ratios, none farther from the threshold than a bar shows."""
    found = _ratios(r)
    if found is None:
        return None
    low, middle, high = (min(max(v, -_FARTHEST), _FARTHEST) for v in found)
    return low, middle, high


def _cut(r: Recommendation, end: int) -> bool:
    """Whether the low (0) or the high end (1) lies beyond what a bar shows."""
    found = _ratios(r)
    return found is not None and (found[0] < -_FARTHEST if end == 0 else found[2] > _FARTHEST)

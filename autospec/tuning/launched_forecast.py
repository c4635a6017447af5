"""What to launch next where nothing can be predicted: judged by what the launches so far have told."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from scipy import special

from autospec.drafting import Drafting
from autospec.measure.measurements import Pair
from autospec.predict.launched_counts import Foreseen, Launch, foresee, foresee_copies
from autospec.tuning.cell import CellRun
from autospec.tuning.space import Arm, Space

__all__ = ["LaunchedForecast"]

# A launch is worth it if the gains that are expected of it, summed over the prompt types, are larger.
_WORTH = 0.01
# A drafting that is expected to be this many standard errors behind in every cell is not launched. With a draft the model of its
# cycles may be wrong, not only inexact.
_FAR, _FAR_WITH_DRAFT = 2.0, 4.0
# First guess of the time of a draft's token ÷ one of the main model.
_STEP_SHARE = 0.12

_Pairs = Mapping[str, Mapping[Drafting, Sequence[Pair]]]  # by cell key
_Foreseen = Mapping[str, Mapping[Drafting, Foreseen]]


class LaunchedForecast:
    """Expectations for the arms of a space that were launched and cannot be predicted.

    `pairs` has, by cell key and drafting, the pairs of all launches, at most one of each prompt; it grows while the search goes on.
    """

    def __init__(self, space: Space, pairs: _Pairs) -> None:
        self._space = space
        self._pairs = pairs
        self._grids: dict[str, list[Drafting]] = {}
        for drafting in space.grid():
            if not drafting.n_min:
                arm = space.arm_of(drafting)
                self._grids.setdefault("" if arm is None else arm.label, []).append(drafting)
        self._of: dict[int, dict[str, _Foreseen]] = {}

    def next(
        self, cells: Sequence[CellRun], known: set[Drafting], is_open: Callable[[Arm], bool]
    ) -> Drafting | None:
        """The drafting from whose launch most gain is expected (EI: Jones, Schonlau and Welch, 1998); ``None`` if that is little."""
        by_arm = self._all()
        bars = self._bars(cells, by_arm)
        best: tuple[float, str, Drafting] | None = None
        for arm in filter(is_open, self._space.arms):
            foreseen = by_arm.get(arm.label, {})
            for drafting in self._grids.get(arm.label, ()):
                if drafting in known:
                    continue
                own = [(bars[c.cell.key], foreseen.get(c.cell.key, {}).get(drafting)) for c in cells]
                gain = sum(_expected_gain(f, bar) for bar, f in own if f is not None)
                if gain > _WORTH and (best is None or (gain, drafting.key) > best[:2]):
                    best = gain, drafting.key, drafting
        return None if best is None else best[2]

    def too_slow(self, drafting: Drafting, cells: Sequence[CellRun]) -> bool:
        """Whether a drafting is expected to be far behind the best in every cell."""
        by_arm = self._all()
        arm = self._space.arm_of(drafting)
        foreseen = by_arm.get("" if arm is None else arm.label, {})
        bars = self._bars(cells, by_arm)
        own = [(bars[c.cell.key], foreseen.get(c.cell.key, {}).get(drafting)) for c in cells]
        far = _FAR if drafting.mode.draft_free else _FAR_WITH_DRAFT
        return all(f is not None and f.mean + far * f.error < bar for bar, f in own)

    def _all(self) -> dict[str, _Foreseen]:
        """Label of an arm → expectations."""
        size = sum(len(own) for by_drafting in self._pairs.values() for own in by_drafting.values())
        if size not in self._of:
            self._of = {size: self._fit()}
        return self._of[size]

    def _fit(self) -> dict[str, _Foreseen]:
        launches: dict[str, list[Launch]] = {}
        tried = dict.fromkeys(d for own in self._pairs.values() for d in own)
        for drafting in tried:
            arm = self._space.arm_of(drafting)
            if arm is not None and not arm.beside and arm.engine is None:
                pairs = {key: own[drafting] for key, own in self._pairs.items() if own.get(drafting)}
                launches.setdefault(arm.label, []).append(Launch(drafting, pairs))
        found: dict[str, _Foreseen] = {}
        arms = [a for a in self._space.arms if a.label in launches]
        free = [a for a in arms if a.mode.draft_free]
        for arm in arms:
            own = launches[arm.label]
            grid = [*self._grids.get(arm.label, ()), *(x.drafting for x in own)]
            if arm in free:
                copies = [x for a in free for x in launches[a.label]]
                found[arm.label] = foresee_copies(copies, grid)
            else:
                found[arm.label] = foresee(own, grid, step_share=_STEP_SHARE)
        return found

    def _bars(self, cells: Sequence[CellRun], by_arm: Mapping[str, _Foreseen]) -> dict[str, float]:
        """Cell key → logarithm of the best tried drafting, or of off."""
        bars = {}
        for cell in cells:
            key = cell.cell.key
            best = 0.0
            for drafting, ratio in cell.trial_values.items():
                arm = self._space.arm_of(drafting)
                foreseen = by_arm.get("" if arm is None else arm.label, {}).get(key, {}).get(drafting)
                best = max(best, math.log(ratio) if foreseen is None else foreseen.mean)
            bars[key] = best
        return bars


def _expected_gain(foreseen: Foreseen, bar: float) -> float:
    """Expected excess over the bar, if the drafting's value is normal."""
    ahead = foreseen.mean - bar
    if foreseen.error <= 0.0:
        return max(0.0, ahead)
    z = ahead / foreseen.error
    density = math.exp(-z * z / 2.0) / math.sqrt(2.0 * math.pi)
    return ahead * float(special.ndtr(z)) + foreseen.error * density

"""What the search has found: the drafting that each cell's proof is for, and the one after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from autospec.drafting import OFF, Drafting
from autospec.tuning.cell_run import CellRun, geometric_mean
from autospec.tuning.forecast import Forecast
from autospec.tuning.space import Space

__all__ = ["choose_winners"]

# One drafting for several prompt types saves launches in the proof and in use; worth this much of speed.
_CONSOLIDATION = 0.01
# What a cell's own trials show to be further behind than this is not taken for a cell for the sake of others, whatever is
# expected of it: trials and expectations err, and both must agree that nearly nothing is lost.
_MEASURED_BEHIND = 0.05


def choose_winners(
    cells: Sequence[CellRun], space: Space, threshold: float, forecast: Forecast | None = None
) -> None:
    """Set each cell's winner: its best drafting, or one nearly as good that more cells can share; and the runner-up.

    Draftings are taken greedily: whichever is within 1 % of the best for most of the cells that are left, and was not
    measured to be more than 5 % behind there. A cell in which nothing was worth a launch gets the drafting that is expected to be best: the proof is its one launch.

    Args:
        cells: Searched cells.
        space: Tells what belongs to one arm.
        threshold: Least gain that may be enabled, as a fraction.
        forecast: Values of tried draftings over all recorded prompts, which are more than the trials asked.
    """
    values = {id(c): _values(c, forecast) for c in cells}
    left = [c for c in cells if values[id(c)]]
    while left:
        good = {id(c): _good(values[id(c)], c.trial_values) for c in left}
        draftings = {d for found in good.values() for d in found}

        def rank(drafting: Drafting, good: dict[int, set[Drafting]] = good) -> tuple[int, float, str]:
            sharers = [c for c in left if drafting in good[id(c)]]
            return len(sharers), geometric_mean([values[id(c)][drafting] for c in sharers]), drafting.key

        chosen = max(draftings, key=rank)
        for cell in [c for c in left if chosen in good[id(c)]]:
            cell.winner = chosen
            cell.runner_up = _runner_up(chosen, values[id(cell)], cell.trial_values, space, threshold)
            cell.shares_rate = not cell.runner_up.is_off
            left.remove(cell)


def _good(values: Mapping[Drafting, float], measured: Mapping[Drafting, float]) -> set[Drafting]:
    """The best one for a cell, and those that are as good as it."""
    best = max(values, key=lambda d: (values[d], d.key))
    least = (1.0 - _MEASURED_BEHIND) * measured.get(best, 0.0)
    return {
        d
        for d, v in values.items()
        if d == best or (v >= (1.0 - _CONSOLIDATION) * values[best] and measured.get(d, 0.0) >= least)
    }


def _runner_up(
    winner: Drafting,
    values: Mapping[Drafting, float],
    measured: Mapping[Drafting, float],
    space: Space,
    threshold: float,
) -> Drafting:
    """The best of the other arms, if it is worth a proof: what fails for the winner fails for its neighbours too.

    Its own launch must have shown a gain: an expectation alone, against what was measured, is not worth a part of the error
    rate.
    """
    own = space.arm_of(winner)
    others = [
        (v, d.key, d)
        for d, v in values.items()
        if space.arm_of(d) != own and v > 1.0 + threshold and measured.get(d, 0.0) > 1.0
    ]
    return max(others)[2] if others else OFF


def _values(cell: CellRun, forecast: Forecast | None) -> dict[Drafting, float]:
    """What each drafting that may win in a cell is worth there: speed ratio to off, less the luck of few prompts."""
    if forecast is None:
        return dict(cell.trial_values)
    if not cell.trial_values:
        best = forecast.best(cell)
        expected = forecast.expected(cell, best) if best is not None else None
        return {best: expected} if best is not None and expected is not None else {}
    values = {}
    for drafting, measured in cell.trial_values.items():
        expected = forecast.cautious(cell, drafting) if forecast.trusts(drafting) else None
        values[drafting] = measured if expected is None else expected
    return values

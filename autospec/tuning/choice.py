"""The choice that a search ends with, as each cell's study notes it: whoever goes on with the cell recalls it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from autospec.drafting import OFF, Drafting
from autospec.errors import StoreError
from autospec.tuning.cell_run import CellRun
from autospec.tuning.forecast import Forecast
from autospec.tuning.optuna_study import RUNNER_UP, WINNER
from autospec.tuning.renewal import EPOCH
from autospec.tuning.space import Space

__all__ = ["last_look", "note_choice", "note_look", "prediction_of", "recall_choice"]

# Names of the notes of what was predicted of the two.
_PREDICTION = "prediction"
_OF_RUNNER_UP = "prediction_of_runner_up"


def note_choice(cells: Sequence[CellRun], forecast: Forecast | None) -> None:
    """Note winner and runner-up of searched cells, and what was predicted of them."""
    ruled_out = forecast.rule_out(cells) if forecast is not None else []
    for cell in cells:
        if forecast is not None:
            for name, drafting in ((_PREDICTION, cell.winner), (_OF_RUNNER_UP, cell.runner_up)):
                cell.study.note(name, forecast.figures(cell, drafting) | {"ruled_out": ruled_out})
        cell.study.note_searched()
        cell.study.note_drafting(RUNNER_UP, cell.runner_up)
        cell.study.note_drafting(WINNER, cell.winner)  # last: with it, all of them are there


def recall_choice(cell: CellRun, space: Space) -> None:
    """What an earlier tune chose goes on to be known; a draft that is gone, or was not named this time, is no winner."""
    begun = float(cell.study.noted(EPOCH) or 0.0)
    winner = cell.study.noted_drafting(WINNER, begun)
    if winner is None or not (winner.is_off or space.arm_of(winner) is not None):
        return
    cell.winner, cell.searched = winner, True
    runner_up = cell.study.noted_drafting(RUNNER_UP, begun) or OFF
    cell.shares_rate = not (Drafting.understood(cell.study.noted(RUNNER_UP)) or OFF).is_off
    if space.arm_of(runner_up) not in (None, space.arm_of(winner)):
        cell.runner_up = runner_up
    cell.trial_values = {
        t.drafting: t.value for t in cell.study.tried() if t.value is not None and not t.drafting.is_off
    }


def note_look(cell: CellRun) -> None:
    """Note that the proof was looked at after so many rounds: no tune that goes on may enable at this look again."""
    with suppress(StoreError):  # the studies may be on another machine, which went away; the proof goes on
        cell.study.note(_look_of(cell), [cell.study.noted(EPOCH), cell.rounds])


def last_look(cell: CellRun) -> int:
    """Rounds of the last look that was taken at the winner's proof since it began; 0 for none."""
    with suppress(StoreError):
        epoch, rounds = cell.study.noted(_look_of(cell)) or (None, 0)
        return int(rounds) if epoch == cell.study.noted(EPOCH) else 0
    return 0


def _look_of(cell: CellRun) -> str:
    return f"look {hashlib.sha256(cell.winner.key.encode()).hexdigest()[:8]}"


def prediction_of(cell: CellRun) -> Any:
    """What was predicted of the drafting that the cell's proof is for now, as JSON values; ``None`` for nothing.

    Raises:
        StoreError: The studies cannot be reached.
    """
    return cell.study.noted(_OF_RUNNER_UP if cell.winner == cell.runner_up else _PREDICTION)

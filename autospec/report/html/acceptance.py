"""Accepted tokens over draft-max and p-min: a draft's profile of the recorded answers, replayed for a grid of settings. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from autospec.backends.protocol import Cycle
from autospec.drafting import Drafting, Mode
from autospec.predict.profile import AnswerProfile, Recording
from autospec.predict.replay import replay
from autospec.report.studies import TrialSummary

__all__ = ["AcceptanceCell", "AcceptanceMap", "of_replay", "of_trials"]

# Steps that a person tells apart; the setting that was tried is added.
_N_MAX = (1, 2, 3, 4, 6, 8, 12, 16)
_P_MIN = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True, slots=True)
class AcceptanceCell:
    """One setting: accepted tokens per cycle, and accepted ÷ proposed tokens; ``None`` where it is not known."""

    per_cycle: float | None = None
    rate: float | None = None


@dataclass(frozen=True, slots=True)
class AcceptanceMap:
    """Acceptance of one draft model on one prompt type.

    Attributes:
        n_max: The columns.
        p_min: The rows.
        cells: A row for each p-min, a cell for each draft-max.
        chosen: (draft-max, p-min) of the drafting that was tried.
        answers: Recorded answers that were replayed; 0 if the cells are measured trials.
    """

    n_max: tuple[int, ...]
    p_min: tuple[float, ...]
    cells: tuple[tuple[AcceptanceCell, ...], ...]
    chosen: tuple[int, float]
    answers: int = 0

    @property
    def largest(self) -> float:
        """The largest value shown: accepted tokens per cycle, or the rate if those are not known; 0 without any."""
        known = [value for row in self.cells for cell in row if (value := _shown(cell)) is not None]
        return max(known, default=0.0)


def _shown(cell: AcceptanceCell) -> float | None:
    return cell.rate if cell.per_cycle is None else cell.per_cycle


def of_replay(
    tried: Drafting,
    recordings: Mapping[str, Mapping[str, Any]],
    profiles: Iterable[Mapping[str, Any]],
    *,
    cycle: Cycle = Cycle.LLAMA_CPP,
    uncut: bool = False,
) -> AcceptanceMap | None:
    """The map of the tried drafting's draft model; ``None`` if nothing of it was recorded.

    Args:
        tried: The drafting.
        recordings: Prompt id → the stored recording.
        profiles: The stored profiles of its draft over those answers.
        cycle: The backend's cycle; mlx_lm's has no p-min.
        uncut: True if the main model's cache cannot be cut.
    """
    chosen = _setting(tried)
    known = [pair for data in profiles if (pair := _read(data, recordings)) is not None]
    if chosen is None or not known:
        return None
    n_max = tuple(sorted({*_N_MAX, chosen[0]}))
    p_min = (chosen[1],) if cycle is Cycle.MLX_LM else tuple(sorted({*_P_MIN, chosen[1]}))
    grid = [(n, p) for p in p_min for n in n_max]
    least = [min(tried.n_min or 0, n) for n, _ in grid]
    accepted, proposed, cycles = (np.zeros(len(grid)) for _ in range(3))
    for recording, profile in known:
        counts = replay(
            profile,
            [n for n, _ in grid],
            [p for _, p in grid],
            least,
            max_tokens=recording.max_tokens,
            cycle=cycle,
            uncut=uncut,
        )
        accepted += counts.accepted
        proposed += counts.drafted
        cycles += counts.cycles
    cells = [
        AcceptanceCell(
            float(accepted[i] / cycles[i]) if cycles[i] else None,
            float(accepted[i] / proposed[i]) if proposed[i] else None,
        )
        for i in range(len(grid))
    ]
    return AcceptanceMap(n_max, p_min, _rows(cells, len(n_max)), chosen, len(known))


def of_trials(tried: Drafting, trials: Sequence[TrialSummary]) -> AcceptanceMap | None:
    """The map of measured trials, where no recorded answers are stored; ``None`` if they tell no acceptance."""
    chosen = _setting(tried)
    rates: dict[tuple[int, float], float] = {}
    for t in trials:
        setting = None if t.drafting is None else _setting(t.drafting)
        rate = t.attributes.get("acceptance")
        same = t.drafting is not None and (t.drafting.mode, t.drafting.draft) == (tried.mode, tried.draft)
        if setting is not None and same and isinstance(rate, int | float):
            rates[setting] = float(rate)
    if chosen is None or not rates:
        return None
    n_max = tuple(sorted({n for n, _ in rates} | {chosen[0]}))
    p_min = tuple(sorted({p for _, p in rates} | {chosen[1]}))
    cells = [AcceptanceCell(None, rates.get((n, p))) for p in p_min for n in n_max]
    return AcceptanceMap(n_max, p_min, _rows(cells, len(n_max)), chosen)


def _setting(drafting: Drafting) -> tuple[int, float] | None:
    """(draft-max, p-min) of a drafting with a draft model; ``None`` for other modes."""
    if drafting.mode is not Mode.DRAFT_MODEL or drafting.n_max is None:
        return None
    return drafting.n_max, drafting.p_min or 0.0


def _read(
    data: Mapping[str, Any], recordings: Mapping[str, Mapping[str, Any]]
) -> tuple[Recording, AnswerProfile] | None:
    """A stored profile with its recording; ``None`` if another version wrote it or its answer is gone."""
    try:
        profile = AnswerProfile.from_json(data)
        recording = Recording.from_json(recordings[profile.prompt_id])
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    # A first token alone has no cycle.
    return (recording, profile) if profile.hits.size > 1 else None


def _rows(cells: Sequence[AcceptanceCell], width: int) -> tuple[tuple[AcceptanceCell, ...], ...]:
    return tuple(tuple(cells[i : i + width]) for i in range(0, len(cells), width))

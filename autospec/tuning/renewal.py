"""Measuring afresh (`tune --again`): which cells begin anew, and which go on with what was begun and interrupted.

Each cell's study notes the epoch, before which no measurement counts, and whether it was set by a renewal; a proof carries
the epoch that it rests on. A renewal is open while any of its cells has no such proof: `--again` goes on with it, however
often it is interrupted, and begins afresh once all are done. Neither clocks nor the order of writes decide: what an
interruption stores is no proof, and a proof of another epoch is none of this renewal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from autospec.drafting import Drafting
from autospec.recommendations import Recommendation, Status
from autospec.tuning.optuna_study import WINNER, CellStudy

__all__ = ["EPOCH", "RENEWAL", "Renewal", "renewal_of", "to_begin"]

# Names of the notes in a study; `EPOCH` is also that of the mark in a proof's evidence.
EPOCH = "epoch"
RENEWAL = "renewal"


@dataclass(frozen=True, slots=True)
class Renewal:
    """How far a cell is in being measured afresh.

    Attributes:
        begun_s: Its epoch, seconds since 1970; ``None`` where nobody has begun.
        finished: True if it came to its end: a proof, or nothing that could be measured.
        holds: False if it has to be measured once more although it is finished: the proof went stale.
    """

    begun_s: float | None = None
    finished: bool = False
    holds: bool = False


def renewal_of(study: CellStudy, stored: Recommendation | None, *, proven: bool) -> Renewal:
    """Read it from what was noted and stored.

    Args:
        study: The cell's.
        stored: What is served for it.
        proven: True if that holds under today's protocol and rule.
    """
    epoch = study.noted(EPOCH)
    # An epoch that was noted by a tune without `--again`, or just before a kill, is no renewal's.
    if epoch is None or study.noted(RENEWAL) != epoch:
        return Renewal()
    winner = Drafting.understood(study.noted(WINNER))
    if winner is not None and winner.is_off:
        return Renewal(epoch, finished=True, holds=True)
    finished = (
        stored is not None
        and stored.status in (Status.PROVEN, Status.STALE)
        and stored.evidence.get(EPOCH) == epoch
    )
    return Renewal(epoch, finished=finished, holds=finished and proven)


def to_begin(renewals: Mapping[str, Renewal]) -> set[str]:
    """Keys of the cells that are to begin anew; the others go on, or are done.

    Args:
        renewals: Of every cell that was asked for, by its key.
    """
    unfinished = [r.begun_s for r in renewals.values() if r.begun_s is not None and not r.finished]
    if not unfinished:
        return set(renewals)
    # Whoever is done since before the open renewal began is done with another one: a kill came between the cells.
    oldest = min(unfinished)
    return {
        key
        for key, r in renewals.items()
        if r.begun_s is None or r.begun_s < oldest or (r.finished and not r.holds)
    }

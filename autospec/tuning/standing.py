"""What goes on being served while a cell is measured afresh."""

from __future__ import annotations

from dataclasses import replace

from autospec.cells import Cell, Hardware
from autospec.recommendations import Recommendation, Status
from autospec.store.database import Store

__all__ = ["renew", "save"]


def save(store: Store, recommendation: Recommendation, hardware: Hardware, cell: Cell) -> None:
    """Keep a cell's recommendation; a proven one gives way to a proof, and to nothing less.

    While a cell is measured afresh the search knows less than the proof that was there, also of one that has gone stale
    since, so that it stays.
    """
    if recommendation.status is not Status.PROVEN:
        stored = store.recommendations(cell_keys=[cell.key])
        if stored and stored[0].recommendation.status in (Status.PROVEN, Status.STALE):
            renew(store, hardware, cell)
            return
    store.save_recommendation(recommendation, hardware, cell)


def renew(store: Store, hardware: Hardware, cell: Cell) -> None:
    """Mark a stale recommendation as being measured afresh: the next tune goes on instead of beginning again.

    To be called as soon as the measuring begins, as a kill lets nothing be said at the end.
    """
    stored = store.recommendations(cell_keys=[cell.key])
    if not stored:
        return
    old = stored[0].recommendation
    if old.status is Status.STALE and not old.evidence.get("renewing"):
        renewing = replace(old, evidence={**old.evidence, "renewing": True})
        store.save_recommendation(renewing, hardware, cell)

"""What goes on being served while a cell is measured afresh."""

from __future__ import annotations

from dataclasses import replace

from autospec.cells import Cell, Hardware
from autospec.recommendations import Recommendation, Status
from autospec.store.database import Store

__all__ = ["save"]


def save(store: Store, recommendation: Recommendation, hardware: Hardware, cell: Cell) -> None:
    """Keep a cell's recommendation; a proven one gives way to a proof, and to nothing less.

    While a cell is measured afresh the search knows less than the proof that was there, also of one that has gone stale
    since, so that it stays. A stale one gets a mark that the measuring has begun: the next tune goes on instead of
    beginning again.
    """
    if recommendation.status is not Status.PROVEN:
        stored = store.recommendations(cell_keys=[cell.key])
        if stored and (old := stored[0].recommendation).status in (Status.PROVEN, Status.STALE):
            if old.status is Status.STALE and not old.evidence.get("renewing"):
                renewing = replace(old, evidence={**old.evidence, "renewing": True})
                store.save_recommendation(renewing, hardware, cell)
            return
    store.save_recommendation(recommendation, hardware, cell)

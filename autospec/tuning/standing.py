"""What goes on being served while a cell is measured afresh."""

from __future__ import annotations

from dataclasses import replace

from autospec.cells import Cell, Hardware
from autospec.recommendations import Recommendation, Status
from autospec.store.database import Store

__all__ = ["save"]


def save(store: Store, recommendation: Recommendation, hardware: Hardware, cell: Cell) -> None:
    """Keep a cell's recommendation; a stale one gives way to a proof, and to nothing less.

    A stale recommendation was proven once. While its cell is measured afresh the search knows less than that, so it
    stays, with a mark that the measuring has begun: the next tune goes on instead of beginning again.
    """
    if recommendation.status is not Status.PROVEN:
        stored = store.recommendations(cell_keys=[cell.key])
        if stored and (old := stored[0].recommendation).status is Status.STALE:
            if not old.evidence.get("renewing"):
                renewing = replace(old, evidence={**old.evidence, "renewing": True})
                store.save_recommendation(renewing, hardware, cell)
            return
    store.save_recommendation(recommendation, hardware, cell)

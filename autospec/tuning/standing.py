"""What goes on being served while a cell is measured afresh."""

from __future__ import annotations

from dataclasses import replace

from autospec.cells import Cell, Hardware
from autospec.drafting import Drafting
from autospec.recommendations import Recommendation, Status, Verdict
from autospec.store.database import Store

__all__ = ["renew", "save", "settles"]


def save(
    store: Store,
    recommendation: Recommendation,
    hardware: Hardware,
    cell: Cell,
    stands: Recommendation | None = None,
) -> None:
    """Keep a cell's recommendation; a proven one gives way to a proof, and to nothing less.

    While a cell is measured afresh the search knows less than the proof that was there, also of one that has gone stale
    since, so that it stays.

    Args:
        store: Where to.
        recommendation: What is concluded now.
        hardware: This machine.
        cell: The cell.
        stands: A proof that holds, of a cell that is measured again for further drafts only: it gives way to a better one.
    """
    if stands is not None and recommendation.status is Status.PROVEN and not _better(recommendation, stands):
        store.save_recommendation(_with_comparison(stands, recommendation), hardware, cell)
        return
    if recommendation.status is not Status.PROVEN:
        stored = store.recommendations(cell_keys=[cell.key])
        if stored and stored[0].recommendation.status in (Status.PROVEN, Status.STALE):
            renew(store, hardware, cell)
            return
    store.save_recommendation(recommendation, hardware, cell)


def settles(winner: Drafting, stands: Recommendation | None) -> bool:
    """Whether a search for further drafts has found nothing that is to be proved: what stands was found once more.

    Args:
        winner: What the search ended with; off where nothing could be measured.
        stands: The proof that holds; ``None`` where there is none.
    """
    return stands is not None and (winner.is_off or winner == stands.tried)


def _better(new: Recommendation, old: Recommendation) -> bool:
    if old.verdict is not Verdict.ENABLE:
        return True
    return new.verdict is Verdict.ENABLE and (new.speedup or 0.0) > (old.speedup or 0.0)


def _with_comparison(old: Recommendation, new: Recommendation) -> Recommendation:
    """What stands, with what it was compared with, and resting on the drafts of today."""
    figures = new.to_json()
    compared = {
        "drafting": figures["tried"],
        **{name: figures[name] for name in ("speedup", "speedup_ci", "verdict")},
        "rounds": new.evidence.get("rounds"),
    }
    known = [p for p in old.evidence.get("also_proved", ()) if p.get("drafting") != compared["drafting"]]
    basis = new.evidence.get("basis", old.evidence.get("basis"))
    return replace(old, evidence={**old.evidence, "also_proved": [*known, compared], "basis": basis})


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

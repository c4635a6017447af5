"""What a recommendation rests on besides its measurements, kept with it so that one can see when it has gone stale."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from autospec.catalog.candidates import Candidate
from autospec.cells import Cell
from autospec.hardware.host import host_digest
from autospec.recommendations import USER_SETTINGS, Recommendation

__all__ = ["DRAFT_ID", "basis_digest", "basis_of", "drafts_of", "resting_on"]


# In the evidence: which file the draft of `tried` is.
DRAFT_ID = "draft_id"


def drafts_of(fitting: Iterable[Candidate], *, named: bool) -> dict[str, str] | None:
    """The set of fitting drafts: what each is, by mode and fingerprint, and its name.

    Args:
        fitting: The candidates that fit.
        named: True if the user named the drafts to try: then the set is their choice, and ``None`` stands for it.
    """
    return None if named else {f"{c.mode}:{c.model.fingerprint}": c.model.name for c in fitting}


def basis_of(cell: Cell, drafts: Mapping[str, str] | None) -> dict[str, Any]:
    """All that a verdict of this cell rests on, as JSON values."""
    return {
        "host": host_digest(),
        "hardware": cell.hardware.id,
        "os": cell.hardware.os,
        "model": cell.model.fingerprint,
        "build": cell.build.version,
        "build_fingerprint": cell.build.fingerprint,
        "settings": list(cell.settings),
        "drafts": None if drafts is None else dict(drafts),
    }


def basis_digest(basis: Mapping[str, Any]) -> str:
    """Twelve hex digits that differ whenever two bases do; names of drafts do not count."""
    drafts = basis.get("drafts")
    plain = {**basis, "drafts": None if drafts is None else sorted(drafts)}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:12]


def resting_on(
    recommendation: Recommendation,
    cell: Cell,
    drafts: Mapping[str, str] | None,
    *,
    draft_id: str = "",
    user_settings: Sequence[str] | None = None,
) -> Recommendation:
    """The recommendation with its basis among the evidence.

    Args:
        recommendation: It.
        cell: Of which.
        drafts: The fitting drafts, as `drafts_of` has them.
        draft_id: Identity of the draft of the drafting that was tried; empty where it has none.
        user_settings: The user's own launch settings; the cell's hold what measuring adds, too.
    """
    evidence = {**recommendation.evidence, "basis": basis_of(cell, drafts)}
    if draft_id:
        evidence[DRAFT_ID] = draft_id
    if user_settings is not None:
        evidence[USER_SETTINGS] = list(user_settings)
    return replace(recommendation, evidence=evidence)

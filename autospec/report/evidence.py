"""The measurements and trials behind a recommendation, as the store has them. `explain` and the report read them here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from autospec.measure.disturbances import Cause, disturbance, lasting
from autospec.measure.measurements import Pair, Phase, Shapes, pair_up
from autospec.recommendations import StoredRecommendation
from autospec.report.studies import TrialSummary, trial_from_json
from autospec.store.database import Store
from autospec.store.drafts import DraftFile, DraftFiles

__all__ = ["Evidence", "evidence_of"]


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is stored behind one recommendation.

    Attributes:
        pairs: The pairs of its drafting that count: those of the proof, or of the search if there is no proof.
        trials: The study's trials under the same protocol, with today's paths of their drafts.
        protocol: What all of them share (suite, lengths, temperature); empty if nothing is stored.
    """

    pairs: tuple[Pair, ...] = ()
    trials: tuple[TrialSummary, ...] = ()
    protocol: str = ""


def evidence_of(store: Store, stored: StoredRecommendation, trials: Sequence[TrialSummary] = ()) -> Evidence:
    """Read the evidence of one recommendation.

    Args:
        store: The database; afterwards it resolves drafts as of this recommendation.
        stored: The recommendation.
        trials: The trials of its study; without any, those that an import brought count.
    """
    r = stored.recommendation
    identity = r.evidence.get("draft_id")
    # If the draft file was replaced or moved since, use the measurements of the file that was recommended.
    store.drafts = DraftFiles({r.tried.draft: DraftFile(identity)} if r.tried.draft and identity else {})
    # The proof's measurements, or those of the search if there is no proof.
    halves = [m for m in store.measurements(stored.cell_key) if m.compared == r.tried]
    proof = [m for m in halves if m.phase is Phase.PROVE]
    chosen = proof or [m for m in halves if m.phase is Phase.SEARCH]
    # Other suites, lengths or temperatures are other experiments; the verdict comes from the newest.
    protocol = r.evidence.get("protocol") or (chosen[-1].protocol if chosen else None)
    # The verdict ignores disturbed pairs, so this does too.
    requests = r.evidence.get("requests")
    shapes = {} if requests is None else {stored.cell_key: Shapes.from_json(requests)}
    chosen = [m for m in chosen if m.protocol == protocol]
    lasts = lasting(m for m in chosen if m.machine)
    pairs = [p for p in pair_up(chosen, shapes) if _counts(p, lasts)]
    own = list(trials) or [trial_from_json(t) for t in r.evidence.get("trial_list", ())]
    known = [
        replace(t, drafting=drafting)
        for t in own
        if protocol is None or t.attributes.get("protocol") in (None, protocol)
        if t.drafting is not None
        if (drafting := store.drafts.today(t.drafting, str(t.attributes.get("draft_id") or ""), math.inf))
    ]
    return Evidence(tuple(pairs), tuple(known), str(protocol or ""))


def _counts(pair: Pair, lasts: frozenset[Cause]) -> bool:
    # Imported measurements may not record the state of the machine.
    return not (pair.off.machine and pair.drafted.machine and disturbance(pair, lasts))

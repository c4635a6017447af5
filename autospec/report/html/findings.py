"""What the page shows, gathered from the store: for each model and backend its prompt types with their pairs and looks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autospec.backends.protocol import Cycle
from autospec.cells import Hardware
from autospec.formats import bounded
from autospec.measure.measurements import Pair
from autospec.measure.verdict import DEFAULT_RULE
from autospec.recommendations import Recommendation, StoredRecommendation, Verdict
from autospec.report.evidence import Evidence, evidence_of
from autospec.report.explanation import Explanation, explain, explain_overall
from autospec.report.html.acceptance import AcceptanceMap, of_replay, of_trials
from autospec.report.records import Record, recommendations_of
from autospec.report.selection import Selection
from autospec.report.studies import TrialSummary
from autospec.store.database import Store

__all__ = [
    "Findings",
    "Look",
    "ModelFindings",
    "RecordFindings",
    "TypeFindings",
    "gather",
    "looks_of",
    "record_findings",
    "threshold_of",
]

# Times on battery are stored apart from those on mains power.
_BATTERY = "/battery"


@dataclass(frozen=True, slots=True)
class Look:
    """What one look of a proof showed: after how many rounds, from how many pairs, the ratio with its interval."""

    rounds: int
    pairs: int
    ratio: float
    interval: tuple[float, float] | None
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class TypeFindings:
    """One prompt type of a model: its recommendation in words, the pairs and looks of its proof, and its draft's acceptance."""

    explanation: Explanation
    pairs: tuple[Pair, ...] = ()
    looks: tuple[Look, ...] = ()
    accepted: AcceptanceMap | None = None

    @property
    def recommendation(self) -> Recommendation:
        """The recommendation."""
        return self.explanation.recommendation


@dataclass(frozen=True, slots=True)
class ModelFindings:
    """One model on one backend and machine, in the order of its prompt types; `overall` is for all types together."""

    model: str
    backend: str
    hardware: Hardware
    types: tuple[TypeFindings, ...]
    overall: Explanation | None = None

    @property
    def builds(self) -> tuple[str, ...]:
        """The builds that were measured; several if types were measured at different times."""
        return tuple(dict.fromkeys(t.recommendation.backend_build for t in self.types))


@dataclass(frozen=True, slots=True)
class RecordFindings:
    """A record that ships with autospec, with what its numbers support."""

    record: Record
    answers: tuple[Explanation, ...]


@dataclass(frozen=True, slots=True)
class Findings:
    """Everything on the page.

    Attributes:
        hardware: This machine, or the one machine that the results are of.
        models: What was measured; empty if nothing is known yet.
        record: The founding record; ``None`` to leave it out.
        note: A sentence about the selection, e.g. that the results are another machine's; often empty.
    """

    hardware: Hardware
    models: tuple[ModelFindings, ...] = ()
    record: RecordFindings | None = None
    note: str = ""


def gather(
    store: Store,
    selection: Selection,
    trials: Mapping[str, Sequence[TrialSummary]],
    explained: Callable[[StoredRecommendation, Evidence], Explanation],
    *,
    uncut: Callable[[str], bool] = lambda _path: False,
) -> tuple[ModelFindings, ...]:
    """Read what the page shows of the selected recommendations.

    Args:
        store: The database.
        selection: What to show.
        trials: Cell key → its study's trials; a cell may be missing.
        explained: Puts one recommendation into words.
        uncut: Tells by a main model's path whether its cache cannot be cut.
    """
    groups: dict[tuple[str, str, str], list[StoredRecommendation]] = {}
    for s in selection.stored:
        r = s.recommendation
        groups.setdefault((s.hardware.id, r.model, r.backend), []).append(s)
    found = []
    for (_, model, backend), own in groups.items():
        types = tuple(_type(store, s, trials.get(s.cell_key, ()), explained, uncut) for s in own)
        together = _overall(selection.overall or (), own)
        found.append(ModelFindings(model, backend, own[0].hardware, types, together))
    return tuple(found)


def _type(
    store: Store,
    stored: StoredRecommendation,
    trials: Sequence[TrialSummary],
    explained: Callable[[StoredRecommendation, Evidence], Explanation],
    uncut: Callable[[str], bool],
) -> TypeFindings:
    evidence = evidence_of(store, stored, trials)
    looks = looks_of(store.former_recommendations(stored.cell_key), stored.recommendation)
    accepted = _accepted(store, stored, evidence, uncut)
    return TypeFindings(explained(stored, evidence), evidence.pairs, looks, accepted)


def looks_of(former: Sequence[Recommendation], newest: Recommendation) -> tuple[Look, ...]:
    """The looks of the newest recommendation's proof, in order: a tune stores a recommendation at each of them.

    Rows of other draftings, protocols and earlier proofs (`tune --again`) are left out. So is what a tune stored when its budget ended
    between two looks: the figures of the last one, with more rounds.
    """
    found: dict[int, Look] = {}
    for r in (*former, newest):
        rounds = r.evidence.get("rounds")
        same = r.tried == newest.tried and all(
            r.evidence.get(key) == newest.evidence.get(key) for key in ("protocol", "epoch")
        )
        if same and r.evidence.get("phase") == "prove" and isinstance(rounds, int) and rounds and r.speedup:
            found[rounds] = Look(rounds, r.pairs, r.speedup, bounded(r.speedup_ci), r.verdict)
    looks: list[Look] = []
    for rounds in sorted(found):
        look = found[rounds]
        if not looks or (look.ratio, look.interval) != (looks[-1].ratio, looks[-1].interval):
            looks.append(look)
    return tuple(looks)


def _accepted(
    store: Store, stored: StoredRecommendation, evidence: Evidence, uncut: Callable[[str], bool]
) -> AcceptanceMap | None:
    r = stored.recommendation
    identity = str(r.evidence.get("draft_id") or "")
    for protocol in (evidence.protocol, evidence.protocol + _BATTERY):
        recordings = store.surveys(stored.cell_key, protocol, "recording")
        profiles = store.surveys(stored.cell_key, protocol, "profile")
        # A cell without the identity of its draft is of an early version, and has one draft's profiles at most.
        own = [data for name, data in profiles.items() if name.startswith(f"{identity}/") or not identity]
        cycle = Cycle.MLX_LM if r.backend == "mlx" else Cycle.LLAMA_CPP
        if own and (replayed := of_replay(r.tried, recordings, own, cycle=cycle, uncut=uncut(r.model_path))):
            return replayed
    return of_trials(r.tried, evidence.trials)


def _overall(answers: Sequence[Recommendation], own: Sequence[StoredRecommendation]) -> Explanation | None:
    """The answer for all prompt types that rests on these recommendations."""
    keys = {s.cell_key for s in own}
    subject = own[0].recommendation
    for answer in answers:
        cells = {entry.get("cell") for entry in answer.evidence.get("types", ())} - {None}
        same = (answer.model, answer.backend) == (subject.model, subject.backend)
        if same and (not cells or cells & keys):
            return explain_overall(answer)
    return None


def record_findings(record: Record) -> RecordFindings:
    """What a record's numbers support, in the words of `explain`."""
    return RecordFindings(record, tuple(explain(s.recommendation) for s in recommendations_of(record)))


def threshold_of(evidence: Mapping[str, Any]) -> float:
    """The gain that an `enable` had to exceed, as a fraction."""
    threshold = evidence.get("threshold")
    return float(threshold) if isinstance(threshold, int | float) else DEFAULT_RULE.threshold

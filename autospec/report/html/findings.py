"""What the page shows, gathered from the store: for each model and backend its prompt types with their pairs and looks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from autospec.backends.protocol import Cycle
from autospec.cells import Hardware
from autospec.drafting import Drafting, Mode
from autospec.formats import bounded
from autospec.measure.measurements import Pair
from autospec.measure.verdict import DEFAULT_RULE
from autospec.predict.profile import AnswerProfile, Recording, replay
from autospec.recommendations import Recommendation, StoredRecommendation, Verdict
from autospec.report.explanation import Explanation, explain, explain_overall
from autospec.report.records import Record, recommendations_of
from autospec.report.selection import Selection
from autospec.report.studies import Evidence, TrialSummary, evidence_of
from autospec.store.database import Store

__all__ = [
    "AcceptanceCell",
    "AcceptanceMap",
    "Findings",
    "Look",
    "ModelFindings",
    "RecordFindings",
    "TypeFindings",
    "gather",
    "looks_of",
    "of_replay",
    "of_trials",
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

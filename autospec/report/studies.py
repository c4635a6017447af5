"""The studies and trials in Optuna's storage as plain values, what the store holds behind a recommendation, and exports of both.

An export is the content of one database as a JSON document that another machine can import. It contains no prompt, no answer and
not the name of the home folder. Imported recommendations get the status `imported` and keys of their own, so they never replace
local results, and imported measurements never count in a proof.
"""

from __future__ import annotations

import datetime as dt
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import autospec
from autospec.cells import Hardware
from autospec.drafting import Drafting
from autospec.errors import NothingKnownError, StudyFileError, UsageError
from autospec.measure.disturbances import Cause, disturbance, lasting
from autospec.measure.measurements import Measurement, Pair, Phase, Shapes, pair_up
from autospec.recommendations import Recommendation, Status, StoredRecommendation
from autospec.store.compatibility import DraftFile, DraftFiles, Unread, understood

if TYPE_CHECKING:
    from autospec.store.database import Store

__all__ = [
    "Evidence",
    "Export",
    "Imported",
    "StudySummary",
    "TrialSummary",
    "choose_study",
    "evidence_of",
    "export_document",
    "import_into",
    "read_export",
    "read_studies",
    "trial_from_json",
]


@dataclass(frozen=True, slots=True)
class TrialSummary:
    """One trial.

    Attributes:
        number: Optuna's.
        state: ``complete``, ``fail``, ``pruned``, ``running`` or ``waiting``.
        drafting: The drafting tried, ``None`` if it is unknown.
        value: Speed ratio to the baseline, ``None`` if there is none.
        reason: Why it failed or was given up; empty otherwise.
        attributes: Optuna's user attributes.
    """

    number: int
    state: str
    drafting: Drafting | None
    value: float | None
    reason: str
    attributes: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """For ``studies show --json`` and exports."""
        return {
            "number": self.number,
            "state": self.state,
            "drafting": None if self.drafting is None else self.drafting.to_json(),
            "value": self.value,
            "reason": self.reason,
            "attributes": {k: v for k, v in self.attributes.items() if k not in ("drafting", "reason")},
        }


@dataclass(frozen=True, slots=True)
class StudySummary:
    """One study: its name in the storage, its cell's attributes (empty for a foreign study), its trials in order."""

    name: str
    cell: dict[str, Any]
    trials: tuple[TrialSummary, ...]

    @property
    def cell_key(self) -> str:
        """`Cell.key`, or empty."""
        return str(self.cell.get("key", ""))

    @property
    def best(self) -> TrialSummary | None:
        """The complete trial with the highest ratio, the baseline excluded."""
        done = [
            t
            for t in self.trials
            if t.state == "complete"
            and t.value is not None
            and t.drafting is not None
            and not t.drafting.is_off
        ]
        return max(done, key=lambda t: t.value or 0.0, default=None)

    @property
    def states(self) -> dict[str, int]:
        """Number of trials by state."""
        return dict(Counter(t.state for t in self.trials))

    def to_json(self) -> dict[str, Any]:
        """All except the trials."""
        return {
            "name": self.name,
            "cell": self.cell,
            "trials": self.states,
            "best": None if self.best is None else self.best.to_json(),
        }


def read_studies(url: str) -> list[StudySummary]:
    """All studies of a storage, in order of creation; empty if the database does not exist yet.

    Raises:
        StoreError: The database cannot be used.
    """
    if url.startswith("sqlite:///") and not Path(unquote(url.removeprefix("sqlite:///"))).exists():
        return []
    from autospec.tuning.study import open_storage  # noqa: PLC0415 - Optuna takes a second to load

    storage = open_storage(url)
    studies = sorted(storage.get_all_studies(), key=lambda s: s._study_id)  # noqa: SLF001 - the only access to its trials
    return [
        StudySummary(
            name=study.study_name,
            cell=dict(study.user_attrs.get("cell", {})),
            trials=tuple(
                _trial(t.number, t.state.name, t.values, t.user_attrs)
                for t in storage.get_all_trials(study._study_id, deepcopy=False)  # noqa: SLF001
            ),
        )
        for study in studies
    ]


def choose_study(studies: list[StudySummary], text: str) -> StudySummary:
    """The study with this name, or the only one whose name contains all the words.

    Raises:
        NothingKnownError: No study matches.
        UsageError: Several studies match.
    """
    exact = [s for s in studies if text in (s.name, s.cell_key)]
    if exact:
        return exact[0]
    words = text.lower().split()
    found = [s for s in studies if all(word in s.name.lower() for word in words)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise NothingKnownError(f"No study matches {text!r}.", "`autospec studies list` shows all.")
    names = "\n".join(f"  {s.name}" for s in found[:20])
    raise UsageError(f"{text!r} matches {len(found)} studies:\n{names}", "Give more of the name.")


def trial_from_json(data: dict[str, Any]) -> TrialSummary:
    """Read what `TrialSummary.to_json` wrote."""
    value = data.get("value")
    return _trial(
        data.get("number", 0),
        data.get("state", ""),
        None if value is None else [value],
        {**data.get("attributes", {}), "drafting": data.get("drafting"), "reason": data.get("reason", "")},
    )


def _trial(number: int, state: str, values: list[float] | None, attributes: dict[str, Any]) -> TrialSummary:
    value = values[0] if values and math.isfinite(values[0]) else None
    try:
        drafting = Drafting.from_json(attributes["drafting"])
    except (KeyError, TypeError, ValueError):
        drafting = None
    reason = str(attributes.get("reason") or attributes.get("gave_up") or "")
    return TrialSummary(number, state.lower(), drafting, value, reason, dict(attributes))


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


_KIND = "autospec-export"
_SCHEMA = 1
_PREFIX = "i-"


@dataclass(frozen=True, slots=True)
class Export:
    """What an import adds, under its new keys; `unread` is one sentence about entries that were not understood."""

    recommendations: tuple[StoredRecommendation, ...]
    measurements: tuple[Measurement, ...] = ()
    unread: str = ""


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import changed: new or changed recommendations, those already known, and new measurements."""

    recommendations: int
    known: int
    measurements: int


def export_document(
    recommendations: Sequence[StoredRecommendation],
    measurements: Sequence[Measurement],
    studies: Sequence[StudySummary],
    *,
    overall: Sequence[StoredRecommendation] = (),
) -> dict[str, Any]:
    """The document. Paths below the home folder begin with ``~``.

    `overall` are the answers for all prompt types together. They are for readers: an import takes the types' own recommendations.
    """
    document = {
        "schema": _SCHEMA,
        "kind": _KIND,
        "autospec": autospec.__version__,
        "exported_at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "recommendations": [s.to_json() for s in recommendations],
        "overall": [s.to_json() for s in overall],
        "measurements": [m.to_json() for m in measurements],
        "studies": [{**s.to_json(), "trials": [t.to_json() for t in s.trials]} for s in studies],
    }
    shown: dict[str, Any] = _without_home(document, str(Path.home()))
    return shown


def read_export(path: Path) -> Export:
    """Read an export. Entries that this version does not understand are skipped and counted.

    Raises:
        StudyFileError: The file cannot be read or is no export.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StudyFileError(f"The export {path} cannot be read: {error.strerror}.") from error
    except RecursionError:
        raise StudyFileError(
            f"{path} is not an autospec export: its lists and objects are nested too deeply.",
            "Create one with `autospec studies export -o FILE`.",
        ) from None
    except ValueError as error:
        raise StudyFileError(f"The export {path} is not JSON: {error}.") from error
    if not isinstance(data, dict) or data.get("kind") != _KIND:
        raise StudyFileError(
            f"{path} is not an export of autospec.", "Create one with `autospec studies export -o FILE`."
        )
    if data.get("schema") != _SCHEMA:
        raise StudyFileError(
            f"{path} has schema {data.get('schema')!r}; this autospec reads schema {_SCHEMA}.",
            "Upgrade autospec.",
        )
    try:
        trials = {s.get("cell", {}).get("key"): s.get("trials", []) for s in data.get("studies", [])}
        unread = Unread(str(path))
        recommendations = understood(
            enumerate(data["recommendations"]),
            lambda entry: _imported(entry, trials),
            unread,
            "recommendation",
        )
        measurements = understood(enumerate(data["measurements"]), _measurement, unread, "measurement")
        return Export(tuple(recommendations), tuple(measurements), unread.sentence)
    except KeyError as error:
        raise StudyFileError(f"{path} lacks the key {error.args[0]}.", "Export it again.") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise StudyFileError(f"{path} contains an invalid value: {error}.", "Export it again.") from error


def import_into(store: Store, export: Export) -> Imported:
    """Store what is not stored yet. Repeating it changes nothing."""
    new = 0
    for entry in export.recommendations:
        original = entry.cell_key.removeprefix(_PREFIX)
        known = store.recommendations(cell_keys=[entry.cell_key, original])
        if any(_says_the_same(k, entry) for k in known):
            continue
        store.save_recommendation(entry.recommendation, entry.hardware, entry.cell_key)
        new += 1
    measured = 0
    seen: dict[str, set[tuple[str, float, str]]] = {}
    for m in export.measurements:
        if m.cell_key not in seen:
            # Also under the original key: a machine's own export adds nothing new.
            there = [*store.measurements(m.cell_key), *store.measurements(m.cell_key.removeprefix(_PREFIX))]
            seen[m.cell_key] = {_identity(k) for k in there}
        if _identity(m) not in seen[m.cell_key]:
            store.add_measurement(m)
            seen[m.cell_key].add(_identity(m))
            measured += 1
    return Imported(new, len(export.recommendations) - new, measured)


def _imported(entry: dict[str, Any], trials: dict[str, Any]) -> StoredRecommendation:
    recommendation = Recommendation.from_json(entry["recommendation"])
    hardware = Hardware.from_json(entry["hardware"])
    evidence = {**recommendation.evidence, "hardware": hardware.to_json()}
    if recommendation.model_path:
        evidence["model_file"] = PurePath(recommendation.model_path).name
    if trials.get(entry["cell_key"]):
        evidence["trial_list"] = trials[entry["cell_key"]]
    return StoredRecommendation(
        _key(entry["cell_key"]),
        hardware,
        replace(recommendation, model_path="", status=Status.IMPORTED, evidence=evidence),
    )


def _key(cell_key: str) -> str:
    # Records ("r-") and earlier imports already have their own keys.
    return cell_key if cell_key.startswith((_PREFIX, "r-")) else _PREFIX + cell_key


def _says_the_same(known: StoredRecommendation, entry: StoredRecommendation) -> bool:
    if known.cell_key == entry.cell_key:
        return known.recommendation.to_json() == entry.recommendation.to_json()
    return known.recommendation.created_at == entry.recommendation.created_at


def _identity(m: Measurement) -> tuple[str, float, str]:
    return m.launch_id, m.started_at, m.prompt_id


def _measurement(entry: dict[str, Any]) -> Measurement:
    m = Measurement.from_json(entry)
    if not (m.wall_ms > 0 and m.predicted_tokens >= 0):
        raise ValueError(f"a measurement of {m.prompt_id} that took {m.wall_ms} ms")
    return replace(m, cell_key=_key(m.cell_key))


def _without_home(value: Any, home: str) -> Any:
    match value:
        case dict():
            return {k: _without_home(v, home) for k, v in value.items()}
        case list() | tuple():
            return [_without_home(v, home) for v in value]
        case str() if len(home) > 1:
            return value.replace(f"{home}/", "~/")
        case _:
            return value

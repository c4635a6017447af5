"""Exports: the content of one database as a JSON document that another machine can import.

It contains no prompt, no answer and not the name of the home folder. Imported recommendations get the status `imported` and
keys of their own, so they never replace local results, and imported measurements never count in a proof.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

import autospec
from autospec.cells import Hardware
from autospec.errors import StudyFileError
from autospec.measure.measurements import Measurement
from autospec.recommendations import Recommendation, Status, StoredRecommendation
from autospec.report.studies import StudySummary
from autospec.store.compatibility import Unread, understood
from autospec.store.database import Store

__all__ = ["Export", "Imported", "export_document", "import_into", "read_export"]

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

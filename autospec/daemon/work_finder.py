"""Finds what is worth tuning: reads models and traffic, marks stale recommendations, runs the hook, prints the queue.

A program of its own (``python -m autospec.daemon.work_finder``), because it needs the catalogue, the backends and the
database, and the resting daemon should load none of them. It runs for a second whenever something may have changed.
stdin: one JSON object with ``found`` and ``efforts`` of `autospec.daemon.work`, and ``asked``; stdout: one JSON object, see `Survey`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from autospec.backends.protocol import Capabilities
from autospec.backends.registry import backend_for
from autospec.catalog.candidates import Candidate
from autospec.catalog.model import Model
from autospec.catalog.scan import Catalog, scan, silent_words
from autospec.cells import Aim, Cell, Hardware, PromptType
from autospec.daemon.queue import KnownCell, order, uses
from autospec.daemon.staleness import GAP, UNCACHED, Stale, drift_of, gap_of, mark, samples_of, why_stale
from autospec.daemon.work import Effort, Tunable, effort_key
from autospec.errors import AutospecError
from autospec.files import replace_file
from autospec.hardware.bandwidth import kept
from autospec.hardware.energy import aim_in_force
from autospec.hardware.gpu import devices_here
from autospec.hardware.identity import host_digest, identify
from autospec.measure.measurements import Sample
from autospec.predict.estimate import least_acceptance, speeds_for
from autospec.prompts.suite import load_suite
from autospec.recommendations import Recommendation, Status, StoredRecommendation
from autospec.report.selection import borrowed, changes, changes_document, same_machine
from autospec.service.control import run_hook
from autospec.settings import Settings, load_settings, parse_duration
from autospec.store.database import Store, open_store
from autospec.tuning.definition import load_definition
from autospec.tuning.request import TuneRequest, judged_drafts, temperature_of
from autospec.tuning.resume import REQUESTS, basis_of, drafts_of

__all__ = ["Survey", "announce", "main", "survey"]


_FILE = "announced.json"


def announce(
    stored: Sequence[StoredRecommendation],
    state_dir: Path,
    command: Sequence[str],
    run: Callable[[Sequence[str], Mapping[str, Any]], str] = run_hook,
) -> str:
    """Run the user's hook (setting ``on_change``) if recommendations changed since it was last told; waits for it.

    A file of the state folder keeps what the hook was told, so that changes made while no daemon ran are reported
    too. The first time there is nothing to compare with, and the hook does not run. Returns one sentence if the hook
    ran or its file could not be written, else an empty string.
    """
    if not command:
        return ""
    path = state_dir / _FILE
    told = _read(path)
    found = changes(told, stored) if told is not None else ()
    if told is not None and not found:
        return ""
    try:
        replace_file(path, json.dumps([s.to_json() for s in stored]))
    except OSError as error:
        return f"{path} cannot be written, so on_change was not run: {error.strerror}."
    if not found:
        return ""
    return run(command, changes_document(found, datetime.now(UTC).isoformat(timespec="seconds")))


def _read(path: Path) -> list[StoredRecommendation] | None:
    """What the hook was last told; ``None`` if nothing was, or the file is damaged."""
    try:
        return [StoredRecommendation.from_json(s) for s in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, KeyError, TypeError):
        return None


# With a half-life of a week, older use counts less than a sixteenth.
_USES_S = 30 * 86400.0


@dataclass(frozen=True, slots=True)
class Survey:
    """What the daemon needs to know until the next survey.

    Attributes:
        items: The steps worth their time, best first, as `WorkItem` JSON.
        later: Cell → why it is not among them, in words.
        later_reasons: Cell → the same as a `LaterReason`.
        next_at: When the first failed cell may be tried again, seconds since the epoch.
        marked: One sentence for each recommendation that this survey marked stale.
        gaps: One sentence for each proof of which live traffic falls short for a known reason.
        fingerprints: Of every model.
        watch: Files and folders whose change requires another survey.
        notes: One sentence for each backend that is missing and each database row that was not understood.
    """

    items: list[dict[str, Any]]
    later: dict[str, str]
    later_reasons: dict[str, str]
    next_at: float | None
    marked: list[str]
    gaps: list[str]
    fingerprints: list[str]
    watch: list[str]
    notes: list[str]


def survey(
    settings: Settings,
    found: Mapping[str, float],
    efforts: Mapping[str, Effort],
    now: float,
    asked: Mapping[str, Collection[str]] = MappingProxyType({}),
) -> Survey:
    """Read everything, mark what is stale, order the rest.

    Args:
        settings: The user's.
        found: Fingerprint of a model → when it was first seen.
        efforts: What was spent without a proof.
        now: Seconds since the epoch.
        asked: What a person wants measured next, see `autospec.daemon.queue.order`.

    Raises:
        AutospecError: The database, the study or the suite cannot be used.
    """
    hardware = identify()
    definition = load_definition(settings.study)
    suite = load_suite(Path(settings.suite) if settings.suite else None)
    catalog = scan(settings)
    aim, note = aim_in_force(settings.aim, hardware)
    notes = [note] if note else []
    notes += map(silent_words, catalog.silent)

    def request_for(model: Model) -> TuneRequest:
        return TuneRequest(
            model=model,
            models=catalog.models,
            definition=definition,
            suite=suite,
            storage=settings.storage,
            args=catalog.own.args(model, settings),
            temperature=temperature_of(settings, definition),
            context_tokens=catalog.own.context_tokens(model, settings),
            aim=aim,
        )

    whole = [request_for(model) for model in catalog.models if model.head is None]
    models = _tunables(whole, settings, hardware, found=found, notes=notes, now=now)
    # A draft in a folder that does not answer was not removed.
    judged = [replace(m, basis={**m.basis, "drafts": None}) for m in models] if catalog.silent else models
    with closing(open_store(settings.storage, notes.append)) as store:
        samples = store.samples(since=now - _USES_S)
        ours = [s for s in store.recommendations() if s.recommendation.aim is aim]
        stored, marked, gaps = _mark_stale(store, ours, judged, samples, hardware)
        # An overall answer is about speed alone.
        answers = _answers(models, store.overall_answers(), hardware) if aim is Aim.SPEED else {}
    if said := announce(stored, settings.state_dir, settings.on_change):
        notes.append(said)
    queue = order(
        models,
        suite.types(),
        _known(models, suite.types(), stored, hardware),
        uses(samples, now),
        efforts,
        step_s=parse_duration(settings.daemon_step),
        now=now,
        asked=asked,
        answers=answers,
    )
    return Survey(
        items=[item.to_json() for item in queue.items],
        later={key: later.words for key, later in queue.later.items()},
        later_reasons={key: str(later.reason) for key, later in queue.later.items()},
        next_at=queue.next_at,
        marked=marked,
        gaps=gaps,
        fingerprints=[m.fingerprint for m in catalog.models],
        watch=_watched(catalog, settings),
        notes=notes,
    )


def _tunables(
    requests: Sequence[TuneRequest],
    settings: Settings,
    hardware: Hardware,
    *,
    found: Mapping[str, float],
    notes: list[str],
    now: float,
) -> list[Tunable]:
    """The models that can be tuned here; `notes` gets a sentence for each missing backend."""
    tunables = []
    drafting_models: set[str] = set()
    backends: dict[str, Capabilities | None] = {}
    for request in requests:
        model, space = request.model, request.definition.space
        name = settings.backend or ("mlx" if model.format == "mlx" else "")
        if name not in backends:
            backends[name] = _capabilities(name, settings, notes)
        able = backends[name]
        if able is None or (model.format == "mlx") != (able.build.backend == "mlx"):
            continue
        fitting = [c for c in judged_drafts(request, hardware) if c.fits]
        drafting_models |= {c.model.fingerprint for c in fitting if not c.own_layers}
        # The prompt type is not part of the basis.
        args = request.settings().args
        cell = Cell(model.ref, PromptType.QA, able.build, hardware, args, request.aim)
        usable = [c for c in fitting if c.mode in able.modes and c.mode in space.modes]
        context = request.context()
        largest = max((c.model.size_bytes + c.model.kv_bytes(context) for c in usable), default=0)
        tunables.append(
            Tunable(
                name=model.name,
                path=_handle(model, request.models),
                backend=able.build.backend,
                fingerprint=model.fingerprint,
                basis=basis_of(cell, drafts_of(fitting, named=False))
                | ({UNCACHED: True} if able.drafts_uncached else {}),
                drafts=len(usable),
                modes=sum(m.draft_free and m in able.modes for m in space.modes),
                found_at=found.get(model.fingerprint, now),
                memory_bytes=model.size_bytes + 2 * model.kv_bytes(context) + largest,
                break_even=_needed(request, usable[: space.drafts], hardware, settings),
            )
        )
    return [replace(t, is_draft=t.fingerprint in drafting_models) for t in tunables]


# Tokens in the cache that the estimate is for.
_ESTIMATE_DEPTH = 1024


def _needed(
    request: TuneRequest, drafts: Sequence[Candidate], hardware: Hardware, settings: Settings
) -> float | None:
    """The acceptance that these drafts would need, by an estimate without a measurement; ``None`` if unknown."""
    speeds = speeds_for(
        request.model,
        request.args,
        devices_here(hardware),
        hardware,
        lambda: kept(hardware, settings.state_dir),
    )
    return least_acceptance(request.model, drafts, speeds, _ESTIMATE_DEPTH)


def _capabilities(name: str, settings: Settings, notes: list[str]) -> Capabilities | None:
    try:
        return backend_for(name or None, settings).capabilities()
    except AutospecError as error:
        notes.append(f"Models for {name or 'any backend'} are not measured: {error.message}")
        return None


def _handle(model: Model, models: Sequence[Model]) -> str:
    """What to give to ``tune --model``: the name if it is unique. With a path, `tune` would look for drafts beside the file."""
    return model.name if sum(m.name == model.name for m in models) == 1 else str(model.path)


def _mark_stale(
    store: Store,
    stored: Sequence[StoredRecommendation],
    models: Sequence[Tunable],
    samples: Sequence[Sample],
    hardware: Hardware,
) -> tuple[list[StoredRecommendation], list[str], list[str]]:
    """Mark served recommendations that no longer hold."""
    # Returns the new list, a sentence for each marked one, and one for each other whose live traffic falls short.
    here = {(m.name, m.backend): m for m in models}
    result, told, gaps = list(stored), [], []
    served = {s.cell_key for s in _newest_here(stored, hardware)}
    for number, entry in enumerate(stored):
        recommendation = entry.recommendation
        model = here.get((recommendation.model, recommendation.backend))
        # A provisional recommendation is measured anyway.
        if entry.cell_key not in served or model is None or recommendation.status is not Status.PROVEN:
            continue
        own = samples_of(recommendation, samples)
        stale = _basis_changed(entry, model) or _drifted(own)
        if stale is None and (gap := gap_of(recommendation, own)) is not None:
            if not gap.conditions:
                # Read only now: a gap is rare.
                gap = gap_of(recommendation, own, store.former_recommendations(entry.cell_key)) or gap
            if gap.conditions or gap.known:
                gaps.append(f"{recommendation.model}, {recommendation.prompt_type}: {gap.sentence}")
            else:
                stale = Stale("traffic", gap.reason, {GAP: gap.to_json()})
        if stale is not None:
            marked = mark(recommendation, stale)
            store.save_recommendation(marked, entry.hardware, entry.cell_key)
            result[number] = replace(entry, recommendation=marked)
            told.append(f"{recommendation.model}, {recommendation.prompt_type}: {stale.reason}.")
    return result, told, gaps


def _newest_here(stored: Sequence[StoredRecommendation], hardware: Hardware) -> list[StoredRecommendation]:
    """The newest of this machine for each model, backend and prompt type, also under an older hardware id."""
    newest: dict[tuple[str, str, str], StoredRecommendation] = {}
    for entry in stored:
        r = entry.recommendation
        host = r.evidence.get("basis", {}).get("host")
        if same_machine(entry.hardware, hardware) or host == host_digest():
            key = (r.model, r.backend, str(r.prompt_type))
            if key not in newest or r.created_at >= newest[key].recommendation.created_at:
                newest[key] = entry
    return list(newest.values())


def _basis_changed(entry: StoredRecommendation, model: Tunable) -> Stale | None:
    recommendation = entry.recommendation
    then = recommendation.evidence.get("basis")
    if not isinstance(then, dict):  # written by a version that kept less
        then = {
            "build": recommendation.backend_build,
            "settings": recommendation.evidence.get("settings"),
            "hardware": entry.hardware.id,
            "os": entry.hardware.os,
        }
    if isinstance(requests := recommendation.evidence.get(REQUESTS), dict):
        # Earlier versions did not note it. Without a cache on either side it changes nothing.
        alike = not requests.get("cached_share") and requests.get("traffic") is None
        then = {**then, UNCACHED: alike or bool(requests.get("drafts_uncached"))}
    return why_stale(then, model.basis)


def _drifted(samples: Sequence[Sample]) -> Stale | None:
    drift = drift_of(samples)
    return None if drift is None else Stale("drift", drift.reason)


def _known(
    models: Sequence[Tunable],
    types: Sequence[PromptType],
    stored: Sequence[StoredRecommendation],
    hardware: Hardware,
) -> dict[str, KnownCell]:
    own = {
        effort_key(s.recommendation.model, s.recommendation.backend, s.recommendation.prompt_type): s
        for s in _newest_here(stored, hardware)
        if s.recommendation.prompt_type is not None
    }
    known = {key: KnownCell(s.recommendation) for key, s in own.items()}
    for model in models:
        for prompt_type in types:
            key = effort_key(model.name, model.backend, prompt_type)
            if key not in known and (
                lent := borrowed(stored, hardware, model.name, model.backend, prompt_type)
            ):
                known[key] = KnownCell(lent.recommendation, borrowed=True)
    return known


def _answers(
    models: Sequence[Tunable], stored: Sequence[StoredRecommendation], hardware: Hardware
) -> dict[str, Recommendation]:
    """The overall answers that a tune now would continue: of this machine, build, files and settings."""
    newest = {(s.recommendation.model, s.recommendation.backend): s for s in _newest_here(stored, hardware)}
    return {
        effort_key(model.name, model.backend, None): entry.recommendation
        for model in models
        if (entry := newest.get((model.name, model.backend))) is not None
        and _basis_changed(entry, model) is None
    }


def _watched(catalog: Catalog, settings: Settings) -> list[str]:
    """Files and folders of models, adapters, the config and the backends' programs."""
    files = [path for model in catalog.models for path in (model.path, *model.files)]
    files += [adapter.path for section in settings.models for adapter in section.lora]
    watched = {*catalog.looked_in, *files, *(path.parent for path in files), settings.config_file}
    return sorted({str(path) for path in watched} | set(_programs(settings)))


def _programs(settings: Settings) -> list[str]:
    """The files that change with a new build: the binary, and the embedded server's package folder."""
    import importlib.util  # noqa: PLC0415
    import shutil  # noqa: PLC0415

    found = shutil.which(settings.llama_server or "llama-server")
    paths = [found, str(Path(found).resolve())] if found else []
    for package in ("xllamacpp", "mlx_lm"):
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin:
            # An upgrade replaces the .dist-info folder next to it.
            paths += [spec.origin, str(Path(spec.origin).parent.parent)]
    return paths


def main() -> int:
    """The program: ``[--config FILE]``, JSON in and out; an error is ``{"error": SENTENCE}`` and status 1."""
    config = Path(sys.argv[sys.argv.index("--config") + 1]) if "--config" in sys.argv else None
    try:
        asked = json.load(sys.stdin)
        result = survey(
            load_settings(config),
            {str(k): float(v) for k, v in asked.get("found", {}).items()},
            {str(k): Effort.from_json(v) for k, v in asked.get("efforts", {}).items()},
            time.time(),
            {str(model): frozenset(keys) for model, keys in asked.get("asked", {}).items()},
        )
    except AutospecError as error:
        print(json.dumps({"error": error.message}))  # noqa: T201 - stdout is this program's way to answer
        return 1
    print(json.dumps(asdict(result)))  # noqa: T201 - as above
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`autospec doctor`: what is here, what is missing, and how to fix it."""

from __future__ import annotations

import logging
import os
import platform
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import autospec
from autospec.cli.shell import Shell, command_options
from autospec.errors import AutospecError
from autospec.formats import gibibytes

if TYPE_CHECKING:
    from autospec.cells import Hardware
    from autospec.hardware.state import MachineState
    from autospec.measure.launch_scatter import LaunchScatter
    from autospec.settings import Settings

__all__ = ["command"]

# Long enough to see a load of a few percent.
_WATCH_S = 0.5


@dataclass(frozen=True, slots=True)
class DoctorProblem:
    """A problem and its fix."""

    problem: str
    fix: str


@dataclass(slots=True)
class Findings:
    """What the doctor found. `problems` keep a tune from running, `advice` is about better measurements."""

    hardware: dict[str, Any] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)
    backends: list[dict[str, Any]] = field(default_factory=list)
    models: dict[str, Any] = field(default_factory=dict)
    storage: dict[str, Any] = field(default_factory=dict)
    daemon: list[dict[str, Any]] = field(default_factory=list)
    problems: list[DoctorProblem] = field(default_factory=list)
    advice: list[DoctorProblem] = field(default_factory=list)


@click.command()
@command_options
def command(shell: Shell) -> None:
    """Check what is here, what is missing, and how to fix it.

    \b
      autospec doctor
      autospec doctor --json | jq .problems
    """  # noqa: D301 - click needs the backspace itself
    from autospec.hardware import identify
    from autospec.hardware.state import StateWatch

    settings = shell.settings
    hardware = identify()
    watch = StateWatch()
    watch.start()
    began_s = time.monotonic()
    findings = Findings(hardware=hardware.to_json())
    _examine_backends(findings, settings)
    _examine_models(findings, settings)
    _examine_storage(findings, settings)
    _examine_launches(findings, settings, hardware)
    time.sleep(max(0.0, _WATCH_S - (time.monotonic() - began_s)))
    _examine_state(findings, watch.finish())
    _examine_signals(findings, settings)
    if shell.json:
        shell.emit(_document(findings, settings))
    else:
        _show(shell, findings, settings, hardware)


def _examine_backends(findings: Findings, settings: Settings) -> None:
    from autospec.backends.protocol import Capabilities

    try:
        from autospec.backends.registry import available

        found = dict(available(settings))
    except Exception as error:  # noqa: BLE001 - one broken part must not hide the others
        findings.problems.append(_problem("The backends cannot be checked", error))
        return
    for name, answer in found.items():
        if isinstance(answer, Capabilities):
            findings.backends.append(
                {
                    "name": name,
                    "ok": True,
                    "build": answer.build.version,
                    "fingerprint": answer.build.fingerprint,
                    "modes": sorted(str(mode) for mode in answer.modes),
                    "notes": list(answer.notes),
                }
            )
        else:
            missing = _problem("", answer)
            findings.backends.append({"name": name, "ok": False, "build": "", "modes": [], **asdict(missing)})
    wanted = next((b for b in findings.backends if b["name"] == settings.backend), None)
    if settings.backend and wanted is None:
        names = ", ".join(b["name"] for b in findings.backends)
        findings.problems.append(
            DoctorProblem(
                f"The settings name an unknown backend {settings.backend}.", f"Choose one of {names}."
            )
        )
    elif wanted is not None and not wanted["ok"]:
        findings.problems.append(DoctorProblem(wanted["problem"], wanted["fix"]))
    elif not any(b["ok"] for b in findings.backends):
        findings.problems.append(
            DoctorProblem("No backend is installed.", "pip install xllamacpp, or brew install llama.cpp")
        )


def _examine_models(findings: Findings, settings: Settings) -> None:
    try:
        from autospec.catalog.scan import scan

        catalog = scan(settings)
    except Exception as error:  # noqa: BLE001 - as above
        findings.problems.append(_problem("The models cannot be listed", error))
        return
    places: dict[tuple[str, str], int] = {}
    for model in catalog.models:
        # The deepest searched folder: folders may be nested.
        roots = [folder for folder in catalog.looked_in if model.path.is_relative_to(folder)]
        root = max(roots, key=lambda folder: len(folder.parts), default=model.path.parent)
        place = (model.source, str(root))
        places[place] = places.get(place, 0) + 1
    findings.models = {
        "count": len(catalog.models),
        "places": [
            {"source": source, "path": path, "count": count}
            for (source, path), count in sorted(places.items(), key=lambda item: -item[1])
        ],
        "looked_in": [str(folder) for folder in catalog.looked_in],
        "warnings": list(catalog.warnings),
    }
    if not catalog.models:
        findings.problems.append(
            DoctorProblem(
                "No models were found.",
                f"Download a GGUF file, e.g. with LM Studio, or add your folder to {settings.config_file}: "
                'model_dirs = ["~/models"]',
            )
        )


def _examine_storage(findings: Findings, settings: Settings) -> None:
    findings.storage = {"url": settings.storage_shown, "ok": True}
    try:
        _try_storage(settings.storage)
    except Exception as error:  # noqa: BLE001 - as above
        problem = _problem("The database cannot be written", error)
        findings.storage["ok"] = False
        findings.problems.append(problem)


def _try_storage(url: str) -> None:
    file = _database_file(url)
    if file is not None and not file.exists():
        # The doctor must not create the file: the first tune does.
        folder = next(parent for parent in (file.absolute()).parents if parent.exists())
        if not os.access(folder, os.W_OK | os.X_OK) or not folder.is_dir():
            raise AutospecError(
                f"The database folder {folder} is not writable.",
                "Check who owns it, or choose another with AUTOSPEC_HOME.",
            )
        return
    from autospec.store.database import open_store

    open_store(url).close()


def _database_file(url: str) -> Path | None:
    from urllib.parse import unquote

    return Path(unquote(url.removeprefix("sqlite:///"))) if url.startswith("sqlite:///") else None


def _examine_launches(findings: Findings, settings: Settings, hardware: Hardware) -> None:
    """How much launches of each backend differ, as tunes on this machine measured it."""
    from autospec.measure.launch_scatter import LaunchScatter

    # autospec does not launch attached servers.
    launched = {b["name"]: b for b in findings.backends if b["ok"] and b["name"] != "attached"}
    known: dict[str, LaunchScatter] = {}
    file = _database_file(settings.storage)
    if launched and findings.storage["ok"] and (file is None or file.exists()):
        try:
            known = _known_launches(settings.storage, hardware, launched)
        except Exception as error:  # noqa: BLE001 - as above
            findings.problems.append(_problem("The measurements of launches cannot be read", error))
    for name, backend in launched.items():
        scatter = known.get(name, LaunchScatter())
        backend["launch_scatter"] = {**scatter.to_json(), "words": scatter.words}


def _known_launches(
    url: str, hardware: Hardware, backends: dict[str, dict[str, Any]]
) -> dict[str, LaunchScatter]:
    from autospec.cells import Build
    from autospec.store.database import open_store
    from autospec.tuning.launch_scatter import known_scatter

    store = open_store(url)
    try:
        return {
            name: known_scatter(store, hardware.id, Build(name, b["build"], b["fingerprint"]))
            for name, b in backends.items()
        }
    finally:
        store.close()


def _examine_state(findings: Findings, state: MachineState) -> None:
    from autospec.hardware.state import disturbed

    findings.state = state.to_json()
    if state.on_battery:
        findings.advice.append(DoctorProblem("The machine runs on battery.", "Plug it in before a tune."))
    if state.low_power:
        findings.advice.append(DoctorProblem("Low power mode is on.", "Turn it off before a tune."))
    if state.thermal == "throttled":
        findings.advice.append(DoctorProblem("Heat slows the processor.", "Let it cool down before a tune."))
    if reason := disturbed(state):
        findings.advice.append(
            DoctorProblem(
                reason, "Close other programs before a tune; autospec repeats disturbed measurements."
            )
        )


def _examine_signals(findings: Findings, settings: Settings) -> None:
    from autospec.daemon.status import glance

    findings.daemon = [check.to_json() for check in glance(settings, findings.state["other_load"]).checks]


def _problem(what: str, error: BaseException) -> DoctorProblem:
    if isinstance(error, AutospecError):
        return DoctorProblem(error.message, error.hint)
    logging.getLogger(__name__).debug("%s", what, exc_info=error)
    text = f"{type(error).__name__}: {error}"
    return DoctorProblem(
        f"{what}: {text}" if what else text, "Run `autospec doctor -v` and report its output to the project."
    )


def _document(findings: Findings, settings: Settings) -> dict[str, Any]:
    return {
        "schema": 1,
        "ok": not findings.problems,
        "autospec": autospec.__version__,
        "python": platform.python_version(),
        "config_file": str(settings.config_file),
        **asdict(findings),
    }


def _show(shell: Shell, findings: Findings, settings: Settings, hardware: Hardware) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    gpu = f", {hardware.gpu}" if hardware.gpu else ""
    state = findings.state
    free = gibibytes(state["memory_available_bytes"])
    power = {True: "on battery", False: "on mains power", None: "power unknown"}[state["on_battery"]]
    file = settings.config_file
    rows = [
        (
            "machine",
            f"{hardware.chip}, {gibibytes(hardware.memory_bytes)}, {hardware.cores} cores{gpu}",
        ),
        ("", f"{hardware.os}, id {hardware.id}"),
        (
            "now",
            f"other programs use {state['other_load']:.1f} of {state['cores']} cores, {free} free, {power}",
        ),
        ("autospec", f"{autospec.__version__}, Python {platform.python_version()}"),
        ("config", f"{file}" if file.is_file() else f"{file} (does not exist, the defaults apply)"),
        (
            "storage",
            f"{findings.storage['url']} ({'writable' if findings.storage['ok'] else 'not writable'})",
        ),
        *_backend_rows(findings.backends),
        *_model_rows(findings.models),
        *_signal_rows(findings.daemon),
    ]
    for label, text in rows:
        table.add_row(label, escape(text))
    shell.out(table)
    for heading, entries in (("Problems", findings.problems), ("Advice", findings.advice)):
        if entries:
            shell.out(f"\n{heading}:")
            for entry in entries:
                shell.out(f"  {entry.problem}\n    {entry.fix}" if entry.fix else f"  {entry.problem}")
    if not findings.problems:
        shell.out("\nReady. Run `autospec models`, then `autospec tune --model NAME`.")


def _backend_rows(backends: list[dict[str, Any]]) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for backend in backends:
        label = "backends" if not rows else ""
        if backend["ok"]:
            rows.append((label, f"{backend['name']} {backend['build']}: {', '.join(backend['modes'])}"))
            if "launch_scatter" in backend:
                rows.append(("", f"  {backend['launch_scatter']['words']}"))
            rows += [("", f"  {note}") for note in backend["notes"]]
        else:
            rows.append((label, f"{backend['name']}: {backend['problem']} {backend['fix']}".rstrip()))
    return rows


def _model_rows(models: dict[str, Any]) -> list[tuple[str, str]]:
    if not models:
        return []
    rows = [("models", f"{models['count']} found")]
    rows += [("", f"  {place['count']} in {place['path']} ({place['source']})") for place in models["places"]]
    return rows + [("", f"  warning: {warning}") for warning in models["warnings"]]


def _signal_rows(checks: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Whether the daemon would measure now."""
    rows = [("daemon", "may measure now" if all(c["allows"] for c in checks) else "would not measure now")]
    return rows + [("", f"  {c['name']}: {c['state']}, {c['words']}") for c in checks]

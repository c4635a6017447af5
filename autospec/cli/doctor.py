"""`autospec doctor`: what is here, what is missing, and how to fix it."""

from __future__ import annotations

import errno
import logging
import os
import platform
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import autospec
from autospec.cli.shell import Shell, command_options
from autospec.errors import AutospecError
from autospec.formats import gibibytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from autospec.cells import Hardware
    from autospec.hardware.gpu_reading import GpuReading
    from autospec.hardware.state import MachineState
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
    gpus: list[dict[str, Any]] = field(default_factory=list)
    backends: list[dict[str, Any]] = field(default_factory=list)
    models: dict[str, Any] = field(default_factory=dict)
    storage: dict[str, Any] = field(default_factory=dict)
    daemon: list[dict[str, Any]] = field(default_factory=list)
    problems: list[DoctorProblem] = field(default_factory=list)
    advice: list[DoctorProblem] = field(default_factory=list)

    @contextmanager
    def part(self, what: str) -> Iterator[None]:
        """Keep an error of this part as a problem: one broken part must not hide the others."""
        try:
            yield
        except AutospecError as error:
            self.problem(error.message, error.hint)
        except Exception as error:
            logging.getLogger(__name__).debug("%s", what, exc_info=error)
            hint = "Run `autospec doctor -v` and report its output to the project."
            self.problem(f"{what}: {type(error).__name__}: {error}", hint)

    def problem(self, problem: str, fix: str) -> None:
        """Add what keeps a tune from running."""
        self.problems.append(DoctorProblem(problem, fix))

    def advise(self, problem: str, fix: str) -> None:
        """Add what disturbs measurements."""
        self.advice.append(DoctorProblem(problem, fix))


@click.command()
@command_options
def command(shell: Shell) -> None:
    """Check what is here, what is missing, and how to fix it.

    \b
      autospec doctor
      autospec doctor --json | jq .problems
    """  # noqa: D301 - click needs the backspace itself
    from autospec.backends.binaries import first_look
    from autospec.cli.daemon import glance
    from autospec.hardware import identify
    from autospec.hardware.gpu import read_gpus, shared_limit_bytes
    from autospec.hardware.state import StateWatch

    settings = shell.settings
    hardware = identify()
    watch = StateWatch()
    watch.start()
    began_s = time.monotonic()
    findings = Findings(hardware=hardware.to_json())
    if note := first_look(settings.llama_server, settings.state_dir):
        shell.say(note)
    with findings.part("The backends cannot be checked"):
        _examine_backends(findings, settings)
    with findings.part("The models cannot be listed"):
        _examine_models(findings, settings)
    findings.storage = {"url": settings.storage_shown, "ok": False}
    with findings.part("The database cannot be written"):
        _try_storage(settings.storage)
        findings.storage["ok"] = True
    _examine_launches(findings, settings, hardware)
    _examine_translation(findings, settings)
    _examine_devices(findings, settings, hardware)
    time.sleep(max(0.0, _WATCH_S - (time.monotonic() - began_s)))
    _examine_state(findings, watch.finish(at_rest=True))
    with findings.part("The GPUs cannot be read"):
        _examine_gpus(findings, read_gpus())
    findings.daemon = [check.to_json() for check in glance(settings, findings.state["other_load"]).checks]
    if shell.json:
        document = {
            "schema": 1,
            "ok": not findings.problems,
            "autospec": autospec.__version__,
            "python": platform.python_version(),
            "config_file": str(settings.config_file),
            **asdict(findings),
        }
        shell.emit(document)
    else:
        _show(shell, findings, settings, hardware, shared_limit_bytes(hardware))


def _examine_backends(findings: Findings, settings: Settings) -> None:
    from autospec.backends.protocol import Capabilities
    from autospec.backends.registry import available

    for name, answer in dict(available(settings)).items():
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
            missing = {"problem": answer.message, "fix": answer.hint}
            findings.backends.append({"name": name, "ok": False, "build": "", "modes": [], **missing})
    wanted = next((b for b in findings.backends if b["name"] == settings.backend), None)
    if settings.backend and wanted is None:
        names = ", ".join(b["name"] for b in findings.backends)
        findings.problem(
            f"The settings name an unknown backend {settings.backend}.", f"Choose one of {names}."
        )
    elif wanted is not None and not wanted["ok"]:
        findings.problem(wanted["problem"], wanted["fix"])
    elif not any(b["ok"] for b in findings.backends):
        findings.problem("No backend is installed.", "pip install xllamacpp, or brew install llama.cpp")


def _examine_models(findings: Findings, settings: Settings) -> None:
    from autospec.catalog.scan import scan

    catalog = scan(settings)
    places: Counter[tuple[str, str]] = Counter()
    for model in catalog.models:
        # The deepest searched folder: folders may be nested.
        roots = [folder for folder in catalog.looked_in if model.path.is_relative_to(folder)]
        root = max(roots, key=lambda folder: len(folder.parts), default=model.path.parent)
        places[model.source, str(root)] += 1
    findings.models = {
        "count": len(catalog.models),
        "places": [
            {"source": source, "path": path, "count": count} for (source, path), count in places.most_common()
        ],
        "looked_in": [str(folder) for folder in catalog.looked_in],
        "warnings": [*catalog.warnings, *catalog.own.notes],
    }
    if not catalog.models:
        findings.problem(
            "No models were found.",
            f"Download a GGUF file, e.g. with LM Studio, or add your folder to {settings.config_file}: "
            'model_dirs = ["~/models"]',
        )


def _try_storage(url: str) -> None:
    from autospec.files import write_hint

    file = _database_file(url)
    if file is not None and not file.exists():
        # The doctor must not create the file: the first tune does.
        folder = next(parent for parent in (file.absolute()).parents if parent.exists())
        if not os.access(folder, os.W_OK | os.X_OK) or not folder.is_dir():
            raise AutospecError(
                f"The database folder {folder} is not writable.",
                write_hint(os.strerror(errno.EACCES)),
            )
        return
    from autospec.store.database import open_store

    open_store(url).close()


def _database_file(url: str) -> Path | None:
    from urllib.parse import unquote

    return Path(unquote(url.removeprefix("sqlite:///"))) if url.startswith("sqlite:///") else None


def _examine_launches(findings: Findings, settings: Settings, hardware: Hardware) -> None:
    """How much launches of each backend differ, as tunes on this machine measured it: of the model that was compared last."""
    from autospec.cells import Build
    from autospec.measure.launch_scatter import LaunchScatter
    from autospec.store.database import open_store
    from autospec.tuning.launch_scatter import known_scatter

    # autospec does not launch attached servers.
    launched = {b["name"]: b for b in findings.backends if b["ok"] and b["name"] != "attached"}
    known: dict[str, tuple[str, LaunchScatter]] = {}
    file = _database_file(settings.storage)
    if launched and findings.storage["ok"] and (file is None or file.exists()):
        with (
            findings.part("The measurements of launches cannot be read"),
            closing(open_store(settings.storage)) as store,
        ):
            for name, backend in launched.items():
                build = Build(name, backend["build"], backend["fingerprint"])
                # A verdict counts those of its own model.
                if models := store.compared_models(hardware.id, build):
                    known[name] = models[0], known_scatter(store, hardware.id, build, models[0])
    for name, backend in launched.items():
        model, scatter = known.get(name, ("", LaunchScatter()))
        words = f"{model}: {scatter.words}" if model else scatter.words
        backend["launch_scatter"] = {**scatter.to_json(), "words": words}


def _examine_translation(findings: Findings, settings: Settings) -> None:
    """Whether Python or llama-server are Intel programs on Apple silicon."""
    from autospec.hardware.identity import ROSETTA, ROSETTA_HINT, built_for, is_translated

    if platform.system() != "Darwin":
        return
    translated = is_translated()
    if translated:
        findings.problem(ROSETTA, ROSETTA_HINT)
    program = shutil.which(Path(settings.llama_server or "llama-server").expanduser())
    if program and (translated or platform.machine() == "arm64") and built_for(Path(program)) == {"x86_64"}:
        findings.problem(
            f"{program} is an Intel program on Apple silicon (Rosetta): it computes without Metal.",
            "Install one for arm64: brew install llama.cpp, with Homebrew in /opt/homebrew.",
        )


def _examine_devices(findings: Findings, settings: Settings, hardware: Hardware) -> None:
    """Whether llama-server uses the GPU at all: after a driver that does not fit, it computes on the processor without an error."""
    from autospec.backends.binaries import list_devices
    from autospec.hardware.gpu import is_integrated

    program = shutil.which(Path(settings.llama_server or "llama-server").expanduser())
    names = hardware.gpu.split(", ") if hardware.gpu else []
    on_mac = hardware.os.startswith("macos")
    if program is None or not names or (all(map(is_integrated, names)) and not on_mac):
        return
    if list_devices(Path(program)) == ():
        findings.advise(
            f"{program} finds no GPU, although this machine has {hardware.gpu}: models run on the processor.",
            "Install a build for this GPU and its driver. `llama-server --list-devices` lists what it finds, or says why it finds nothing.",
        )


def _examine_state(findings: Findings, state: MachineState) -> None:
    from autospec.hardware.state import disturbed

    findings.state = state.to_json()
    if state.on_battery:
        findings.advise("The machine runs on battery.", "Plug it in before a tune.")
    if state.low_power:
        findings.advise("Low power mode is on.", "Turn it off before a tune.")
    if state.thermal == "throttled":
        findings.advise("Heat slows the processor.", "Let it cool down before a tune.")
    if reason := disturbed(state):
        findings.advise(
            reason, "Close other programs before a tune; autospec repeats disturbed measurements."
        )


# A desktop and its programs; with more, a model that would fit may not.
_DESKTOP_BYTES = 2 * 1024**3
_DESKTOP_SHARE = 0.1


def _examine_gpus(findings: Findings, readings: Sequence[GpuReading]) -> None:
    """What keeps a model off a GPU, or slows the GPU."""
    from autospec.hardware.gpu_reading import HEAT

    findings.gpus = [reading.to_json() for reading in readings]
    for reading in readings:
        held, total = reading.held_bytes(), reading.total_bytes
        if held and total and held > max(_DESKTOP_BYTES, _DESKTOP_SHARE * total):
            findings.advise(
                f"Other processes hold {_of_gib(held, total)} of the memory of {reading.name}.",
                "Close them before a tune: a model that does not fit beside them is placed differently, or not at all.",
            )
        if reading.slowed:
            reasons = ", ".join("thermal" if reason == HEAT else reason for reason in reading.slowed)
            hint = "Let it cool down before a tune." if HEAT in reading.slowed else "Check its power supply."
            findings.advise(f"{reading.name} is throttled: {reasons}.", hint)


def _of_gib(part_bytes: int, total_bytes: int) -> str:
    return f"{part_bytes / 2**30:.1f} of {gibibytes(total_bytes)}"


def _gpu_rows(gpus: list[dict[str, Any]], name: str) -> list[tuple[str, str]]:
    """One row for each GPU with its figures. `name` is the system's name of all GPUs."""
    if not gpus and ("NVIDIA" in name or "AMD" in name or "Radeon" in name):
        words = "memory, heat and use by other programs are unknown: no library of its driver answers"
        return [("gpu", words)]
    rows: list[tuple[str, str]] = []
    for gpu in gpus:
        total, free = gpu["total_bytes"], gpu["free_bytes"]
        limit, default = gpu["power_limit_w"], gpu["power_limit_default_w"]
        lowered = (
            f" (its default is {default:.0f} W)"
            if limit and default and round(limit) != round(default)
            else ""
        )
        known = [
            f"{_of_gib(free, total)} free" if total is not None and free is not None else "",
            "" if gpu["temperature_c"] is None else f"{gpu['temperature_c']:.0f} °C",
            "" if gpu["power_w"] is None else f"{gpu['power_w']:.0f} W",
            f"limit {limit:.0f} W{lowered}" if limit else "",
        ]
        if any(known) and gpu["processes"] is None:
            known.append("which programs use it is unknown")
        words = ", ".join(word for word in known if word) or "nothing more is known"
        rows.append(("gpu" if not rows else "", f"{gpu['name']}: {words}"))
    return rows


def _show(
    shell: Shell, findings: Findings, settings: Settings, hardware: Hardware, gpu_limit_bytes: int
) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    gpu = f", {hardware.gpu}" if hardware.gpu else ""
    state = findings.state
    free = gibibytes(state["memory_available_bytes"])
    power = {True: "on battery", False: "on mains power", None: "power unknown"}[state["on_battery"]]
    writable = "writable" if findings.storage["ok"] else "not writable"
    file = settings.config_file
    rows = [
        ("machine", f"{hardware.chip}, {gibibytes(hardware.memory_bytes)}, {hardware.cores} cores{gpu}"),
        ("", f"{hardware.os}, id {hardware.id}"),
        *_gpu_limit_rows(gpu_limit_bytes, hardware.memory_bytes),
        (
            "now",
            f"other programs use {state['other_load']:.1f} of {state['cores']} cores, {free} free, {power}",
        ),
        *_gpu_rows(findings.gpus, hardware.gpu),
        ("autospec", f"{autospec.__version__}, Python {platform.python_version()}"),
        ("config", f"{file}" if file.is_file() else f"{file} (does not exist, the defaults apply)"),
        ("storage", f"{findings.storage['url']} ({writable})"),
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


def _gpu_limit_rows(limit_bytes: int, memory_bytes: int) -> list[tuple[str, str]]:
    if not limit_bytes:
        return []
    words = f"the GPU may use {gibibytes(limit_bytes)} of {gibibytes(memory_bytes)}"
    return [("", f"{words} (`sudo sysctl iogpu.wired_limit_mb=MIB` changes it until the next boot)")]


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

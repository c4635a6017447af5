"""`autospec studies`: list, show, import and export studies, and Optuna's dashboard."""

from __future__ import annotations

import importlib
import warnings
from contextlib import closing, suppress
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import click

from autospec.cli.options import complete_model
from autospec.cli.shell import Shell, command_options, refuse_missing_folder
from autospec.errors import AutospecError, NothingKnownError, install_line

if TYPE_CHECKING:
    from autospec.recommendations import StoredRecommendation
    from autospec.report.records import Record
    from autospec.report.studies import Export

__all__ = ["command", "copy_of_studies", "server_for"]


@click.group()
def command() -> None:
    """List, show, import and export studies, and look at them in Optuna's dashboard.

    \b
      autospec studies list
      autospec studies show "qwen3-coder coding"
      autospec studies import m2-ultra-2025-12-13
      autospec studies export -o mine.json
      autospec studies dashboard
    """  # noqa: D301 - click needs the backspace itself


@command.command(name="list")
@command_options
def list_(shell: Shell) -> None:
    """List Optuna's studies, and recommendations without a study."""
    from autospec.report.records import shipped_records
    from autospec.report.studies import read_studies
    from autospec.store.reader import read_recommendations

    url = shell.settings.storage
    studies, stored = read_studies(shell.settings.studies_url), read_recommendations(url, shell.warn)
    by_cell = {s.cell_key: s for s in stored}
    keys = {s.cell_key for s in studies}
    alone = [s for s in stored if s.cell_key not in keys]
    records = sorted(shipped_records())
    if shell.json:
        shell.emit(
            {
                "schema": 1,
                "studies": [
                    {**s.to_json(), "recommendation": _brief(by_cell.get(s.cell_key))} for s in studies
                ],
                "recommendations": [{"hardware": s.hardware.id, **(_brief(s) or {})} for s in alone],
                "records": records,
            }
        )
        return
    if not studies and not stored:
        shell.say("No studies yet. `autospec tune --model M` creates one.")
    else:
        from autospec.report.tables import studies_table

        shell.out(studies_table(studies, alone, by_cell))
    shell.say(f"Records shipped with autospec (`autospec studies import NAME`): {', '.join(records)}.")


@command.command()
@click.argument("name", nargs=-1, required=True)
@command_options
def show(shell: Shell, *, name: tuple[str, ...]) -> None:
    """Show every trial of one study, or a record.

    NAME is the study's name, words that occur only in that name, the cell's key, or a record's name or file.
    """
    from autospec.errors import NothingKnownError
    from autospec.report.records import read_record, shipped_records
    from autospec.report.studies import choose_study, read_studies

    text = " ".join(name)
    path = shipped_records().get(text) or (
        Path(text) if text.endswith(".toml") and Path(text).is_file() else None
    )
    if path is not None:
        _show_record(shell, read_record(path))
        return
    studies = read_studies(shell.settings.studies_url)
    if not studies:
        raise NothingKnownError("There are no studies yet.", "`autospec tune --model M` creates one.")
    study = choose_study(studies, text)
    if shell.json:
        shell.emit({"schema": 1, **study.to_json(), "trials": [t.to_json() for t in study.trials]})
        return
    from autospec.report.tables import trials_table

    shell.out(study.name)
    shell.out(trials_table(study))


@command.command(name="import")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@command_options
def import_(shell: Shell, *, files: tuple[str, ...]) -> None:
    """Import records (TOML) and exports (JSON); name shipped records by their names.

    Imported results have the status `imported` and never replace what was measured on this machine.
    """
    from autospec.report.studies import import_into
    from autospec.store.database import open_store

    # Read all files before storing any: a wrong file must not leave a partial import.
    exports = [_read(file) for file in files]
    for export in exports:
        if export.unread:
            shell.warn(export.unread)
    with closing(open_store(shell.settings.storage, shell.warn)) as store:
        results = [import_into(store, export) for export in exports]
    if shell.json:
        shell.emit(
            {
                "schema": 1,
                "imported": [
                    {
                        "file": file,
                        "hardware": sorted({s.hardware.id for s in export.recommendations}),
                        "recommendations": result.recommendations,
                        "known": result.known,
                        "measurements": result.measurements,
                    }
                    for file, export, result in zip(files, exports, results, strict=True)
                ],
            }
        )
    for file, export, result in zip(files, exports, results, strict=True):
        machines = ", ".join(sorted({s.hardware.id for s in export.recommendations})) or "no machine"
        shell.out(
            f"{file}: {result.recommendations} recommendations of {machines} imported,"
            f" {result.known} already known; {result.measurements} measurements"
        )


@command.command()
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write to this file instead of stdout.",
)
@click.option(
    "-m", "--model", default="", metavar="M", help="Only this main model.", shell_complete=complete_model
)
@command_options
def export(shell: Shell, *, output: Path | None, model: str) -> None:
    """Write recommendations, measurements and trials as JSON.

    The file contains no prompts and no answers.
    """
    import json

    from autospec.errors import AutospecError, NothingKnownError
    from autospec.report.selection import match_model
    from autospec.report.studies import export_document, read_studies
    from autospec.store.database import open_store

    studies = read_studies(shell.settings.studies_url)
    with closing(open_store(shell.settings.storage, shell.warn)) as store:
        stored = store.recommendations()
        if model:
            stored = match_model(stored, model)
            names = {s.recommendation.model for s in stored}
            studies = [s for s in studies if s.cell.get("model") in names]
        keys = dict.fromkeys([*(s.cell_key for s in stored), *(s.cell_key for s in studies if s.cell_key)])
        measurements = [m for key in keys for m in store.measurements(key)]
        known = {s.recommendation.model for s in stored}
        overall = [s for s in store.overall_answers() if s.recommendation.model in known]
    if not stored and not studies:
        raise NothingKnownError(
            f"Nothing is known{f' about {model}' if model else ' yet'}.", "Run `autospec tune`."
        )
    document = export_document(stored, measurements, studies, overall=overall)
    if output is None:
        shell.emit(document)
        return
    refuse_missing_folder(output)
    try:
        output.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise AutospecError(
            f"{output} cannot be written: {error.strerror}.", "Choose another file with -o."
        ) from error
    counts = {"recommendations": len(stored), "measurements": len(measurements), "studies": len(studies)}
    if shell.json:
        shell.emit({"schema": 1, "file": str(output), **counts})
    shell.say(f"{output}: " + ", ".join(f"{count} {what}" for what, count in counts.items()))


@command.command()
@click.option("--host", default="127.0.0.1", show_default=True, metavar="H", help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8123,
    show_default=True,
    metavar="N",
    help="Port to listen on; 0 for a free one.",
)
@command_options
def dashboard(shell: Shell, *, host: str, port: int) -> None:
    """Open Optuna's dashboard on a copy of the studies.

    The dashboard can rename and delete studies, so it gets a copy in memory: nothing that is done there changes
    autospec's studies. Start it again to see newer trials. It needs the extra "dashboard"; where that is missing, the
    error names the command that installs it.
    """
    copies, count = copy_of_studies(shell.settings.studies_url)
    with server_for(copies, host, port) as server:
        url = f"http://{host}:{server.server_port}/"
        if shell.json:
            shell.emit({"schema": 1, "url": url, "studies": count})
        else:
            shell.out(f"Optuna's dashboard on a copy of {count} studies: {url}")
            shell.say("Ctrl-C ends it. What is changed there is not kept.")
        with suppress(KeyboardInterrupt):
            server.serve_forever()


def _read(name: str) -> Export:
    from autospec.report.records import find_record, read_record, recommendations_of
    from autospec.report.studies import Export, read_export

    path = find_record(name)
    if path.suffix == ".json":
        return read_export(path)
    return Export(tuple(recommendations_of(read_record(path))))


def _brief(stored: StoredRecommendation | None) -> dict[str, Any] | None:
    if stored is None:
        return None
    data = stored.recommendation.to_json()
    which = ("model", "backend", "backend_build", "prompt_type")
    result = ("verdict", "drafting", "speedup", "status", "created_at")
    return {"cell_key": stored.cell_key, **{key: data[key] for key in (*which, *result)}}


def _show_record(shell: Shell, record: Record) -> None:
    from autospec.report.records import benchmark_markdown

    if shell.json:
        shell.emit(
            {
                "schema": 1,
                "name": record.name,
                "date": record.date.isoformat(),
                "hardware": record.hardware.to_json(),
                "groups": [
                    {
                        "backend": g.backend,
                        "build": g.build,
                        "model": g.model,
                        "drafting": g.drafting.to_json(),
                        "runs_tps": list(g.runs_tps),
                        "command": list(g.command),
                    }
                    for g in record.groups
                ],
            }
        )
        return
    gib = record.hardware.memory_bytes // 2**30
    shell.out(
        benchmark_markdown(
            record.groups,
            title=record.title,
            date=record.date.isoformat(),
            hardware=f"{record.hardware.chip}, {gib} GB",
            prompt=record.prompt,
            max_tokens=record.max_tokens,
            methodology=record.notes,
        )
    )


# What the values of all studies are.
_VALUE = "speed ratio to off"
# Parts of a cell that get an attribute of their own.
_CELL = ("model", "prompt_type", "backend", "build", "hardware")


def copy_of_studies(url: str) -> tuple[Any, int]:
    """A storage in memory with a copy of every study, and how many there are, for Optuna's dashboard.

    optuna-dashboard can rename and delete studies and trials, and cannot be told not to. What is changed in the copy is gone when
    it ends, and trials that are made meanwhile are not in it.

    Each copy says in attributes of its own what it is a study of, beside what autospec keeps with it.

    Raises:
        NothingKnownError: There are no studies.
        StoreError: The storage cannot be used.
    """
    from autospec.report.studies import read_studies

    known = read_studies(url)
    if not known:
        raise NothingKnownError("There are no studies yet.", "`autospec tune --model M` creates one.")
    import optuna

    from autospec.tuning.study import open_storage

    storage, copies = open_storage(url), optuna.storages.InMemoryStorage()
    for study in known:
        optuna.copy_study(from_study_name=study.name, from_storage=storage, to_storage=copies)
        copy = optuna.load_study(study_name=study.name, storage=copies)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            copy.set_metric_names([_VALUE])
        for part in _CELL:
            if study.cell.get(part):
                copy.set_user_attr(part, study.cell[part])
        if (best := study.best) is not None and best.drafting is not None:
            copy.set_user_attr("best drafting", best.drafting.label)
            copy.set_user_attr("best ratio", best.value)
    return copies, len(known)


class _Quiet(WSGIRequestHandler):
    """Writes no line for each request."""

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Nothing."""


class _Threads(ThreadingMixIn, WSGIServer):
    """A page asks several things at once."""

    daemon_threads = True


def server_for(storage: Any, host: str, port: int) -> WSGIServer:
    """The dashboard's server on a storage, not yet serving.

    Raises:
        AutospecError: optuna-dashboard is not installed, or the port is taken.
    """
    try:
        dashboard = importlib.import_module("optuna_dashboard")
    except ImportError as error:
        raise AutospecError(
            f"Optuna's dashboard is not installed ({error.name}).", install_line("dashboard")
        ) from error
    try:
        return make_server(host, port, dashboard.wsgi(storage), server_class=_Threads, handler_class=_Quiet)
    except OSError as error:
        raise AutospecError(
            f"Port {port} cannot be used: {error.strerror or error}.", "Choose another with --port."
        ) from error

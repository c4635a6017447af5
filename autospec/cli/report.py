"""`autospec explain` and `autospec report`: a recommendation in words and numbers; everything as one HTML page that opens offline."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from autospec.cli.options import model_option, result_options, selected
from autospec.cli.shell import Shell, command_options, refuse_missing_folder

if TYPE_CHECKING:
    from collections.abc import Callable

    from autospec.catalog.model import Model
    from autospec.recommendations import StoredRecommendation
    from autospec.report.explanation import Explanation
    from autospec.report.html.findings import Findings, RecordFindings
    from autospec.report.studies import Evidence
    from autospec.store.database import Store

__all__ = ["command", "explain_command"]

_FOUNDING_RECORD = "m2-ultra-2025-12-13"
# Of a file, what has to tell that autospec wrote it.
_HEAD_BYTES = 2048


@click.command()
@model_option(required=False)
@result_options
@click.option("--all-hardware", is_flag=True, help="Results of all machines.")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default="autospec-report.html",
    show_default=True,
    metavar="FILE",
    help="Write the page here. An earlier report is replaced.",
)
@click.option("--force", is_flag=True, help="Replace FILE even if it is not an autospec report.")
@click.option("--open", "show", is_flag=True, help="Show the page in the browser.")
@command_options
def command(
    shell: Shell, /, *, output: Path, force: bool, show: bool, all_hardware: bool, **question: Any
) -> None:
    """Write a page with everything that is known: verdicts, figures, reasons, and the raw numbers.

    The page is one file and loads nothing from a network. It contains no answers, and no prompts but that of the founding record,
    which is part of the page without --model.

    \b
      autospec report
      autospec report --model qwen3-coder-30b -o qwen.html --open

    It needs the extra "report" (Matplotlib and Jinja2); where that is missing, the error names the command that installs it.
    Exits with 3 if nothing is known of the model that is named.
    """  # noqa: D301 - click needs the backspace itself
    from autospec.files import replace_file

    _require_extra()
    refuse_missing_folder(output)
    _refuse_foreign(output, force=force)
    from autospec.report.html.page import page

    findings = _findings(shell, {**question, "all_hardware": all_hardware})
    text = page(findings)
    # A rename would replace a special file such as /dev/stdout.
    if output.exists() and not output.is_file():
        output.write_text(text, encoding="utf-8")
    else:
        replace_file(output, text, durable=False)
    if shell.json:
        models = [m.model for m in findings.models]
        shell.emit({"schema": 1, "file": str(output), "bytes": len(text.encode()), "models": models})
    if findings.models:
        shell.say(f"Wrote {output}.")
    else:
        shell.say(f"Wrote {output}. Nothing is known of this machine yet: run `autospec tune --model MODEL`.")
    if findings.note:
        shell.warn(findings.note)
    if show:
        _show(shell, output)


def _findings(shell: Shell, question: dict[str, Any]) -> Findings:
    from autospec.errors import NothingKnownError
    from autospec.hardware import identify
    from autospec.report.html.findings import Findings, gather
    from autospec.report.studies import read_studies
    from autospec.store.database import open_store
    from autospec.tuning.profiling import keeps_state

    settings = shell.settings
    try:
        selection = selected(shell, question)
    except NothingKnownError:
        # Without a choice there is a page all the same, which says what to do.
        if any(value for name, value in question.items() if name != "aim"):
            raise
        return Findings(identify(), record=_record())
    trials = {s.cell_key: s.trials for s in read_studies(settings.studies_url)}
    models = _catalogue(shell)
    with closing(open_store(settings.storage, shell.warn)) as store:

        def explained(stored: StoredRecommendation, found: Evidence) -> Explanation:
            return _explained(store, stored, found, models(stored.recommendation.model_path))

        measured = gather(store, selection, trials, explained, uncut=keeps_state)
    record = None if question["model"] else _record()
    return Findings(selection.hardware, measured, record, selection.foreign_note)


def _record() -> RecordFindings:
    from autospec.report.html.findings import record_findings
    from autospec.report.records import find_record, read_record

    return record_findings(read_record(find_record(_FOUNDING_RECORD)))


def _catalogue(shell: Shell) -> Callable[[str], Model | None]:
    """Finds main models by their paths; ``None`` for one that is not on this machine."""
    from autospec.catalog.scan import scan
    from autospec.errors import AutospecError

    catalogue = scan(shell.settings)

    def find(path: str) -> Model | None:
        try:
            return catalogue.find(path) if path else None
        except AutospecError:
            return None

    return find


def _require_extra() -> None:
    from importlib.util import find_spec

    from autospec.errors import AutospecError, install_line

    missing = [name for name in ("matplotlib", "jinja2") if find_spec(name) is None]
    if missing:
        raise AutospecError(
            f"The report needs packages that are not installed: {' and '.join(missing)}.",
            install_line("report"),
        )


def _refuse_foreign(output: Path, *, force: bool) -> None:
    """Keep a file that somebody else wrote."""
    from autospec.errors import UsageError
    from autospec.report.html import GENERATOR

    if force or not output.is_file():
        return
    with output.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if head.strip() and f'name="generator" content="{GENERATOR}'.encode() not in head:
        raise UsageError(
            f"{output} exists and is not an autospec report.", "Choose another file with -o, or add --force."
        )


def _show(shell: Shell, output: Path) -> None:
    import webbrowser

    if not webbrowser.open(output.resolve().as_uri()):
        shell.warn(f"no browser could be started; open {output} yourself.")


@click.command()
@model_option()
@result_options
@command_options
def explain_command(shell: Shell, /, **question: Any) -> None:
    """Explain a recommendation: speeds, acceptance, the cost of proposals, and the break-even point.

    \b
      autospec explain --model qwen3-coder-30b --prompt-type coding

    Exits with 3 if nothing is known yet.
    """  # noqa: D301 - click needs the backspace itself
    settings, selection = shell.settings, selected(shell, question)
    from autospec.report.explanation import explain_overall
    from autospec.report.studies import evidence_of, read_studies
    from autospec.store.database import open_store

    trials = {s.cell_key: s.trials for s in read_studies(settings.studies_url)}
    path = selection.stored[0].recommendation.model_path
    main = _catalogue(shell)(path) if path else None
    with closing(open_store(settings.storage, shell.warn)) as store:
        explained = [
            _explained(store, s, evidence_of(store, s, trials.get(s.cell_key, ())), main)
            for s in selection.stored
        ]
    together = [explain_overall(r) for r in selection.overall or ()]
    if shell.json:
        shell.emit(
            {
                "schema": 1,
                "hardware": selection.hardware.to_json(),
                "explanations": [
                    {"recommendation": r.to_json(), "figures": e.figures, "sentences": list(e.sentences)}
                    for r, e in zip(selection.recommendations, explained, strict=True)
                ],
                "overall": [
                    {
                        "recommendation": e.recommendation.to_json(),
                        "figures": e.figures,
                        "sentences": list(e.sentences),
                    }
                    for e in together
                ],
            }
        )
        return
    shell.out("\n\n".join(_text(e) for e in (*explained, *together)))
    if selection.foreign_note:
        shell.warn(selection.foreign_note)


def _explained(
    store: Store, stored: StoredRecommendation, found: Evidence, main: Model | None
) -> Explanation:
    """The explanation of a recommendation, with how far live traffic falls short of the proof."""
    from dataclasses import replace

    from autospec.daemon.staleness import gap_of, samples_of
    from autospec.report.explanation import explain

    r = stored.recommendation
    explained = explain(r, found.pairs, found.trials, model=main)
    live = store.samples(
        since=0.0, model=r.model, backend=r.backend, prompt_type=r.prompt_type, drafting=r.drafting
    )
    gap = gap_of(r, samples_of(r, live), store.former_recommendations(stored.cell_key))
    if gap is None:
        return explained
    figures = explained.figures | {"traffic": gap.to_json()}
    return replace(explained, figures=figures, sentences=(*explained.sentences, gap.sentence))


def _text(e: Explanation) -> str:
    import textwrap

    first, *rest = e.sentences
    return "\n".join(
        [
            textwrap.fill(first, 100),
            *(textwrap.fill(s, 100, initial_indent="  - ", subsequent_indent="    ") for s in rest),
        ]
    )

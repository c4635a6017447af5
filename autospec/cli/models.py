"""`autospec models` and `autospec drafts`: the main models on this disk, what is proven of them, and the drafts of one.

Also the choice of a main model where a command got none.
"""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from autospec.cli.options import model_option
from autospec.cli.shell import Shell, command_options
from autospec.errors import AutospecError, UsageError
from autospec.formats import counted, gigabytes
from autospec.recommendations import Status, StoredRecommendation, Verdict

if TYPE_CHECKING:
    from pathlib import Path

    from rich.table import Table

    from autospec.catalog.candidates import Candidate
    from autospec.catalog.model import Model
    from autospec.catalog.scan import Catalog
    from autospec.catalog.suggestions import Suggestion
    from autospec.settings import Settings

__all__ = [
    "choose_model",
    "command",
    "count_drafts",
    "drafts_command",
    "known_here",
    "nothing_found",
    "proven_words",
]


@click.command()
@command_options
def command(shell: Shell) -> None:
    """List the main models on this disk.

    Searches the caches of llama.cpp, Hugging Face, LM Studio and Ollama, and the folders of the setting
    model_dirs. Only metadata is read.

    \b
    Examples:
      autospec models
      autospec models --json
    """  # noqa: D301 - click needs the backspace itself
    from autospec.catalog.scan import scan

    catalog = scan(shell.settings)
    fits = count_drafts(catalog, shell.settings)
    if shell.json:
        shell.emit(
            {
                "schema": 1,
                "models": [
                    _document(m, fits.get(m.path), catalog.own.projectors.get(m.path, ()))
                    for m in catalog.models
                ],
                "warnings": list(catalog.warnings),
            }
        )
    elif catalog.models:
        shell.out(_table(catalog, fits))
        for line in _projector_lines(catalog, shell.settings):
            shell.say(line)
    else:
        shell.out(nothing_found(catalog))
    for warning in (*catalog.warnings, *catalog.own.notes):
        shell.warn(warning)


def count_drafts(catalog: Catalog, settings: Settings) -> dict[Path, int]:
    """How many drafts fit each main model of a catalogue, by its path."""
    from autospec.catalog.candidates import count_fits
    from autospec.hardware import identify
    from autospec.hardware.gpu import model_memory_bytes, shared_limit_bytes

    hardware = identify()
    memory_bytes, gpu_limit_bytes = model_memory_bytes(hardware), shared_limit_bytes(hardware)
    return {
        model.path: count_fits(
            model,
            catalog.models,
            memory_bytes=memory_bytes,
            gpu_limit_bytes=gpu_limit_bytes,
            context_tokens=catalog.own.launch_context(model, settings),
        )
        for model in catalog.models
        if model.head is None
    }


def nothing_found(catalog: Catalog) -> str:
    """The sentence for an empty catalogue: which folders were searched, and how to add one."""
    from autospec.catalog.folders import printable

    folders = ", ".join(printable(str(p)) for p in catalog.looked_in)
    return (
        f"No models found in {folders}. Add a folder to model_dirs in the config file "
        "(`autospec config path`) or to AUTOSPEC_MODEL_DIRS."
    )


def _document(model: Model, fits: int | None, projectors: Sequence[Path]) -> dict[str, Any]:
    data = model.to_json()
    vocab = data["vocab"]
    if vocab is not None:
        del vocab["blocks"]
    return {
        **data,
        "is_moe": model.is_moe,
        "draft_kind": model.draft_kind,
        "fitting_drafts": fits,
        "projectors": [str(path) for path in projectors],
    }


def _projector_lines(catalog: Catalog, settings: Settings) -> list[str]:
    """A sentence for each model with projectors (mmproj): which one the proxy loads, or how to choose one."""
    lines = []
    for model in catalog.models:
        beside, section = catalog.own.projectors.get(model.path, ()), catalog.own.of(model)
        names = ", ".join(path.name for path in beside)
        if section is not None and section.mmproj:
            lines.append(f"{model.name}: every server loads the projector {section.mmproj} for images.")
        elif catalog.own.projector(model, settings):
            lines.append(f"{model.name}: the proxy loads the projector {names} for images.")
        elif beside:
            title, key = f'[models."{model.name}"]', f'mmproj = "{beside[0]}"'
            lines.append(
                f"{model.name}: no projector is loaded; beside it: {names}. To load one, write {title} into the config"
                f" and below it {key}."
            )
    return lines


def _table(catalog: Catalog, fits: dict[Path, int]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("Model", overflow="fold")
    table.add_column("Size", justify="right", no_wrap=True)
    table.add_column("Architecture")
    table.add_column("Parameters", no_wrap=True)
    table.add_column("Quantization")
    table.add_column("Context", justify="right")
    table.add_column("Drafts", justify="right")
    table.add_column("Where", overflow="fold")
    # Draft heads cannot be main models; they come last.
    for model in sorted(catalog.models, key=lambda m: m.head is not None):
        table.add_row(
            Text(model.name),
            gigabytes(model.size_bytes),
            Text(model.architecture),
            _parameters(model),
            model.quantization,
            str(model.context_length or ""),
            f"{model.draft_kind} head" if model.head else str(fits[model.path]),
            Text(model.source if model.source != "folder" else str(model.path.parent)),
        )
    return table


def _parameters(model: Model) -> str:
    if not model.is_moe:
        return f"{_count(model.parameters)} dense"
    active = f"{_count(model.active_parameters)} active, {model.active_experts} of {model.experts}"
    return f"{_count(model.parameters)} MoE ({active})"


def _count(number: int) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6)):
        if number >= 0.9995 * size:
            return f"{number / size:.3g}{unit}"
    return f"{number / 1e3:.3g}K"


# Prompt types named in a clause; the others are counted.
_TYPES = 3


def known_here(shell: Shell) -> list[StoredRecommendation]:
    """The newest recommendations of this machine; empty, with a warning, if the database cannot be read."""
    from autospec.errors import StoreError
    from autospec.hardware import identify
    from autospec.report.selection import newest, same_machine
    from autospec.store.reader import read_recommendations

    try:
        stored = read_recommendations(shell.settings.storage, shell.warn)
    except StoreError as error:
        shell.warn(str(error))
        return []
    here, aim = identify(), shell.aim_for(None)
    return newest(s for s in stored if s.recommendation.aim is aim and same_machine(s.hardware, here))


def proven_words(known: Sequence[StoredRecommendation], model: str) -> str:
    """What is proven of a model: ``proven: drafting pays for coding, not for chat``; empty if nothing is."""
    own = [s.recommendation for s in known if s.recommendation.model == model]
    proven = [r for r in own if r.status is Status.PROVEN and r.prompt_type is not None]
    pays = [str(r.prompt_type) for r in proven if r.verdict is Verdict.ENABLE]
    others = [str(r.prompt_type) for r in proven if r.verdict is Verdict.DISABLE]
    undecided = [str(r.prompt_type) for r in proven if r.verdict is Verdict.UNDECIDED]
    clauses = [f"drafting pays for {_few(pays)}"] if pays else []
    if others:
        clauses.append(f"not for {_few(others)}" if pays else f"drafting pays for none of {_few(others)}")
    if undecided:
        clauses.append(f"undecided for {_few(undecided)}")
    return f"{'proven: ' if pays or others else ''}{', '.join(clauses)}"


def _few(names: Sequence[str]) -> str:
    more = len(names) - _TYPES
    return ", ".join(names) if more <= 1 else f"{', '.join(names[:_TYPES])} and {more} more"


# Names in the sentence.
_NAMES = 12


def choose_model(shell: Shell) -> str:
    """The path of the main model that the user chooses.

    Raises:
        UsageError: There is nobody to ask, no model to choose from, or the input has ended.
    """
    from autospec.catalog.scan import scan

    catalog = scan(shell.settings)
    models = [m for m in catalog.models if m.head is None]
    if not models:
        raise UsageError(nothing_found(catalog))
    if shell.json or not (sys.stdin.isatty() and sys.stderr.isatty()):
        named = [m.name for m in models[:_NAMES]]
        more = f" and {len(models) - _NAMES} more" if len(models) > _NAMES else ""
        raise UsageError(f"No model is named: give --model one of {', '.join(named)}{more}.")
    for line in _lines(shell, catalog, models):
        click.echo(line, err=True)
    return str(_ask(catalog, models).path)


def _lines(shell: Shell, catalog: Catalog, models: Sequence[Model]) -> list[str]:
    """A line for each model, wrapped at words with its number standing out."""
    drafts = count_drafts(catalog, shell.settings)
    known = known_here(shell)
    digits = len(str(len(models)))
    width = max(20, shutil.get_terminal_size().columns - 1)
    lines = ["Which model?"]
    for number, model in enumerate(models, start=1):
        words = f"{_label(model, models)} ({gigabytes(model.size_bytes)}): {_drafts(drafts, model.path)}"
        if proven := proven_words(known, model.name):
            words += f"; {proven}"
        head = f"{number:>{digits + 2}}  "
        lines += textwrap.wrap(
            words,
            width,
            initial_indent=head,
            subsequent_indent=" " * len(head),
            break_on_hyphens=False,
        )
    return lines


def _label(model: Model, models: Sequence[Model]) -> str:
    """Its name; with the path if another model has the same."""
    return model.name if sum(m.name == model.name for m in models) == 1 else f"{model.name}, {model.path}"


def _drafts(drafts: Mapping[Path, int], path: Path) -> str:
    count = drafts.get(path, 0)
    return f"{counted(count, 'draft')} fit{'s' if count == 1 else ''}" if count else "no draft fits"


def _ask(catalog: Catalog, models: Sequence[Model]) -> Model:
    """Ask until the answer is a number of the list or a name. Ctrl-C ends the command like everywhere."""
    while True:
        click.echo("Number or name: ", err=True, nl=False)
        line = sys.stdin.readline()
        if not line:
            click.echo("", err=True)
            raise UsageError("No model was chosen.", "Name it with --model.")
        answer = line.strip()
        if not answer:
            continue
        exact = any(answer == m.name for m in models)
        if answer.isdecimal() and not exact:
            if 1 <= int(answer) <= len(models):
                return models[int(answer) - 1]
            click.echo(f"There is no number {answer}; the last one is {len(models)}.", err=True)
            continue
        try:
            return catalog.find(answer)
        except AutospecError as error:
            click.echo(str(error), err=True)


@click.command()
@model_option("model_name")
@click.option(
    "--suggest",
    "suggests",
    is_flag=True,
    help="Name public drafts for this model, from a table with sources. Nothing is downloaded.",
)
@click.option(
    "--context",
    type=click.IntRange(min=1),
    metavar="N",
    help="Context length for the memory estimate, in tokens. [default: the configured one]",
)
@command_options
def drafts_command(shell: Shell, model_name: str, *, suggests: bool, context: int | None) -> None:
    """Show which draft models fit a main model, and why others do not.

    A draft model must have the same vocabulary (by llama.cpp's rule), be much cheaper per token than the main
    model, and fit in memory beside it.

    \b
    Examples:
      autospec drafts --model qwen3-coder-30b
      autospec drafts --model ~/models/big.gguf --context 32768
      autospec drafts --model qwen3-32b --suggest
    """  # noqa: D301 - click needs the backspace itself
    from autospec.catalog.candidates import candidates_here
    from autospec.catalog.scan import scan

    catalog = scan(shell.settings, beside=[model_name])
    main = catalog.find_main(model_name)
    context = context or catalog.own.launch_context(main, shell.settings)
    found = candidates_here(main, catalog.models, context)
    if suggests:
        _suggest(shell, main, found, catalog.warnings)
        return
    if shell.json:
        shell.emit(
            {
                "schema": 1,
                "model": main.name,
                "model_path": str(main.path),
                "context_tokens": context,
                "drafts": [c.to_json() for c in found],
                "warnings": list(catalog.warnings),
            }
        )
    elif found:
        _show(shell, main.name, found)
    elif catalog.models:
        shell.out(
            f"{main.name} is the only model found, so there is no draft model for it. "
            "Add a folder to model_dirs in the config file (`autospec config path`)."
        )
    else:
        shell.out(nothing_found(catalog))
    for warning in catalog.warnings:
        shell.warn(warning)


def _suggest(shell: Shell, main: Model, found: Sequence[Candidate], warnings: Sequence[str]) -> None:
    """Name public drafts for a main model, and the commands that download them."""
    from autospec.catalog.candidates import undraftable
    from autospec.catalog.suggestions import suggest

    stuck = undraftable(main)
    suggestions = [] if stuck else suggest(main, found)
    if shell.json:
        shell.emit(
            {
                "schema": 1,
                "model": main.name,
                "model_path": str(main.path),
                "suggestions": [s.to_json() for s in suggestions],
                "reason": f"No draft works with {main.name}: it {stuck}." if stuck else None,
                "warnings": list(warnings),
            }
        )
    elif stuck:
        shell.out(f"No draft works with {main.name}: it {stuck}.")
    elif not suggestions:
        shell.out(
            f"The table of public drafts has none for {main.name} ({main.architecture}). A smaller model of the same family with"
            " the same tokenizer may do; `autospec drafts` checks any that is on the disk."
        )
    else:
        shell.out("\n\n".join([f"Public drafts for {main.name}", *(_suggestion(s) for s in suggestions)]))
        shell.say(
            "Nothing was downloaded. `autospec drafts` checks a downloaded file, `autospec estimate` says what it would need, and"
            " `autospec tune` measures."
        )
    for warning in warnings:
        shell.warn(warning)


def _suggestion(suggestion: Suggestion) -> str:
    from autospec.catalog.suggestions import size_words

    row = suggestion.row
    where = f"{row.repository}, {row.file}" if row.file else row.repository
    lines = [
        f"{where} ({row.mode}, size {size_words(row)})",
        f"  {row.why}",
        f"  {suggestion.fit}",
    ]
    if suggestion.here is None:
        lines.append(f"  {suggestion.command}")
        if suggestion.server_command:
            lines.append(f"  or, beside -m: {suggestion.server_command}")
    return "\n".join(lines)


def _show(shell: Shell, name: str, found: Sequence[Candidate]) -> None:
    fitting = [c for c in found if c.fits]
    refused = [c for c in found if not c.fits]
    if fitting:
        shell.out(_drafts_table(f"Draft models that fit {name}", fitting))
    else:
        shell.out(f"No draft model fits {name}.")
    if refused:
        shell.out(_drafts_table("Models that do not fit", refused))


def _drafts_table(title: str, found: Sequence[Candidate]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="bold"
    )
    table.add_column("Draft", overflow="fold")
    table.add_column("Mode", no_wrap=True)
    table.add_column("Size", justify="right", no_wrap=True)
    table.add_column("Why")
    for candidate in found:
        model = candidate.model
        size = "" if candidate.own_layers else gigabytes(model.size_bytes)
        table.add_row(Text(model.name), str(candidate.mode), size, Text(candidate.reason))
    return table

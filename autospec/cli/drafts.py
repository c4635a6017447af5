"""`autospec drafts`: which draft models fit a main model, and why others do not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from autospec.cli.shell import Shell, command_options, model_option
from autospec.formats import gigabytes

if TYPE_CHECKING:
    from rich.table import Table

    from autospec.catalog.candidates import Candidate
    from autospec.catalog.model import Model
    from autospec.catalog.suggestions import Suggestion

__all__ = ["command"]


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
def command(shell: Shell, model_name: str, *, suggests: bool, context: int | None) -> None:
    """Show which draft models fit a main model, and why others do not.

    A draft model must have the same vocabulary (by llama.cpp's rule), be much cheaper per token than the main
    model, and fit in memory beside it.

    \b
    Examples:
      autospec drafts --model qwen3-coder-30b
      autospec drafts --model ~/models/big.gguf --context 32768
      autospec drafts --model qwen3-32b --suggest
    """  # noqa: D301 - click needs the backspace itself
    from autospec.catalog.candidates import candidates
    from autospec.catalog.scan import scan
    from autospec.cli.models import nothing_found
    from autospec.errors import ModelChoiceError
    from autospec.hardware import identify
    from autospec.hardware.gpu import model_memory_bytes, shared_limit_bytes

    catalog = scan(shell.settings, beside=[model_name])
    main = catalog.find(model_name)
    if main.head is not None:
        raise ModelChoiceError(
            f"{main.name} is a draft head ({main.draft_kind}), not a main model.",
            "Name the model that it drafts for.",
        )
    context = context or catalog.own.launch_context(main, shell.settings)
    found = candidates(
        main,
        catalog.models,
        memory_bytes=model_memory_bytes(identify()),
        gpu_limit_bytes=shared_limit_bytes(identify()),
        context_tokens=context,
    )
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
        shell.out(_table(f"Draft models that fit {name}", fitting))
    else:
        shell.out(f"No draft model fits {name}.")
    if refused:
        shell.out(_table("Models that do not fit", refused))


def _table(title: str, found: Sequence[Candidate]) -> Table:
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

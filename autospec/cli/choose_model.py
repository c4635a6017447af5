"""The main model, where a command was given none: chosen from a numbered list on a terminal, else a sentence with the names."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import click

from autospec.cli.models import count_drafts, nothing_found
from autospec.cli.proven import known_here, proven_words
from autospec.errors import AutospecError, UsageError
from autospec.formats import counted, gigabytes

if TYPE_CHECKING:
    from pathlib import Path

    from autospec.catalog.model import Model
    from autospec.catalog.scan import Catalog
    from autospec.cli.shell import Shell

__all__ = ["choose_model"]

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

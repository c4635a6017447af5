"""`autospec models`: the main models on this disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from autospec.cli.shell import Shell, command_options
from autospec.formats import gigabytes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rich.table import Table

    from autospec.catalog.model import Model
    from autospec.catalog.scan import Catalog
    from autospec.settings import Settings

__all__ = ["command", "count_drafts", "nothing_found"]


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
    from autospec.catalog.model import context_of
    from autospec.hardware import identify
    from autospec.hardware.gpu import shared_limit_bytes

    hardware = identify()
    gpu_limit_bytes = shared_limit_bytes(hardware)
    own = catalog.own
    return {
        model.path: count_fits(
            model,
            catalog.models,
            memory_bytes=hardware.memory_bytes,
            gpu_limit_bytes=gpu_limit_bytes,
            context_tokens=context_of(
                own.args(model, settings), model.context_length, own.context_tokens(model, settings)
            ),
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
            example = f'[models."{model.name}"] mmproj = "{beside[0]}"'
            lines.append(
                f"{model.name}: no projector is loaded; beside it: {names}. To load one, set {example} in the config."
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

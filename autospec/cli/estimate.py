"""`autospec estimate`: at which acceptance rate drafting would be faster, at once, before anything is measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from autospec.cli.options import model_option
from autospec.cli.shell import Shell, command_options
from autospec.formats import counted, gigabytes

if TYPE_CHECKING:
    from rich.table import Table

    from autospec.catalog.model import Model
    from autospec.catalog.scan import Catalog
    from autospec.cells import Hardware
    from autospec.hardware.bandwidth import Speeds
    from autospec.hardware.gpu import Device
    from autospec.predict.estimate import DraftEstimate, Estimated

__all__ = ["command"]

# As long as a short chat.
_DEPTH_TOKENS = 1024


@click.command()
@model_option("model_name", required=False)
@click.option(
    "--depth",
    type=click.IntRange(min=0),
    default=_DEPTH_TOKENS,
    metavar="N",
    show_default=True,
    help="Tokens in the cache; with more of them each token takes longer.",
)
@command_options
def command(shell: Shell, model_name: str, depth: int) -> None:
    """Estimate at which acceptance rate drafting would be faster, before anything is measured.

    Adds up the bytes that a token reads, divides them by this machine's memory bandwidth (measured for two seconds
    on the processor, the chip's known figure for a GPU), and says which acceptance rate each fitting draft would need.
    Starts no server. An estimate can be wrong by a factor; only `autospec tune` measures.

    \b
    Examples:
      autospec estimate
      autospec estimate --model qwen3-coder-30b --depth 16384
    """  # noqa: D301 - click needs the backspace itself
    from autospec.catalog.scan import scan
    from autospec.cli.models import nothing_found
    from autospec.hardware import identify

    catalog = scan(shell.settings, beside=[model_name] if model_name else [])
    models = [catalog.find_main(model_name)] if model_name else [m for m in catalog.models if m.head is None]
    speeds = _Speeds(shell, catalog, identify())
    found = [(m, *_one(shell, catalog, m, speeds, depth)) for m in models]
    if shell.json:
        shell.emit(
            {
                "schema": 1,
                "kind": "estimate",
                "depth_tokens": depth,
                "models": [_document(m, figures, what, depth) for m, figures, what in found],
                "warnings": list(catalog.warnings),
            }
        )
    elif model_name:
        _show(shell, *found[0], depth)
    elif found:
        shell.out(_overview(found))
        shell.say("These are estimates. `autospec tune --model M` measures.")
    else:
        shell.out(nothing_found(catalog))
    for warning in catalog.warnings:
        shell.warn(warning)


class _Speeds:
    """The figures for each model; the processor is measured at most once, and only if a model runs on it."""

    def __init__(self, shell: Shell, catalog: Catalog, hardware: Hardware) -> None:
        self._shell = shell
        self._catalog = catalog
        self._hardware = hardware
        self._measured: Speeds | None = None
        self._devices: dict[str, tuple[Device, ...] | None] = {}

    def of(self, model: Model) -> Speeds | str:
        """The figures for this model, or why there are none."""
        from autospec.predict.estimate import speeds_for

        args = self._catalog.own.args(model, self._shell.settings)
        return speeds_for(model, args, self._on(model), self._hardware, self._processor)

    def _on(self, model: Model) -> tuple[Device, ...] | None:
        """What this model's backend computes on."""
        from autospec.backends.registry import OnDevices, backend_for
        from autospec.errors import AutospecError
        from autospec.hardware.gpu import devices_here

        if model.format not in self._devices:
            found = None
            try:
                backend = backend_for(self._shell.settings.backend or None, self._shell.settings, model)
                found = backend.devices() if isinstance(backend, OnDevices) else None
            except AutospecError:
                pass  # an estimate needs no backend: the machine's own devices are asked
            self._devices[model.format] = devices_here(self._hardware) if found is None else found
        return self._devices[model.format]

    def _processor(self) -> Speeds:
        from autospec.hardware.bandwidth import keep, measure

        if self._measured is None:
            self._measured = measure(self._hardware)
            keep(self._measured, self._hardware, self._shell.settings.state_dir)
        return self._measured


def _one(
    shell: Shell, catalog: Catalog, main: Model, speeds: _Speeds, depth: int
) -> tuple[Speeds | None, Estimated | str]:
    """The figures and the estimate of one model, or why there is none."""
    from autospec.catalog.candidates import candidates_here
    from autospec.errors import ModelFileError
    from autospec.predict.estimate import estimate_here

    figures = speeds.of(main)
    if isinstance(figures, str):
        return None, figures
    found = candidates_here(main, catalog.models, catalog.own.launch_context(main, shell.settings))
    try:
        fitting = [c for c in found if c.fits]
        return figures, estimate_here(main, fitting, figures, depth, free=main.format == "gguf")
    except ModelFileError as error:
        return figures, f"Unknown: {error.message}"


def _document(main: Model, figures: Speeds | None, what: Estimated | str, depth: int) -> dict[str, Any]:
    document: dict[str, Any] = {
        "model": main.name,
        "model_path": str(main.path),
        "machine": None if figures is None else figures.to_json(),
        "without_drafting": None,
        "weights": None,
        "drafts": [],
        "unknown": what if isinstance(what, str) else "",
    }
    if not isinstance(what, str):
        document |= {
            "without_drafting": what.own.to_json(),
            "weights": {
                "shared_bytes": what.weights.shared_bytes,
                "expert_bytes": what.weights.expert_bytes,
                "row_bytes": what.weights.row_bytes,
                "experts": main.experts,
                "active_experts": main.active_experts,
                "cache_bytes": main.kv_bytes(depth),
            },
            "drafts": [d.to_json() for d in what.drafts],
        }
    return document


def _show(shell: Shell, main: Model, figures: Speeds | None, what: Estimated | str, depth: int) -> None:
    if isinstance(what, str):
        shell.out(f"No estimate for {main.name}. {what}")
        return
    assert figures is not None
    shell.out("\n".join(_lines(main, figures, what, depth)))
    if what.drafts:
        shell.out(_table(what.drafts))
    shell.say(f"This is an estimate. `autospec tune --model {main.name}` measures.")


_BOUND = {
    "memory": "reading memory limits it",
    "compute": "computing limits it",
    "overhead": "the fixed time of its layers limits it",
}


def _lines(main: Model, figures: Speeds, what: Estimated, depth: int) -> list[str]:
    own, weights = what.own, what.weights
    experts = (
        f", with {main.active_experts} of the {main.experts} experts ({gigabytes(weights.expert_bytes)} in all)"
        if main.is_moe
        else ""
    )
    lines = [
        f"Estimate for {main.name}, with {depth} tokens in the cache",
        figures.words,
        (
            f"Each token reads {gigabytes(own.bytes_per_token)}, {gigabytes(main.kv_bytes(depth))} of it from the cache{experts}:"
            f" about {own.tokens_per_s:.0f} tok/s without drafting; {_BOUND[own.bound]}."
        ),
    ]
    if len(own.batch_ms) > 1:
        batches = ", ".join(f"{counted(k, 'token')} {ms:.1f} ms" for k, ms in own.batch_ms.items())
        lines.append(f"Time to compute several tokens at once: {batches}.")
    return lines


def _table(drafts: tuple[DraftEstimate, ...]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("Draft", overflow="fold")
    table.add_column("Reads per token", justify="right", no_wrap=True)
    table.add_column("If 70 % are accepted", justify="right", no_wrap=True)
    table.add_column("Estimate")
    for draft in drafts:
        ratio, n = (draft.speeds or {}).get(0.7, (None, 0))
        reads = gigabytes(draft.bytes_per_token) if draft.bytes_per_token else "nothing"
        gain = "" if ratio is None else f"{ratio:.2f}× with {n}"
        table.add_row(Text(draft.name), reads, gain, Text(draft.sentence))
    return table


def _overview(found: list[tuple[Model, Speeds | None, Estimated | str]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title="Estimates",
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        header_style="bold",
    )
    table.add_column("Model", overflow="fold")
    table.add_column("Without drafting", justify="right", no_wrap=True)
    table.add_column("Best draft", overflow="fold")
    table.add_column("Estimate")
    for main, _, what in found:
        if isinstance(what, str):
            table.add_row(Text(main.name), "", "", Text(what))
            continue
        speed = f"{what.own.tokens_per_s:.0f} tok/s"
        best = next((d for d in what.drafts if d.break_even is not None), None)
        if best is None:
            why = what.drafts[0].sentence if what.drafts else "No draft fits."
            table.add_row(Text(main.name), speed, "", Text(why))
        else:
            table.add_row(Text(main.name), speed, Text(best.name), Text(best.sentence))
    return table

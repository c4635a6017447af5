"""`autospec recommend`: the recommended configuration. It imports little, to answer at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from autospec.cli.options import model_option, result_options, selected
from autospec.cli.shell import Shell, command_options

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from autospec.cells import PromptType
    from autospec.recommendations import Recommendation
    from autospec.report.selection import Selection
    from autospec.settings import Settings

__all__ = ["command"]

# Words for a command line.
_WORDS = ("args", "mlx")
# Formats of files that other tools read; `-o` keeps the rest of the file.
_FILES = ("preset", "llama-swap")


@click.command()
@model_option(required=False)
@result_options
@click.option("--all-hardware", is_flag=True, help="Results of all machines.")
@click.option(
    "-f",
    "--format",
    "form",
    type=click.Choice(["table", "json", "args", "preset", "llama-swap", "mlx"]),
    default="table",
    show_default=True,
    help="args: flags for llama-server; preset: file for llama-server's --models-preset; llama-swap: its YAML file; "
    "mlx: an mlx_lm.server command line.",
)
@click.option(
    "--mix",
    metavar="MIX",
    help="Weights of prompt types for the overall answer, e.g. coding=3,chat=1. [default: the traffic's, else equal]",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write the preset or llama-swap entries into this file; its other content stays.",
)
@command_options
def command(shell: Shell, /, *, form: str, output: Path | None, mix: str | None, **question: Any) -> None:
    """Print what to run: a drafting configuration, or none.

    Without --prompt-type, args and mlx give the overall answer: the one drafting that is best for all prompt types together.
    A preset and llama-swap's file get an entry for it with the model's name, and one for each prompt type.

    \b
      autospec recommend
      autospec recommend --model qwen3-coder-30b --prompt-type coding
      llama-server -m MODEL $(autospec recommend -m MODEL -f args)
      autospec recommend --model qwen3-coder-30b --mix coding=3,chat=1
      autospec recommend --format preset -o models.ini
      $(autospec recommend -m MODEL -t coding -f mlx) --port 8080

    Exits with 3 if nothing is known yet.
    """  # noqa: D301 - click needs the backspace itself
    from autospec.errors import UsageError

    if shell.json and form in _WORDS:
        raise UsageError(f"--json and --format {form} cannot be used together.", "Leave one out.")
    if output is not None and form not in _FILES:
        raise UsageError(
            f"--output works with {' and '.join(_FILES)}, not with {form}.",
            "Redirect the output with > instead.",
        )
    if mix is not None and question["prompt_type"] is not None:
        raise UsageError("--mix and --prompt-type cannot be used together.", "Leave one out.")
    weights = None
    if mix is not None:
        from autospec.tuning.overall import parse_mix, refuse_mix

        weights = parse_mix(mix)
        refuse_mix(shell.aim_for(question["aim"]))
    selection = selected(shell, question)
    if weights is not None:
        selection = _mixed(shell, selection, weights, one_server=form in _WORDS)
    if form == "json" or (shell.json and form == "table"):
        shell.emit(selection.document())
    elif form == "table":
        from autospec.report.tables import recommendation_table

        shell.out(recommendation_table([*selection.recommendations, *(selection.overall or ())]))
    else:
        _configure(shell, selection, form, output)
    if selection.foreign_note:
        shell.warn(selection.foreign_note)


def _mixed(
    shell: Shell, selection: Selection, weights: dict[PromptType, float], *, one_server: bool
) -> Selection:
    """The selection with the overall answers for a mix of the user's, found from the stored pairs.

    Raises:
        NothingKnownError: There is none, and the words for `one_server` are asked for.
    """
    from contextlib import closing
    from dataclasses import replace

    from autospec.errors import NothingKnownError
    from autospec.store.database import open_store
    from autospec.store.reader import read_overall
    from autospec.tuning.overall_answer import for_mix

    # All that are stored; of rows that are not understood `selected` has told.
    answers = [s.recommendation for s in read_overall(shell.settings.storage)]
    with closing(open_store(shell.settings.storage, shell.warn)) as store:
        found: list[Recommendation] = for_mix(store, selection.stored, answers, weights)
    answered = {(r.model, r.backend) for r in found}
    types = " ".join(f"-t {kind}" for kind in weights)
    for model, backend in sorted({(r.model, r.backend) for r in selection.recommendations} - answered):
        message = (
            f"There is no answer for the mix: {model} on {backend} has no results for {', '.join(weights)}."
        )
        hint = f"Measure with `autospec tune --model {model} --backend {backend} {types}`."
        if one_server and not found:
            raise NothingKnownError(message, hint)
        shell.warn(f"{message} {hint}")
    return replace(selection, overall=tuple(found))


def _configure(shell: Shell, selection: Selection, form: str, output: Path | None) -> None:
    from autospec.errors import NothingKnownError
    from autospec.report.server_config import llama_swap_text, preset_text, update_file

    if selection.foreign and not all(r.drafting.is_off for r in selection.recommendations):
        # Do not pipe another machine's flags and paths into a server unless the user asks for them.
        machines = sorted({s.hardware.id for s in selection.stored})
        raise NothingKnownError(
            "No results of this machine match.",
            f"Run `autospec tune`, or use the results of another machine with --hardware {machines[0]}.",
        )
    # A file has a place for every prompt type, a command line for one drafting.
    recommendations = (
        [*(selection.overall or ()), *selection.recommendations]
        if form in _FILES
        else selection.for_one_server
    )
    _tell_why_off(shell, selection, recommendations)
    if form in _WORDS:
        _print_words(shell, recommendations, form, selection.recommendations)
        return
    aliases = _aliases(shell.settings, [r.model for r in recommendations])
    rendered = (
        preset_text(recommendations, aliases)
        if form == "preset"
        else llama_swap_text(recommendations, shell.settings.llama_server or "llama-server", aliases)
    )
    for sentence in rendered.left_out:
        shell.warn(sentence)
    if shell.json:
        left_out = list(rendered.left_out)
        shell.emit({"schema": 1, "format": form, "text": rendered.text, "left_out": left_out})
    if output is None:
        shell.out(rendered.text)
        return
    if update_file(output, rendered, form):
        entries = "1 entry" if len(rendered.names) == 1 else f"{len(rendered.names)} entries"
        shell.say(f"Wrote {entries} to {output}.")
    else:
        shell.say(f"{output} is up to date.")


def _print_words(
    shell: Shell, recommendations: Sequence[Recommendation], form: str, known: Sequence[Recommendation]
) -> None:
    """Words for a command line; on stderr, for which requests they are and where they were not faster."""
    import shlex

    from autospec.formats import caution_words
    from autospec.report.server_config import mlx_command, one_args, own_settings

    if form == "mlx":
        words = list(mlx_command(recommendations))
    else:
        args, chosen = one_args(recommendations)
        words = [*own_settings(chosen), *args]
        if not args:
            shell.say(f"Drafting off: start the server without drafting flags ({chosen.reason.rstrip('.')}).")
    for caution in dict.fromkeys(filter(None, (caution_words(r, known) for r in recommendations))):
        shell.say(caution)
    shell.out(shlex.join(words))


def _aliases(settings: Settings, models: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The config's aliases of each model, by the name under which it was measured."""
    from autospec.catalog.resolve import answering

    names = sorted(set(models))
    found: dict[str, tuple[str, ...]] = {}
    for section in settings.models:
        named = answering(
            names, Path(section.name).stem if "/" in section.name else section.name, lambda n: (n,)
        )
        if len(named) == 1 and section.aliases:
            found[named[0]] = section.aliases
    return found


def _tell_why_off(shell: Shell, selection: Selection, recommendations: Sequence[Recommendation]) -> None:
    """On stderr: why drafting is off, and what may be better soon."""
    from autospec.formats import likely_words
    from autospec.recommendations import Status, Verdict

    for r in selection.overall or ():
        if r.verdict is not Verdict.ENABLE or r.status is Status.STALE:
            stale = f" (stale: {r.evidence.get('stale_reason')})" if r.status is Status.STALE else ""
            shell.say(f"{r.model}, all prompt types together{stale}: {r.verdict}. {r.reason}")
    for r in recommendations:
        if words := likely_words(r):
            shell.say(f"{r.prompt_type}: off, because nothing is proven yet; {r.tried.label} is {words}.")

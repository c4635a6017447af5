"""The options and arguments that several commands have, and the models that Tab offers for them."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click

from autospec.cells import Aim, PromptType
from autospec.errors import AutospecError, UsageError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from autospec.cli.shell import Shell
    from autospec.report.selection import Selection

__all__ = ["complete_model", "model_option", "result_options", "selected", "server_args", "server_options"]

# What begins like this is a path and no name of a model.
_PATHS = ("/", "./", "../", "~")


def complete_model(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem[str]]:
    """What Tab offers for a main model or a draft: the known models whose name begins like this, or a hint for the shell to complete a path.

    The names come from the metadata cache alone. For a main model, draft heads are left out: they cannot be one.
    """
    from click.shell_completion import CompletionItem

    from autospec.catalog.scan import CACHE_FILE, MetadataCache
    from autospec.settings import load_settings

    if incomplete.startswith(_PATHS):
        return [CompletionItem(incomplete, type="file")]
    try:
        settings = load_settings(context.params.get("config"))
    except AutospecError:  # a shell has no place for a sentence about it
        return []
    drafts_too = "--draft" in parameter.opts
    names = {
        model.name
        for model in MetadataCache(settings.cache_dir / CACHE_FILE).models()
        if model.role == "text" and (drafts_too or model.head is None)
    }
    beginning = incomplete.casefold()
    fitting = sorted((name for name in names if name.casefold().startswith(beginning)), key=str.casefold)
    if not fitting:
        return [CompletionItem(incomplete, type="file")]
    return [CompletionItem(name) for name in fitting]


def model_option(name: str = "model", *, required: bool = True) -> Callable[[Any], Any]:
    """The option for the main model."""
    text = "Main model: its path, its name or a part of the name."
    # With an explicit default of None, click 8.3 would not ask for a required option.
    default: dict[str, Any] = {} if required else {"default": ""}
    return click.option(
        "-m",
        "--model",
        name,
        required=required,
        metavar="M",
        help=text,
        shell_complete=complete_model,
        **default,
    )


def result_options(function: Any) -> Any:
    """The options that choose among known results; `Question` has the same names."""

    def read(_context: click.Context, _option: click.Parameter, word: str | None) -> PromptType | None:
        return None if word is None else PromptType(word)

    types = click.Choice([str(t) for t in PromptType])
    for option in (
        click.option(
            "--hardware",
            "hardware_id",
            default="",
            metavar="ID",
            help="Results of another machine: the beginning of its id, which `autospec doctor` prints there.",
        ),
        click.option("--backend", default="", metavar="B", help="Only this backend."),
        click.option(
            "--aim",
            type=click.Choice([str(a) for a in Aim]),
            help="Results with this aim. [default: the setting aim]",
        ),
        click.option("-t", "--prompt-type", type=types, callback=read, help="Only this prompt type."),
    ):
        function = option(function)
    return function


def selected(shell: Shell, question: Mapping[str, Any]) -> Selection:
    """The stored results that `model_option` and `result_options` choose.

    Raises:
        NothingKnownError: There are none.
    """
    from autospec.hardware import identify
    from autospec.report.selection import Question, select
    from autospec.store.reader import read_overall, read_recommendations

    settings = shell.settings
    names = {"model": settings.named_by(question["model"]), "aim": shell.aim_for(question["aim"])}
    known = read_recommendations(settings.storage, shell.warn)
    overall = read_overall(settings.storage, shell.warn)
    return select(known, identify(), Question(**{**question, **names}), overall)


def server_options(function: Any) -> Any:
    """The options that choose what answers the requests; pass both to `Shell.choose_server`."""
    backend = "Backend; `autospec doctor` lists them. [default: an installed one that runs the model]"
    url = "Address of a running server; implies --backend attached."
    function = click.option("--url", metavar="URL", help=url)(function)
    return click.option("--backend", metavar="B", help=backend)(function)


def server_args(function: Any) -> Any:
    """The arguments for every server, after ``--``. Words before the first option of theirs are refused.

    An option of the command that such a word may be meant for is suggested.
    """
    return click.argument(
        "args", nargs=-1, type=click.UNPROCESSED, metavar="[-- SERVER ARGS…]", callback=_refuse_words
    )(function)


def _refuse_words(
    context: click.Context, _argument: click.Parameter, args: tuple[str, ...]
) -> tuple[str, ...]:
    words = list(itertools.takewhile(lambda word: not word.startswith("-"), args))
    if not words or context.resilient_parsing:
        return args
    # Arguments come after the options that were given, so the context knows whether a model is named.
    names = {parameter.name for parameter in context.command.params}
    takes_model, takes_types = not context.params.get("model"), "prompt_types" in names
    meant: list[str] = []
    for word in words:
        if takes_types and word in set(PromptType):
            meant += ["-t", word]
        elif takes_model:
            meant += ["--model", word]
            takes_model = False
    hint = (
        f"Did you mean {shlex.join(meant)}?"
        if meant
        else "Quote a value that has spaces. Arguments of the server stand after --, e.g. -- -ngl 99."
    )
    raise UsageError(f"The word {words[0]!r} belongs to no option.", hint)

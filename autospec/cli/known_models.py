"""The model names that Tab offers: those of the last search, without a look at the disk."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem

from autospec.catalog.scan import CACHE_FILE, MetadataCache
from autospec.errors import AutospecError
from autospec.settings import load_settings

__all__ = ["model_names"]

# What begins like this is a path and no name of a model.
_PATHS = ("/", "./", "../", "~")


def model_names(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem[str]]:
    """The known models whose name begins like this, or a hint for the shell to complete a path.

    The names come from the metadata cache alone. For a main model, draft heads are left out: they cannot be one.
    """
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

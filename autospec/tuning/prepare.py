"""From names, as people type them, to a `TuneRequest`: shared by the command line and `autospec.tune`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from autospec.catalog.scan import Catalog, scan
from autospec.cells import PromptType
from autospec.errors import UsageError
from autospec.prompts.suite import load_suite
from autospec.settings import Settings, parse_duration
from autospec.tuning.definition import load_definition
from autospec.tuning.request import TuneRequest

__all__ = ["prepare"]


def prepare(
    settings: Settings,
    model: str,
    *,
    drafts: Sequence[str] = (),
    prompt_types: Sequence[PromptType] = (),
    args: Sequence[str] = (),
    again: bool = False,
    warn: Callable[[str], None] = lambda _: None,
) -> TuneRequest:
    """Find the models and read study and suite.

    Args:
        settings: Study, suite, budget, the user's launch settings and storage are taken from here.
        model: A path, a catalogue name, or an unambiguous part of one.
        drafts: Likewise; if any, no other draft models are tried.
        prompt_types: Which; none for all that the suite has.
        args: Server arguments besides those of the settings.
        again: Measure afresh what is proven already.
        warn: Told each warning of the catalogue.

    Raises:
        UsageError: A name that is no model's or several's, a draft that is the main model, a malformed study, suite
            or duration.
        ModelFileError: A file that was asked for cannot be read.
    """
    # Cheap mistakes first: reading every model's metadata may take seconds on a cold cache.
    definition = load_definition(settings.study)
    suite = load_suite(Path(settings.suite) if settings.suite else None)
    budget_s = parse_duration(settings.budget) if settings.budget else None
    catalog = scan(settings, beside=[model, *drafts])
    try:
        main, chosen = catalog.find(model), tuple(catalog.find(d) for d in drafts)
    except UsageError:
        # What was not found may be among what could not be read.
        _tell(catalog, warn)
        raise
    _tell(catalog, warn)
    for draft in chosen:
        if draft.fingerprint == main.fingerprint:
            raise UsageError(
                f"{draft.name} is the main model itself and cannot draft for it.",
                f"`autospec drafts --model {main.name}` lists what can.",
            )
    return TuneRequest(
        model=main,
        models=catalog.models,
        definition=definition,
        suite=suite,
        storage=settings.storage,
        study_storage=settings.study_storage,
        drafts=chosen,
        prompt_types=tuple(prompt_types),
        args=(*settings.server_args, *args),
        temperature=settings.temperature,
        context_tokens=settings.context_tokens,
        budget_s=budget_s,
        again=again,
        forget_answers=settings.forget_answers,
    )


def _tell(catalog: Catalog, warn: Callable[[str], None]) -> None:
    for warning in catalog.warnings:
        warn(warning)

"""Find the model that a name means, for every command and the proxy, and what the config says of single models."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

from autospec.catalog.model import Model, context_of, names_context, names_projector, without_context
from autospec.errors import ModelChoiceError, ModelFileError, SettingsError, UnknownModelError
from autospec.settings import Adapter, ModelSettings, Settings

__all__ = ["OwnSettings", "ambiguous", "ambiguous_models", "answering", "apply_sections", "choose"]

_SEPARATORS = re.compile(r"[-_.\s:/\\]+")
_LISTED = 12
_Named = TypeVar("_Named")


def answering(
    candidates: Iterable[_Named], name: str, names: Callable[[_Named], Iterable[str]]
) -> list[_Named]:
    """Return the candidates that a name matches.

    Four rules apply in this order, and the first with a match decides: the exact name; the name without regard to case,
    separators (``-``, ``_``, ``.``, ``:``, ``/``, space) and a final ``.gguf``; a part of the name; a part without any separators.
    """
    candidates = list(candidates)
    wanted = _plain(name)
    if not wanted:
        return []
    short = wanted.replace("-", "")
    rules: tuple[Callable[[str], bool], ...] = (
        lambda n: n == name,
        lambda n: _plain(n) == wanted,
        lambda n: wanted in _plain(n),
        lambda n: short in _plain(n).replace("-", ""),
    )
    for rule in rules:
        if found := [c for c in candidates if any(map(rule, names(c)))]:
            return found
    return []


def choose(models: Iterable[Model], name: str) -> Model:
    """Return the one model that a name matches, see `answering`.

    Copies of the same file count as one, and a whole model has priority over a draft head.

    Raises:
        UnknownModelError: No model matches.
        ModelChoiceError: Several match, or the name is empty.
    """
    models = list(models)
    if not _plain(name):
        raise ModelChoiceError("The model's name is empty.", "`autospec models` lists the models.")
    matches = _distinct(answering(models, name, _names))
    whole = [m for m in matches if m.head is None]
    if len(whole) == 1 or len(matches) == 1:
        return (whole or matches)[0]
    if matches:
        raise ambiguous_models(name, matches)
    raise _unknown(name, models)


def ambiguous(name: str, labels: Iterable[str]) -> ModelChoiceError:
    """Build the error that lists what a name could mean, by names or paths."""
    labels = list(labels)
    lines = [f"  {label}" for label in labels[:_LISTED]]
    if more := len(labels) - len(lines):
        lines.append(f"  and {more} more")
    return ModelChoiceError(
        f"{name} could be any of {len(labels)} models:\n" + "\n".join(lines),
        "Give more of the name, or the path.",
    )


def ambiguous_models(name: str, matches: Sequence[Model]) -> ModelChoiceError:
    """Build the `ambiguous` error for models; paths are listed if names are equal."""
    same_name = len({m.name for m in matches}) < len(matches)
    return ambiguous(name, [str(m.path) if same_name else m.name for m in matches])


def _names(model: Model) -> tuple[str, ...]:
    return (model.name, *model.aliases)


def _plain(text: str) -> str:
    return _SEPARATORS.sub("-", text.casefold().strip().removesuffix(".gguf")).strip("-")


def _distinct(models: Sequence[Model]) -> list[Model]:
    """The first of each set of equal files."""
    return list({m.fingerprint: m for m in reversed(models)}.values())[::-1]


def _unknown(name: str, models: Sequence[Model]) -> UnknownModelError:
    plain = {_plain(n): n for m in models for n in _names(m)}
    close = [plain[p] for p in difflib.get_close_matches(_plain(name), plain, n=3, cutoff=0.4)]
    near = f" Similar names: {', '.join(close)}." if close else ""
    return UnknownModelError(
        f"No model matches {name}.{near}",
        "`autospec models` lists the models. A path works too.",
        known=tuple(m.name for m in models),
    )


@dataclass(frozen=True, slots=True)
class OwnSettings:
    """What is set for single models: sections of the config by the model's fingerprint, and the projectors beside each path.

    `notes`: a sentence for each section that applies to no model, or whose files are not as they should be.
    """

    sections: Mapping[str, ModelSettings] = field(default_factory=lambda: MappingProxyType({}))
    projectors: Mapping[Path, tuple[Path, ...]] = field(default_factory=lambda: MappingProxyType({}))
    notes: tuple[str, ...] = ()

    def of(self, model: Model) -> ModelSettings | None:
        """The model's section."""
        return self.sections.get(model.fingerprint)

    def own_args(self, model: Model) -> tuple[str, ...]:
        """Server arguments from the model's section alone."""
        section = self.of(model)
        if section is None:
            return ()
        if model.format == "mlx":
            adapters = [word for adapter in section.lora for word in ("--adapter-path", str(adapter.path))]
            return (*section.server_args, *adapters)
        context = ("-c", str(section.context_tokens)) if section.context_tokens else ()
        projector = ("--mmproj", section.mmproj) if section.mmproj else ()
        adapters = [word for adapter in section.lora for word in _lora_args(adapter)]
        return (*section.server_args, *context, *projector, *adapters)

    def args(self, model: Model, settings: Settings, extra: Sequence[str] = ()) -> tuple[str, ...]:
        """The user's server arguments for every launch of a model, part of its cells: the settings', the section's, then `extra`."""
        own = self.own_args(model)
        common = settings.server_args
        if names_context(own) and names_context(common):
            common = tuple(without_context(common))
        return (*common, *own, *extra)

    def context_tokens(self, model: Model, settings: Settings) -> int:
        """The context of a model's measured launches if its arguments set none."""
        section = self.of(model)
        return (section.context_tokens if section else 0) or settings.context_tokens

    def launch_context(self, model: Model, settings: Settings) -> int:
        """The context of a model's measured launches, with their arguments."""
        return context_of(
            self.args(model, settings), model.context_length, self.context_tokens(model, settings)
        )

    def projector(self, model: Model, settings: Settings) -> Path | None:
        """The projector that a server for users loads although the section does not name it: the only one beside the model.

        As llama.cpp does with -hf, and with a folder of --models-dir. Measured launches leave it out: no prompt of a suite
        has an image, and a file that appears beside a model must not make its recommendations stale.
        """
        section = self.of(model)
        beside = self.projectors.get(model.path, ())
        said = (section is not None and section.mmproj is not None) or names_projector(
            self.args(model, settings)
        )
        return beside[0] if settings.mmproj_auto and len(beside) == 1 and not said else None


def apply_sections(
    models: Sequence[Model],
    sections: Iterable[ModelSettings],
    *,
    find: Callable[[str], Model],
    adapter_digest: Callable[[Path], str],
) -> tuple[tuple[Model, ...], OwnSettings]:
    """The models as the config's sections describe them: with their aliases, and with the digest of their adapters.

    Args:
        models: The catalogue.
        sections: The config's sections.
        find: Finds the model that a section's name means, as for every other name.
        adapter_digest: Digest of an adapter's contents; raises `ModelFileError` if it cannot be read.

    Raises:
        SettingsError: Two sections are for one model, an alias is another model's name, or a section contradicts itself or
            asks for what the model's server does not have.
    """
    found = list(models)
    applied: dict[str, ModelSettings] = {}
    notes: list[str] = []
    for section in sections:
        try:
            wanted = find(section.name).fingerprint
        except (ModelChoiceError, ModelFileError) as error:
            notes.append(f"{section.title} in the config applies to no model. {error.message}")
            continue
        if rival := applied.get(wanted):
            raise SettingsError(
                f"{rival.title} and {section.title} are for the same model.", "Merge the two sections."
            )
        applied[wanted] = section
        if section.mmproj and not Path(section.mmproj).is_file():
            notes.append(f"The projector of {section.title} does not exist: {section.mmproj}.")
    for number, model in enumerate(models):
        own = applied.get(model.fingerprint)
        if own is None:
            continue
        _refuse_taken(own, model, models)
        if model.format == "mlx":
            _check_for_mlx(own)
        if own.context_tokens and names_context(own.server_args):
            raise SettingsError(
                f"{own.title} sets the context twice.", "Remove context_tokens, or -c in server_args."
            )
        found[number] = dataclasses.replace(
            model,
            aliases=tuple(dict.fromkeys((*model.aliases, *own.aliases))),
            adapters=_digest_of_adapters(own, adapter_digest, notes),
        )
    return tuple(found), OwnSettings(applied, notes=tuple(dict.fromkeys(notes)))


def _refuse_taken(section: ModelSettings, model: Model, models: Sequence[Model]) -> None:
    others = {name: m for m in models if m.fingerprint != model.fingerprint for name in _names(m)}
    for alias in section.aliases:
        if alias in others:
            raise SettingsError(
                f"The alias {alias} of {section.title} is the name of another model ({others[alias].path}).",
                "Choose another alias.",
            )


def _digest_of_adapters(section: ModelSettings, digest: Callable[[Path], str], notes: list[str]) -> str:
    """Of the adapters' contents and scales, so that an adapter that is trained again makes another cell; empty without any."""
    parts = []
    for adapter in section.lora:
        try:
            parts += [digest(adapter.path), f"{adapter.scale:g}"]
        except ModelFileError as error:
            notes.append(f"An adapter of {section.title} cannot be used. {error.message}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16] if parts else ""


def _lora_args(adapter: Adapter) -> tuple[str, str]:
    if adapter.scale == 1.0:
        return "--lora", str(adapter.path)
    return "--lora-scaled", f"{adapter.path}:{adapter.scale:g}"


def _check_for_mlx(section: ModelSettings) -> None:
    """mlx_lm.server loads one adapter, as it is, and no projector."""
    if section.mmproj or len(section.lora) > 1 or any(adapter.scale != 1.0 for adapter in section.lora):
        raise SettingsError(
            f"{section.title} asks for what mlx_lm.server does not have: it takes one adapter without a scale, and no mmproj.",
            "Take it out of the section, or use a GGUF file of the model.",
        )

"""Find the model that a name means, for every command and the proxy."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from autospec.catalog.model import Model
from autospec.errors import ModelChoiceError, UnknownModelError

__all__ = ["ambiguous", "ambiguous_models", "answering", "choose"]

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

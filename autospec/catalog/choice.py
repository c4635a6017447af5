"""Which model a person means by a name: DESIGN §7's *M*. Pure."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence

from autospec.catalog.model import Model
from autospec.errors import ModelChoiceError, UnknownModelError

__all__ = ["ambiguous", "choose"]

_SEPARATORS = re.compile(r"[-_.\s:/\\]+")
_LISTED = 12


def choose(models: Iterable[Model], name: str) -> Model:
    """Find the one model that answers to a name.

    Tried in this order: the exact name; the name without regard to case, ``-``, ``_``, ``.``; a part of the
    name; a part without any separators. Copies of the same file count as one, and a whole model goes before a draft head.

    Args:
        models: The catalogue.
        name: What the user typed.

    Raises:
        UnknownModelError: None answers.
        ModelChoiceError: Several do, or the name is empty.
    """
    models = list(models)
    wanted = _plain(name.removesuffix(".gguf").removesuffix(".GGUF"))
    if not wanted:
        raise ModelChoiceError("The model's name is empty.", "`autospec models` lists what was found.")
    rules: tuple[Callable[[Model], bool], ...] = (
        lambda m: name in _names(m),
        lambda m: wanted in map(_plain, _names(m)),
        lambda m: any(wanted in _plain(n) for n in _names(m)),
        lambda m: any(wanted.replace("-", "") in _plain(n).replace("-", "") for n in _names(m)),
    )
    for rule in rules:
        matches = _distinct([m for m in models if rule(m)])
        whole = [m for m in matches if m.head is None]
        if len(whole) == 1 or len(matches) == 1:
            return (whole or matches)[0]
        if matches:
            raise ambiguous(name, matches)
    raise _unknown(name, wanted, models)


def _names(model: Model) -> tuple[str, ...]:
    return (model.name, *model.aliases)


def _plain(text: str) -> str:
    return _SEPARATORS.sub("-", text.casefold()).strip("-")


def _distinct(models: Sequence[Model]) -> list[Model]:
    """One of each set of equal files, the first."""
    return list({m.fingerprint: m for m in reversed(models)}.values())[::-1]


def ambiguous(name: str, matches: Sequence[Model]) -> ModelChoiceError:
    """The error that lists what a name could mean.

    Args:
        name: What the user typed.
        matches: The models that answer to it.
    """
    same_name = len({m.name for m in matches}) < len(matches)
    lines = [f"  {m.path if same_name else m.name}" for m in matches[:_LISTED]]
    more = len(matches) - len(lines)
    lines += [f"  and {more} more"] if more else []
    return ModelChoiceError(
        f"{name} could be any of {len(matches)} models:\n" + "\n".join(lines),
        "Give more of the name, or the path.",
    )


def _unknown(name: str, wanted: str, models: Sequence[Model]) -> UnknownModelError:
    plain = {_plain(n): n for m in models for n in _names(m)}
    close = [plain[p] for p in difflib.get_close_matches(wanted, plain, n=3, cutoff=0.4)]
    near = f" The nearest: {', '.join(close)}." if close else ""
    return UnknownModelError(
        f"No model answers to {name}.{near}",
        "`autospec models` lists what was found; a path works, too.",
        known=tuple(m.name for m in models),
    )

"""A drafting from its words, as `Drafting.label` prints them: ``draft-model NAME n_max=8 p_min=0.75 + ngram-mod 24/64``.

What the words leave out has a default, so ``draft-model+ngram-simple`` is enough.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from autospec.drafting import Drafting, Mode
from autospec.errors import UsageError

__all__ = ["read_drafting"]

# A plus sign separates modes only before the name of one: a draft's file may have one in its name.
_NEXT_MODE = re.compile(rf"\s*\+\s*(?=(?:{'|'.join(sorted(Mode, key=len, reverse=True))})(?:[\s+]|$))")
_SIZES = re.compile(r"(\d+)/(\d+)")
_WHOLE = ("n_max", "n_min", "ngram_n", "ngram_m", "min_hits")
_MAP: Mapping[str, Any] = {"ngram_n": 6, "ngram_m": 24, "min_hits": 1}
_DEFAULTS: Mapping[Mode, Mapping[str, Any]] = {
    Mode.NGRAM_SIMPLE: _MAP,
    Mode.NGRAM_MAP_K: _MAP,
    Mode.NGRAM_MAP_K4V: _MAP,
    Mode.NGRAM_MOD: {"ngram_n": 16, "n_max": 32, "n_min": 0},
    Mode.PROMPT_LOOKUP: {"n_max": 8, "ngram_n": 2},
}


def read_drafting(
    text: str, *, draft: Callable[[Mode, str], str | None], model_defaults: Mapping[str, Any]
) -> Drafting:
    """Read a drafting's words.

    Args:
        text: One mode, or several with ``+`` between them, the one with a model first.
        draft: Finds the path of the draft model for a mode by the name in the text, which is empty if it has none; ``None`` where
            the mode drafts with the main model's own layers.
        model_defaults: Parameters of a mode with a model, where the text does not name them.

    Raises:
        UsageError: It is no drafting.
    """
    parts = [_read_part(part, draft, model_defaults) for part in _NEXT_MODE.split(text.strip())]
    first, *others = parts
    try:
        beside = tuple(Drafting(**other) for other in others)
        return Drafting(**first, beside=beside)
    except ValueError as error:
        raise UsageError(f"{text.strip()!r} is no drafting: {error}.", _HINT) from error


_HINT = "Write e.g. draft-model+ngram-simple, or ngram-mod 24/64, or what a table shows in its column for the drafting."


def _read_part(
    text: str, draft: Callable[[Mode, str], str | None], model_defaults: Mapping[str, Any]
) -> dict[str, Any]:
    name, *words = text.split() or [""]
    if name not in set(Mode) or name == Mode.OFF:
        modes = ", ".join(m for m in Mode if m is not Mode.OFF)
        raise UsageError(f"{name!r} is no mode of drafting.", f"The modes are {modes}.")
    mode = Mode(name)
    values: dict[str, Any] = {}
    rest = []
    for word in words:
        key, equals, value = word.partition("=")
        sizes = _SIZES.fullmatch(word)
        if sizes and mode.draft_free:
            longest = "ngram_m" if "ngram_m" in _DEFAULTS.get(mode, {}) else "n_max"
            values |= {"ngram_n": int(sizes[1]), longest: int(sizes[2])}
        elif equals and key in (*_WHOLE, "p_min", "engine"):
            values[key] = _value(key, value)
        else:
            rest.append(word)
    if mode.draft_free:
        if rest:
            raise UsageError(f"{rest[0]!r} means nothing to {mode}.", _HINT)
        return {"mode": mode, **_DEFAULTS.get(mode, {}), **values}
    path = draft(mode, " ".join(rest))
    own = {} if path is None else {"draft": path}
    return {"mode": mode, **model_defaults, **own, **values}


def _value(key: str, text: str) -> Any:
    if key == "engine":
        return text
    try:
        return int(text) if key in _WHOLE else float(text)
    except ValueError:
        raise UsageError(f"The value {text!r} of {key} is no number.", _HINT) from None

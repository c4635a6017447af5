"""Drafting: one complete choice of how to speculate, `off` included, its label, and how a label's words are read."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from pathlib import PurePath
from typing import Any

from autospec.errors import UsageError

__all__ = ["OFF", "Drafting", "Engine", "Mode", "read_drafting"]


class Mode(StrEnum):
    """How tokens are proposed. Names are llama.cpp's where it has the mode."""

    OFF = "off"
    DRAFT_MODEL = "draft-model"
    NGRAM_SIMPLE = "ngram-simple"
    NGRAM_MAP_K = "ngram-map-k"
    NGRAM_MAP_K4V = "ngram-map-k4v"
    NGRAM_MOD = "ngram-mod"
    # No backend offers it: its cache is never emptied (`autospec.backends.flags.NGRAM_CACHE_NOTE`). Stored data may name it.
    NGRAM_CACHE = "ngram-cache"
    MTP = "mtp"
    EAGLE3 = "eagle3"
    DFLASH = "dflash"
    DSPARK = "dspark"
    PROMPT_LOOKUP = "prompt-lookup"

    @property
    def draft_free(self) -> bool:
        """True if the mode proposes from the tokens alone, without a model."""
        return self in _DRAFT_FREE


class Engine(StrEnum):
    """What a server itself adapts while it drafts with a model, where its build has that. It is measured, never predicted."""

    MTP_ADAPTIVE = "mtp-adaptive"
    """llama.cpp #27210, ``draft-mtp-adaptive``: the depth follows acceptance between n_min and n_max."""
    ADAPTIVE = "adaptive"
    """Forks of llama.cpp, ``--spec-draft-adaptive``: as above, for every draft."""
    PROBABILISTIC = "probabilistic"
    """llama.cpp #27694, ``--spec-draft-sampling probabilistic``: rejection sampling. At temperature 0 it changes nothing."""
    AUTOTUNE = "autotune"
    """ik_llama.cpp, ``--spec-autotune``: it tries other numbers at every step; ours are where it begins."""


_DRAFT_FREE = frozenset(
    {
        Mode.NGRAM_SIMPLE,
        Mode.NGRAM_MAP_K,
        Mode.NGRAM_MAP_K4V,
        Mode.NGRAM_MOD,
        Mode.NGRAM_CACHE,
        Mode.PROMPT_LOOKUP,
    }
)

# The parameters of each mode. A launch sets all of them, because servers' defaults change between builds.
_MODEL_PARAMETERS = ("draft", "n_max", "n_min", "p_min", "engine")
_PARAMETERS: dict[Mode, tuple[str, ...]] = {
    Mode.OFF: (),
    Mode.DRAFT_MODEL: _MODEL_PARAMETERS,
    Mode.EAGLE3: _MODEL_PARAMETERS,
    Mode.DFLASH: _MODEL_PARAMETERS,
    Mode.DSPARK: _MODEL_PARAMETERS,
    Mode.MTP: _MODEL_PARAMETERS,
    Mode.NGRAM_SIMPLE: ("ngram_n", "ngram_m", "min_hits"),
    Mode.NGRAM_MAP_K: ("ngram_n", "ngram_m", "min_hits"),
    Mode.NGRAM_MAP_K4V: ("ngram_n", "ngram_m", "min_hits"),
    Mode.NGRAM_MOD: ("ngram_n", "n_max", "n_min"),
    Mode.NGRAM_CACHE: ("n_max", "n_min"),
    Mode.PROMPT_LOOKUP: ("n_max", "ngram_n"),
}
# MLX has no p-min or n-min.
_OPTIONAL = frozenset({"n_min", "p_min", "engine"})
_PARTS = "parts"


@dataclass(frozen=True, slots=True)
class Drafting:
    """One complete choice. Compare with ``==``; use ``key`` where a string is needed.

    Attributes:
        mode: How tokens are proposed.
        draft: Path of the draft model, for the modes that have one.
        n_max: Most tokens to propose in a cycle (draft-max).
        n_min: Fewest tokens worth verifying (draft-min).
        p_min: Lowest probability at which the draft continues to propose, 0…1.
        ngram_n: Tokens that must match before an n-gram mode proposes.
        ngram_m: Most tokens that an n-gram map proposes.
        min_hits: Occurrences of a key before an n-gram map proposes.
        beside: Draft-free draftings that propose in the same launch, in the order of `Mode`. Only a mode with a model has them.
            In each cycle the model is asked only if none of them has a proposal.
        engine: What the server itself adapts; ``None`` if it drafts as the numbers say.

    Raises:
        ValueError: A parameter is out of range, missing, or not one of this mode's; or these modes cannot draft together.
    """

    mode: Mode = Mode.OFF
    draft: str | None = None
    n_max: int | None = None
    n_min: int | None = None
    p_min: float | None = None
    ngram_n: int | None = None
    ngram_m: int | None = None
    min_hits: int | None = None
    beside: tuple[Drafting, ...] = ()
    engine: Engine | None = None

    def __post_init__(self) -> None:
        allowed = _PARAMETERS[self.mode]
        for name in _NAMES:
            value = getattr(self, name)
            if value is None:
                # MTP layers are mostly the main model's own; a file beside it is the exception.
                if name in allowed and name not in _OPTIONAL and (self.mode, name) != (Mode.MTP, "draft"):
                    raise ValueError(f"the mode {self.mode} needs {name}")
                continue
            if name not in allowed:
                raise ValueError(f"the mode {self.mode} has no {name}")
            if isinstance(value, int) and value < (0 if name == "n_min" else 1):
                raise ValueError(f"{name} must be at least {0 if name == 'n_min' else 1}, not {value}")
        if self.p_min is not None and not 0.0 <= self.p_min <= 1.0:
            raise ValueError(f"p_min must be between 0 and 1, not {self.p_min}")
        if self.n_min is not None and self.n_max is not None and self.n_min > self.n_max:
            raise ValueError(f"n_min {self.n_min} is above n_max {self.n_max}")
        self._check_engine()
        self._check_beside()

    def _check_engine(self) -> None:
        if self.engine is None:
            return
        object.__setattr__(self, "engine", Engine(self.engine))  # JSON has a text
        if self.engine is Engine.MTP_ADAPTIVE and self.mode is not Mode.MTP:
            raise ValueError(f"the mode {self.mode} has no engine {self.engine}")

    def _check_beside(self) -> None:
        if not self.beside:
            return
        if self.mode is Mode.OFF or self.mode.draft_free:
            raise ValueError(f"{self.mode} has no modes beside it; a mode with a draft model comes first")
        found = [d.mode for d in self.beside]
        if not all(d.mode.draft_free and not d.beside for d in self.beside) or len(set(found)) < len(found):
            raise ValueError(
                f"only different draft-free modes can be beside {self.mode}, not {', '.join(found)}"
            )
        # Servers have an order of their own, so the order is no difference between draftings.
        object.__setattr__(self, "beside", tuple(sorted(self.beside, key=lambda d: _ORDER[d.mode])))

    def parameters(self) -> dict[str, str | int | float]:
        """The parameters that are set, in a fixed order, without the mode and without what is beside it."""
        return {name: value for name in _NAMES if (value := getattr(self, name)) is not None}

    @property
    def parts(self) -> tuple[Drafting, ...]:
        """One drafting for each mode; a drafting of one mode is its only part."""
        return (replace(self, beside=()), *self.beside) if self.beside else (self,)

    @property
    def longest(self) -> int:
        """Most tokens that it proposes in a cycle; 0 for off."""
        return max(part.n_max or part.ngram_m or 0 for part in self.parts)

    @property
    def is_off(self) -> bool:
        """True without drafting."""
        return self.mode is Mode.OFF

    @property
    def key(self) -> str:
        """A string that is equal exactly if the draftings are; it contains the draft's whole path."""
        inner = ",".join(f"{k}={v}" for k, v in self.parameters().items())
        own = f"{self.mode}({inner})" if inner else str(self.mode)
        return "+".join([own, *(d.key for d in self.beside)])

    @property
    def label(self) -> str:
        """A short text for tables, with the draft's file name instead of its path."""
        parts = [
            PurePath(str(v)).name.removesuffix(".gguf") if k == "draft" else f"{k}={v}"
            for k, v in self.parameters().items()
            if not (k == "n_min" and v == 0)
        ]
        return " + ".join([" ".join([str(self.mode), *parts]), *(_short(d) for d in self.beside)])

    def to_json(self) -> dict[str, Any]:
        """The form in every JSON document: the mode and the parameters that are set.

        With several modes, these are the first one's, and ``parts`` lists all of them in the same form.
        """
        parts = {_PARTS: [part.to_json() for part in self.parts]} if self.beside else {}
        return {"mode": str(self.mode), **self.parameters(), **parts}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Drafting:
        """Read what `to_json` wrote.

        Raises:
            ValueError: An unknown mode or parameter, or one out of range.
            TypeError: A parameter of another type.
        """
        own = {k: v for k, v in data.items() if k != _PARTS}
        unknown = own.keys() - {"mode", *_NAMES}
        if unknown:
            raise ValueError(f"unknown drafting parameter {min(unknown)}")
        for name, value in own.items():
            if not isinstance(value, str if name in ("mode", "draft", "engine") else int | float):
                raise TypeError(f"{name} cannot be {value!r}")
        parts = data.get(_PARTS) or [own]
        if parts[0]["mode"] != own["mode"]:
            raise ValueError(f"the parts of a drafting with {own['mode']} begin with {parts[0]['mode']}")
        beside = tuple(cls.from_json(part) for part in parts[1:])
        return cls(**{**own, "mode": Mode(own["mode"]), "beside": beside})

    @classmethod
    def understood(cls, data: Any) -> Drafting | None:
        """Read what `to_json` wrote; ``None`` for a mode or parameter of another version."""
        try:
            return cls.from_json(data)
        except (ValueError, KeyError, TypeError, AttributeError):
            return None


# The parameters, in the order in which they are written.
_NAMES = tuple(f.name for f in fields(Drafting) if f.name not in ("mode", "beside"))
_ORDER = {mode: place for place, mode in enumerate(Mode)}


def _short(drafting: Drafting) -> str:
    """A draft-free drafting beside another one: ``ngram-mod 24/64``, tokens that match and tokens proposed."""
    words = [f"{drafting.mode} {drafting.ngram_n}/{drafting.longest}"]
    words += [f"n_min={drafting.n_min}"] if drafting.n_min else []
    words += [f"min_hits={drafting.min_hits}"] if (drafting.min_hits or 1) > 1 else []
    return " ".join(words)


OFF = Drafting()


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
    """Read a drafting's words, as `Drafting.label` prints them; what they leave out has a default: ``draft-model+ngram-simple``.

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
        raise UsageError(f"{text.strip()!r} is not a drafting: {error}.", _HINT) from error


_HINT = "Write e.g. draft-model+ngram-simple, or ngram-mod 24/64, or what a table shows in its column for the drafting."


def _read_part(
    text: str, draft: Callable[[Mode, str], str | None], model_defaults: Mapping[str, Any]
) -> dict[str, Any]:
    name, *words = text.split() or [""]
    if name not in set(Mode) or name == Mode.OFF:
        modes = ", ".join(m for m in Mode if m is not Mode.OFF)
        raise UsageError(f"{name!r} is not a drafting mode.", f"The modes are {modes}.")
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
            raise UsageError(f"The mode {mode} does not know {rest[0]!r}.", _HINT)
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
        raise UsageError(f"The value {text!r} of {key} is not a number.", _HINT) from None

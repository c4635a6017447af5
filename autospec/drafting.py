"""Drafting: one complete choice of how to speculate, `off` included."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import PurePath
from typing import Any

__all__ = ["OFF", "Drafting", "Mode"]


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
_MODEL_PARAMETERS = ("draft", "n_max", "n_min", "p_min")
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
_OPTIONAL = frozenset({"n_min", "p_min"})


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

    Raises:
        ValueError: A parameter is out of range, missing, or not one of this mode's.
    """

    mode: Mode = Mode.OFF
    draft: str | None = None
    n_max: int | None = None
    n_min: int | None = None
    p_min: float | None = None
    ngram_n: int | None = None
    ngram_m: int | None = None
    min_hits: int | None = None

    def __post_init__(self) -> None:
        allowed = _PARAMETERS[self.mode]
        for name, value in self.parameters().items():
            if name not in allowed:
                raise ValueError(f"the mode {self.mode} has no {name}")
            if isinstance(value, int) and value < (0 if name == "n_min" else 1):
                raise ValueError(f"{name} must be at least {0 if name == 'n_min' else 1}, not {value}")
        for name in allowed:
            # MTP layers are mostly the main model's own; a file beside it is the exception.
            if name in _OPTIONAL or (self.mode is Mode.MTP and name == "draft"):
                continue
            if getattr(self, name) is None:
                raise ValueError(f"the mode {self.mode} needs {name}")
        if self.p_min is not None and not 0.0 <= self.p_min <= 1.0:
            raise ValueError(f"p_min must be between 0 and 1, not {self.p_min}")
        if self.n_min is not None and self.n_max is not None and self.n_min > self.n_max:
            raise ValueError(f"n_min {self.n_min} is above n_max {self.n_max}")

    def parameters(self) -> dict[str, str | int | float]:
        """The parameters that are set, in a fixed order, without the mode."""
        return {
            f.name: value
            for f in fields(self)
            if f.name != "mode" and (value := getattr(self, f.name)) is not None
        }

    @property
    def is_off(self) -> bool:
        """True without drafting."""
        return self.mode is Mode.OFF

    @property
    def key(self) -> str:
        """A string that is equal exactly if the draftings are; it contains the draft's whole path."""
        inner = ",".join(f"{k}={v}" for k, v in self.parameters().items())
        return f"{self.mode}({inner})" if inner else str(self.mode)

    @property
    def label(self) -> str:
        """A short text for tables, with the draft's file name instead of its path."""
        parts = [
            PurePath(str(v)).name.removesuffix(".gguf") if k == "draft" else f"{k}={v}"
            for k, v in self.parameters().items()
            if not (k == "n_min" and v == 0)
        ]
        return " ".join([str(self.mode), *parts])

    def to_json(self) -> dict[str, Any]:
        """The form in every JSON document: the mode and the parameters that are set."""
        return {"mode": str(self.mode), **self.parameters()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Drafting:
        """Read what `to_json` wrote.

        Raises:
            ValueError: An unknown mode or parameter, or one out of range.
        """
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(data) - known)
        if unknown:
            raise ValueError(f"unknown drafting parameter {unknown[0]}")
        return cls(**{**data, "mode": Mode(data["mode"])})

    @classmethod
    def understood(cls, data: Any) -> Drafting | None:
        """Read what `to_json` wrote; ``None`` for a mode or parameter of another version."""
        try:
            return cls.from_json(data)
        except (ValueError, KeyError, TypeError, AttributeError):
            return None


OFF = Drafting()

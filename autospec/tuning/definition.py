"""Study definitions: TOML files that set what is searched, for how long, and what counts as proof."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autospec.drafting import Mode
from autospec.errors import StudyFileError, UsageError, did_you_mean
from autospec.files import studies_dir
from autospec.measure.verdict import Rule
from autospec.settings import is_temperature, parse_duration

__all__ = [
    "LimitsDefinition",
    "SpaceDefinition",
    "StudyDefinition",
    "load_definition",
    "shipped_definitions",
]


@dataclass(frozen=True, slots=True)
class SpaceDefinition:
    """What may be tried. Ranges are inclusive (low, high).

    Attributes:
        modes: Modes in the order they are tried; those that a build lacks are left out when a study starts.
        drafts: The highest number of draft models.
        n_max: Most tokens to propose.
        p_min: Least probability to go on proposing; searched in steps of 0.05.
        ngram_n: Tokens that must match.
        ngram_m: Most tokens that an n-gram map proposes.
    """

    modes: tuple[Mode, ...]
    drafts: int
    n_max: tuple[int, int]
    p_min: tuple[float, float]
    ngram_n: tuple[int, int]
    ngram_m: tuple[int, int]


@dataclass(frozen=True, slots=True)
class LimitsDefinition:
    """Where a proven drafting is checked besides.

    Attributes:
        check: Whether it is checked at all.
        slots: Most requests at once; ``None`` for as many as the server answers when it serves users.
        depth: Deepest cached context in tokens; ``None`` for 32768.
        only_temperature: Whether only the temperature that users sample with is checked.
        share: Part of the budget that is kept for the checks, 0…1; 0 leaves them the time that the proof does not need.
    """

    check: bool = False
    slots: int | None = None
    depth: int | None = None
    only_temperature: bool = False
    share: float = 0.0


@dataclass(frozen=True, slots=True)
class StudyDefinition:
    """One validated study definition.

    Attributes:
        name: Its name.
        summary: One sentence.
        max_tokens: Cap on every prompt's own max_tokens.
        temperature: Of measured requests; ``None`` leaves it to the settings.
        space: What may be tried.
        predict: Launch what predictions suggest; false searches by the sampler alone.
        sampler: ``tpe`` or ``random``.
        trials: Number of draftings to try, off not counted.
        patience: The search ends after this number of trials without a better one in any prompt type.
        prompts: Most tune prompts of each prompt type.
        seed: Seed of the sampler.
        prompts_per_round: Most prove prompts of each prompt type in one round of the proof.
        rule: The rule of the proof's verdict.
        budget_s: Longest time of the whole tune, in seconds.
        search_share: Part of the budget that the search may use, 0…1.
        limits: Where a proven drafting is checked besides.
    """

    name: str
    summary: str
    max_tokens: int
    space: SpaceDefinition
    predict: bool
    sampler: str
    trials: int
    patience: int
    prompts: int
    seed: int
    prompts_per_round: int
    rule: Rule
    budget_s: float
    search_share: float
    temperature: float | None = None
    limits: LimitsDefinition = LimitsDefinition()


# Section → key → the type it must have. Every definition has every key.
_KEYS: dict[str, dict[str, str]] = {
    "": {"name": "text", "summary": "text"},
    "measure": {"max_tokens": "count", "temperature": "temperature"},
    "space": {
        "modes": "modes",
        "drafts": "count",
        "n_max": "counts",
        "p_min": "fractions",
        "ngram_n": "counts",
        "ngram_m": "counts",
    },
    "search": {
        "predict": "flag",
        "sampler": "sampler",
        "trials": "count",
        "patience": "count",
        "prompts": "count",
        "seed": "whole",
    },
    "prove": {
        "prompts": "count",
        "threshold": "fraction",
        "worth_proving": "fraction",
        "error_rate": "error rate",
        "looks": "looks",
    },
    "limits": {
        "check": "flag",
        "slots": "count",
        "depth": "count",
        "only_temperature": "flag",
        "share": "part",
    },
    "budget": {"time": "duration", "search_share": "share"},
}
# Keys that may be left out: they are new, or their absence leaves the choice to autospec.
_DEFAULTS: dict[str, Any] = {
    "measure.temperature": None,
    "search.predict": True,
    "prove.prompts": 8,
    "limits.check": False,
    "limits.slots": None,
    "limits.depth": None,
    "limits.only_temperature": False,
    "limits.share": 0.0,
}
_SAMPLERS = ("tpe", "random")
_EXPECTED = {
    "text": "a text",
    "flag": "true or false",
    "whole": "a whole number",
    "count": "a whole number of at least 1",
    "fraction": "a number between 0 and 1",
    "share": "a number above 0, up to 1",
    "part": "a number from 0 to below 1",
    "error rate": "a number from 0.000001 to 0.5, e.g. 0.01",
    "temperature": "a number from 0 to 2",
    "counts": "two whole numbers, [low, high]",
    "fractions": "two numbers between 0 and 1, [low, high]",
    "looks": "increasing whole numbers, e.g. [1, 2, 4]",
    "modes": f"a list of modes: {', '.join(m for m in Mode if m is not Mode.OFF)}",
    "sampler": " or ".join(_SAMPLERS),
    "duration": 'a duration in quotes, such as "20m"',
}


def shipped_definitions() -> tuple[str, ...]:
    """Names of the study definitions that come with autospec."""
    return tuple(sorted(p.stem for p in studies_dir().glob("*.toml") if _is_definition(p)))


def load_definition(name_or_file: str) -> StudyDefinition:
    """Read a shipped definition by name, or a user's by path.

    Raises:
        StudyFileError: There is no such definition, or it is malformed; the message names the key.
    """
    path = Path(name_or_file)
    if path.suffix != ".toml" and path.name == name_or_file:
        path = studies_dir() / f"{name_or_file}.toml"
        if not path.exists():
            raise StudyFileError(
                f"There is no study definition named {name_or_file}.",
                f"Known definitions: {', '.join(shipped_definitions())}. Give your own file with its .toml suffix.",
            )
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StudyFileError(
            f"The study file {path} cannot be read: {error.strerror}.",
            f"Give the path of a TOML file, or one of these names: {', '.join(shipped_definitions())}.",
        ) from error
    except (ValueError, RecursionError) as error:  # of the text, of a number's digits, of nesting
        raise StudyFileError(f"The study file {path} is not TOML: {error}.") from error
    return _definition(data, str(path))


def _is_definition(path: Path) -> bool:
    # Records such as m2-ultra-2025-12-13.toml are in the same folder; only definitions have a [space] section.
    return "[space]" in path.read_text(encoding="utf-8")


def _definition(data: Mapping[str, Any], where: str) -> StudyDefinition:
    top = {k: v for k, v in data.items() if not isinstance(v, dict)}
    sections: dict[str, Any] = {"": top} | {k: v for k, v in data.items() if isinstance(v, dict)}
    for section in sections:
        if section not in _KEYS:
            hint = did_you_mean(section, _KEYS)
            raise StudyFileError(f"{where}: there is no section [{section}].", hint)
    values: dict[str, Any] = {}
    for section, keys in _KEYS.items():
        given = sections.get(section, {})
        for key in given:
            if key not in keys:
                raise StudyFileError(f"{where}: [{section}] has no key {key}.", did_you_mean(key, keys))
        for key, kind in keys.items():
            full = f"{section}.{key}".lstrip(".")
            if key not in given and full in _DEFAULTS:
                values[full] = _DEFAULTS[full]
                continue
            if key not in given:
                raise StudyFileError(
                    f"{where}: {full} is missing.", "See studies/default.toml for every key."
                )
            try:
                values[full] = _checked(given[key], kind)
            except (ValueError, TypeError, OverflowError, UsageError) as error:
                raise StudyFileError(
                    f"{where}: {full} must be {_EXPECTED[kind]}, not {given[key]!r}."
                ) from error
    space = SpaceDefinition(**{key: values[f"space.{key}"] for key in _KEYS["space"]})
    return StudyDefinition(
        name=values["name"],
        summary=values["summary"],
        max_tokens=values["measure.max_tokens"],
        space=space,
        predict=values["search.predict"],
        sampler=values["search.sampler"],
        trials=values["search.trials"],
        patience=values["search.patience"],
        prompts=values["search.prompts"],
        seed=values["search.seed"],
        prompts_per_round=values["prove.prompts"],
        rule=Rule(**{key: values[f"prove.{key}"] for key in _KEYS["prove"] if key != "prompts"}),
        budget_s=values["budget.time"],
        search_share=values["budget.search_share"],
        temperature=values["measure.temperature"],
        limits=LimitsDefinition(**{key: values[f"limits.{key}"] for key in _KEYS["limits"]}),
    )


def _checked(value: Any, kind: str) -> Any:
    match kind:
        case "text" | "flag":
            return _require(value, isinstance(value, str if kind == "text" else bool))
        case "sampler":
            return _require(value, value in _SAMPLERS)
        case "duration":
            # A number has no unit: 15 may be meant as seconds or as minutes.
            return parse_duration(_require(value, isinstance(value, str)))
        case "modes":
            modes = tuple(Mode(v) for v in value)
            return _require(modes, bool(modes) and Mode.OFF not in modes)
        case "whole":
            return _require(value, _whole(value))
        case "count":
            return _require(value, _whole(value) and value >= 1)
        case _ if kind in _NUMBERS:
            return float(_require(value, _NUMBERS[kind](value)))
        case "counts":
            low, high = value
            return _require((low, high), _whole(low) and _whole(high) and 1 <= low <= high)
        case "fractions":
            low, high = value
            return _require((float(low), float(high)), _fraction(low) and _fraction(high) and low <= high)
        case _:
            looks = tuple(value)
            increasing = all(_whole(v) for v in looks) and list(looks) == sorted(set(looks))
            return _require(looks, bool(looks) and increasing and looks[0] >= 1)


def _require(value: Any, holds: bool) -> Any:
    if not holds:
        raise ValueError(value)
    return value


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _between(least: float, most: float) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most
    )


_fraction = _between(0.0, 1.0)
_NUMBERS: dict[str, Callable[[Any], bool]] = {
    "temperature": is_temperature,
    "fraction": _fraction,
    # Above one half a verdict would be worse than chance, and below the least rate no number of pairs decides.
    "error rate": _between(1e-6, 0.5),
    # Without time for the search nothing is found that could be proved.
    "share": lambda value: _fraction(value) and value > 0,
    # With all of the budget kept, no time is left for search and proof.
    "part": lambda value: _fraction(value) and value < 1,
}

"""Values of settings: what a user may write for each kind, and the form in which `Settings` holds it."""

from __future__ import annotations

import math
import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Final

from autospec.errors import SettingsError, UsageError
from autospec.settings.keys import Key

__all__ = ["checked", "from_text", "parse_duration", "parse_hours"]

_EXPECTED: Final = {
    "text": "a string",
    "name": "a name or a path",
    "file": "a path",
    "path": "a path",
    "paths": "a list of paths",
    "words": 'a list of strings, e.g. ["-ngl", "99"]',
    "command": "a command line or a list of words",
    "duration": 'a duration such as "90s", "20m" or "1h30m"',
    "number": "a number of at least 0",
    "count": "a whole number of at least 1",
    "flag": "true or false",
    "hours": 'hours of the day such as "22:00-07:00"; several with commas',
    "trust": '"proven" or "likely"',
}
_TRUST: Final = ("proven", "likely")
_FLAGS: Final = {"1": True, "true": True, "yes": True, "on": True} | dict.fromkeys(
    ("0", "false", "no", "off"), False
)


def parse_duration(text: str) -> float:
    """Seconds in a duration such as ``90s``, ``20m``, ``1h30m`` or ``1.5h``.

    Raises:
        UsageError: It is not a duration, or not a positive one.
    """
    units = {"h": 3600.0, "m": 60.0, "s": 1.0}
    compact = text.replace(" ", "").lower()
    parts = re.findall(r"(\d+(?:\.\d+)?)([hms])", compact)
    seconds = sum(float(number) * units[unit] for number, unit in parts)
    order = [unit for _, unit in parts]
    complete = "".join(number + unit for number, unit in parts) == compact
    if not complete or len(set(order)) != len(order) or order != sorted(order, key="hms".index):
        raise UsageError(
            f"{text!r} is not a duration.", "Write hours, minutes and seconds, e.g. 90s, 20m or 1h30m."
        )
    if not 0 < seconds < math.inf:
        raise UsageError(f"A duration must be longer than nothing, not {text!r}.", "Write e.g. 20m.")
    return seconds


def parse_hours(text: str) -> tuple[tuple[int, int], ...]:
    """Minutes of the day at which stretches such as ``22:00-07:00, 12:00-13:00`` begin and end; none for an empty text.

    Raises:
        UsageError: It is none.
    """
    stretches = []
    for part in filter(None, text.replace(" ", "").split(",")):
        found = re.fullmatch(r"(\d{1,2}):(\d{2})-(\d{1,2}):(\d{2})", part)
        hour, minute, to_hour, to_minute = map(int, found.groups()) if found else (99, 0, 0, 0)
        begin, end = 60 * hour + minute, 60 * to_hour + to_minute
        if max(minute, to_minute) > 59 or max(begin, end) > 24 * 60 or begin == end:
            raise UsageError(f"{part!r} is no stretch of hours.", "Write e.g. 22:00-07:00.")
        stretches.append((begin, end))
    return tuple(stretches)


def checked(key: Key, value: object, base: Path, where: str) -> object:
    """The value in the form `Settings` holds it, paths resolved against `base`.

    Raises:
        SettingsError: It is not of the key's kind; `where` says which value that is.
    """
    try:
        return _FORMS[key.kind](value, base)
    except (TypeError, ValueError, UsageError):
        raise _wrong(key, where, value) from None


def from_text(key: Key, text: str, base: Path, where: str) -> object:
    """The same of a value that is text, as everything in the environment is.

    Raises:
        SettingsError: As `checked`.
    """
    try:
        value = _parsed(key.kind, text)
    except (ValueError, KeyError):
        raise _wrong(key, where, text) from None
    return checked(key, value, base, where)


def _parsed(kind: str, text: str) -> object:
    match kind:
        case "paths":
            return [part for part in text.split(os.pathsep) if part]
        case "words":
            return shlex.split(text)
        case "number":
            return float(text)
        case "count":
            return int(text)
        case "flag":
            return _FLAGS[text.strip().lower()]
        case _:
            return text


def _wrong(key: Key, where: str, value: object) -> SettingsError:
    return SettingsError(f"{where} must be {_EXPECTED[key.kind]}, not {value!r}.", key.doc)


def _text(value: object, _base: Path) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _name(value: object, base: Path) -> str:
    # A bare name is looked up where such things are; anything with a slash is a file.
    name = _text(value, base)
    return str(_path(name, base)) if os.sep in name or name.endswith(".toml") else name


def _file(value: object, base: Path) -> str:
    return str(_path(value, base)) if value else _text(value, base)


def _path(value: object, base: Path) -> Path:
    if not isinstance(value, str | Path) or not str(value):
        raise TypeError
    try:
        return base.absolute() / Path(value).expanduser()
    except RuntimeError:  # ~name of somebody who has no home here
        return base.absolute() / value


def _paths(value: object, base: Path) -> tuple[Path, ...]:
    if not isinstance(value, list | tuple):
        raise TypeError
    return tuple(_path(item, base) for item in value)


def _words(value: object, base: Path) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise TypeError
    return tuple(_text(item, base) for item in value)


def _command(value: object, base: Path) -> tuple[str, ...]:
    # Split as a shell would, and run without one: $, | and > mean nothing unless the user writes `sh -c "…"`.
    words = _words(shlex.split(value) if isinstance(value, str) else value, base)
    if not words or os.sep not in words[0]:
        return words
    return str(_path(words[0], base)), *words[1:]


def _duration(value: object, base: Path) -> str:
    text = _text(value, base)
    if text:
        parse_duration(text)
    return text


def _hours(value: object, base: Path) -> str:
    text = _text(value, base)
    parse_hours(text)
    return text


def _number(value: object, _base: Path) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError
    if not 0 <= value < math.inf:
        raise ValueError
    return float(value)


def _count(value: object, _base: Path) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError
    if value < 1:
        raise ValueError
    return value


def _flag(value: object, _base: Path) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _trust(value: object, base: Path) -> str:
    word = _text(value, base)
    if word not in _TRUST:
        raise ValueError
    return word


_FORMS: Final[dict[str, Callable[[object, Path], object]]] = {
    "text": _text,
    "name": _name,
    "file": _file,
    "path": _path,
    "paths": _paths,
    "words": _words,
    "command": _command,
    "duration": _duration,
    "number": _number,
    "count": _count,
    "flag": _flag,
    "hours": _hours,
    "trust": _trust,
}

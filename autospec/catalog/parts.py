"""The names of split GGUF files: ``NAME-00001-of-00003.gguf``. Pure, and free of the `gguf` package."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

__all__ = ["is_first_or_whole", "model_name", "part_paths", "split_key"]

_SPLIT: Final = re.compile(
    r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<parts>\d{5})(?P<suffix>\.gguf)", re.IGNORECASE
)


def part_paths(path: Path) -> tuple[Path, ...]:
    """The files that belong to a GGUF file by its name: itself, or every part of a split model.

    Args:
        path: Any part, or a file that is whole.
    """
    match = _SPLIT.fullmatch(path.name)
    if match is None:
        return (path,)
    stem, count, suffix = match["stem"], int(match["parts"]), match["suffix"]
    return tuple(path.with_name(f"{stem}-{i:05d}-of-{count:05d}{suffix}") for i in range(1, count + 1))


def model_name(path: Path) -> str:
    """The catalogue name of a GGUF file: its stem, without the part of a split."""
    match = _SPLIT.fullmatch(path.name)
    return match["stem"] if match else path.stem


def split_key(name: str) -> tuple[str, int] | None:
    """What all parts of one split model share: the stem and the number of parts; ``None`` if it is whole."""
    match = _SPLIT.fullmatch(name)
    return (match["stem"], int(match["parts"])) if match else None


def is_first_or_whole(name: str) -> bool:
    """True for a file that a model is loaded by."""
    match = _SPLIT.fullmatch(name)
    return match is None or int(match["part"]) == 1

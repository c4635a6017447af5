"""The cell: what a recommendation is for.

A cell is (main model, prompt type, backend and build, hardware, launch settings, aim). Every measurement belongs to one cell, and
says nothing about others.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any

__all__ = ["Aim", "Build", "Cell", "Hardware", "ModelRef", "PromptType", "options_in", "values_of"]

# A flag begins with a letter: -1 is a value.
_FLAG = re.compile(r"--?[A-Za-z][\w.-]*")


class Aim(StrEnum):
    """What a verdict compares: the time of requests, or the joules that they take."""

    SPEED = "speed"
    ENERGY = "energy"


class PromptType(StrEnum):
    """The kind of work. Names and meanings follow SPEED-Bench where it has the category."""

    CODING = "coding"
    EDITING = "editing"
    EXTRACTION = "extraction"
    MATH = "math"
    REASONING = "reasoning"
    QA = "qa"
    RAG = "rag"
    SUMMARIZATION = "summarization"
    TRANSLATION = "translation"
    WRITING = "writing"
    CHAT = "chat"
    AGENTIC = "agentic"


@dataclass(frozen=True, slots=True)
class Hardware:
    """The kind of machine, independent of its current state.

    Attributes:
        id: Stable name that equal machines share, e.g. ``apple-m2-ultra-64g-1a2b3c``.
        chip: The processor's own name.
        memory_bytes: Installed memory.
        cores: Logical cores that this process may use.
        os: ``macos`` or ``linux``, with version.
        gpu: Name of the accelerator that the backends use, or empty.
    """

    id: str
    chip: str
    memory_bytes: int
    cores: int = 0
    os: str = ""
    gpu: str = ""

    def to_json(self) -> dict[str, Any]:
        """All fields; ``id``, ``chip`` and ``memory_bytes`` are part of the documented format."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Hardware:
        """Read what `to_json` wrote; fields of later versions are ignored."""
        names = cls.__dataclass_fields__
        return cls(**{k: v for k, v in data.items() if k in names})


@dataclass(frozen=True, slots=True)
class Build:
    """The build of a backend. `fingerprint` hashes the binary or package, because all source builds are called ``build 0``."""

    backend: str
    version: str
    fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class ModelRef:
    """The main model of a cell: name, path (first part of a split file), and a fingerprint that is the same under every path."""

    name: str
    path: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Cell:
    """The unit that a study searches and a recommendation is for.

    Attributes:
        model: The main model.
        prompt_type: The kind of work.
        build: Backend and build.
        hardware: The machine.
        settings: The user's launch settings as server arguments, in their order.
        aim: What its verdict compares. Measurements, looks and verdicts of two aims are kept apart.
    """

    model: ModelRef
    prompt_type: PromptType
    build: Build
    hardware: Hardware
    settings: tuple[str, ...] = ()
    aim: Aim = Aim.SPEED

    @property
    def key(self) -> str:
        """Twelve hex digits that identify the cell."""
        return _digest(self, str(self.prompt_type))

    @property
    def launch_key(self) -> str:
        """Twelve hex digits that the cells of all prompt types share, because they use the same launches."""
        return _digest(self, "")

    @property
    def study_name(self) -> str:
        """The Optuna study's name: readable, and unique by the key at its end."""
        build = f"{self.build.backend} {self.build.version}"
        aim = "" if self.aim is Aim.SPEED else f" | {self.aim}"
        return f"{self.model.name} | {self.prompt_type} | {build} | {self.hardware.id}{aim} | {self.key}"


@lru_cache(maxsize=1024)  # asked for each drafting of a grid
def _digest(cell: Cell, prompt_type: str) -> str:
    parts = [
        cell.model.fingerprint,
        prompt_type,
        cell.build.backend,
        cell.build.version,
        cell.build.fingerprint,
        cell.hardware.id,
        list(cell.settings),
    ]
    if cell.aim is not Aim.SPEED:
        parts.append(str(cell.aim))  # keys from before there were aims stay
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def options_in(args: Sequence[str]) -> list[tuple[str, tuple[str, ...]]]:
    """The options in a server's arguments: each flag as typed, with the words up to the next flag.

    ``--flag=value`` is the same as ``--flag value``. Words before the first flag have the flag "".
    """
    options: list[tuple[str, tuple[str, ...]]] = []
    for word in args:
        name, joined, value = word.partition("=") if word.startswith("--") else (word, "", "")
        if _FLAG.fullmatch(name):
            options.append((name, (value,) if joined else ()))
        else:
            flag, values = options.pop() if options else ("", ())
            options.append((flag, (*values, word)))
    return options


def values_of(args: Sequence[str], flags: Collection[str]) -> list[str]:
    """The value of each option that has one of these flags, in their order; options without a value are left out."""
    return [values[0] for flag, values in options_in(args) if flag in flags and values]

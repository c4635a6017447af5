"""The classifier's word lists, read from `keywords.toml` when they are first needed."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from autospec.cells import PromptType

__all__ = ["Cues", "Keywords", "keywords"]


@dataclass(frozen=True, slots=True)
class Cues:
    """The cues of one prompt type, by strength."""

    strong: tuple[str, ...] = ()
    plain: tuple[str, ...] = ()
    weak: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Keywords:
    """All word lists; `keywords.toml` says how each is written and matched."""

    cues: Mapping[PromptType, Cues]
    greetings: frozenset[str]
    question_words: frozenset[str]
    negations: frozenset[str]
    source_marks: tuple[str, ...]
    code_marks: tuple[str, ...]
    fim_marks: tuple[str, ...]
    tool_phrases: tuple[str, ...]


@cache
def keywords() -> Keywords:
    """The word lists; the first call reads the file."""
    data = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
    return Keywords(
        cues={
            PromptType(kind): Cues(**{strength: tuple(cues) for strength, cues in listed.items()})
            for kind, listed in data["cues"].items()
        },
        greetings=frozenset(data["greetings"]),
        question_words=frozenset(data["question_words"]),
        negations=frozenset(data["negations"]),
        source_marks=tuple(data["source_marks"]),
        code_marks=tuple(data["code_marks"]),
        fim_marks=tuple(data["fim_marks"]),
        tool_phrases=tuple(data["tool_phrases"]),
    )
